//! Looking after taps that are attached, in a tick in which there is a reason, for all of them: takes in the news of their interfaces, compares the
//! kernel's counts with ours, and sees whether the programs still stand where that is asked.
//!
//! What is found is a reason to look at a VM, and changes nothing by itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tracing::debug;

use super::{
    attachments::{Attachments, Key, Told},
    host::Loader,
    links::News,
    namespace::namespace_of,
    strangers::Strangers,
    tally::{BothWays, Counts, Lag},
    tap_hooks::{self, Hook},
    taps::TapPrograms,
};
use crate::sampler::CounterMaps;
use flatline_qemu::discover::{VmId, in_netns};

/// What is to be looked after in a tick.
#[derive(Clone, Default)]
pub(crate) struct Tend {
    /// VMs whose programs are to be looked for on their taps.
    pub(crate) verify: Vec<VmId>,
    /// The kernel's counts are to be compared with these of ours, for all.
    pub(crate) counts: Option<Arc<CounterMaps>>,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Tended {
    /// VMs of which a tap is gone, was moved, or has another name, or whose QEMU let go of it.
    pub(crate) moved: BTreeSet<VmId>,
    /// VMs of whose taps news was lost.
    pub(crate) missed: BTreeSet<VmId>,
    /// VMs whose programs are not on their taps, or can't be looked for.
    pub(crate) lost: BTreeSet<VmId>,
    /// VMs that sent more than our programs count.
    pub(crate) lagging: BTreeSet<VmId>,
    /// A tap appeared that is no VM's so far.
    pub(crate) appeared: bool,
    /// The next tick is to be told of, whatever news there is: a tap that was heard of is to be looked for.
    pub(crate) awaits_tick: bool,
}

impl TapPrograms {
    /// Takes in the news of interfaces.
    pub(super) fn hear(&mut self, tended: &mut Tended) {
        let Self { attached, strangers, links, .. } = self;
        links.news(&mut |netns, news| take(attached, strangers, netns, news, tended));
        tended.appeared = strangers.are_due();
        tended.awaits_tick = strangers.await_ticks();
    }

    /// Compares the kernel's counts with ours. Returns the VMs whose programs are to be looked for.
    pub(super) fn compare(&mut self, ours: &CounterMaps, tended: &mut Tended) -> Vec<VmId> {
        let Self { attached, strangers, links, .. } = self;
        links.count(&mut |netns, news| match news {
            News::Packets { ifindex, received, sent } => {
                attached.told((netns, ifindex), received, sent);
            }
            news => take(attached, strangers, netns, news, tended),
        });
        let blind: BTreeSet<u32> = attached
            .all()
            .filter(|known| known.hook.unseen().is_some())
            .map(|known| known.slot)
            .collect();
        let mut doubted = Vec::new();
        for (slot, of_slot) in attached.slots() {
            let Some(Told { from_guest, to_guest, .. }) = of_slot.take_told() else { continue };
            if of_slot.tally.is_still(from_guest, to_guest) {
                continue;
            }
            let Some(ours) = ours.network(slot) else { continue };
            let counts = |ours, kernel| Counts { ours, kernel };
            let to_guest = counts(ours.guest_rx_packets, to_guest);
            let lag = of_slot.tally.look(BothWays {
                from_guest: counts(ours.guest_tx_packets, from_guest),
                to_guest: (!blind.contains(&slot)).then_some(to_guest),
            });
            match lag {
                Lag::None => {}
                Lag::FromGuest => drop(tended.lagging.insert(of_slot.vm)),
                // There are ways to a guest that lead around the programs: only their absence would mean something.
                Lag::ToGuest => doubted.push(of_slot.vm),
            }
        }
        doubted
    }

    /// Looks for the programs on all taps of these slots, in each namespace at once.
    pub(super) fn verify(
        &mut self,
        loader: &Loader,
        slots: impl Iterator<Item = u32>,
        tended: &mut Tended,
    ) {
        let mut by_netns: BTreeMap<u32, Vec<Key>> = BTreeMap::new();
        let keys: Vec<Key> = slots.flat_map(|slot| self.attached.keys_of(slot)).collect();
        for key in keys {
            by_netns.entry(key.0).or_default().push(key);
            if let Some(known) = self.attached.get_mut(key)
                && known.hook == Hook::Tcx
                && known.programs.is_none()
            {
                known.programs = tap_hooks::programs_on(loader, &known.tap);
            }
        }
        for keys in by_netns.into_values() {
            tended.lost.extend(self.lost_among(&keys));
        }
    }

    /// The VMs whose programs are not on these taps, which are in one namespace.
    fn lost_among(&self, keys: &[Key]) -> Vec<VmId> {
        let known: Vec<_> = keys.iter().filter_map(|key| self.attached.get(*key)).collect();
        let Some(first) = known.first() else { return Vec::new() };
        let is_lost = || {
            let looked = known.iter().map(|known| {
                let still_on = tap_hooks::still_on(&known.tap, known.hook, known.programs);
                (known.vm, still_on.unwrap_or(false))
            });
            looked.filter(|(_, is_on)| !is_on).map(|(vm, _)| vm).collect()
        };
        let looked = namespace_of(first.vm.pid, &first.tap).and_then(|at| in_netns(&at, is_lost));
        looked.unwrap_or_else(|error| {
            debug!("programs can't be looked for in the namespace of {}: {error}", first.tap.name);
            known.iter().map(|known| known.vm).collect()
        })
    }
}

fn take(
    attached: &mut Attachments,
    strangers: &mut Strangers,
    netns: u32,
    news: News<'_>,
    tended: &mut Tended,
) {
    match news {
        News::Packets { .. } => {}
        News::Missed => {
            let there = attached.all().filter(|known| known.tap.netns == netns);
            tended.missed.extend(there.map(|known| known.vm));
        }
        News::Gone { ifindex } => {
            let key = (netns, ifindex);
            strangers.forget(key);
            tended.moved.extend(attached.get(key).map(|known| known.vm));
        }
        News::Link(link) => {
            let key = (netns, link.ifindex);
            match attached.get(key) {
                // Its guest, too, brings about news: what features its card has, say.
                Some(known) if link.name == known.tap.name.as_bytes() && link.has_carrier => {}
                Some(known) => drop(tended.moved.insert(known.vm)),
                None => strangers.note(key, &link),
            }
        }
    }
}
