//! Taps that are attached, found by where they are, by the slot that they count in, and by the namespace that is listened to
//! for them: what concerns one VM costs nothing for the others.

use std::collections::HashMap as StdHashMap;

use super::{tally::Tally, tap_hooks::Hook};
use flatline_qemu::discover::{Tap, TapKind, VmId};

/// A tap, by its network namespace and its index there.
pub(super) type Key = (u32, u32);

/// The key of a tap.
pub(super) fn key_of(tap: &Tap) -> Key {
    (tap.netns, tap.ifindex)
}

/// What is on a tap.
pub(super) struct Attachment {
    pub(super) slot: u32,
    /// The VM whose QEMU has it open, and was the first that was counted on it.
    pub(super) vm: VmId,
    /// The VM's name, for people.
    pub(super) name: String,
    pub(super) tap: Tap,
    /// Its row in `taps`.
    pub(super) row: u32,
    pub(super) hook: Hook,
    /// The ids of the two programs in its tcx, once they were asked for.
    pub(super) programs: Option<[u32; 2]>,
    /// Whether it is where its QEMU is, or where we are: what is held open there keeps nothing alive that would end.
    pub(super) is_near: bool,
}

/// The taps of one slot.
pub(super) struct OfSlot {
    pub(super) vm: VmId,
    pub(super) keys: Vec<Key>,
    /// How their packets were counted up to now.
    pub(super) tally: Tally,
    /// The kernel's counts that were told since they were last taken.
    told: Told,
}

/// Packets of the taps of one slot, by the kernel's account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) taps: usize,
    pub(super) from_guest: u64,
    pub(super) to_guest: u64,
}

impl OfSlot {
    /// What was told since this was last asked, if it was told of each tap.
    pub(super) fn take_told(&mut self) -> Option<Told> {
        let told = std::mem::take(&mut self.told);
        (told.taps == self.keys.len()).then_some(told)
    }
}

/// All taps that are attached.
#[derive(Default)]
pub(super) struct Attachments {
    by_key: StdHashMap<Key, Attachment>,
    by_slot: StdHashMap<u32, OfSlot>,
    /// How many are in each namespace, and how many of them near.
    by_netns: StdHashMap<u32, (u32, u32)>,
}

