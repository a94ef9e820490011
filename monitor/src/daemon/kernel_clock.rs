//! The kernel's ticks, in which the programs tell the time, beside the daemon's own clock.

use std::time::Duration;

use crate::sampler::{jiffies_in, ticks};

/// The kernel's ticks are told from a clock for no longer than this after they were read.
const JIFFIES_HOLD: Duration = Duration::from_secs(60);

/// When the kernel's ticks were read last, by time since the host's start, and what they were; `None` before that.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct KernelClock(Option<(Duration, u64)>);

impl KernelClock {
    /// They were read at `now`.
    pub(super) fn set(&mut self, now: Duration, jiffies: u64) {
        self.0 = Some((now, jiffies));
    }

    /// The kernel's ticks at `now`; `None` where they were not read for a while.
    pub(super) fn at(self, now: Duration) -> Option<u64> {
        let (read, jiffies) = self.0?;
        let since = now.saturating_sub(read);
        (since < JIFFIES_HOLD).then(|| jiffies + jiffies_in(since))
    }

    /// Seconds since a moment in the kernel's ticks; `None` for the tick 0, which is never, and where nothing
    /// tells which tick it is.
    pub(super) fn since(self, moment: u64, now: Duration) -> Option<f64> {
        let (read, jiffies) = self.0.filter(|_| moment != 0)?;
        let later = ticks(moment.saturating_sub(jiffies));
        let age = ticks(jiffies.saturating_sub(moment)) + now.saturating_sub(read);
        Some(age.saturating_sub(later).as_secs_f64())
    }
}
