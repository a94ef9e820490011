//! Who is told of what: the `[[tell]]` tables.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use glob::Pattern;
use serde::Deserialize;
use toml::Spanned;

use super::actuation::words;
use super::values::{DAY, MINUTE, Problem, SECOND, count, duration, pattern};
use crate::notify::{
    event::{Event, EventKind},
    signature::Secret,
    url::Url,
};

/// Tables at most: each has a task, a connection and a queue of its own.
const TARGETS_MAX: usize = 16;
/// Events that may wait for one target.
const MOST_QUEUED: u32 = 10_000;
/// Characters of a target's name, which stands in logs, `status` and series.
const NAME_CHARS: usize = 64;
/// A secret's file.
const SECRET_MAX_BYTES: u64 = 4096;

/// The table as it stands in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Table {
    name: Option<Spanned<String>>,
    events: Option<Spanned<toml::Value>>,
    r#match: Option<Spanned<String>>,
    webhook: Option<Spanned<String>>,
    secret_file: Option<Spanned<PathBuf>>,
    alertmanager: Option<Spanned<String>>,
    command: Option<Spanned<Vec<Spanned<String>>>>,
    queue: Option<Spanned<i64>>,
    keep: Option<Spanned<String>>,
    limit: Option<Spanned<String>>,
}

/// Whether files with secrets are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Secrets {
    /// They are, and checked.
    Read,
    /// They are left alone, and nothing is to be signed.
    Leave,
}

/// How a target is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Each event is posted as JSON.
    Webhook {
        /// Where to.
        url: Url,
        /// What signs it; `None`: nothing does.
        secret: Option<Secret>,
    },
    /// What is wrong is posted to `/api/v2/alerts` below this.
    Alertmanager(Url),
    /// A program is run for each event: it and its arguments.
    Command(Vec<String>),
}

/// One that is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// By which it is known; no other has it.
    pub name: String,
    /// How.
    pub to: Destination,
    /// Of what.
    pub events: BTreeSet<EventKind>,
    /// Of which VMs only; `None`: of all, and of the host.
    pub pattern: Option<Pattern>,
    /// Events that may wait; for an Alertmanager, alerts that may fire.
    pub queue: u32,
    /// How long an event may wait.
    pub keep: Duration,
    /// The time that one attempt to tell it has.
    pub limit: Duration,
}

impl Target {
    /// Whether it is about something that this one is told of, whatever happened.
    pub fn is_about_its_own(&self, event: &Event) -> bool {
        self.pattern.as_ref().is_none_or(|pattern| {
            event.subject.as_ref().is_some_and(|subject| pattern.matches(&subject.vm))
        })
    }

    /// Whether it is told of this event.
    pub fn wants(&self, event: &Event) -> bool {
        self.events.contains(&event.kind) && self.is_about_its_own(event)
    }
}

/// All tables, checked.
pub(super) fn resolve(
    tables: Vec<Spanned<Table>>,
    secrets: Secrets,
) -> Result<Vec<Target>, Problem> {
    let mut targets: Vec<Target> = Vec::new();
    for table in tables {
        let place = table.span().start;
        let at_name = table.get_ref().name.as_ref().map_or(place, |name| name.span().start);
        let is_named = table.get_ref().name.is_some();
        let mut target = one(table, secrets)?;
        let taken = |name: &str| targets.iter().any(|other| other.name == name);
        if taken(&target.name) {
            if is_named {
                let message = "another [[tell]] has this name".to_owned();
                return Err(Problem { offset: at_name, message });
            }
            let numbered = (2..).map(|number| format!("{}#{number}", target.name));
            target.name = numbered.into_iter().find(|name| !taken(name)).unwrap_or_default();
        }
        targets.push(target);
        if targets.len() > TARGETS_MAX {
            let message = format!("there are more than {TARGETS_MAX} [[tell]] tables");
            return Err(Problem { offset: place, message });
        }
    }
    Ok(targets)
}

