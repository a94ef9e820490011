//! How QEMU reads its arguments: which of them are options, which are values, and what a value's
//! members are.
//!
//! An option that takes an argument swallows the next one whatever it looks like, so
//! `-append "-qmp unix:/x"` opens no monitor. QEMU has few options without an argument, and they
//! change seldom, so those are the ones listed; an unknown option (Proxmox's `-id`, say) is taken
//! to have an argument, as nearly all have.
//!
//! A command line belongs to the user that started the process, which may be hostile: every function here
//! is total, and what comes out is not much larger than what went in.

use serde_json::Value;

/// Options without an argument, of every QEMU from 2.x on.
const FLAGS: &[&str] = &[
    "S",
    "alt-grab",
    "async-teardown",
    "audio-help",
    "ctrl-grab",
    "curses",
    "daemonize",
    "enable-fips",
    "enable-hax",
    "enable-kvm",
    "enable-sync-profile",
    "full-screen",
    "h",
    "help",
    "localtime",
    "mem-prealloc",
    "no-acpi",
    "no-fd-bootchk",
    "no-frame",
    "no-hpet",
    "no-kvm",
    "no-kvm-irqchip",
    "no-kvm-pit",
    "no-kvm-pit-reinjection",
    "no-quit",
    "no-reboot",
    "no-shutdown",
    "no-user-config",
    "nodefaults",
    "nodefconfig",
    "nographic",
    "nouserconfig",
    "old-param",
    "one-insn-per-tb",
    "only-migratable",
    "portrait",
    "preconfig",
    "rtc-td-hack",
    "s",
    "sdl",
    "semihosting",
    "show-cursor",
    "singlestep",
    "snapshot",
    "tdf",
    "usb",
    "version",
    "win2k-hack",
    "xen-attach",
    "xen-create",
    "xen-domid-restrict",
];

/// Members of a JSON value beyond this many are dropped; libvirt's largest has about forty.
const JSON_MEMBERS: usize = 1024;
/// Nesting of a JSON value below which nothing is read; libvirt's deepest has four levels.
const JSON_DEPTH: usize = 8;
/// A longer key is none of QEMU's. Without a limit, joined keys could grow quadratically.
const JSON_KEY_BYTES: usize = 64;

/// One option as QEMU understands it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CommandOption {
    /// Without dashes. A positional argument, which is a disk image, is called `hda`.
    pub(super) name: String,
    /// `None` for an option without an argument, or one whose argument is missing.
    pub(super) value: Option<String>,
}

/// Splits the contents of `/proc/PID/cmdline` into arguments. Bytes that are no UTF-8 become
/// U+FFFD.
pub(super) fn split_arguments(cmdline: &[u8]) -> Vec<String> {
    let cmdline = cmdline.strip_suffix(b"\0").unwrap_or(cmdline);
    if cmdline.is_empty() {
        return Vec::new();
    }
    cmdline
        .split(|&byte| byte == 0)
        .map(|argument| String::from_utf8_lossy(argument).into_owned())
        .collect()
}

/// The options in `arguments`, which do not include the program's own name.
pub(super) fn options(arguments: &[String]) -> Vec<CommandOption> {
    let mut found = Vec::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let Some(name) = argument.strip_prefix('-') else {
            found.push(CommandOption { name: "hda".to_owned(), value: Some(argument.clone()) });
            continue;
        };
        let name = name.strip_prefix('-').unwrap_or(name);
        let value = if FLAGS.contains(&name) { None } else { rest.next().cloned() };
        found.push(CommandOption { name: name.to_owned(), value });
    }
    found
}

/// The members of one option's value, in their order; nested JSON members have dotted keys
/// (`file.filename`), as in QEMU's own short form.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Members {
    pairs: Vec<(String, String)>,
    /// Whether the value was JSON, where some defaults differ.
    pub(super) is_json: bool,
}

impl Members {
    /// Reads `value`, either JSON or QEMU's `first,key=value,flag,noflag` with `,,` for a comma.
    /// `implied` is the key of a first member that has none. JSON that does not parse has no
    /// members.
    pub(super) fn parse(value: &str, implied: Option<&str>) -> Self {
        if value.starts_with('{') {
            return Self::parse_json(value);
        }
        let mut pairs = Vec::new();
        let mut implied = implied;
        let mut rest = value;
        while !rest.is_empty() {
            let key_end = rest.find(['=', ',']).unwrap_or(rest.len());
            if rest[key_end..].starts_with('=') {
                let (member, after) = take_value(&rest[key_end + 1..]);
                pairs.push((rest[..key_end].to_owned(), member));
                rest = after;
            } else if let Some(key) = implied {
                let (member, after) = take_value(rest);
                pairs.push((key.to_owned(), member));
                rest = after;
            } else {
                let flag = &rest[..key_end];
                pairs.push(match flag.strip_prefix("no") {
                    Some(denied) => (denied.to_owned(), "off".to_owned()),
                    None => (flag.to_owned(), "on".to_owned()),
                });
                rest = rest[key_end..].strip_prefix(',').unwrap_or("");
            }
            implied = None;
        }
        Self { pairs, is_json: false }
    }

    /// Reads a JSON object; anything else has no members.
    pub(super) fn parse_json(text: &str) -> Self {
        let mut members = Self { pairs: Vec::new(), is_json: true };
        if let Ok(value @ Value::Object(_)) = serde_json::from_str(text) {
            members.flatten("", &value, 0);
        }
        members
    }

