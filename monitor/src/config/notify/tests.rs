use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, UNIX_EPOCH};

use super::{Destination, Target};
use crate::config::Config;
use crate::notify::event::{Event, EventKind, Subject};

fn targets(text: &str) -> Vec<Target> {
    Config::parse(text, "test.toml").expect("valid").notify
}

fn assert_refused(text: &str, start: &str, part: &str) {
    let error = Config::parse(text, "test.toml").expect_err(text).to_string();
    assert!(error.starts_with(start) && error.contains(part), "{error:?} for {text:?}");
}

#[test]
fn without_a_table_there_is_no_receiver() {
    assert_eq!(targets(""), []);
}

#[test]
fn every_key_is_taken() {
    let text = "[[notify]]\nname = \"pager\"\nevents = [\"failed\", \"refused\"]\nmatch = \"db-*\"\n\
                command = [\"/usr/local/sbin/page\", \"--now\"]\nqueue = 7\nkeep = \"1h\"\n\
                limit = \"30s\"\n\
                [[notify]]\nevents = \"all\"\nalertmanager = \"http://127.0.0.1:9093\"\n";
    let targets = targets(text);
    let [pager, alerts] = &targets[..] else { panic!("{targets:?}") };
    assert_eq!((pager.name.as_str(), pager.queue), ("pager", 7));
    assert_eq!((pager.keep.as_secs(), pager.limit.as_secs()), (3600, 30));
    assert!(matches!(&pager.to, Destination::Command(words) if words.len() == 2));
    assert_eq!(pager.events.len(), 2);
    assert_eq!(alerts.name, "alertmanager:127.0.0.1:9093");
    assert_eq!(alerts.events.len(), EventKind::ALL.len());
    assert_eq!((alerts.queue, alerts.keep.as_secs(), alerts.limit.as_secs()), (1000, 86400, 10));
}

#[test]
fn a_receiver_of_certain_vms_is_told_of_those_alone() {
    let text = "[[notify]]\nevents = [\"crashed\", \"daemon-started\"]\nmatch = \"db-*\"\n\
                command = [\"/bin/true\"]\n";
    let target = &targets(text)[0];
    let of = |kind, vm: &str| {
        let subject = Subject { vm: vm.to_owned(), pid: 1, ..Subject::default() };
        Event::of_vm(kind, UNIX_EPOCH, subject, String::new())
    };
    assert!(target.wants(&of(EventKind::Crashed, "db-1")));
    assert!(!target.wants(&of(EventKind::Crashed, "web-1")));
    assert!(!target.wants(&of(EventKind::Recovered, "db-1")));
    let of_host = Event::of_host(EventKind::DaemonStarted, UNIX_EPOCH, String::new());
    assert!(!target.wants(&of_host));
}

#[test]
fn a_mistake_is_named_with_its_line_and_key() {
    let table = |rest: &str| format!("[[notify]]\n{rest}\n");
    for (rest, start, part) in [
        ("events = \"all\"", "test.toml:1: notify", "one of the keys"),
        (
            "events = \"all\"\nwebhook = \"http://h/\"\ncommand = [\"/bin/a\"]",
            "test.toml:1: notify",
            "no two",
        ),
        ("command = [\"/bin/a\"]", "test.toml:1: notify", "`events` is missing"),
        ("events = []\ncommand = [\"/bin/a\"]", "test.toml:2: notify[0].events: ", "is empty"),
        ("events = \"most\"\ncommand = [\"/bin/a\"]", "test.toml:2: notify[0].events: ", "\"all\""),
        (
            "events = [\"crashed\", \"recoverd\"]\ncommand = [\"/bin/a\"]",
            "test.toml:2: notify[0].events: ",
            "`recoverd`; there are: crashed, restarted, ",
        ),
        ("events = [1]\ncommand = [\"/bin/a\"]", "test.toml:2: notify[0].events: ", "names"),
        ("event = \"all\"\ncommand = [\"/bin/a\"]", "test.toml:2: notify[0].event: ", "unknown"),
        ("events = \"all\"\nwebhook = \"h/x\"", "test.toml:3: notify[0].webhook: ", "https://"),
        (
            "events = \"all\"\nalertmanager = \"http://h:9093/api/v2/alerts\"",
            "test.toml:3: notify[0].alertmanager: ",
            "put behind it",
        ),
        ("events = \"all\"\ncommand = [\"page\"]", "test.toml:3: notify[0].command", "absolute"),
        (
            "events = \"all\"\ncommand = [\"/a\"]\nsecret_file = \"/x\"",
            "test.toml:4: notify[0].secret_file: ",
            "only a webhook",
        ),
        ("events = \"all\"\ncommand = [\"/a\"]\nqueue = 0", "test.toml:4: notify[0].queue: ", ""),
        ("events = \"all\"\ncommand = [\"/a\"]\nkeep = \"8d\"", "test.toml:4: ", "7days"),
        ("events = \"all\"\ncommand = [\"/a\"]\nlimit = \"0s\"", "test.toml:4: ", "1s"),
        ("events = \"all\"\ncommand = [\"/a\"]\nmatch = \"\"", "test.toml:4: ", "empty"),
        ("events = \"all\"\ncommand = [\"/a\"]\nname = \"a b\"", "test.toml:4: ", "blanks"),
    ] {
        assert_refused(&table(rest), start, part);
    }
    let many = table("events = \"all\"\ncommand = [\"/a\"]").repeat(17);
    assert_refused(&many, "test.toml:", "more than 16");
}

