//! `flatline.toml(5)`: the manual page of the configuration file, made from the declaration of its keys.

use std::fmt::Write as _;

use super::{
    keys::{Key, ROOT},
    parse::{TABLES, keys_of},
};

/// What holds for rules.
pub(super) const RULES: &str = "\
Single VMs may differ (in all of `[detection]` and `[recovery]` but what is the host's: the interval, the storm, and
what is kept where); the first match wins. A rule with `user` (a user's name or number, or a list of such) is for VMs
that run as that user alone: a name is what any user can call a process of its own.
";

/// How a change comes into force.
pub(super) const RELOAD: &str = "\
On SIGHUP (`systemctl reload flatline`), the daemon reads the file again. Each VM's counts, its silence so far, its
restarts and its lines go on, only on the new terms, and what crashed while it was only observed is judged anew once it
may be restarted; a file with a mistake changes nothing, and `status --json` says so
under `degraded`. What stands under `[paths]` and `[probes]` waits for the next start, another `qmp` or `libvirt_uri` for the
next QEMU; a warning says which.
";

/// `flatline.toml(5)`, as `man` reads it.
pub(crate) fn manual_page() -> String {
    let mut text = ".TH flatline.toml 5\n.SH NAME\nflatline.toml \\- configuration of flatline\n\
                    .SH DESCRIPTION\n"
        .to_owned();
    paragraph(
        &mut text,
        "Every key is optional, and an unknown one is an error. flatline check-config FILE names mistakes with file, line and key.",
    );
    let headings = [(ROOT, "Before any table".to_owned())].into_iter();
    let headings = headings.chain(TABLES.map(|table| (table, format!("[{table}]"))));
    let headings =
        headings.chain([("vm", "[[vm]]".to_owned()), ("notify", "[[notify]]".to_owned())]);
    for (table, heading) in headings {
        let _ = writeln!(text, ".SH {heading}");
        if table == "vm" {
            paragraph(&mut text, RULES);
        }
        for key in keys_of(table).filter(|key| key.table == table) {
            let _ = writeln!(text, ".TP\n\\fB{}\\fR", roff(key.name()));
            let default = key.default().map_or_else(
                || format!("unset (an example: {})", key.example),
                |text| joined(&values(text)),
            );
            let allowed = (key.allowed)();
            let allowed =
                if allowed.is_empty() { allowed } else { format!("; allowed: {allowed}") };
            let rule = if may_stand_in_rule(key) { " Also in [[vm]]." } else { "" };
            let text_of = format!("{}. Default: {default}{allowed}.{rule}", words(key).join(" "));
            paragraph(&mut text, &text_of);
        }
    }
    text.push_str(".SH RELOADING\n");
    paragraph(&mut text, RELOAD);
    text.push_str(".SH SEE ALSO\nflatline(1)\n");
    text
}

pub(super) fn may_stand_in_rule(key: &Key) -> bool {
    key.host_only.is_empty() && keys_of("vm").any(|other| std::ptr::eq(other, key))
}

fn paragraph(text: &mut String, words: &str) {
    let _ = writeln!(text, "{}", roff(&words.replace('\n', " ").replace('`', "")));
}

/// `text` as plain text for roff, where a line's first dot or quote is a request.
fn roff(text: &str) -> String {
    let text = text.trim().replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

pub(super) fn words(key: &Key) -> Vec<&'static str> {
    key.doc.split_whitespace().collect()
}

/// The items of a list, or the one value.
pub(super) fn values(default: &str) -> Vec<String> {
    let list = default.trim().strip_prefix('[').and_then(|list| list.strip_suffix(']'));
    let Some(list) = list else { return vec![default.to_owned()] };
    list.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect()
}

pub(super) fn joined(values: &[String]) -> String {
    values.join(", ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn each_key_stands_in_the_manual_page_with_what_it_may_be() {
        let page = super::manual_page();
        for key in super::super::parse::all_keys() {
            assert!(
                page.contains(&format!("\\fB{}\\fR\n", super::roff(key.name()))),
                "{}",
                key.name()
            );
            assert!(!(key.allowed)().is_empty(), "{}", key.name());
        }
        assert!(page.contains("\nsilence before a VM is suspected"), "{page}");
    }
}