fn one(table: Spanned<Table>, secrets: Secrets) -> Result<Target, Problem> {
    let place = table.span().start;
    let Table {
        name,
        events,
        r#match,
        webhook,
        secret_file,
        alertmanager,
        command,
        queue,
        keep,
        limit,
    } = table.into_inner();
    let missing = |message: &str| Problem { offset: place, message: message.to_owned() };
    if let Some(file) = secret_file.as_ref().filter(|_| webhook.is_none()) {
        return Err(Problem::at(file, "only a webhook is signed"));
    }
    let url = |given: &Spanned<String>| {
        Url::parse(given.get_ref()).map_err(|why| Problem::at(given, why))
    };
    let (own_name, to) = match (webhook, alertmanager, command) {
        (Some(given), None, None) => {
            let url = url(&given)?;
            let file = secret_file.as_ref().filter(|_| secrets == Secrets::Read);
            let secret = file.map(secret).transpose()?;
            (format!("webhook:{}", url.authority()), Destination::Webhook { url, secret })
        }
        (None, Some(given), None) => {
            let url = url(&given)?;
            if url.path.contains("/api/v2") {
                let message = "must be Alertmanager's own URL; /api/v2/alerts is put behind it";
                return Err(Problem::at(&given, message));
            }
            (format!("alertmanager:{}", url.authority()), Destination::Alertmanager(url))
        }
        (None, None, Some(given)) => {
            let words = words(&given)?;
            let program = words.first().map(Path::new).and_then(Path::file_name);
            let program = program.unwrap_or_default().to_string_lossy().into_owned();
            (format!("command:{program}"), Destination::Command(words))
        }
        _ => {
            let message =
                "needs one of the keys `webhook`, `alertmanager` and `command`, and no two";
            return Err(missing(message));
        }
    };
    let events = events.as_ref().map(kinds).transpose()?;
    let events = events.ok_or_else(|| {
        missing("the key `events` is missing: a list of events' names, or \"all\"")
    })?;
    Ok(Target {
        name: name.as_ref().map(own).transpose()?.unwrap_or(own_name),
        to,
        events,
        pattern: r#match.as_ref().map(pattern).transpose()?,
        queue: count(queue.as_ref(), 1000, 1..=MOST_QUEUED)?,
        keep: duration(keep.as_ref(), DAY, MINUTE, 7 * DAY)?,
        limit: duration(limit.as_ref(), 10 * SECOND, SECOND, 5 * MINUTE)?,
    })
}

/// A name that may stand anywhere.
fn own(given: &Spanned<String>) -> Result<String, Problem> {
    let text = given.get_ref();
    let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic());
    if text.is_empty() || !is_plain || text.len() > NAME_CHARS {
        let message =
            format!("must have 1 to {NAME_CHARS} characters of ASCII, and no blanks among them");
        return Err(Problem::at(given, message));
    }
    Ok(text.clone())
}

fn kinds(given: &Spanned<toml::Value>) -> Result<BTreeSet<EventKind>, Problem> {
    let names = || EventKind::ALL.map(EventKind::as_str).join(", ");
    let unfit = |what: String| Problem::at(given, format!("{what}; there are: {}", names()));
    let one = |value: &toml::Value| {
        let name = value.as_str().ok_or_else(|| unfit("must be a list of names".to_owned()))?;
        EventKind::parse(name).ok_or_else(|| unfit(format!("no event is called `{name}`")))
    };
    match given.get_ref() {
        toml::Value::String(word) if word == "all" => Ok(EventKind::ALL.into_iter().collect()),
        toml::Value::Array(list) if list.is_empty() => {
            Err(unfit("is empty: nothing would ever be told".to_owned()))
        }
        toml::Value::Array(list) => list.iter().map(one).collect(),
        _ => Err(unfit("must be a list of events' names, or \"all\"".to_owned())),
    }
}

