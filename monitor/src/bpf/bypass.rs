//! Whether packets pass our programs by: another program on the tap may take them and not hand them on.
//!
//! Pure. The kernel counts what a tap receives whichever program takes it, and that is the oracle: a guest whose packets
//! it counts and we don't is not silent. But both counts are read one after the other, a packet is counted by one
//! some time before the other, and on a host that is starved these times are long. So no program is accused that is not
//! there: another one must stand before ours, and ours be handed nothing from one look to the next. Where no other
//! stands, only what lasts is told, and no program named.

use std::time::Duration;

/// How long only the kernel's count must have moved where no program is to be seen that could take packets. Longer
/// than any backlog: a CPU whose softirqs come to nothing for so long is reported as locked up (20 s,
/// `watchdog_thresh` in kernel/watchdog.c).
const UNEXPLAINED_FOR: Duration = Duration::from_secs(25);

/// The same where there is such a program. A thread that was preempted with packets in its hands has gone on by then.
pub(crate) const DOUBTED_FOR: Duration = Duration::from_secs(2);

/// Both counts of what the guest sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counts {
    /// Ours before the kernel's was read, and after.
    pub(super) ours: [u64; 2],
    pub(super) kernel: u64,
}

/// What a look shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// Ours were handed packets, or none was sent, or it can't be told yet.
    Nothing,
    /// Another program may have taken some: worth another look in [`DOUBTED_FOR`].
    Doubtful,
    /// Another program takes them, and did so this often in a row.
    Taken(u32),
    /// None does, and they are counted by the kernel alone for long.
    Unexplained,
}

/// How it stood with one VM's packets at the looks up to now.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bypass {
    /// Ours before the kernel's, and the kernel's, at the last look.
    last: Option<(u64, u64)>,
    taken: u32,
    /// When it was first seen that only the kernel's count moved and there was a program to take packets.
    doubted_since: Option<Duration>,
    /// When it was first seen that only the kernel's count moved and no program was there to take packets.
    unexplained_since: Option<Duration>,
}

impl Bypass {
    /// Looks at both counts at the moment `now`; `is_preceded`: another program stands before ours.
    pub(super) fn look(&mut self, counts: Counts, is_preceded: bool, now: Duration) -> Finding {
        let Counts { ours: [ours_before, ours], kernel } = counts;
        let Some((ours_then, kernel_then)) = self.last.replace((ours_before, kernel)) else {
            return Finding::Nothing;
        };
        let Some(counted) = kernel.checked_sub(kernel_then).filter(|_| ours == ours_then) else {
            *self = Self { last: self.last, ..Self::default() };
            return Finding::Nothing;
        };
        match (counted, is_preceded) {
            // Nothing was sent, and nothing is what we say.
            (0, _) => Finding::Nothing,
            (_, true) => {
                self.unexplained_since = None;
                let since = *self.doubted_since.get_or_insert(now);
                if self.taken == 0 && now.saturating_sub(since) < DOUBTED_FOR {
                    return Finding::Doubtful;
                }
                self.taken = self.taken.saturating_add(1);
                Finding::Taken(self.taken)
            }
            (_, false) => {
                let since = *self.unexplained_since.get_or_insert(now);
                if now.saturating_sub(since) < UNEXPLAINED_FOR {
                    Finding::Nothing
                } else {
                    Finding::Unexplained
                }
            }
        }
    }

    /// Whether only the kernel's count moved since the last look: packets passed by, or are still on their way.
    pub(super) fn is_behind(&self, counts: Counts) -> bool {
        let Counts { ours: [_, ours], kernel } = counts;
        self.last.is_some_and(|(ours_then, kernel_then)| ours == ours_then && kernel > kernel_then)
    }

    /// Whether packets were taken at the last look at which any were sent.
    pub(super) fn has_begun(&self) -> bool {
        self.taken > 0
    }

