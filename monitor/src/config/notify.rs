//! The receivers of notifications: the `[[notify]]` tables.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use glob::Pattern;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::actuation::Command;
use super::keys::{Group as _, Layers, keys};
use super::secret::{self, Secrets};
use super::values::{
    Count, DAY, MINUTE, NamePattern, Optional, Problem, Rule, SECOND, Within, typed,
};
use crate::notify::{
    event::{Event, EventKind},
    signature::Secret,
    url::Url,
};

/// Tables at most: each has a task, a connection and a queue of its own.
const TARGETS_MAX: usize = 16;
/// Characters of a target's name, which stands in logs, `status` and series.
const NAME_CHARS: usize = 64;

keys! {
    /// One table as it stands in the file.
    pub(super) struct Table {
        /// stands in logs, `status` and /metrics; without it, such as "command:page"
        notify.name: Option<String> = none like "pager", Optional(TargetName);
        /// or a list of events' names
        notify.events: BTreeSet<EventKind> = none like "all", Events;
        /// only these VMs, and nothing of the host
        notify.r#match: Option<Pattern> = none like "db-*", Optional(NamePattern);
        /// each event is posted there as JSON
        notify.webhook: Option<Url> = none like "https://example.org/hook", Optional(WebUrl);
        /// signs what is sent to the webhook
        notify.secret_file: Option<PathBuf> = none like "/etc/flatline/hook.secret",
            Optional(SecretFile);
        /// or what is wrong is posted to this Alertmanager: its own URL; /api/v2/alerts is put behind it
        notify.alertmanager: Option<Url> = none like "http://127.0.0.1:9093",
            Optional(AlertmanagerUrl);
        /// or a program is run for each event; no shell
        notify.command: Option<Vec<String>> = none like ["/usr/local/sbin/page", "--now"],
            Optional(Command);
        /// events that may wait; for an Alertmanager, alerts that may fire
        notify.queue: u32 = 1000, Count(1..=10_000);
        /// how long an event may wait
        notify.keep: Duration = "24h", Within(MINUTE..=7 * DAY);
        /// for each attempt to tell one
        notify.limit: Duration = "10s", Within(SECOND..=5 * MINUTE);
    }
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

/// A receiver of notifications.
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
    /// Whether the event is about a VM that this target is for, whatever happened.
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

/// All `tables`, checked.
pub(super) fn targets(
    tables: &[(usize, &DeTable<'_>)],
    secrets: Secrets,
) -> Result<Vec<Target>, Problem> {
    let mut targets: Vec<Target> = Vec::new();
    let nothing = DeTable::default();
    for (place, table) in tables {
        let layers = Layers::over(&nothing, table, *place);
        let mut target = target(&layers, *place, secrets)?;
        let taken = |name: &str| targets.iter().any(|other| other.name == name);
        if taken(&target.name) {
            if let Some(offset) = layers.place_of(&[("notify", "name")]) {
                let message = "another [[notify]] has this name".to_owned();
                return Err(Problem { offset, message });
            }
            let numbered = (2..).map(|number| format!("{}#{number}", target.name));
            target.name = numbered.into_iter().find(|name| !taken(name)).unwrap_or_default();
        }
        targets.push(target);
        if targets.len() > TARGETS_MAX {
            let message = format!("there are more than {TARGETS_MAX} [[notify]] tables");
            return Err(Problem { offset: *place, message });
        }
    }
    Ok(targets)
}

fn target(layers: &Layers<'_>, place: usize, secrets: Secrets) -> Result<Target, Problem> {
    let Table {
        name,
        events,
        r#match: pattern,
        webhook,
        secret_file,
        alertmanager,
        command,
        queue,
        keep,
        limit,
    } = Table::read(layers)?;
    let at_secret = |message| {
        let offset = layers.place_or_start(&[("notify", "secret_file")]);
        Problem { offset, message }
    };
    if secret_file.is_some() && webhook.is_none() {
        return Err(at_secret("only a webhook is signed".to_owned()));
    }
    let (own_name, to) = match (webhook, alertmanager, command) {
        (Some(url), None, None) => {
            let file = secret_file.filter(|_| secrets == Secrets::Read);
            let secret = file.map(|file| secret::read(&file)).transpose().map_err(at_secret)?;
            (format!("webhook:{}", url.authority()), Destination::Webhook { url, secret })
        }
        (None, Some(url), None) => {
            (format!("alertmanager:{}", url.authority()), Destination::Alertmanager(url))
        }
        (None, None, Some(words)) => {
            let program = words.first().map(Path::new).and_then(Path::file_name);
            let program = program.unwrap_or_default().to_string_lossy().into_owned();
            (format!("command:{program}"), Destination::Command(words))
        }
        _ => {
            let message =
                "needs one of the keys `webhook`, `alertmanager` and `command`, and no two";
            return Err(Problem { offset: place, message: message.to_owned() });
        }
    };
    Ok(Target { name: name.unwrap_or(own_name), to, events, pattern, queue, keep, limit })
}

/// A name that may stand anywhere.
struct TargetName;

impl Rule for TargetName {
    type Value = String;

    fn read(&self, value: Spanned<DeValue<'_>>) -> Result<String, Problem> {
        let given = typed::<String>(value)?;
        let text = given.get_ref();
        let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic());
        if text.is_empty() || !is_plain || text.len() > NAME_CHARS {
            let message = format!("must have {}, and no blanks among them", self.allowed());
            return Err(Problem::at(&given, message));
        }
        Ok(given.into_inner())
    }

    fn allowed(&self) -> String {
        format!("1 to {NAME_CHARS} characters of ASCII")
    }
}

/// Names of events, or all.
struct Events;

impl Rule for Events {
    type Value = BTreeSet<EventKind>;

    fn read(&self, value: Spanned<DeValue<'_>>) -> Result<Self::Value, Problem> {
        let given = typed::<toml::Value>(value)?;
        let names = || EventKind::ALL.map(EventKind::as_str).join(", ");
        let unfit = |what: String| Problem::at(&given, format!("{what}; there are: {}", names()));
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
            _ => Err(unfit(format!("must be {}", self.allowed()))),
        }
    }

    fn allowed(&self) -> String {
        "a list of events' names, or \"all\"".to_owned()
    }
}

/// The path of a file, which is looked at once it is known that it is needed.
struct SecretFile;

impl Rule for SecretFile {
    type Value = PathBuf;

    fn read(&self, value: Spanned<DeValue<'_>>) -> Result<PathBuf, Problem> {
        Ok(typed(value)?.into_inner())
    }

    fn allowed(&self) -> String {
        "the absolute path of a file that only its owner may read".to_owned()
    }
}

/// An http or https URL.
struct WebUrl;

impl Rule for WebUrl {
    type Value = Url;

    fn read(&self, value: Spanned<DeValue<'_>>) -> Result<Url, Problem> {
        let given = typed::<String>(value)?;
        Url::parse(given.get_ref()).map_err(|why| Problem::at(&given, why))
    }

    fn allowed(&self) -> String {
        "an http or https URL".to_owned()
    }
}

/// The URL of an Alertmanager, without its API's path.
struct AlertmanagerUrl;

impl Rule for AlertmanagerUrl {
    type Value = Url;

    fn read(&self, value: Spanned<DeValue<'_>>) -> Result<Url, Problem> {
        let offset = value.span().start;
        let url = WebUrl.read(value)?;
        if url.path.contains("/api/v2") {
            let message = "must be Alertmanager's own URL; /api/v2/alerts is put behind it";
            return Err(Problem { offset, message: message.to_owned() });
        }
        Ok(url)
    }

    fn allowed(&self) -> String {
        WebUrl.allowed()
    }
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
        assert_eq!(
            (alerts.queue, alerts.keep.as_secs(), alerts.limit.as_secs()),
            (1000, 86400, 10)
        );
    }

    #[test]
    fn who_is_told_of_certain_vms_hears_of_those_alone() {
        let text = "[[notify]]\nevents = [\"crashed\", \"daemon-started\"]\nmatch = \"db-*\"\n\
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
            (
                "events = \"most\"\ncommand = [\"/bin/a\"]",
                "test.toml:2: notify[0].events: ",
                "\"all\"",
            ),
            (
                "events = [\"crashed\", \"recoverd\"]\ncommand = [\"/bin/a\"]",
                "test.toml:2: notify[0].events: ",
                "`recoverd`; there are: crashed, restarted, ",
            ),
            ("events = [1]\ncommand = [\"/bin/a\"]", "test.toml:2: notify[0].events: ", "names"),
            (
                "event = \"all\"\ncommand = [\"/bin/a\"]",
                "test.toml:2: notify[0].event: ",
                "unknown",
            ),
            ("events = \"all\"\nwebhook = \"h/x\"", "test.toml:3: notify[0].webhook: ", "https://"),
            (
                "events = \"all\"\nalertmanager = \"http://h:9093/api/v2/alerts\"",
                "test.toml:3: notify[0].alertmanager: ",
                "put behind it",
            ),
            (
                "events = \"all\"\ncommand = [\"page\"]",
                "test.toml:3: notify[0].command",
                "absolute",
            ),
            (
                "events = \"all\"\ncommand = [\"/a\"]\nsecret_file = \"/x\"",
                "test.toml:4: notify[0].secret_file: ",
                "only a webhook",
            ),
            (
                "events = \"all\"\ncommand = [\"/a\"]\nqueue = 0",
                "test.toml:4: notify[0].queue: ",
                "",
            ),
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
}
