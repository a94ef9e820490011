//! Whether our programs count what the kernel counts of a VM's taps: programs that were detached, or are passed by, count
//! nothing while the kernel goes on.
//!
//! Pure. Only how far both moved since the last look is compared. A difference is a reason to look at what stands on the taps,
//! and nothing more: both are read one after the other, and some ways to a guest lead around any program.

/// Of so much that the kernel counted, ours count as much at the least: where one tap of several lost its programs, the others
/// go on.
const AT_LEAST: (u64, u64) = (31, 32);

/// Both counts of packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Read after the kernel's.
    pub(super) ours: u64,
    pub(super) kernel: u64,
}

impl Counts {
    /// Whether ours moved by less than the kernel's.
    fn lag_since(self, last: Self) -> bool {
        let moved = self.ours.checked_sub(last.ours).zip(self.kernel.checked_sub(last.kernel));
        let (part, of) = AT_LEAST;
        // A count that ran backwards was replaced.
        moved.is_some_and(|(ours, kernel)| ours.saturating_mul(of) < kernel.saturating_mul(part))
    }
}

/// What the guest sent, and what was sent to it; `None`: our programs don't count that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BothWays {
    pub(super) from_guest: Counts,
    pub(super) to_guest: Option<Counts>,
}

/// In which direction ours fell behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lag {
    /// In none, or there is nothing to compare with.
    None,
    FromGuest,
    /// Only in that to the guest.
    ToGuest,
}

/// The counts of one VM at the last look.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    last: Option<BothWays>,
}

impl Tally {
    /// Compares with the last look.
    pub(super) fn look(&mut self, now: BothWays) -> Lag {
        let Some(last) = self.last.replace(now) else { return Lag::None };
        if now.from_guest.lag_since(last.from_guest) {
            return Lag::FromGuest;
        }
        match now.to_guest.zip(last.to_guest) {
            Some((now, last)) if now.lag_since(last) => Lag::ToGuest,
            _ => Lag::None,
        }
    }

    /// Whether the kernel counted nothing since the last look, so that there is nothing to compare.
    pub(super) fn is_still(&self, from_guest: u64, to_guest: u64) -> bool {
        self.last.is_some_and(|last| {
            last.from_guest.kernel == from_guest
                && last.to_guest.is_none_or(|last| last.kernel == to_guest)
        })
    }

    /// The taps changed: the kernel's count is another one.
    pub(super) fn begin_anew(&mut self) {
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(from: (u64, u64), to: (u64, u64)) -> BothWays {
        let counts = |(ours, kernel)| Counts { ours, kernel };
        BothWays { from_guest: counts(from), to_guest: Some(counts(to)) }
    }

    #[test]
    fn programs_that_count_nothing_while_the_kernel_does_lag() {
        let mut tally = Tally::default();
        assert_eq!(tally.look(both((5, 9), (0, 0))), Lag::None, "nothing to compare with");
        assert_eq!(tally.look(both((5, 9), (0, 0))), Lag::None, "nothing was sent");
        assert!(tally.is_still(9, 0) && !tally.is_still(10, 0) && !tally.is_still(9, 1));
        assert_eq!(tally.look(both((15, 19), (3, 3))), Lag::None);
        assert_eq!(tally.look(both((15, 20), (4, 4))), Lag::FromGuest, "one packet is enough");
        assert_eq!(tally.look(both((15, 20), (4, 5))), Lag::ToGuest);
        assert_eq!(tally.look(both((15, 22), (4, 6))), Lag::FromGuest, "that comes first");
        assert_eq!(tally.look(both((17, 24), (9, 6))), Lag::None, "what a guest did not take yet");
        tally.begin_anew();
        assert_eq!(tally.look(both((17, 99), (9, 6))), Lag::None);
    }

    #[test]
    fn one_of_several_taps_without_programs_is_noticed_and_a_packet_on_its_way_is_not() {
        let mut tally = Tally::default();
        tally.look(both((0, 0), (0, 0)));
        assert_eq!(tally.look(both((1000, 1003), (0, 0))), Lag::None);
        assert_eq!(tally.look(both((1500, 2003), (0, 0))), Lag::FromGuest);
        assert_eq!(tally.look(both((u64::MAX, u64::MAX), (0, 0))), Lag::None, "and no overflow");
        assert_eq!(tally.look(both((3, 9), (0, 0))), Lag::None, "made again");
    }

    #[test]
    fn what_is_not_counted_does_not_lag() {
        let mut tally = Tally::default();
        let half =
            |kernel| BothWays { from_guest: Counts { ours: kernel, kernel }, to_guest: None };
        tally.look(half(1));
        assert_eq!(tally.look(half(5)), Lag::None);
        assert_eq!(tally.look(both((9, 9), (0, 50))), Lag::None, "seen for the first time");
    }
}