    /// The taps changed: the kernel's count is another one.
    pub(super) fn begin_anew(&mut self) {
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::{Bypass, Counts, Finding};
    use std::time::Duration;

    /// Looks ten seconds apart, from what was read at each: ours, the kernel's, ours again.
    fn looks(series: &[(u64, u64, u64)], is_preceded: bool) -> Vec<Finding> {
        let mut bypass = Bypass::default();
        let counts =
            series.iter().map(|&(before, kernel, after)| Counts { ours: [before, after], kernel });
        let seconds = (0..).step_by(10).map(Duration::from_secs);
        counts.zip(seconds).map(|(counts, now)| bypass.look(counts, is_preceded, now)).collect()
    }

    #[test]
    fn packets_that_another_program_takes_pass_by() {
        let mut bypass = Bypass::default();
        let counts = |ours, kernel| Counts { ours: [ours; 2], kernel };
        let mut look = |seconds, ours, kernel| {
            bypass.look(counts(ours, kernel), true, Duration::from_secs(seconds))
        };
        assert_eq!(look(0, 5, 5), Finding::Nothing);
        assert_eq!(look(10, 6, 6), Finding::Nothing, "both moved");
        assert_eq!(look(20, 6, 9), Finding::Doubtful);
        assert_eq!(look(21, 6, 11), Finding::Doubtful, "it is too soon to tell");
        assert_eq!(look(22, 6, 11), Finding::Nothing, "nothing was sent");
        assert_eq!(look(30, 6, 12), Finding::Taken(1));
        assert_eq!(look(31, 6, 13), Finding::Taken(2));
        assert_eq!(look(40, 6, 13), Finding::Nothing, "a silent guest is seen as one");
        assert_eq!(look(50, 6, 14), Finding::Taken(3));
        assert_eq!(look(60, 7, 15), Finding::Nothing);
        assert_eq!(look(70, 7, 18), Finding::Doubtful);
        assert!(!bypass.has_begun());
        assert!(bypass.is_behind(counts(7, 19)) && !bypass.is_behind(counts(8, 19)));
        assert!(!bypass.is_behind(counts(7, 18)));
    }

    #[test]
    fn a_packet_that_comes_while_the_counts_are_read_is_none_that_passed_by() {
        // Read after the kernel's, ours has it already; then the guest is quiet.
        assert_eq!(looks(&[(6, 6, 9), (9, 9, 9), (9, 9, 9)], true), [Finding::Nothing; 3]);
        // Ours had it before the kernel counted it, and the guest is quiet after that, or goes on.
        let found = looks(&[(7, 6, 7), (7, 7, 7), (7, 7, 7), (8, 8, 8)], true);
        assert_eq!(
            found,
            [Finding::Nothing, Finding::Doubtful, Finding::Nothing, Finding::Nothing]
        );
    }

    #[test]
    fn no_program_is_accused_where_none_stands_before_ours_however_late_packets_come() {
        // A busy guest: its packets are counted by the kernel, and come to ours only between two looks.
        let starved = [(0, 0, 0), (0, 900, 0), (0, 950, 0), (940, 990, 950), (950, 1700, 950)];
        assert_eq!(looks(&starved, false), [Finding::Nothing; 5]);
        // With a program before ours that hands all on, what came meanwhile still tells that it does.
        assert_eq!(
            looks(&[(0, 0, 0), (0, 900, 880), (890, 910, 905)], true),
            [Finding::Nothing; 3]
        );
    }

    #[test]
    fn what_lasts_is_told_though_nothing_is_there_that_could_take_them() {
        let lasting =
            [(6, 6, 6), (6, 9, 6), (6, 12, 6), (6, 15, 6), (6, 18, 6), (6, 18, 6), (8, 20, 8)];
        let found = looks(&lasting, false);
        assert_eq!(found[..4], [Finding::Nothing; 4]);
        assert_eq!(found[4..], [Finding::Unexplained, Finding::Nothing, Finding::Nothing]);
    }

    #[test]
    fn other_taps_are_not_compared_with_those_before() {
        let mut bypass = Bypass::default();
        let counts = |ours, kernel| Counts { ours: [ours; 2], kernel };
        bypass.look(counts(5, 5), true, Duration::ZERO);
        bypass.begin_anew();
        assert_eq!(bypass.look(counts(5, 900), true, Duration::ZERO), Finding::Nothing);
        // Nor is an interface with one that was made again in its place.
        assert_eq!(bypass.look(counts(5, 30), true, Duration::ZERO), Finding::Nothing);
    }
}
