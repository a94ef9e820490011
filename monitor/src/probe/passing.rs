//! Whether packets pass our programs by: another program on the tap may take them and not hand them on.
//!
//! Pure. The kernel counts what a tap receives whoever takes it, and that is the oracle: a guest whose packets
//! it counts and we don't is not silent.

/// How often in a row packets passed by, for one VM.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Passing {
    /// Ours and the kernel's count at the last look.
    last: Option<(u64, u64)>,
    times: u32,
}

impl Passing {
    /// Looks at both counts of what the guest sent; returns how often in a row packets passed by up to now, 0
    /// where none did since the last look.
    pub(super) fn look(&mut self, ours: u64, kernel: u64) -> u32 {
        let Some((ours_before, kernel_before)) = self.last.replace((ours, kernel)) else {
            return 0;
        };
        match (ours != ours_before, kernel != kernel_before) {
            (false, true) => {
                self.times = self.times.saturating_add(1);
                self.times
            }
            (true, _) => {
                self.times = 0;
                0
            }
            // Nothing was sent, and nothing is what we say.
            (false, false) => 0,
        }
    }

    /// Whether only the kernel's count moved since the last look: packets passed by, or are still on their way.
    pub(super) fn is_behind(&self, ours: u64, kernel: u64) -> bool {
        self.last.is_some_and(|(ours_before, kernel_before)| {
            ours == ours_before && kernel != kernel_before
        })
    }

    /// Whether packets passed by at the last look at which any were sent.
    pub(super) fn has_begun(&self) -> bool {
        self.times > 0
    }

    /// The taps changed: the kernel's count is another one.
    pub(super) fn begin_anew(&mut self) {
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_that_only_the_kernel_counts_pass_by() {
        let mut passing = Passing::default();
        assert_eq!(passing.look(5, 5), 0);
        assert_eq!(passing.look(6, 6), 0, "both moved");
        assert!(passing.is_behind(6, 9) && !passing.is_behind(7, 9) && !passing.is_behind(6, 6));
        assert!(!passing.has_begun());
        assert_eq!(passing.look(6, 9), 1);
        assert!(passing.has_begun());
        assert_eq!(passing.look(6, 12), 2);
        assert_eq!(passing.look(6, 12), 0, "a silent guest is seen as one");
        assert_eq!(passing.look(6, 13), 3);
        assert_eq!(passing.look(7, 14), 0);
        assert_eq!(passing.look(7, 15), 1);
    }

    #[test]
    fn other_taps_are_not_compared_with_those_before() {
        let mut passing = Passing::default();
        passing.look(5, 5);
        passing.begin_anew();
        assert_eq!(passing.look(5, 900), 0);
    }
}
