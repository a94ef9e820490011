use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::{encoding::text, registry::Registry};

use super::{IncidentCounts, of, open_metrics, value};
use crate::storage::incident::{Incident, Outcome};

const STARTED: Duration = Duration::from_secs(1_000_000);

fn incident(id: &str, cause: &str, detected_at: SystemTime) -> Incident {
    let text = |text: &str| text.to_owned();
    let incident = Incident::new(text(id), text("web-1"), text(cause), text("r"), detected_at);
    Incident { detect_seconds: Some(11.0), ..incident }
}

/// An incident after which the guest came back within 4 s.
pub(super) fn recovered(id: &str, cause: &str, detected_at: SystemTime) -> Incident {
    let (outcome, recover_seconds) = (Some(Outcome::Recovered), Some(4.0));
    Incident { outcome, recover_seconds, ..incident(id, cause, detected_at) }
}

fn now() -> SystemTime {
    UNIX_EPOCH + STARTED + Duration::from_secs(60)
}

/// How many (cause, outcome) were counted, and the count and sum of detection and recovery times of that cause.
fn counted(counts: &IncidentCounts, cause: &str, outcome: Outcome) -> (f64, [f64; 2], [f64; 2]) {
    let mut registry = Registry::with_prefix("flatline");
    counts.register(&mut registry);
    let mut served = String::new();
    text::encode(&mut served, &registry).expect("into a string");
    let families = open_metrics(&served);
    let labels = [("cause", cause), ("outcome", outcome.as_str())];
    let times = |family: &str| {
        let of_it = |suffix: &str| {
            let samples = of(&families, family).into_iter();
            let it = samples
                .filter(|sample| sample.name.ends_with(suffix) && sample.labels["cause"] == cause);
            it.map(|sample| sample.value).sum()
        };
        [of_it("_count"), of_it("_sum")]
    };
    let ended = value(&families, "flatline_incidents", &labels);
    (ended, times("flatline_detection_seconds"), times("flatline_recovery_seconds"))
}

#[test]
fn an_incident_that_is_written_at_each_step_counts_once() {
    let counts = IncidentCounts::new(UNIX_EPOCH + STARTED);
    let none = [0.0, 0.0];
    assert_eq!(counted(&counts, "silent", Outcome::Recovered), (0.0, none, none), "from the start");
    let mut incident = incident("a", "silent", now());
    counts.note(&incident);
    counts.note(&incident);
    assert_eq!(counted(&counts, "silent", Outcome::Recovered), (0.0, [1.0, 11.0], none));
    incident = recovered("a", "silent", now());
    counts.note(&incident);
    counts.note(&incident);
    let once = (1.0, [1.0, 11.0], [1.0, 4.0]);
    assert_eq!(counted(&counts, "silent", Outcome::Recovered), once);
    assert_eq!(counted(&counts, "halted", Outcome::Recovered), (0.0, none, none));
}

#[test]
fn one_that_comes_to_another_outcome_later_counts_for_both() {
    let counts = IncidentCounts::new(UNIX_EPOCH + STARTED);
    let mut incident = incident("a", "halted", now());
    for outcome in [Some(Outcome::Refused), None, Some(Outcome::NotRecovered)] {
        incident.outcome = outcome;
        counts.note(&incident);
    }
    for outcome in [Outcome::Refused, Outcome::NotRecovered] {
        assert_eq!(counted(&counts, "halted", outcome).0.to_string(), "1", "{outcome:?}");
    }
    assert_eq!(counted(&counts, "halted", Outcome::Recovered).0.to_string(), "0");
}

#[test]
fn what_an_earlier_daemon_detected_counts_by_its_end_only() {
    let counts = IncidentCounts::new(UNIX_EPOCH + STARTED);
    counts.note(&recovered("a", "silent", UNIX_EPOCH));
    assert_eq!(counted(&counts, "silent", Outcome::Recovered), (1.0, [0.0, 0.0], [1.0, 4.0]));
}

#[test]
fn causes_are_words_of_this_program_whatever_a_record_says() {
    let counts = IncidentCounts::new(UNIX_EPOCH + STARTED);
    for (id, cause) in [("a", "storm"), ("b", "made-up-1"), ("c", "made-up-2")] {
        let outcome = Some(Outcome::Refused);
        counts.note(&Incident { outcome, ..incident(id, cause, now()) });
    }
    assert_eq!(counted(&counts, "storm", Outcome::Refused).0.to_string(), "1");
    assert_eq!(counted(&counts, "other", Outcome::Refused).0.to_string(), "2");
}

#[test]
fn what_is_remembered_of_incidents_is_bounded() {
    let counts = IncidentCounts::new(UNIX_EPOCH + STARTED);
    for number in 0..5000 {
        counts.note(&incident(&number.to_string(), "silent", now()));
    }
    assert_eq!(counts.known.lock().expect("unpoisoned").len(), super::super::incidents::REMEMBERED);
    assert_eq!(counted(&counts, "silent", Outcome::Recovered).1[0].to_string(), "5000");
}
