//! What came of a soak, in figures.

use std::collections::BTreeMap;
use std::time::Duration;

/// A crash that was found.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The fault's name.
    pub fault: &'static str,
    /// The cause that the daemon gave.
    pub cause: String,
    /// From the fault to the incident, which is looked for four times a second.
    pub took: Duration,
    /// From the incident to the sign of life that closed it; none if it came in no time.
    pub back: Option<Duration>,
    /// The host's load when the fault was made: processes that want a CPU, averaged over a minute.
    pub load: f64,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// The seed of the choices.
    pub seed: u64,
    /// Guests at the end.
    pub guests: usize,
    /// How long all guests ran, together.
    pub guest_time: Duration,
    /// Crashes that were made.
    pub crashes: u32,
    /// Those that were found in time.
    pub verdicts: Vec<Verdict>,
    /// Crashes that were found too late or never.
    pub missed: u32,
    /// Resets from outside, by the QEMUs' own account, of guests that had to be left alone, and second ones of those
    /// that crashed.
    pub wrong_resets: u32,
    /// Convictions of guests that had to be left alone.
    pub wrong_incidents: u32,
    /// Disturbances, by their names.
    pub disturbances: BTreeMap<&'static str, u32>,
    /// How often the daemon was killed, and another took over.
    pub daemon_restarts: u32,
    /// The least and the most load that was seen.
    pub load: Option<(f64, f64)>,
    /// All that was not as is due, in words; with the daemon's log and the incident, where there is one.
    pub failures: Vec<String>,
}

impl Summary {
    /// Crashes whose guest was back.
    pub fn recovered(&self) -> usize {
        self.verdicts.iter().filter(|verdict| verdict.back.is_some()).count()
    }

    /// Verdicts that came later than `flat_for` by more than `by`.
    pub fn later_than(&self, limit: Duration) -> usize {
        self.verdicts.iter().filter(|verdict| verdict.took > limit).count()
    }
}
