//! Counters of what each target of notifications was told, and of what it was not.

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::words::words;

words! {
    /// What came of telling something.
    pub(crate) enum Told {
        /// The receiver has it.
        Delivered = "delivered",
        /// It did not take it now; it is told again.
        Failed = "failed",
        /// It will never take it.
        Refused = "refused",
        /// It waited for too long.
        Expired = "expired",
        /// There was no room for it.
        Dropped = "dropped",
    }
}

/// Counts them; a clone counts the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct NotificationCounts {
    told: Family<[(&'static str, String); 2], Counter>,
    waiting: Family<[(&'static str, String); 1], Gauge>,
}

fn labels(target: &str, told: Told) -> [(&'static str, String); 2] {
    [("target", target.to_owned()), ("outcome", told.as_str().to_owned())]
}

impl NotificationCounts {
    /// A target is told from now on.
    pub(crate) fn begin(&self, target: &str) {
        for told in Told::ALL {
            drop(self.told.get_or_create(&labels(target, told)));
        }
        self.waiting(target, 0);
    }

    /// A target is no longer told.
    pub(crate) fn end(&self, target: &str) {
        for told in Told::ALL {
            self.told.remove(&labels(target, told));
        }
        self.waiting.remove(&[("target", target.to_owned())]);
    }

    /// That came of so many.
    pub(crate) fn note(&self, target: &str, told: Told, times: u64) {
        self.told.get_or_create(&labels(target, told)).inc_by(times);
    }

    /// So many wait for it.
    pub(crate) fn waiting(&self, target: &str, waiting: usize) {
        let waiting = i64::try_from(waiting).unwrap_or(i64::MAX);
        self.waiting.get_or_create(&[("target", target.to_owned())]).set(waiting);
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "Events that were told to each target of [[notify]], or weren't";
        registry.register("notifications", help, self.told.clone());
        let help = "Events that wait to be told";
        registry.register("notifications_waiting", help, self.waiting.clone());
    }
}
