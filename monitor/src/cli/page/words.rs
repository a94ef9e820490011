//! An incident in plain words.

use std::time::Duration;

use crate::storage::incident::{Incident, Outcome};

/// What there is to say in one line.
pub(super) fn headline(incident: &Incident) -> &'static str {
    match (incident.outcome, &incident.action) {
        (Some(Outcome::Recovered), Some(_)) => "crashed, was restarted, and came back",
        (Some(Outcome::Recovered), None) => "crashed, saved its own dump, and came back",
        (Some(Outcome::NotRecovered), Some(_)) => "crashed, was restarted, and did not come back",
        (Some(Outcome::NotRecovered), None) => "crashed, and did not come back",
        (Some(Outcome::Observed), _) => "crashed; flatline only observed",
        (Some(Outcome::LimitReached), _) => "crashed too often; a person is needed",
        (Some(Outcome::Refused), _) => "crashed, and could not be restarted",
        (None, Some(_)) => "crashed, and is being restarted",
        (None, None) => "crashed",
    }
}

/// The whole story in a few sentences.
pub(super) fn summary(incident: &Incident) -> String {
    let mut text = cause(&incident.cause);
    match incident.detect_seconds {
        Some(seconds) => {
            text.push_str(&format!(
                " flatline was sure of it {} after its last sign of life.",
                span(seconds)
            ));
        }
        None => text.push_str(" Since when is not known."),
    }
    if let Some(action) = &incident.action {
        text.push_str(&format!(" QEMU was told to restart it ({action})."));
    }
    match (incident.outcome, incident.recover_seconds) {
        (Some(Outcome::Recovered), Some(seconds)) => {
            text.push_str(&format!(" It showed life again {} later.", span(seconds)));
        }
        _ => text.push_str(&format!(" {}", outcome(incident))),
    }
    text
}

/// What a cause means.
pub(super) fn cause(cause: &str) -> String {
    let words = match cause {
        "panicked" => "The guest itself reported that its kernel had panicked.",
        "halted" => {
            "All of the guest's vCPUs had halted with their interrupts off, so that nothing could ever wake them."
        }
        "spinning" => {
            "A vCPU of the guest spun in its kernel where no interrupt could reach it, and nothing else moved."
        }
        "silent" => {
            "The guest sent nothing, stored nothing, and no longer answered what it had answered before."
        }
        "internal-error" => "KVM met an error in the guest that it could not go on from.",
        "watchdog" => "The guest's watchdog fired, since nothing in the guest fed it any more.",
        "boot-loop" => "The guest reset itself again and again.",
        "qemu-exited" => "The guest's QEMU ended without being asked to.",
        "qemu-unresponsive" => "The guest's QEMU no longer answered.",
        other => return format!("The guest was found crashed, of a cause called {other}."),
    };
    words.to_owned()
}

/// What came of it.
pub(super) fn outcome(incident: &Incident) -> &'static str {
    match incident.outcome {
        Some(Outcome::Recovered) => "The guest showed life again.",
        Some(Outcome::NotRecovered) => "The guest did not show life again.",
        Some(Outcome::Observed) => "Nothing was done: flatline was told to observe, or to hold.",
        Some(Outcome::LimitReached) => {
            "Nothing was done: its restarts are used up, and a person is needed."
        }
        Some(Outcome::Refused) => "Nothing was done, for a reason that stands with the verdict's.",
        None => "What comes of it is not known yet.",
    }
}

/// What a file of the evidence is.
pub(super) fn file(name: &str) -> &'static str {
    match name {
        "evidence.txt" => "what was kept, what is missing, and why",
        "run-state.txt" => "QEMU's run state",
        "registers.txt" => "the vCPUs' registers",
        "console.txt" => "the last lines of the serial console",
        "figures.json" => "what flatline knew of it",
        "vcpus.json" => "QEMU's account of the vCPUs",
        "block.json" => "QEMU's account of the disks",
        "blockstats.json" => "what QEMU counted of the disks",
        "network.json" => "QEMU's account of the networks' filters",
        "panic.json" => "what the guest said of its panic",
        _ => "a file of the evidence",
    }
}

/// A span as people say it.
fn span(seconds: f64) -> String {
    match Duration::try_from_secs_f64(seconds.round()) {
        Ok(whole) if seconds >= 100.0 => humantime::format_duration(whole).to_string(),
        _ => format!("{seconds:.1} s"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn incident() -> Incident {
        let text = |text: &str| text.to_owned();
        Incident::new(text("i"), text("g"), text("halted"), text("r"), SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn a_recovery_is_told_from_its_cause_to_its_end() {
        let incident = Incident {
            action: Some("system_reset".to_owned()),
            outcome: Some(Outcome::Recovered),
            detect_seconds: Some(10.24),
            recover_seconds: Some(125.0),
            ..incident()
        };
        let summary = summary(&incident);
        assert!(summary.starts_with("All of the guest's vCPUs had halted"), "{summary}");
        assert!(summary.contains("sure of it 10.2 s after its last sign of life."), "{summary}");
        assert!(
            summary.ends_with("(system_reset). It showed life again 2m 5s later."),
            "{summary}"
        );
    }

    #[test]
    fn what_is_not_known_is_said_to_be_that() {
        let summary = summary(&Incident { cause: "new-cause".to_owned(), ..incident() });
        assert!(summary.contains("a cause called new-cause."), "{summary}");
        assert!(summary.contains("Since when is not known."), "{summary}");
        assert!(summary.ends_with("What comes of it is not known yet."), "{summary}");
    }

    #[test]
    fn no_number_of_a_hostile_record_breaks_a_sentence() {
        for seconds in [f64::NAN, f64::INFINITY, -5.0, 1e19, 0.0] {
            assert!(span(seconds).len() < 80, "{}", span(seconds));
        }
    }
}
