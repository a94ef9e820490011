//! Looks at what a VM's process has open and runs: what was seen at the last one, and when another is due.
//!
//! While a VM shows life, what happens to it is told by events, and it is looked at now and then for what they don't tell. Of a
//! silent one all has to be known, before its silence means anything.

use std::time::Duration;

use flatline_qemu::discover::Extent;

/// Ticks of silence, beyond those after which a VM is looked at, after which that is in full.
const SILENT_FOR_LONG: u32 = 3;
/// Ticks between two looks at a silent VM.
const SILENT_EVERY: u32 = 10;
/// Ticks between two looks in full, though it has as many descriptors as before: one may have been closed and another opened.
/// Of a silent VM, and of another one, where an event tells of most such exchanges.
const IN_FULL: u32 = 60;
const IN_FULL_OF_LIVING: u32 = 15 * IN_FULL;
/// Ticks between two looks in full that events ask for: a guest can bring about as many of those as it likes.
const ASKED_FOR: u32 = 3;
/// So often its vCPUs' threads are told from as many threads: a thread gets its name a moment after it began.
const TOLD_APART: u32 = 2;

/// See the module. Moments are times since the host's start.
#[derive(Debug, Default)]
pub(crate) struct Looks {
    /// One is under way: one that hangs is not followed by others.
    under_way: bool,
    begun: Option<Duration>,
    in_full: Option<Duration>,
    seen: Extent,
    /// How often its vCPUs' threads were told from the others since it has so many.
    told_apart: u32,
}

impl Looks {
    /// Whether a VM that last lived at `life` is to be looked at because it has been silent for so long, `after`.
    pub(crate) fn are_due(
        &self,
        life: Duration,
        now: Duration,
        tick: Duration,
        after: Duration,
    ) -> bool {
        !self.under_way
            && now.saturating_sub(life) >= after.saturating_sub(tick / 2)
            && self.begun.is_none_or(|begun| begun < life || now >= begun + tick * SILENT_EVERY)
    }

    /// Whether the next one of a VM that last lived at `life` is to be in full.
    pub(crate) fn are_due_in_full(
        &self,
        life: Duration,
        now: Duration,
        tick: Duration,
        after: Duration,
    ) -> bool {
        let Some(last) = self.in_full else { return true };
        if now.saturating_sub(life) >= after + tick * SILENT_FOR_LONG {
            last < life || now >= last + tick * IN_FULL
        } else {
            now >= last + tick * IN_FULL_OF_LIVING
        }
    }

    /// From when on it may be looked at in full once more because of an event.
    pub(crate) fn asked_for_from(&self, tick: Duration) -> Duration {
        self.in_full.map_or(Duration::ZERO, |last| last + tick * ASKED_FOR)
    }

    /// Begins one at `now`. Returns what it had at the last one; `None` where one is under way.
    pub(crate) fn begin(&mut self, now: Duration) -> Option<Extent> {
        if self.under_way {
            return None;
        }
        self.under_way = true;
        self.begun = Some(now);
        Some(self.seen)
    }

    /// All that it has open was read.
    pub(crate) fn read_in_full(&mut self, now: Duration) {
        self.in_full = Some(now);
    }

    /// Ends one, which saw so much.
    pub(crate) fn end(&mut self, seen: Extent, told_apart: bool) {
        self.under_way = false;
        if seen.threads != self.seen.threads {
            self.told_apart = 0;
        }
        self.told_apart = self.told_apart.saturating_add(u32::from(told_apart));
        self.seen = seen;
    }

    /// Whether its vCPUs' threads are to be told from as many threads as before once more.
    pub(crate) fn tell_apart(&self) -> bool {
        self.told_apart < TOLD_APART
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_secs(1);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(1000 + seconds)
    }

    fn extent(threads: u64) -> Extent {
        Extent { descriptors: Some(30), threads: Some(threads) }
    }

    /// The seconds in which a VM that last lived at 0 is looked at, which is so long `after`, and whether in full.
    fn looks(looks: &mut Looks, seconds: u64, after: Duration) -> Vec<(u64, bool)> {
        let mut found = Vec::new();
        for second in 1..=seconds {
            if looks.are_due(at(0), at(second), TICK, after) {
                let in_full = looks.are_due_in_full(at(0), at(second), TICK, after);
                looks.begin(at(second)).unwrap();
                looks.end(extent(3), false);
                if in_full {
                    looks.read_in_full(at(second));
                }
                found.push((second, in_full));
            }
        }
        found
    }

    #[test]
    fn a_silent_vm_is_looked_at_soon_and_in_full_and_then_every_ten_ticks() {
        let mut of =
            Looks { begun: Some(at(0) - TICK), in_full: Some(at(0) - TICK), ..Looks::default() };
        let found = looks(&mut of, 80, TICK * 2);
        assert_eq!(found[..3], [(2, false), (12, true), (22, false)]);
        let in_full: Vec<u64> = found.iter().filter(|(_, full)| *full).map(|(at, _)| *at).collect();
        assert_eq!(in_full, [12, 72]);
        assert_eq!(found.len(), 8);
        let mut of =
            Looks { begun: Some(at(0) - TICK), in_full: Some(at(0) - TICK), ..Looks::default() };
        assert_eq!(looks(&mut of, 30, TICK * 5), [(5, false), (15, true), (25, false)]);
    }

    #[test]
    fn a_vm_that_was_never_looked_at_is_looked_at_in_full_and_a_living_one_seldom() {
        let mut of = Looks::default();
        let after = TICK * 2;
        assert!(of.are_due_in_full(at(0), at(0), TICK, after));
        of.begin(at(0)).unwrap();
        assert_eq!(of.begin(at(1)), None, "one is under way");
        assert!(!of.are_due(at(0), at(100), TICK, after));
        of.end(extent(3), true);
        of.read_in_full(at(0));
        assert!(!of.are_due(at(99), at(100), TICK, after), "it lives");
        assert!(!of.are_due_in_full(at(899), at(899), TICK, after));
        assert!(of.are_due_in_full(at(900), at(900), TICK, after));
        assert_eq!(of.asked_for_from(TICK), at(3));
    }

    #[test]
    fn vcpus_are_told_apart_twice_for_each_number_of_threads() {
        let mut of = Looks::default();
        let mut look = |threads| {
            of.begin(at(0)).unwrap();
            let tell_apart = of.tell_apart();
            of.end(extent(threads), tell_apart);
            tell_apart
        };
        assert_eq!([look(3), look(3), look(3)], [true, true, false]);
        // The look that sees another number tells them apart in any case.
        assert_eq!([look(4), look(4), look(4), look(4)], [false, true, true, false]);
    }
}
