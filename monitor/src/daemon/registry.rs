//! Registry of the VMs that are watched, and how far their first reading is.

use std::{
    cell::OnceCell,
    collections::{BTreeSet, HashMap, HashSet},
};

use super::{memory::Readings, upkeep::Upkeep};
use crate::vm::{Vms, WatchedVm};
use flatline_detector::verdict::StormTime;
use flatline_qemu::discover::VmId;
use monitor_ebpf::FileKey;

/// How far a daemon has come that starts: it reads as soon as there is something to read, and doesn't wait for a tick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum FirstReading {
    /// The first sweep is under way.
    #[default]
    AwaitsSweep,
    /// The programs of the VMs that it found are being attached.
    AwaitsPrograms,
    Done,
}

/// All VMs that are watched, and what is known of them together.
#[derive(Default)]
pub(super) struct Registry {
    pub(super) vms: Vms,
    /// Those that were sampled in the last tick; all others rest, and live.
    pub(super) awake: Vec<VmId>,
    /// When each one's memory is to be read.
    pub(super) readings: Readings,
    /// Status of QEMUs whose main thread ended, until the process is gone.
    pub(super) statuses: HashMap<u32, i32>,
    /// Turns of sweeps in which memory is to be given back, since VMs were found.
    pub(super) trims: u32,
    /// Many VMs are silent together, in words.
    pub(super) storm: Option<String>,
    /// What storms have taken of the time that they may hold VMs.
    pub(super) storm_time: StormTime,
    /// VMs of which it isn't known yet where they are counted.
    pub(super) pending: HashSet<VmId>,
    /// Which of them are to be looked at again, and when.
    pub(super) upkeep: Upkeep,
    first_reading: FirstReading,
    /// Files that several VMs have, as of this tick; gone through once, for the first suspect of a tick.
    shared_files: OnceCell<BTreeSet<FileKey>>,
}

impl Registry {
    /// The VMs that were sampled in the last tick, as far as they are watched still.
    pub(super) fn awake(&self) -> impl Iterator<Item = &WatchedVm> {
        self.awake.iter().filter_map(|id| self.vms.get(id))
    }

    /// The VMs with this process id: of several, all but the last have ended.
    pub(super) fn ids_of(&self, pid: u32) -> impl Iterator<Item = VmId> {
        self.vms.tree().range(VmId::of_pid(pid)).map(|(id, _)| *id)
    }

    /// This VM; `None`: all.
    pub(super) fn chosen(&self, only: Option<VmId>) -> Vec<VmId> {
        match only {
            Some(id) => vec![id],
            None => self.vms.keys().copied().collect(),
        }
    }

    /// Another tick begins, with these VMs sampled.
    pub(super) fn begin_tick(&mut self, awake: Vec<VmId>) {
        self.awake = awake;
        self.shared_files.take();
    }

    /// Whether some of a VM's storage is not seen by the host, or can't be told to be its own, as of this tick.
    pub(super) fn has_unseen_storage(&self, id: VmId) -> bool {
        let Some(watched) = self.vms.get(&id) else { return false };
        let keys = &watched.vm.plugged.files.keys;
        let shared = || self.shared_files.get_or_init(|| self.find_shared_files());
        watched.vm.unseen_storage().next().is_some()
            || (!keys.is_empty() && keys.iter().any(|key| shared().contains(key)))
    }

    fn find_shared_files(&self) -> BTreeSet<FileKey> {
        let all = self.vms.values().flat_map(|watched| {
            // One VM has each of its files once.
            watched.vm.plugged.files.keys.iter().copied()
        });
        let mut seen = BTreeSet::new();
        all.filter(|key| !seen.insert(*key)).collect()
    }

    /// What of a VM's storage the host does not see, or can't tell to be its own, in words.
    pub(super) fn unseen_storage(&self, watched: &WatchedVm) -> Vec<String> {
        let keys = &watched.vm.plugged.files.keys;
        let shares = |other: &&WatchedVm| {
            let theirs = &other.vm.plugged.files.keys;
            other.vm.id != watched.vm.id && keys.iter().any(|key| theirs.contains(key))
        };
        // One without files shares none: not all others are gone through for it.
        let others = self.vms.values().take(if keys.is_empty() { 0 } else { usize::MAX });
        let shared = others.filter(shares).map(|other| {
            let name = &other.vm.name;
            format!("what is written back to a file that is VM {name}'s too, or numbered as its is")
        });
        watched.vm.unseen_storage().chain(shared).collect()
    }

    /// Whether the first sweep is under way.
    pub(super) fn awaits_first_sweep(&self) -> bool {
        self.first_reading == FirstReading::AwaitsSweep
    }

    /// VMs that an earlier daemon knew are taken up: they are to be read before the first sweep.
    pub(super) fn recalled(&mut self) {
        self.first_reading = FirstReading::AwaitsPrograms;
    }

    /// A sweep ended.
    pub(super) fn swept(&mut self) {
        if self.first_reading == FirstReading::AwaitsSweep {
            self.first_reading = FirstReading::AwaitsPrograms;
        }
    }

    /// Whether all VMs that the first sweep found can be read since just now, and none was read yet: two
    /// readings one after the other would measure nothing.
    pub(super) fn first_reading_is_due(&mut self) -> bool {
        if self.first_reading != FirstReading::AwaitsPrograms || !self.pending.is_empty() {
            return false;
        }
        self.first_reading = FirstReading::Done;
        self.vms.values().all(|watched| watched.sensors.sample.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reading_is_due_once_when_all_that_the_first_sweep_found_is_counted() {
        let mut registry = Registry::default();
        let id = VmId { pid: 7, start_ticks: 1 };
        assert!(!registry.first_reading_is_due(), "the sweep is under way");
        registry.pending.insert(id);
        registry.swept();
        assert!(!registry.first_reading_is_due(), "programs are being attached");
        registry.pending.remove(&id);
        assert!(registry.first_reading_is_due());
        registry.swept();
        assert!(!registry.first_reading_is_due(), "a later sweep is not the first");
    }
}
