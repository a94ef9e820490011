//! What there is to be told: one event, with all that a receiver may want to know of it.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::{
    identity::{Key, ProcessId},
    rfc3339,
    storage::incident::Incident,
    words::words,
};

words! {
    /// How much an event matters.
    #[derive(Serialize)]
    #[serde(rename_all = "lowercase")]
    pub(crate) enum Severity {
        /// Good news, or none.
        Info = "info",
        /// Something is wrong, and is being seen to, or only told.
        Warning = "warning",
        /// A person is needed.
        Critical = "critical",
    }
}

words! {
    /// What happened. The names are a promise: `docs/telling.md` has them.
    #[derive(PartialOrd, Ord, Hash, Serialize, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    pub(crate) enum EventKind {
        /// A guest was convicted.
        Crashed = "crashed",
        /// QEMU, or its owner, was told to restart it.
        Restarted = "restarted",
        /// A restarted guest showed life.
        Recovered = "recovered",
        /// It did not.
        NotRecovered = "not-recovered",
        /// It is not restarted, and the reason says why.
        Refused = "refused",
        /// The restart limit is reached, or it resets itself again and again.
        Failed = "failed",
        /// It is only watched: observe mode, or hold.
        Observed = "observed",
        /// A guest that was not brought back lives all the same.
        AliveAgain = "alive-again",
        /// The QEMU of a guest of which something bad was told has ended on purpose.
        Ended = "ended",
        /// A guest's kernel lives, and its agent's heart does not beat.
        UserlandDead = "userland-dead",
        /// A guest's agent says that what it checks has failed.
        ServiceDead = "service-dead",
        /// The agent's heart beats again.
        BeatsAgain = "beats-again",
        /// A figure that a VM's verdict needs can't be read.
        Unobservable = "unobservable",
        /// It can be read again.
        ObservableAgain = "observable-again",
        /// A VM is silent because of its host, and is left alone for that.
        HostFault = "host-fault",
        /// It no longer is.
        HostFaultOver = "host-fault-over",
        /// Many VMs are silent together.
        HostIncident = "host-incident",
        /// They no longer are.
        HostIncidentOver = "host-incident-over",
        /// Something that flatline sees by is out of order.
        SensorLost = "sensor-lost",
        /// It works again.
        SensorBack = "sensor-back",
        /// Several QEMUs of one user claim to be the same VM.
        DuplicateIdentity = "duplicate-identity",
        /// One at most does.
        DuplicateIdentityOver = "duplicate-identity-over",
        /// The daemon watches.
        DaemonStarted = "daemon-started",
        /// It was told to end.
        DaemonStopped = "daemon-stopped",
    }
}

impl EventKind {
    /// The one of that name.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// How much it matters.
    pub(crate) fn severity(self) -> Severity {
        match self {
            Self::NotRecovered | Self::Refused | Self::Failed | Self::HostIncident => {
                Severity::Critical
            }
            Self::Crashed
            | Self::Observed
            | Self::UserlandDead
            | Self::ServiceDead
            | Self::Unobservable
            | Self::HostFault
            | Self::DuplicateIdentity
            | Self::SensorLost => Severity::Warning,
            Self::Restarted
            | Self::Recovered
            | Self::AliveAgain
            | Self::Ended
            | Self::BeatsAgain
            | Self::ObservableAgain
            | Self::HostFaultOver
            | Self::HostIncidentOver
            | Self::SensorBack
            | Self::DuplicateIdentityOver
            | Self::DaemonStarted
            | Self::DaemonStopped => Severity::Info,
        }
    }

    /// The VM's state after it, as `status` names it, where the event says so.
    pub(crate) fn state(self) -> Option<&'static str> {
        match self {
            Self::Crashed | Self::Refused | Self::Observed => Some("crashed"),
            Self::Restarted => Some("recovering"),
            Self::Recovered | Self::AliveAgain => Some("alive"),
            Self::Failed => Some("failed"),
            Self::Unobservable => Some("unobservable"),
            Self::HostFault => Some("held"),
            Self::NotRecovered
            | Self::Ended
            | Self::UserlandDead
            | Self::ServiceDead
            | Self::BeatsAgain
            | Self::ObservableAgain
            | Self::HostFaultOver
            | Self::HostIncident
            | Self::HostIncidentOver
            | Self::SensorLost
            | Self::SensorBack
            | Self::DuplicateIdentity
            | Self::DuplicateIdentityOver
            | Self::DaemonStarted
            | Self::DaemonStopped => None,
        }
    }
}

