//! Incidents, counted by what came of them, with the times that detection and recovery took.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use prometheus_client::{
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::storage::incident::{Incident, Outcome};
use flatline_detector::verdict::Cause;

/// Seconds from the last sign of life to the verdict: announced crashes in no time, silent ones after `flat_for` and
/// two or three rounds of questions.
const DETECTION_SECONDS: [f64; 12] =
    [0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 12.5, 15.0, 20.0, 30.0, 60.0, 120.0];
/// Seconds from the restart to the next sign of life: firmware and a boot.
const RECOVERY_SECONDS: [f64; 12] =
    [0.5, 1.0, 2.5, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0];

/// What stands for the cause of a storm's incident, and for one that this version doesn't know.
const STORM: &str = "storm";
const OTHER: &str = "other";

/// Incidents that are remembered, so that none is counted twice: an incident is written down at each step.
pub(super) const REMEMBERED: usize = 1024;

type ByCause = Family<[(&'static str, &'static str); 1], Histogram, fn() -> Histogram>;

/// An incident's id, and the outcome that it had when it was written down last.
type Known = (String, Option<Outcome>);

/// Counts incidents as they are written down; a clone counts the same.
#[derive(Clone, Debug)]
pub(crate) struct IncidentCounts {
    since: SystemTime,
    ended: Family<[(&'static str, &'static str); 2], Counter>,
    detection: ByCause,
    recovery: ByCause,
    pub(super) known: Arc<Mutex<VecDeque<Known>>>,
}

impl IncidentCounts {
    /// Of a daemon that started at `since`.
    pub(crate) fn new(since: SystemTime) -> Self {
        let ended = Family::<_, Counter>::default();
        // A series that begins with its first incident hides it from `increase()`.
        for cause in Cause::ALL.map(Cause::as_str).into_iter().chain([STORM]) {
            for outcome in Outcome::ALL {
                drop(ended.get_or_create(&[("cause", cause), ("outcome", outcome.as_str())]));
            }
        }
        Self {
            since,
            ended,
            detection: Family::new_with_constructor(|| Histogram::new(DETECTION_SECONDS)),
            recovery: Family::new_with_constructor(|| Histogram::new(RECOVERY_SECONDS)),
            known: Arc::default(),
        }
    }

    /// When the daemon started.
    pub(super) fn since(&self) -> SystemTime {
        self.since
    }

    /// The incident is written down as it is now: for the first time, or anew.
    pub(crate) fn note(&self, incident: &Incident) {
        let cause = match incident.cause.as_str() {
            STORM => STORM,
            name => Cause::parse(name).map_or(OTHER, Cause::as_str),
        };
        let (is_new, before) = self.remember(incident);
        // What an earlier daemon detected, it has counted.
        if let Some(seconds) = incident.detect_seconds
            && is_new
            && incident.detected_at >= self.since
        {
            self.detection.get_or_create(&[("cause", cause)]).observe(seconds);
        }
        let Some(outcome) = incident.outcome.filter(|outcome| before != Some(*outcome)) else {
            return;
        };
        self.ended.get_or_create(&[("cause", cause), ("outcome", outcome.as_str())]).inc();
        if let (Outcome::Recovered, Some(seconds)) = (outcome, incident.recover_seconds) {
            self.recovery.get_or_create(&[("cause", cause)]).observe(seconds);
        }
    }

    /// Whether it was not seen before, and the outcome that it had.
    fn remember(&self, incident: &Incident) -> (bool, Option<Outcome>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, outcome)) = known.iter_mut().rev().find(|(id, _)| *id == incident.id) {
            return (false, std::mem::replace(outcome, incident.outcome));
        }
        if known.len() == REMEMBERED {
            known.pop_front();
        }
        known.push_back((incident.id.clone(), incident.outcome));
        (true, None)
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "Incidents that came to this outcome since the daemon started; one that comes to another one later \
                    counts for both";
        registry.register("incidents", help, self.ended.clone());
        let help = "From the last sign of life to the verdict";
        registry.register_with_unit("detection", help, Unit::Seconds, self.detection.clone());
        let help = "From the restart to the next sign of life";
        registry.register_with_unit("recovery", help, Unit::Seconds, self.recovery.clone());
    }
}
