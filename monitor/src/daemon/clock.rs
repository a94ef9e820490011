//! Clock of the daemon: time since the host's start.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Counts from the host's start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    started: Instant,
    /// How long the host had been up by then.
    host_up: Duration,
}

impl Clock {
    /// A clock of a daemon that starts now.
    pub(super) fn start() -> Self {
        let host_up = Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default();
        Self { started: Instant::now(), host_up }
    }

    /// Time since the host's start: the only clock of the verdict. Since the daemon's own start, no VM could be
    /// older than that.
    pub(super) fn now(&self) -> Duration {
        self.host_up + self.started.elapsed()
    }

    /// Time since the daemon's start.
    pub(super) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }
}
