//! Taps that were heard of and are no VM's so far: a process holds the other end of each, and it may be a QEMU that a network
//! was plugged into.
//!
//! Nothing tells which process holds a tap, so that all QEMUs have to be looked at for it. A QEMU that has just started
//! is looked at in any case: only a tap that is no VM's after a while is worth that.

use std::collections::HashMap;

use super::{attachments::Key, links::Link};

/// Looks at the QEMUs, in ticks after a tap was heard of: it may be handed to one a moment after it was made.
const LOOKS: [u32; 2] = [1, 4];
/// Most that are remembered. A host's other programs have taps, too.
const MOST: usize = 256;

/// By the ticks since each was heard of.
#[derive(Debug, Default)]
pub(super) struct Strangers(HashMap<Key, u32>);

impl Strangers {
    /// There is news of an interface that is no VM's.
    pub(super) fn note(&mut self, key: Key, link: &Link<'_>) {
        if !link.is_tap || !link.has_carrier {
            self.forget(key);
        } else if self.0.len() < MOST {
            self.0.entry(key).or_default();
        }
    }

    /// It is gone, or a VM's.
    pub(super) fn forget(&mut self, key: Key) {
        self.0.remove(&key);
    }

    /// Whether ticks are to be told of, since one may be due.
    pub(super) fn await_ticks(&self) -> bool {
        let [_, last] = LOOKS;
        self.0.values().any(|ticks| *ticks <= last)
    }

    /// Another tick has passed: whether a tap is to be looked for among all QEMUs.
    pub(super) fn are_due(&mut self) -> bool {
        let [_, last] = LOOKS;
        let mut are_due = false;
        for ticks in self.0.values_mut().filter(|ticks| **ticks <= last) {
            *ticks += 1;
            are_due |= LOOKS.contains(&(*ticks - 1));
        }
        are_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(is_tap: bool, has_carrier: bool) -> Link<'static> {
        Link { ifindex: 7, name: b"tap7", has_carrier, is_tap }
    }

    fn ticks(strangers: &mut Strangers, ticks: u32) -> Vec<bool> {
        (0..ticks).map(|_| strangers.are_due()).collect()
    }

    #[test]
    fn a_tap_that_is_held_is_looked_for_twice_and_news_of_it_changes_nothing() {
        let mut strangers = Strangers::default();
        assert!(!strangers.await_ticks());
        strangers.note((1, 7), &link(true, true));
        assert_eq!(ticks(&mut strangers, 3), [false, true, false]);
        strangers.note((1, 7), &link(true, true));
        assert!(strangers.await_ticks());
        assert_eq!(ticks(&mut strangers, 5), [false, true, false, false, false]);
        assert!(!strangers.await_ticks(), "it was looked for as often as it is");
    }

    #[test]
    fn what_is_a_vms_or_let_go_of_or_no_tap_is_not_looked_for() {
        let mut strangers = Strangers::default();
        strangers.note((1, 7), &link(false, true));
        strangers.note((1, 8), &link(true, false));
        strangers.note((1, 9), &link(true, true));
        strangers.note((1, 9), &link(true, false));
        strangers.note((2, 7), &link(true, true));
        strangers.forget((2, 7));
        assert_eq!(ticks(&mut strangers, 6), [false; 6]);
        (0..1000).for_each(|at| strangers.note((1, at), &link(true, true)));
        assert_eq!(strangers.0.len(), MOST);
    }
}