/// The secret in a file that nobody else may read.
fn secret(given: &Spanned<PathBuf>) -> Result<Secret, Problem> {
    let path = given.get_ref();
    let at = |message: String| Problem::at(given, message);
    if !path.is_absolute() {
        return Err(at("must be an absolute path".to_owned()));
    }
    let unread = |error: std::io::Error| at(format!("can't read {}: {error}", path.display()));
    // A pipe that nobody writes to must not hold up whoever reads the configuration.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = file.map_err(unread)?;
    let metadata = file.metadata().map_err(unread)?;
    if !metadata.is_file() {
        return Err(at(format!("{} is no file", path.display())));
    }
    let owner = metadata.uid();
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Err(at(format!("{0} belongs to another user: chown root {0}", path.display())));
    }
    if metadata.mode() & 0o077 != 0 {
        let mode = metadata.mode() & 0o777;
        let message = format!("others may read {0} (mode {mode:o}): chmod 600 {0}", path.display());
        return Err(at(message));
    }
    let mut text = String::new();
    file.take(SECRET_MAX_BYTES + 1).read_to_string(&mut text).map_err(unread)?;
    if text.len() as u64 > SECRET_MAX_BYTES {
        let message = format!("{} has more than {SECRET_MAX_BYTES} bytes", path.display());
        return Err(at(message));
    }
    Secret::parse(&text).map_err(|why| at(format!("{}: {why}", path.display())))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::{Duration, UNIX_EPOCH};

    use super::super::Config;
    use super::{Destination, Target};
    use crate::notify::event::{Event, EventKind, Subject};

    fn targets(text: &str) -> Vec<Target> {
        Config::parse(text, "test.toml").expect("valid").notify
    }

    fn assert_refused(text: &str, start: &str, part: &str) {
        let error = Config::parse(text, "test.toml").expect_err(text).to_string();
        assert!(error.starts_with(start) && error.contains(part), "{error:?} for {text:?}");
    }

    #[test]
    fn without_a_table_nobody_is_told() {
        assert_eq!(targets(""), []);
    }

    #[test]
    fn every_key_is_taken() {
        let text = "[[tell]]\nname = \"pager\"\nevents = [\"failed\", \"refused\"]\nmatch = \"db-*\"\n\
                    command = [\"/usr/local/sbin/page\", \"--now\"]\nqueue = 7\nkeep = \"1h\"\n\
                    limit = \"30s\"\n\
                    [[tell]]\nevents = \"all\"\nalertmanager = \"http://127.0.0.1:9093\"\n";
        let targets = targets(text);
        let [pager, alerts] = &targets[..] else { panic!("{targets:?}") };
        assert_eq!((pager.name.as_str(), pager.queue), ("pager", 7));
        assert_eq!((pager.keep.as_secs(), pager.limit.as_secs()), (3600, 30));
        assert!(matches!(&pager.to, Destination::Command(words) if words.len() == 2));
        assert_eq!(pager.events.len(), 2);
        assert_eq!(alerts.name, "alertmanager:127.0.0.1:9093");
        assert_eq!(alerts.events.len(), EventKind::ALL.len());
        assert_eq!(
            (alerts.queue, alerts.keep.as_secs(), alerts.limit.as_secs()),
            (1000, 86400, 10)
        );
    }

    #[test]
    fn who_is_told_of_certain_vms_hears_of_those_alone() {
        let text = "[[tell]]\nevents = [\"crashed\", \"daemon-started\"]\nmatch = \"db-*\"\n\
                    command = [\"/bin/true\"]\n";
        let target = &targets(text)[0];
        let of = |kind, vm: &str| {
            let subject = Subject { vm: vm.to_owned(), uuid: None, pid: 1 };
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
        let table = |rest: &str| format!("[[tell]]\n{rest}\n");
        for (rest, start, part) in [
            ("events = \"all\"", "test.toml:1: tell", "one of the keys"),
            (
                "events = \"all\"\nwebhook = \"http://h/\"\ncommand = [\"/bin/a\"]",
                "test.toml:1: tell",
                "no two",
            ),
            ("command = [\"/bin/a\"]", "test.toml:1: tell", "`events` is missing"),
            ("events = []\ncommand = [\"/bin/a\"]", "test.toml:2: tell[0].events: ", "is empty"),
            (
                "events = \"most\"\ncommand = [\"/bin/a\"]",
                "test.toml:2: tell[0].events: ",
                "\"all\"",
            ),
            (
                "events = [\"crashed\", \"recoverd\"]\ncommand = [\"/bin/a\"]",
                "test.toml:2: tell[0].events: ",
                "`recoverd`; there are: crashed, restarted, ",
            ),
            ("events = [1]\ncommand = [\"/bin/a\"]", "test.toml:2: tell[0].events: ", "names"),
            ("event = \"all\"\ncommand = [\"/bin/a\"]", "test.toml:2: tell[0].event: ", "unknown"),
            ("events = \"all\"\nwebhook = \"h/x\"", "test.toml:3: tell[0].webhook: ", "https://"),
            (
                "events = \"all\"\nalertmanager = \"http://h:9093/api/v2/alerts\"",
                "test.toml:3: tell[0].alertmanager: ",
                "put behind it",
            ),
            ("events = \"all\"\ncommand = [\"page\"]", "test.toml:3: tell[0].command", "absolute"),
            (
                "events = \"all\"\ncommand = [\"/a\"]\nsecret_file = \"/x\"",
                "test.toml:4: tell[0].secret_file: ",
                "only a webhook",
            ),
            ("events = \"all\"\ncommand = [\"/a\"]\nqueue = 0", "test.toml:4: tell[0].queue: ", ""),
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
        let table = "[[tell]]\nevents = \"all\"\ncommand = [\"/sbin/page\"]\n";
        let names: Vec<_> = targets(&table.repeat(3)).into_iter().map(|t| t.name).collect();
        assert_eq!(names, ["command:page", "command:page#2", "command:page#3"]);
        let named = format!("{table}name = \"a\"\n");
        assert_refused(&named.repeat(2), "test.toml:8: tell[1].name: ", "another");
    }

    #[test]
    fn a_secret_is_read_only_from_a_file_that_is_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("secret");
        let text = |path: &std::path::Path| {
            format!(
                "[[tell]]\nevents = \"all\"\nwebhook = \"https://example.org/\"\nsecret_file = {:?}\n",
                path.display().to_string()
            )
        };
        let start = "test.toml:4: tell[0].secret_file: ";
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
}
