//! What the daemon counts of itself.

use std::time::Duration;

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};

/// Seconds that a tick may take: a few milliseconds for a few hundred VMs, and never the whole interval.
const TICK_SECONDS: [f64; 11] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0];

/// The daemon's own counters; a clone counts the same.
#[derive(Clone, Debug)]
pub(crate) struct Counts {
    ticks: Counter,
    late: Counter,
    took: Histogram,
    reload_succeeded: Gauge,
}

impl Default for Counts {
    fn default() -> Self {
        let took = Histogram::new(TICK_SECONDS);
        let reload_succeeded = Gauge::default();
        reload_succeeded.set(1);
        Self { ticks: Counter::default(), late: Counter::default(), took, reload_succeeded }
    }
}

impl Counts {
    /// A tick ended that took so long; it was late if it began more than half of the `interval` after its time.
    pub(crate) fn ticked(&self, behind: Duration, took: Duration, interval: Duration) {
        self.ticks.inc();
        if behind > interval / 2 {
            self.late.inc();
        }
        self.took.observe(took.as_secs_f64());
    }

    /// The configuration was read again, or could not be.
    pub(crate) fn reloaded(&self, succeeded: bool) {
        self.reload_succeeded.set(succeeded.into());
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let host = rustix::system::uname();
        let release = host.release().to_string_lossy().into_owned();
        let labels = vec![("version", env!("CARGO_PKG_VERSION").to_owned()), ("kernel", release)];
        registry.register(
            "build",
            "The daemon's version, and the kernel under it",
            Info::new(labels),
        );
        registry.register(
            "ticks",
            "Ticks, in each of which all VMs are sampled and judged",
            self.ticks.clone(),
        );
        let help = "Ticks that began more than half of detection.sample_interval after their time";
        registry.register("ticks_late", help, self.late.clone());
        let help = "Whether the configuration could be read when it last was: 1, or 0 for one that stays in force instead";
        registry.register("config_last_reload_successful", help, self.reload_succeeded.clone());
        let help = "What ticks took";
        registry.register_with_unit("tick_duration", help, Unit::Seconds, self.took.clone());
    }
}
