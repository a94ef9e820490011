//! The receivers of notifications: the `[[notify]]` tables.

#[cfg(test)]
mod tests;

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
pub(crate) enum Destination {
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
pub(crate) struct Target {
    /// Its name, which no other has.
    pub name: String,
    /// How it is told.
    pub to: Destination,
    /// The events that it is told of.
    pub events: BTreeSet<EventKind>,
    /// The VMs that it is told of; `None`: all, and the host.
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
    pub(crate) fn is_about_its_own(&self, event: &Event) -> bool {
        self.pattern.as_ref().is_none_or(|pattern| {
            event.subject.as_ref().is_some_and(|subject| pattern.matches(&subject.vm))
        })
    }

    /// Whether it is told of this event.
    pub(crate) fn wants(&self, event: &Event) -> bool {
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
