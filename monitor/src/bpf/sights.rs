//! Looks at the taps of many VMs at once: whether our programs stand on them already, with what else has to be asked in their
//! namespaces.
//!
//! A daemon that starts after another finds all taps attached. To go into a namespace for each of them, and for each question,
//! takes a hundred times as long as the answers do.

use std::{
    collections::{BTreeMap, HashMap as StdHashMap, btree_map::Entry},
    fs::File,
};

use tracing::debug;

use super::{
    attachments::{Attachment, Key, key_of},
    host::Loader,
    namespace::{is_near, near_namespace},
    netlink::{LinkFacts, Socket},
    queue::Waiting,
    slots::Slots,
    tap_hooks::{self, Hook},
    tap_probe::TapProbe,
    taps::{Attached, Holder, TapPrograms},
};
use flatline_qemu::{
    discover::{Tap, TapKind, VmId, in_netns},
    text::error_chain,
};

/// A tap on which our programs stand in tcx, as it was seen where its QEMU is, or where we are.
struct Sight {
    /// The ids of the programs.
    programs: [u32; 2],
    link: LinkFacts,
    /// News of its interface is heard since before it was looked at.
    is_heard: bool,
}

/// What was seen.
#[derive(Default)]
pub(super) struct Sights {
    taps: StdHashMap<Key, Sight>,
    /// Packets that the guests sent, as the programs had counted them before the kernel's counts were read.
    ours: StdHashMap<VmId, u64>,
    /// The namespaces that were looked into.
    namespaces: Vec<u32>,
}

impl Sights {
    /// Whether our programs are on all of these taps, so that there is nothing to be attached.
    pub(super) fn are_of_all(&self, taps: &[Tap]) -> bool {
        taps.iter().all(|tap| self.taps.contains_key(&key_of(tap)))
    }

    /// Packets that the VM's guest sent on all of these taps, as ours counted them and then the kernel did; `None` where a tap
    /// was not seen.
    pub(super) fn sent(&self, vm: VmId, taps: &[Tap]) -> Option<(u64, u64)> {
        let sent = |tap: &Tap| {
            let LinkFacts { received, sent, .. } = self.taps.get(&key_of(tap))?.link;
            Some(if tap.kind == TapKind::Macvtap { sent } else { received })
        };
        Some((*self.ours.get(&vm)?, taps.iter().map(sent).sum::<Option<u64>>()?))
    }
}

/// Taps in one namespace, with the ids of the programs behind their links.
struct InOne<'a> {
    netns: File,
    taps: Vec<(&'a Tap, [u32; 2])>,
}

impl TapPrograms {
    /// Looks at the taps of these VMs.
    pub(super) fn look_at(&mut self, loader: &Loader, slots: &Slots, vms: &[&Waiting]) -> Sights {
        let mut sights = Sights::default();
        let mut by_netns: BTreeMap<u32, InOne<'_>> = BTreeMap::new();
        for Waiting { vm, counted, .. } in vms {
            // A row that it is given later begins with zeros.
            let sent = slots.of(*vm).map_or(Ok(0), |slot| slots.sent(slot));
            let Ok(sent) = sent else { continue };
            sights.ours.insert(*vm, sent);
            for tap in &counted.taps {
                if !self.may_be_on(*vm, tap) || !is_near(vm.pid, tap) {
                    continue;
                }
                let Some(programs) = tap_hooks::programs_on(loader, tap) else { continue };
                let in_one = match by_netns.entry(tap.netns) {
                    Entry::Occupied(entry) => entry.into_mut(),
                    Entry::Vacant(entry) => {
                        let Ok(Some(netns)) = near_namespace(vm.pid, tap) else { continue };
                        entry.insert(InOne { netns, taps: Vec::new() })
                    }
                };
                in_one.taps.push((tap, programs));
            }
        }
        for (number, InOne { netns, taps }) in by_netns {
            // First: what changes from now on is heard, and all that was before is seen.
            let is_heard = self.links.listen(number, &netns);
            match in_netns(&netns, || look_in(&taps)).flatten() {
                Ok(seen) => sights.taps.extend(
                    seen.into_iter()
                        .map(|(key, programs, link)| (key, Sight { programs, link, is_heard })),
                ),
                Err(error) => debug!("taps can't be looked at in namespace {number}: {error}"),
            }
            sights.namespaces.push(number);
        }
        sights
    }

    /// Ends listening where none of the taps that were seen was kept.
    pub(super) fn end_look(&mut self, sights: &Sights) {
        sights.namespaces.iter().for_each(|number| self.leave(*number));
    }

    /// Whether programs of ours may stand in a tap's tcx, and count for this VM.
    fn may_be_on(&self, vm: VmId, tap: &Tap) -> bool {
        match self.attached.get(key_of(tap)) {
            Some(known) => known.vm == vm && known.hook == Hook::Tcx,
            None => self.same_programs,
        }
    }

    /// Has a tap count for a VM on which the programs were seen to be; `None` where it was not seen, or is another's by now.
    pub(super) fn keep(
        &mut self,
        sights: &Sights,
        holder: Holder<'_>,
        tap: &Tap,
    ) -> Option<Attached> {
        let Holder { slot, vm, name, .. } = holder;
        let key = key_of(tap);
        let sight = sights.taps.get(&key).filter(|_| self.may_be_on(vm, tap))?;
        let programs = Some(sight.programs);
        if let Some(known) = self.attached.get_mut(key) {
            if known.slot != slot {
                return None;
            }
            tap.clone_into(&mut known.tap);
            known.programs = programs;
        } else {
            // Without a row, the programs may have been taken off since: for another user's tap.
            self.rows.of(key).ok().flatten()?;
            let row = match self.rows.take(slot, tap) {
                Ok(row) => row,
                Err(error) => return Some(Attached::not_on(tap, &error)),
            };
            let (name, tap, hook, is_near) = (name.to_owned(), tap.clone(), Hook::Tcx, true);
            let attachment = Attachment { slot, vm, name, tap, row, hook, programs, is_near };
            self.attached.insert(attachment);
        }
        Some(Attached {
            probe: TapProbe::on(tap, Hook::Tcx),
            was_lost: false,
            is_renamed: sight.link.name != tap.name,
            is_heard: sight.is_heard,
        })
    }
}

/// Those of the taps on which the programs stand, in the namespace of the calling thread.
fn look_in(taps: &[(&Tap, [u32; 2])]) -> std::io::Result<Vec<(Key, [u32; 2], LinkFacts)>> {
    let mut socket = Socket::open()?;
    let mut seen = Vec::with_capacity(taps.len());
    for (tap, programs) in taps {
        if !tap_hooks::still_on(tap, Hook::Tcx, Some(*programs)).unwrap_or(false) {
            continue;
        }
        match socket.link(tap.ifindex) {
            Ok(link) => seen.push((key_of(tap), *programs, link)),
            // Another answer may be on its way.
            Err(error) => {
                debug!("{}: its interface is not told: {}", tap.name, error_chain(&error));
                socket = Socket::open()?;
            }
        }
    }
    Ok(seen)
}
