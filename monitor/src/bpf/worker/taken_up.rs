//! VMs that an earlier daemon counted are taken up as it left them: a slot that bears a VM's name, a row of each of its taps
//! that has this slot, and pinned links of both programs.
//!
//! To look at every tap takes a tenth of a millisecond; so this is assumed for a moment, in which counters are read and nothing is
//! concluded from them. Programs may have been taken off meanwhile.

use std::collections::HashSet;

use super::{AttachReport, Counted, ProbeReport, Worker};
use crate::bpf::{
    TapProbe,
    attachments::key_of,
    tap_hooks::{Hook, links_of},
    thread::Request,
};
use flatline_qemu::discover::{Tap, VmId};

impl Worker {
    /// Says where these are counted. Those of which that can't be assumed are attached in their turns.
    pub(super) fn take_up(&mut self, vms: Vec<(VmId, Counted)>) {
        let links: HashSet<String> = self.pins.links().into_iter().collect();
        for (vm, counted) in vms {
            let slot = self.slots.of(vm).filter(|_| self.taps.same_programs);
            let left =
                slot.and_then(|slot| Some((slot, self.left_on(&links, slot, &counted.taps)?)));
            match left {
                Some((slot, taps)) => {
                    let new = AttachReport::new(vm, Ok(slot));
                    let report = AttachReport { taps, is_heard: false, is_assumed: true, ..new };
                    self.report(ProbeReport::Attached(report));
                }
                None => self.queue.push(Request::Attach(vm, counted)),
            }
        }
    }

    /// These taps with the programs that were left on them to count in `slot`; `None` if some of it is missing.
    fn left_on(&self, links: &HashSet<String>, slot: u32, taps: &[Tap]) -> Option<Vec<TapProbe>> {
        let left = |tap: &Tap| {
            let key = key_of(tap);
            let (_, row) = self.taps.rows.of(key).ok().flatten()?;
            let are_pinned = links_of(key).iter().all(|link| links.contains(link));
            (row.slot == slot && are_pinned).then(|| TapProbe::on(tap, Hook::Tcx))
        };
        taps.iter().map(left).collect()
    }
}
