//! An event as a webhook gets it, and as a command does.
//!
//! All text is bounded and cleared of control characters, as much of it comes from guests and QEMUs.

use serde_json::{Value, json};

use super::event::Event;
use crate::{rfc3339, storage::incident::Incident};
use flatline_samples::printable;

/// Most characters of one text.
const TEXT_CHARS: usize = 2000;
/// Evidence files that are named, and restarts that are told, at most.
const LISTED: usize = 32;

/// `text` as it may leave.
pub(super) fn fit(text: &str) -> String {
    printable(text, TEXT_CHARS)
}

/// The JSON of `event`, which happened on `host`, when so many were lost before it.
pub(crate) fn body(event: &Event, host: &str, dropped: u64) -> String {
    let subject = event.subject.as_ref();
    json!({
        "event": event.kind,
        "id": event.id,
        "at": rfc3339::format(event.at),
        "severity": event.kind.severity(),
        "host": host,
        "vm": subject.map(|subject| fit(&subject.vm)),
        "uuid": subject.and_then(|subject| subject.uuid.as_deref().map(fit)),
        "uid": subject.and_then(|subject| subject.uid),
        "pid": subject.map(|subject| subject.pid),
        "cause": event.cause,
        "reason": fit(&event.reason),
        "text": fit(&event.line()),
        "attempt": event.attempt,
        "incident": event.incident.as_deref().map(bounded),
        "dropped": dropped,
    })
    .to_string()
}

fn bounded(incident: &Incident) -> Value {
    let mut incident = incident.clone();
    incident.reason = fit(&incident.reason);
    incident.vm = fit(&incident.vm);
    incident.evidence.truncate(LISTED);
    let first = incident.attempts.len().saturating_sub(LISTED);
    incident.attempts.drain(..first);
    serde_json::to_value(incident).unwrap_or_default()
}

/// The environment of a command that is told of `event`.
pub(crate) fn environment(event: &Event, host: &str, dropped: u64) -> Vec<(&'static str, String)> {
    let subject = event.subject.as_ref();
    let text = |text: Option<&str>| text.map(fit).unwrap_or_default();
    let number = |number: Option<u32>| number.map(|it| it.to_string()).unwrap_or_default();
    vec![
        ("FLATLINE_EVENT", event.kind.as_str().to_owned()),
        ("FLATLINE_ID", event.id.clone()),
        ("FLATLINE_AT", rfc3339::format(event.at)),
        ("FLATLINE_SEVERITY", event.kind.severity().as_str().to_owned()),
        ("FLATLINE_HOST", host.to_owned()),
        ("FLATLINE_VM", text(subject.map(|subject| subject.vm.as_str()))),
        ("FLATLINE_UUID", text(subject.and_then(|subject| subject.uuid.as_deref()))),
        ("FLATLINE_UID", number(subject.and_then(|subject| subject.uid))),
        ("FLATLINE_PID", number(subject.map(|subject| subject.pid))),
        ("FLATLINE_CAUSE", text(event.cause.as_deref())),
        ("FLATLINE_REASON", fit(&event.reason)),
        ("FLATLINE_TEXT", fit(&event.line())),
        ("FLATLINE_ATTEMPT", event.attempt.to_string()),
        ("FLATLINE_INCIDENT", text(event.incident.as_ref().map(|incident| incident.id.as_str()))),
        ("FLATLINE_DROPPED", dropped.to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use serde_json::Value;

    use super::{TEXT_CHARS, body, environment};
    use crate::{
        notify::event::{Event, EventKind, Subject},
        storage::incident::Incident,
    };

    fn event() -> Event {
        let (vm, uuid) = ("web\n-1".to_owned(), Some("u".to_owned()));
        let subject = Subject { vm, uuid, uid: Some(1000), pid: 7, ..Subject::default() };
        let text = |text: &str| text.to_owned();
        let reason = format!("\u{1b}[31m{}", "x".repeat(100_000));
        let incident = Incident::new(
            text("id-1"),
            text("web\n-1"),
            text("halted"),
            reason.clone(),
            UNIX_EPOCH,
        );
        Event {
            id: text("abc"),
            cause: Some(text("halted")),
            attempt: 2,
            incident: Some(Box::new(incident)),
            ..Event::of_vm(EventKind::Restarted, UNIX_EPOCH, subject, reason)
        }
    }

    #[test]
    fn the_body_has_every_documented_field_and_no_more() {
        let body: Value = serde_json::from_str(&body(&event(), "kvm-1", 3)).expect("JSON");
        let documented = include_str!("../../../docs/telling.md");
        for (name, _) in body.as_object().expect("an object") {
            let row = format!("| `{name}` |");
            assert!(documented.contains(&row), "docs/telling.md lacks {row}");
        }
        assert_eq!(body["event"], "restarted");
        assert_eq!((&body["host"], &body["pid"]), (&"kvm-1".into(), &7.into()));
        assert_eq!(body["uid"], 1000);
        assert_eq!((&body["attempt"], &body["dropped"]), (&2.into(), &3.into()));
        assert_eq!(body["incident"]["id"], "id-1");
        assert_eq!(body["at"], "1970-01-01T00:00:00Z");
        assert_eq!(body["vm"], "web?-1");
    }

    #[test]
    fn text_of_others_is_bounded_and_clean_in_both() {
        let event = event();
        let text = body(&event, "h", 0);
        assert!(text.len() < 4 * TEXT_CHARS, "{}", text.len());
        assert!(!text.contains("\\u001b") && !text.contains("\\n"), "{text}");
        let documented = include_str!("../../../docs/telling.md");
        for (name, value) in environment(&event, "h", 0) {
            assert!(value.len() <= TEXT_CHARS && !value.chars().any(char::is_control), "{name}");
            assert!(documented.contains(name), "docs/telling.md lacks {name}");
        }
    }

    #[test]
    fn an_event_of_the_host_has_no_vm() {
        let event = Event::of_host(EventKind::DaemonStarted, UNIX_EPOCH, String::new());
        let body: Value = serde_json::from_str(&body(&event, "h", 0)).expect("JSON");
        assert!(body["vm"].is_null() && body["pid"].is_null() && body["incident"].is_null());
        let empty = environment(&event, "h", 0);
        assert!(empty.iter().any(|(name, value)| *name == "FLATLINE_VM" && value.is_empty()));
    }
}
