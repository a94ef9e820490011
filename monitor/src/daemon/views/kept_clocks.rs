//! Kept clocks: those of the vCPUs of VMs in sight that rest, kept open from tick to tick: opening one costs twice what reading
//! it does. A VM that was sampled in the tick needs none.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::{Arc, Mutex, PoisonError},
};

use super::VmFacts;
use crate::{sampler::VcpuClocks, vm::Level};
use flatline_qemu::discover::VmId;
use flatline_samples::VcpuTime;

/// The most threads of which the clocks are kept open: those of a screen of VMs. Each takes a descriptor.
const MOST_THREADS: usize = 1024;

/// See the module. A clone has the same ones.
#[derive(Clone, Debug, Default)]
pub(in crate::daemon) struct KeptClocks(Arc<Mutex<BTreeMap<VmId, Kept>>>);

#[derive(Debug)]
struct Kept {
    /// As they were opened: (vCPU index, thread id).
    threads: Vec<(u32, u32)>,
    clocks: VcpuClocks,
}

impl KeptClocks {
    /// Whether the clocks of those of these VMs that rest may be kept open. Those of all others are closed.
    pub(super) fn keep(&self, vms: &[VmFacts]) -> bool {
        let resting = || vms.iter().filter(|facts| matches!(facts.sight.level, Level::Since(..)));
        let threads: usize = resting().map(|facts| facts.sight.threads.len()).sum();
        let may_keep = threads <= MOST_THREADS;
        let in_sight: BTreeMap<VmId, &[(u32, u32)]> = resting()
            .filter(|_| may_keep)
            .map(|facts| (facts.vm.id, facts.sight.threads.as_slice()))
            .collect();
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|id, kept| in_sight.get(id).is_some_and(|threads| kept.threads == *threads));
        may_keep
    }

    /// Closes all.
    pub(in crate::daemon) fn close(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The times of a VM's vCPUs now; `None` where one can't be read.
    pub(super) fn read(&self, facts: &VmFacts) -> Option<Vec<VcpuTime>> {
        let (id, threads) = (facts.vm.id, &facts.sight.threads);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = match all.entry(id) {
            Entry::Occupied(kept) => kept.into_mut(),
            Entry::Vacant(room) => {
                let clocks = VcpuClocks::open(id.pid, threads).ok()?;
                room.insert(Kept { threads: threads.clone(), clocks })
            }
        };
        let read = kept.clocks.read().ok();
        if read.is_none() {
            // A thread ended: they are opened anew.
            all.remove(&id);
        }
        read
    }
}