#[test]
fn names_are_told_apart_or_refused() {
    let table = "[[notify]]\nevents = \"all\"\ncommand = [\"/sbin/page\"]\n";
    let names: Vec<_> = targets(&table.repeat(3)).into_iter().map(|t| t.name).collect();
    assert_eq!(names, ["command:page", "command:page#2", "command:page#3"]);
    let named = format!("{table}name = \"a\"\n");
    assert_refused(&named.repeat(2), "test.toml:8: notify[1].name: ", "another");
}

#[test]
fn a_secret_is_read_only_from_a_file_that_is_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("secret");
    let text = |path: &std::path::Path| {
        format!(
            "[[notify]]\nevents = \"all\"\nwebhook = \"https://example.org/\"\nsecret_file = {:?}\n",
            path.display().to_string()
        )
    };
    let start = "test.toml:4: notify[0].secret_file: ";
    assert_refused(&text(&path), start, "No such file");
    let file = dir.path().join("flatline.toml");
    std::fs::write(&file, text(&path)).expect("written");
    let clients = Config::load_without_secrets(Some(&file)).expect("no client needs it");
    assert!(matches!(&clients.notify[0].to, Destination::Webhook { secret: None, .. }));
    assert!(Config::load(Some(&file)).is_err());
    std::fs::write(&path, "0123456789abcdef0123\n").expect("written");
    let mode = |mode| {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&path, permissions).expect("changed");
    };
    mode(0o640);
    assert_refused(&text(&path), start, "chmod 600");
    mode(0o600);
    let target = &targets(&text(&path))[0];
    assert!(matches!(&target.to, Destination::Webhook { secret: Some(_), .. }));
    assert_eq!(target.name, "webhook:example.org");
    assert!(!format!("{target:?}").contains("0123456789"), "{target:?}");
    std::fs::write(&path, "short").expect("written");
    assert_refused(&text(&path), start, "openssl rand");
    std::fs::write(&path, "x".repeat(5000)).expect("written");
    assert_refused(&text(&path), start, "4096 bytes");
    assert_refused(&text(dir.path()), start, "is no file");
    assert_refused(&text("secret".as_ref()), start, "absolute");
    let pipe = dir.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).expect("a pipe");
    let begun = std::time::Instant::now();
    assert_refused(&text(&pipe), start, "is no file");
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn the_old_name_is_taken_and_said_to_be_old_but_not_beside_the_new_one() {
    let table = "[[notify]]\nevents = \"all\"\ncommand = [\"/sbin/page\"]\n";
    let old = format!("mode = \"observe\"\n{0}{0}", table.replace("notify", "tell"));
    let config = Config::parse(&old, "test.toml").expect("valid");
    assert_eq!(config.notify, targets(&table.repeat(2)));
    let [warning] = &config.warnings[..] else { panic!("{:?}", config.warnings) };
    assert!(warning.starts_with("test.toml:2: [[tell]] is called [[notify]]"), "{warning}");
    assert!(Config::parse(table, "").expect("valid").warnings.is_empty());
    let both = format!("{table}{}", table.replace("notify", "tell"));
    assert_refused(&both, "test.toml:4: tell", "rename it");
    let wrong = old.replace("events", "event");
    assert_refused(&wrong, "test.toml:3: tell[0].event: ", "unknown field");
}