    fn flatten(&mut self, key: &str, value: &Value, depth: usize) {
        if self.pairs.len() >= JSON_MEMBERS || depth > JSON_DEPTH {
            return;
        }
        let join = |inner: &str| {
            if key.is_empty() { inner.to_owned() } else { format!("{key}.{inner}") }
        };
        let text = match value {
            Value::Object(object) => {
                for (inner, value) in object.iter().filter(|(key, _)| key.len() <= JSON_KEY_BYTES) {
                    self.flatten(&join(inner), value, depth + 1);
                }
                return;
            }
            Value::Array(array) => {
                for (index, value) in array.iter().enumerate().take(JSON_MEMBERS) {
                    self.flatten(&join(&index.to_string()), value, depth + 1);
                }
                return;
            }
            Value::Null => return,
            Value::Bool(true) => "on".to_owned(),
            Value::Bool(false) => "off".to_owned(),
            Value::Number(number) => number.to_string(),
            Value::String(text) => text.clone(),
        };
        self.pairs.push((key.to_owned(), text));
    }

    /// The value of `key`; of several the last, which is the one that QEMU uses.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The value of the first of `keys` that is there: the spellings of one member in the several
    /// forms that QEMU takes.
    pub(super) fn get_any(&self, keys: &[&str]) -> Option<&str> {
        keys.iter().find_map(|key| self.get(key))
    }

    /// A switch in any of QEMU's spellings; `None` if it is missing or none of them.
    pub(super) fn switch(&self, key: &str) -> Option<bool> {
        match self.get(key)? {
            "on" | "yes" | "true" | "y" => Some(true),
            "off" | "no" | "false" | "n" => Some(false),
            _ => None,
        }
    }

    /// Adds the members of a later option that QEMU merges with this one (`-machine`, `-smp`).
    pub(super) fn merge(&mut self, later: Self) {
        self.pairs.extend(later.pairs);
    }
}

/// A value up to the next single comma, unescaped, and what follows that comma.
fn take_value(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut rest = text;
    loop {
        let Some(comma) = rest.find(',') else {
            value.push_str(rest);
            return (value, "");
        };
        value.push_str(&rest[..comma]);
        rest = &rest[comma + 1..];
        match rest.strip_prefix(',') {
            Some(after) => {
                value.push(',');
                rest = after;
            }
            None => return (value, rest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{CommandOption, Members, options, split_arguments};

    fn read(line: &[&str]) -> Vec<(String, Option<String>)> {
        let arguments: Vec<String> = line.iter().map(|&argument| argument.to_owned()).collect();
        options(&arguments).into_iter().map(|CommandOption { name, value }| (name, value)).collect()
    }

    fn pair(name: &str, value: Option<&str>) -> (String, Option<String>) {
        (name.to_owned(), value.map(str::to_owned))
    }

    #[test]
    fn an_empty_argument_is_kept_and_the_closing_nul_is_none() {
        assert_eq!(split_arguments(b"qemu\0-append\0\0-S\0"), ["qemu", "-append", "", "-S"]);
        assert!(split_arguments(b"").is_empty());
    }

    #[test]
    fn a_value_that_looks_like_an_option_is_a_value() {
        assert_eq!(
            read(&["-append", "-qmp", "--S", "-kernel", "-enable-kvm"]),
            [pair("append", Some("-qmp")), pair("S", None), pair("kernel", Some("-enable-kvm"))]
        );
    }

    #[test]
    fn a_positional_argument_is_a_disk_and_a_missing_value_is_none() {
        assert_eq!(
            read(&["disk.img", "-usb", "-m"]),
            [pair("hda", Some("disk.img")), pair("usb", None), pair("m", None)]
        );
    }

    #[test]
    fn two_commas_are_one_and_flags_are_switches() {
        let members = Members::parse("a,,b=c,server,nowait,path=/x,,y,", Some("guest"));
        assert_eq!(members.get("guest"), Some("a,b=c"));
        assert_eq!(members.switch("server"), Some(true));
        assert_eq!(members.switch("wait"), Some(false));
        assert_eq!(members.get("path"), Some("/x,y"));
    }

    #[test]
    fn the_last_of_several_values_counts() {
        assert_eq!(Members::parse("x=1,x=2", None).get("x"), Some("2"));
    }

    #[test]
    fn nested_json_has_dotted_keys() {
        let members =
            Members::parse(r#"{"driver":"raw","file":{"n":3,"on":true},"l":["a"]}"#, None);
        assert_eq!(members.get("driver"), Some("raw"));
        assert_eq!(members.get("file.n"), Some("3"));
        assert_eq!(members.switch("file.on"), Some(true));
        assert_eq!(members.get("l.0"), Some("a"));
    }

    #[test]
    fn hostile_json_stays_small() {
        let deep = format!("{}1{}", r#"{"a":"#.repeat(100), "}".repeat(100));
        assert_eq!(Members::parse(&deep, None).pairs, []);
        let endless = "{".repeat(1 << 20);
        assert_eq!(Members::parse(&endless, None).pairs, []);
        let wide = format!("{{\"l\":[{}1]}}", "1,".repeat(100_000));
        assert_eq!(Members::parse(&wide, None).pairs.len(), super::JSON_MEMBERS);
        let long_key = format!("{{\"{}\":1,\"b\":2}}", "k".repeat(1000));
        assert_eq!(Members::parse(&long_key, None).pairs.len(), 1);
    }
}
