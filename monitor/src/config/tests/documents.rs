//! The documents of the configuration, made from its declaration: `docs/configuration.md` and the packaged file.

use std::{fmt::Write as _, path::Path};

use crate::config::{
    Config,
    keys::{Key, ROOT},
    manual::{RELOAD, RULES, joined, may_stand_in_rule, values, words},
    parse::{TABLES, keys_of},
};

/// Where comments begin beside a key.
const COMMENT_COLUMN: usize = 36;
/// Where they end.
const WIDTH: usize = 120;

/// What the packaged file begins with.
const PACKAGED: &str = "\
# flatline's configuration. Every key is optional; what stands here behind a \"#\" is the default, and
# `flatline check-config /etc/flatline/flatline.toml` names mistakes. After a change: `systemctl reload flatline`.
#
# The package comes with \"observe\": flatline watches, judges, and records what it would have done
# (`flatline status`, `flatline show VM`, `flatline incidents`), and touches no guest. Where its verdicts
# have been right for some days, let it act: write \"recover\" here, for all VMs or in a [[vm]] below for some.
mode = \"observe\"
";

/// An example of a rule.
const RULE: &str = "[[vm]]\nmatch = \"db-*\"\nmode = \"observe\"\nflat_for = \"30s\"\n";

/// `docs/configuration.md`.
fn markdown() -> String {
    let mut text = "\
# Configuration

`/etc/flatline/flatline.toml`; every key is optional, and an unknown one is an error. These are the defaults (the package's \
file differs in `mode`):

```toml
"
    .to_owned();
    keys_of(ROOT).for_each(|key| text.push_str(&entry(key, false)));
    for table in TABLES {
        let _ = write!(text, "\n[{table}]\n");
        keys_of(table).for_each(|key| text.push_str(&entry(key, false)));
    }
    let _ = write!(text, "```\n\n{RULES}\n```toml\n{RULE}```\n\n");
    text.push_str("Any number of `[[notify]]` tables say what is told to which receiver ([telling](telling.md)):\n\n```toml\n");
    text.push_str(&notify_example(""));
    text.push_str(
        "```\n\n`flatline check-config FILE` names mistakes with file, line and key.\n\n",
    );
    text.push_str(RELOAD);
    text.push_str("\n## What each key may be\n\n| key | allowed | in `[[vm]]` |\n|---|---|---|\n");
    for table in [ROOT].into_iter().chain(TABLES) {
        for key in keys_of(table) {
            let name = if table == ROOT {
                key.name().to_owned()
            } else {
                format!("{table}.{}", key.name())
            };
            let in_rule = if may_stand_in_rule(key) { "yes" } else { "" };
            let _ = writeln!(text, "| `{name}` | {} | {in_rule} |", (key.allowed)());
        }
    }
    text
}

/// `/etc/flatline/flatline.toml` of the packages: it observes, and has all defaults behind comment signs.
fn packaged_file() -> String {
    let mut text = PACKAGED.to_owned();
    for table in TABLES {
        let _ = write!(text, "\n[{table}]\n");
        keys_of(table).for_each(|key| text.push_str(&entry(key, true)));
    }
    text.push_str("\n# What is told to which receiver, any number of these; each has one of `webhook`, `alertmanager` and `command`.\n");
    text.push_str(&notify_example("# "));
    text.push_str(
        "\n# Single VMs may differ in all of [detection] and [recovery] but what is the host's; the first match wins.\n",
    );
    RULE.replace("observe", "recover").lines().for_each(|line| {
        let _ = writeln!(text, "# {line}");
    });
    text
}

/// A key with its default, or an example behind a comment sign, and what it is beside it.
fn entry(key: &Key, is_comment: bool) -> String {
    let (sign, value) = match key.default() {
        Some(default) => (if is_comment { "# " } else { "" }, default),
        None => ("# ", key.example),
    };
    let is_list = value.starts_with('[');
    let items = values(value);
    let short = if is_list { format!("[{}]", joined(&items)) } else { value.to_owned() };
    let line = format!("{sign}{} = {short}", key.name());
    if line.len() <= WIDTH / 2 {
        return beside(&line, key, if sign.is_empty() { "" } else { "#" });
    }
    let mut text = beside(&format!("{sign}{} = [", key.name()), key, sign.trim_end());
    for line in filled(&items.iter().map(|item| format!("{item},")).collect::<Vec<_>>(), WIDTH - 4)
    {
        let _ = writeln!(text, "{sign}  {line}");
    }
    let _ = writeln!(text, "{sign}]");
    text
}

/// `line`, and the documentation of `key` in comments on its right.
fn beside(line: &str, key: &Key, sign: &str) -> String {
    let column = (COMMENT_COLUMN + if sign.is_empty() { 0 } else { 2 }).max(line.len() + 1);
    let mut text = String::new();
    for (index, comment) in filled(&words(key), WIDTH - column - 2).iter().enumerate() {
        let before = if index == 0 { line } else { sign };
        let _ = writeln!(text, "{before:column$}# {comment}");
    }
    text
}

/// `words` in lines of at most `width` characters, but for a longer word.
fn filled(words: &[impl AsRef<str>], width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in words.iter().map(AsRef::as_ref) {
        let last = lines.last_mut().expect("never empty");
        if !last.is_empty() && last.len() + 1 + word.len() > width {
            lines.push(word.to_owned());
        } else {
            if !last.is_empty() {
                last.push(' ');
            }
            last.push_str(word);
        }
    }
    lines
}

/// A table with all keys of `[[notify]]` that fit together.
fn notify_example(sign: &str) -> String {
    let mut text = format!("{sign}[[notify]]\n");
    for key in keys_of("notify") {
        // A table has one of these.
        let is_other = ["secret_file", "alertmanager", "command"].contains(&key.name());
        let value = key.default().unwrap_or(key.example);
        let hash = if is_other && sign.is_empty() { "# " } else { sign };
        text.push_str(&beside(&format!("{hash}{} = {value}", key.name()), key, hash.trim_end()));
    }
    text
}

/// Compares a file of the repository with what it is made from; `FLATLINE_WRITE_DOCUMENTS=1` writes it instead.
fn assert_up_to_date(file: &str, made: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    if std::env::var_os("FLATLINE_WRITE_DOCUMENTS").is_some() {
        std::fs::write(&path, made).expect("written");
    }
    let there = std::fs::read_to_string(&path).expect("a document");
    assert!(
        there == made,
        "{file} is not what the declaration of the keys makes: run \
         `FLATLINE_WRITE_DOCUMENTS=1 cargo test -p flatline --lib config::tests::documents`"
    );
}

#[test]
fn the_documents_in_the_repository_are_what_is_made() {
    assert_up_to_date("../docs/configuration.md", &markdown());
    assert_up_to_date("packaging/flatline.toml", &packaged_file());
}

#[test]
fn the_packaged_file_observes_and_leaves_all_else_as_it_is_by_default() {
    let packaged = Config::parse(&packaged_file(), "").expect("sound");
    assert_eq!(packaged, Config::parse("mode = \"observe\"", "").expect("sound"));
}

#[test]
fn the_documented_defaults_are_the_defaults() {
    let documented = markdown();
    let block = documented.split("```toml\n").nth(1).expect("a block");
    let block = block.split("```").next().expect("its end");
    assert_eq!(Config::parse(block, "").expect("sound"), Config::parse("", "").expect("sound"));
}
