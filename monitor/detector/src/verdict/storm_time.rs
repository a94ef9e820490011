//! Time that storms may take: they end by themselves, unless the host shows a fault of its own.
//!
//! That many are silent together says that the host *may* be at fault. A fault that mends itself does so within minutes: a path
//! to storage that fails over, a file server's grace (90 s), a switch that converges. After [`STORM_HOLDS_FOR`] the VMs are more likely
//! dead than held up, or made to look so. They are judged again then, and restarted at the host's usual rate.
//!
//! Storms that come again and again have that time together: it is given back when none has held a VM for [`GIVEN_BACK_AFTER`].

use std::time::Duration;

/// How long storms hold VMs.
pub const STORM_HOLDS_FOR: Duration = Duration::from_secs(180);
/// Ten times that.
const GIVEN_BACK_AFTER: Duration = Duration::from_secs(1800);

/// What storms have taken of their time. Moments are times since the host's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StormTime {
    taken: Duration,
    /// When a storm was last seen, while it is.
    seen: Option<Duration>,
    /// When one last held VMs.
    held: Option<Duration>,
}

impl StormTime {
    /// Whether a storm that is seen at `now` holds VMs. `host_is_faulty` is asked once its time is over: whether the host shows a
    /// fault beside the silence.
    pub fn holds(&mut self, now: Duration, host_is_faulty: impl FnOnce() -> bool) -> bool {
        if self.is_given_back(now) {
            self.taken = Duration::ZERO;
        }
        self.taken += now.saturating_sub(self.seen.replace(now).unwrap_or(now));
        let holds = self.taken < STORM_HOLDS_FOR || host_is_faulty();
        if holds {
            self.held = Some(now);
        }
        holds
    }

    /// No storm is seen.
    pub fn pause(&mut self) {
        self.seen = None;
    }

    /// Whether all of it is taken at `now`.
    pub fn is_over(&self, now: Duration) -> bool {
        self.taken >= STORM_HOLDS_FOR && !self.is_given_back(now)
    }

    fn is_given_back(&self, now: Duration) -> bool {
        self.held.is_none_or(|held| now.saturating_sub(held) >= GIVEN_BACK_AFTER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// For how many of so many seconds a storm that is seen in each of them holds VMs.
    fn held(time: &mut StormTime, begin: u32, seconds: u32, is_faulty: bool) -> usize {
        let ticks = begin..begin + seconds;
        ticks.filter(|second| time.holds(SECOND * *second, || is_faulty)).count()
    }

    #[test]
    fn a_storm_ends_by_itself_unless_the_host_shows_a_fault_of_its_own() {
        let mut time = StormTime::default();
        assert!(!time.is_over(SECOND * 1000));
        assert_eq!(held(&mut time, 1000, 200, false), 180);
        assert!(time.is_over(SECOND * 1200));
        let mut time = StormTime::default();
        assert_eq!(held(&mut time, 1000, 900, true), 900);
        assert_eq!(held(&mut time, 1900, 60, false), 0, "the fault is over");
    }

    #[test]
    fn storms_that_come_again_and_again_have_their_time_together() {
        let mut time = StormTime::default();
        let mut all = 0;
        for storm in 0..50 {
            all += held(&mut time, 1000 + storm * 30, 20, false);
            time.pause();
        }
        assert!((180..=200).contains(&all), "{all} s");
    }

    #[test]
    fn that_time_is_given_back_after_half_an_hour_in_which_no_storm_held_a_vm() {
        let mut time = StormTime::default();
        assert_eq!(held(&mut time, 1000, 1700, false), 180);
        time.pause();
        assert_eq!(held(&mut time, 2700, 10, false), 0);
        time.pause();
        assert!(time.is_over(SECOND * 2900) && !time.is_over(SECOND * 3000));
        assert_eq!(held(&mut time, 3000, 400, false), 180);
    }
}
