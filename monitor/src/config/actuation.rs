//! By which means a VM is restarted, and how its QEMU is spoken to.
//!
//! Apart from [`Policy`](super::Policy), which the verdict and its recordings are about: none of this changes what a
//! VM is convicted of.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use toml::{Spanned, de::DeValue};

use super::detection::MAX_RESTARTS;
use super::discovery::UsersOfRule;
use super::keys::{Layers, keys};
use super::values::{Count, MINUTE, Optional, Problem, Rule, SECOND, Within, any, typed};
use crate::words::words;

/// Most words of a command, and bytes of each: what `execve` takes is far more.
const WORDS: usize = 64;
const WORD_BYTES: usize = 4096;

words! {
    /// What restarts a VM.
    #[derive(Deserialize)]
    #[serde(rename_all = "lowercase")]
    pub(crate) enum Actuator {
        /// What its owner has for that: see `recovery::actuator`.
        Auto = "auto",
        /// QMP commands to the QEMU itself, whatever started it.
        Qmp = "qmp",
        /// `virsh`.
        Libvirt = "libvirt",
        /// `qm`.
        Proxmox = "proxmox",
        /// `systemctl`.
        Systemd = "systemd",
        /// The configured command.
        Command = "command",
        /// Nothing.
        None = "none",
    }
}

/// How a QEMU is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum QmpTransport {
    /// As fits its owner: brief for Proxmox VE and Ganeti, through libvirt for its domains, else kept.
    Auto,
    /// One connection, kept open, by which events are heard.
    Keep,
    /// A connection for each batch of commands; the socket is free between them, and events are not heard.
    Brief,
}

/// The user that the configured command runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CommandUser {
    /// The one that flatline runs as.
    Root,
    /// The one that the QEMU ran as, with its groups.
    Vm,
}

keys! {
    /// How one VM is restarted and spoken to.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct ActuatorConfig {
        /// only VMs that run as this user, or one of these; `command` needs it, unless its VM is root's or its owner is certain
        vm.user: Vec<u32> = none like "alice", UsersOfRule;
        /// what restarts a VM: its owner's means; or "qmp", "libvirt", "proxmox", "systemd", "command", "none"
        recovery.actuator: Actuator = "auto", any::<Actuator>();
        /// such as ["/usr/local/sbin/again", "--now"]: no shell; for "command", and for owners that "auto" has nothing for
        recovery.command: Vec<String> = [], MaybeCommand;
        /// or "vm": it runs as the user of the QEMU that it is about
        recovery.command_user: CommandUser = "root", any::<CommandUser>();
        /// any program that restarts or starts a VM is killed after that
        recovery.command_limit: Duration = "60s", Within(SECOND..=10 * MINUTE);
        /// or so many restarts that brought no life, after which its owner (or `command`) ends its QEMU and starts it again; 0: it
        /// is reset again
        recovery.power_cycle_after: u32 = 0, Count(0..=MAX_RESTARTS);
        /// or true: a QEMU that ended without being asked to is started by its owner
        recovery.start_exited: bool = false, any::<bool>();
        /// "keep" one connection, or "brief" ones; auto as fits the owner
        recovery.qmp: QmpTransport = "auto", any::<QmpTransport>();
        /// where auto doesn't know: a user's own libvirt
        recovery.libvirt_uri: Option<String> = none like "qemu:///system", Optional(LibvirtUri);
    }
}