/// The VM that an event is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Subject {
    /// Its name.
    pub vm: String,
    /// Its UUID, where it has one.
    pub uuid: Option<String>,
    /// The real user id of its QEMU; earlier versions did not say.
    #[serde(default)]
    pub uid: Option<u32>,
    /// The process that it is counted by, where several of its user claim to be this VM.
    #[serde(default)]
    pub counted_for: Option<ProcessId>,
    /// Its QEMU's process id.
    pub pid: u32,
}

impl Subject {
    /// What it is known by beyond its QEMU's end.
    pub(crate) fn key(&self) -> Key {
        Key::new(self.uid, self.uuid.as_deref(), &self.vm).of_process(self.counted_for)
    }
}

/// One event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Event {
    /// What happened.
    pub kind: EventKind,
    /// When.
    #[serde(with = "rfc3339")]
    pub at: SystemTime,
    /// What tells it from every other event of this host, so that a receiver knows one that comes twice.
    pub id: String,
    /// The VM that it is about; `None`: the host.
    pub subject: Option<Subject>,
    /// Of a sensor, which one; else empty.
    #[serde(default)]
    pub sensor: String,
    /// What the guest was convicted of.
    pub cause: Option<String>,
    /// Why, in words.
    pub reason: String,
    /// Restarts for this crash so far.
    pub attempt: usize,
    /// The incident as it stood then.
    pub incident: Option<Box<Incident>>,
}

impl Event {
    /// One of the host.
    pub(crate) fn of_host(kind: EventKind, at: SystemTime, reason: String) -> Self {
        Self {
            kind,
            at,
            id: String::new(),
            subject: None,
            sensor: String::new(),
            cause: None,
            reason,
            attempt: 0,
            incident: None,
        }
    }

    /// One of a VM.
    pub(crate) fn of_vm(kind: EventKind, at: SystemTime, subject: Subject, reason: String) -> Self {
        Self { subject: Some(subject), ..Self::of_host(kind, at, reason) }
    }

    /// One line for people.
    pub(crate) fn line(&self) -> String {
        let Self { kind, reason, subject, cause, .. } = self;
        let name = subject.as_ref().map_or("this host", |subject| &subject.vm);
        let cause = cause.as_ref().map(|cause| format!(" ({cause})")).unwrap_or_default();
        let what = kind.as_str().replace('-', " ");
        if reason.is_empty() {
            format!("{name}: {what}{cause}")
        } else {
            format!("{name}: {what}{cause}: {reason}")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::{Event, EventKind, Subject};

    #[test]
    fn every_event_has_one_name_and_is_documented() {
        let documented = include_str!("../../../docs/telling.md");
        for kind in EventKind::ALL {
            assert_eq!(EventKind::parse(kind.as_str()), Some(kind));
            assert_eq!(serde_json::to_value(kind).expect("a word"), kind.as_str());
            let row = format!("| `{}` | {} |", kind.as_str(), kind.severity().as_str());
            assert!(documented.contains(&row), "docs/telling.md lacks {row}");
        }
        assert_eq!(EventKind::parse("Crashed"), None);
    }

    #[test]
    fn its_line_says_who_what_and_why() {
        let subject = Subject { vm: "web-1".to_owned(), pid: 7, ..Subject::default() };
        let mut event =
            Event::of_vm(EventKind::NotRecovered, UNIX_EPOCH, subject, "it is silent".to_owned());
        event.cause = Some("halted".to_owned());
        assert_eq!(event.line(), "web-1: not recovered (halted): it is silent");
        let host = Event::of_host(EventKind::DaemonStarted, UNIX_EPOCH, String::new());
        assert_eq!(host.line(), "this host: daemon started");
    }
}