impl Attachments {
    pub(super) fn get(&self, key: Key) -> Option<&Attachment> {
        self.by_key.get(&key)
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut Attachment> {
        self.by_key.get_mut(&key)
    }

    /// Takes note of one, which is not there yet.
    pub(super) fn insert(&mut self, attachment: Attachment) {
        let key = key_of(&attachment.tap);
        let of_slot = self.by_slot.entry(attachment.slot).or_insert_with(|| OfSlot {
            vm: attachment.vm,
            keys: Vec::new(),
            tally: Tally::default(),
            told: Told::default(),
        });
        of_slot.keys.push(key);
        of_slot.tally.begin_anew();
        let (all, near) = self.by_netns.entry(key.0).or_default();
        *all += 1;
        *near += u32::from(attachment.is_near);
        self.by_key.insert(key, attachment);
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<Attachment> {
        let attachment = self.by_key.remove(&key)?;
        if let Some(of_slot) = self.by_slot.get_mut(&attachment.slot) {
            of_slot.keys.retain(|other| *other != key);
            of_slot.tally.begin_anew();
            if of_slot.keys.is_empty() {
                self.by_slot.remove(&attachment.slot);
            }
        }
        if let Some((all, near)) = self.by_netns.get_mut(&key.0) {
            *all -= 1;
            *near -= u32::from(attachment.is_near);
            if *all == 0 {
                self.by_netns.remove(&key.0);
            }
        }
        Some(attachment)
    }

    /// Those that count in `slot`.
    pub(super) fn of(&self, slot: u32) -> impl Iterator<Item = &Attachment> {
        let keys = self.by_slot.get(&slot).map_or(&[][..], |of_slot| &of_slot.keys);
        keys.iter().filter_map(|key| self.by_key.get(key))
    }

    /// Where those are that count in `slot`.
    pub(super) fn keys_of(&self, slot: u32) -> Vec<Key> {
        self.by_slot.get(&slot).map(|of_slot| of_slot.keys.clone()).unwrap_or_default()
    }

    /// Takes note of an interface's packets, if it is one of them.
    pub(super) fn told(&mut self, key: Key, received: u64, sent: u64) {
        let Some(attachment) = self.by_key.get(&key) else { return };
        let Some(of_slot) = self.by_slot.get_mut(&attachment.slot) else { return };
        let (from_guest, to_guest) = match attachment.tap.kind {
            TapKind::Tap => (received, sent),
            TapKind::Macvtap => (sent, received),
        };
        let told = &mut of_slot.told;
        told.taps += 1;
        told.from_guest = told.from_guest.wrapping_add(from_guest);
        told.to_guest = told.to_guest.wrapping_add(to_guest);
    }

    pub(super) fn slots(&mut self) -> impl Iterator<Item = (u32, &mut OfSlot)> {
        self.by_slot.iter_mut().map(|(slot, of_slot)| (*slot, of_slot))
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Attachment> {
        self.by_key.values()
    }

    /// Whether any is in a namespace.
    pub(super) fn is_any_in(&self, netns: u32) -> bool {
        self.by_netns.contains_key(&netns)
    }

    /// Whether any is in a namespace that may be listened to for it.
    pub(super) fn is_any_near(&self, netns: u32) -> bool {
        self.by_netns.get(&netns).is_some_and(|(_, near)| *near > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(netns: u32, ifindex: u32, slot: u32, is_near: bool) -> Attachment {
        let tap = Tap { kind: TapKind::Tap, name: format!("tap{ifindex}"), netns, ifindex };
        let vm = VmId { pid: 100 + slot, start_ticks: 1 };
        let name = String::new();
        Attachment { slot, vm, name, tap, row: 0, hook: Hook::Tcx, programs: None, is_near }
    }

    #[test]
    fn each_index_forgets_what_is_removed_and_nothing_else() {
        let mut all = Attachments::default();
        for (netns, ifindex, slot, is_near) in [(1, 7, 0, true), (1, 8, 0, false), (2, 7, 3, true)]
        {
            all.insert(on(netns, ifindex, slot, is_near));
        }
        assert_eq!(all.keys_of(0), [(1, 7), (1, 8)]);
        assert_eq!(all.of(3).map(|on| on.vm.pid).collect::<Vec<_>>(), [103]);
        assert!(all.is_any_in(1) && all.is_any_near(1));
        assert_eq!(all.remove((1, 7)).map(|on| on.slot), Some(0));
        assert!(all.remove((1, 7)).is_none());
        assert!(all.is_any_in(1) && !all.is_any_near(1), "what is left there is far");
        assert_eq!((all.keys_of(0), all.keys_of(9)), (vec![(1, 8)], Vec::new()));
        all.remove((1, 8));
        assert!(!all.is_any_in(1) && all.slots().count() == 1 && all.all().count() == 1);
        assert!(all.get((2, 7)).is_some());
    }
    #[test]
    fn packets_are_summed_for_a_slot_once_each_of_its_taps_was_told() {
        let mut all = Attachments::default();
        all.insert(on(1, 7, 0, true));
        let mut macvtap = on(1, 8, 0, true);
        macvtap.tap.kind = TapKind::Macvtap;
        all.insert(macvtap);
        let taken = |all: &mut Attachments| all.slots().next().and_then(|(_, of)| of.take_told());
        all.told((1, 7), 5, 50);
        all.told((1, 9), 7, 70);
        assert_eq!(taken(&mut all), None, "one of them is missing");
        all.told((1, 7), 5, 50);
        all.told((1, 8), 30, 3);
        assert_eq!(taken(&mut all), Some(Told { taps: 2, from_guest: 8, to_guest: 80 }));
        assert_eq!(taken(&mut all), None);
    }
}