impl ActuatorConfig {
    /// That there is a command where one is to be run.
    pub(super) fn check(&self, layers: &Layers<'_>) -> Result<(), Problem> {
        let keys = [("recovery", "actuator"), ("recovery", "command")];
        match layers.place_of(&keys) {
            Some(offset) if self.actuator == Actuator::Command && self.command.is_empty() => {
                let message = "there is no recovery.command that could be run".to_owned();
                Err(Problem { offset, message })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
impl Default for ActuatorConfig {
    fn default() -> Self {
        super::Config::parse("", "").expect("defaults").actuation
    }
}

/// A program with an absolute path, and its arguments.
pub(super) struct Command;

impl Rule for Command {
    type Value = Vec<String>;

    fn read(&self, value: Spanned<DeValue<'_>>) -> Result<Vec<String>, Problem> {
        words(&typed(value)?)
    }

    fn allowed(&self) -> String {
        "a program's absolute path and its arguments".to_owned()
    }
}

/// The same, or nothing: a rule's VMs can do without the host's.
struct MaybeCommand;

impl Rule for MaybeCommand {
    type Value = Vec<String>;

    fn read(&self, value: Spanned<DeValue<'_>>) -> Result<Vec<String>, Problem> {
        match typed::<Vec<Spanned<String>>>(value)? {
            none if none.get_ref().is_empty() => Ok(Vec::new()),
            command => words(&command),
        }
    }

    fn allowed(&self) -> String {
        format!("{}, or empty", Command.allowed())
    }
}

/// A command: a program with an absolute path, and its arguments.
fn words(given: &Spanned<Vec<Spanned<String>>>) -> Result<Vec<String>, Problem> {
    let Some(program) = given.get_ref().first() else {
        return Err(Problem::at(given, "is empty: a program and its arguments are wanted"));
    };
    if !Path::new(program.get_ref()).is_absolute() {
        let message = "must begin with a program's absolute path; no shell takes part";
        return Err(Problem::at(program, message));
    }
    if given.get_ref().len() > WORDS {
        return Err(Problem::at(given, format!("has more than {WORDS} words")));
    }
    let word = |word: &Spanned<String>| {
        let text = word.get_ref();
        if text.contains('\0') || text.len() > WORD_BYTES {
            let message = format!("has a null character, or more than {WORD_BYTES} bytes");
            return Err(Problem::at(word, message));
        }
        Ok(text.clone())
    };
    given.get_ref().iter().map(word).collect()
}

/// A connection URI of libvirt's QEMU driver on this host.
struct LibvirtUri;

impl Rule for LibvirtUri {
    type Value = String;

    fn read(&self, value: Spanned<DeValue<'_>>) -> Result<String, Problem> {
        let given = typed::<String>(value)?;
        let text = given.get_ref();
        let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic()) && text.len() <= WORD_BYTES;
        // Another host's QEMUs are none of those that are found here.
        let is_local = ["qemu:///", "qemu+unix:///"].iter().any(|begin| text.starts_with(begin));
        if is_plain && is_local {
            Ok(given.into_inner())
        } else {
            Err(Problem::at(&given, "must be a URI of this host, such as qemu:///system"))
        }
    }

    fn allowed(&self) -> String {
        "a URI of this host, such as qemu:///system".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Actuator, ActuatorConfig, CommandUser, Config, QmpTransport};

    fn parse(text: &str) -> Config {
        Config::parse(text, "test.toml").expect("valid")
    }

    fn assert_refused(text: &str, start: &str, part: &str) {
        let error = Config::parse(text, "test.toml").expect_err("invalid").to_string();
        assert!(error.starts_with(start) && error.contains(part), "{error:?} for {text:?}");
    }

    #[test]
    fn without_a_word_the_owners_own_means_are_used_and_nothing_that_is_gone_is_started() {
        let config = parse("");
        assert_eq!(config.actuation, ActuatorConfig::default());
        assert_eq!(
            (config.actuation.actuator, config.actuation.qmp),
            (Actuator::Auto, QmpTransport::Auto)
        );
        assert!(!config.actuation.start_exited && config.actuation.command.is_empty());
        assert_eq!(config.actuation.command_limit, Duration::from_secs(60));
    }

    #[test]
    fn every_key_may_stand_for_the_host_and_in_a_rule() {
        let keys = "actuator = \"command\"\ncommand = [\"/bin/again\", \"-x\"]\n\
                    command_user = \"vm\"\ncommand_limit = \"5s\"\npower_cycle_after = 2\nstart_exited = true\nqmp = \"brief\"\n\
                    libvirt_uri = \"qemu:///session\"\n";
        let all = ActuatorConfig {
            actuator: Actuator::Command,
            command: vec!["/bin/again".to_owned(), "-x".to_owned()],
            command_user: CommandUser::Vm,
            command_limit: Duration::from_secs(5),
            power_cycle_after: 2,
            start_exited: true,
            qmp: QmpTransport::Brief,
            libvirt_uri: Some("qemu:///session".to_owned()),
            user: Vec::new(),
        };
        let config = parse(&format!("[recovery]\n{keys}[[vm]]\nmatch = \"a\"\nqmp = \"keep\"\n"));
        assert_eq!(config.actuation, all);
        assert_eq!(
            config.actuation_for("a", 0),
            ActuatorConfig { qmp: QmpTransport::Keep, ..all.clone() }
        );
        let config = parse(&format!("[[vm]]\nmatch = \"a\"\n{keys}"));
        assert_eq!(config.actuation_for("a", 0), all);
        assert_eq!(config.actuation_for("b", 0), ActuatorConfig::default());
    }

    #[test]
    fn every_word_for_an_actuator_is_taken_and_no_other() {
        for actuator in [
            Actuator::Auto,
            Actuator::Qmp,
            Actuator::Libvirt,
            Actuator::Proxmox,
            Actuator::Systemd,
            Actuator::None,
        ] {
            let text = format!("[recovery]\nactuator = \"{}\"\n", actuator.as_str());
            assert_eq!(parse(&text).actuation.actuator, actuator);
        }
        assert_refused("[recovery]\nactuator = \"xen\"\n", "test.toml:2: recovery.actuator: ", "");
        assert_refused("[recovery]\nqmp = \"virsh\"\n", "test.toml:2: recovery.qmp: ", "");
    }

    #[test]
    fn a_command_is_a_program_with_its_path_and_no_line_for_a_shell() {
        assert_refused(
            "[recovery]\nactuator = \"command\"\n",
            "test.toml:2: recovery.actuator: ",
            "no recovery.command",
        );
        for (command, part) in [
            ("[\"again\"]", "absolute"),
            ("[\"/bin/a\", \"b\\u0000\"]", "null"),
            ("\"/bin/a b\"", "expected a sequence"),
        ] {
            let text = format!("[[vm]]\nmatch = \"a\"\ncommand = {command}\n");
            assert_refused(&text, "test.toml:3: vm[0].command", part);
        }
        let rule = "[recovery]\ncommand = [\"/bin/again\"]\n[[vm]]\nmatch = \"a\"\ncommand = []\n";
        assert_eq!(parse(rule).actuation_for("a", 0).command, Vec::<String>::new());
        let rule = rule.replace("\n[[", "\nactuator = \"command\"\n[[");
        assert_refused(&rule, "test.toml:6: vm[0].command: ", "no recovery.command");
        let many = format!("[recovery]\ncommand = [\"/a\"{}]\n", ", \"b\"".repeat(64));
        assert_refused(&many, "test.toml:2: recovery.command: ", "more than 64");
        assert_refused("[recovery]\ncommand_limit = \"1h\"\n", "test.toml:2: ", "10m");
    }

    #[test]
    fn a_rule_with_users_is_for_their_vms_alone() {
        let text = "[[vm]]\nmatch = \"web\"\nuser = \"root\"\ncommand = [\"/bin/root\"]\n\
                    [[vm]]\nmatch = \"web\"\nuser = [1000, 1001]\ncommand = [\"/bin/users\"]\n\
                    [[vm]]\nmatch = \"web\"\ncommand = [\"/bin/any\"]\n";
        let config = parse(text);
        let of = |uid| config.actuation_for("web", uid);
        for (uid, program, users) in [
            (0, "/bin/root", &[0][..]),
            (1000, "/bin/users", &[1000, 1001]),
            (1001, "/bin/users", &[1000, 1001]),
            (1002, "/bin/any", &[]),
        ] {
            assert_eq!((of(uid).command[0].as_str(), &of(uid).user[..]), (program, users));
        }
        assert!(config.actuation_for("other", 0).command.is_empty());
        for (user, part) in [
            ("[]", "empty"),
            ("-1", "no user id"),
            ("\"no-such-user\"", "/etc/passwd"),
            ("true", "name or number"),
        ] {
            let text = format!("[[vm]]\nmatch = \"a\"\nuser = {user}\n");
            assert_refused(&text, "test.toml:3: vm[0].user", part);
        }
        assert_refused("[recovery]\nuser = 0\n", "test.toml:2: recovery.user", "unknown field");
    }

    #[test]
    fn only_this_hosts_libvirt_can_be_named() {
        for uri in ["qemu+ssh://other/system", "xen:///", "qemu:///a b", "-c"] {
            let text = format!("[recovery]\nlibvirt_uri = \"{uri}\"\n");
            assert_refused(&text, "test.toml:2: recovery.libvirt_uri: ", "this host");
        }
    }
}
