//! Conditions that are news once they have lasted, and once they are over: a figure that is missing in one tick is none.
//! Pure: times come in.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::event::EventKind;

/// How long a VM must be unobservable, or its host at fault, or a sensor lost, before that is told.
pub(super) const LASTING: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Condition {
    kind: EventKind,
    since: Duration,
    is_told: bool,
}

/// What is out of order, by what it is of.
#[derive(Debug)]
pub(super) struct LastingConditions<K>(BTreeMap<K, Condition>);

impl<K> Default for LastingConditions<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

/// The event that says that a condition is over.
fn over(kind: EventKind) -> EventKind {
    match kind {
        EventKind::HostFault => EventKind::HostFaultOver,
        EventKind::SensorLost => EventKind::SensorBack,
        _ => EventKind::ObservableAgain,
    }
}

impl<K: Clone + Ord> LastingConditions<K> {
    /// All that are out of order, told or not.
    pub(super) fn keys(&self) -> BTreeSet<K> {
        self.0.keys().cloned().collect()
    }

    /// What is news of `key`, whose condition at `moment` is this one and why; `None`: it is well.
    pub(super) fn step(
        &mut self,
        key: K,
        found: Option<(EventKind, String)>,
        moment: Duration,
    ) -> Vec<(EventKind, String)> {
        let mut news = Vec::new();
        let kind = found.as_ref().map(|(kind, _)| *kind);
        if self.0.get(&key).is_some_and(|known| Some(known.kind) != kind) {
            news.extend(self.forget(&key).map(|over| (over, String::new())));
        }
        if let Some((kind, reason)) = found {
            let fresh = Condition { kind, since: moment, is_told: false };
            let known = self.0.entry(key).or_insert(fresh);
            if !known.is_told && moment.saturating_sub(known.since) >= LASTING {
                known.is_told = true;
                news.push((kind, reason));
            }
        }
        news
    }

    /// Forgets `key`. Returns what says that its condition is over, if that was told.
    pub(super) fn forget(&mut self, key: &K) -> Option<EventKind> {
        self.0.remove(key).filter(|known| known.is_told).map(|known| over(known.kind))
    }
}
