//! Registry of the VMs that are watched, and what is waited for before the first reading of all.

use std::collections::{HashMap, HashSet};

use crate::{
    api::{RefusalKind, Reply},
    vm::{Vms, WatchedVm},
};
use flatline_qemu::discover::VmId;

/// What the first reading of all waits for: a daemon that starts reads as soon as there is something to read.
pub(super) enum FirstReading {
    /// The first sweep is under way; of these, it isn't known yet where they are counted.
    Awaits {
        swept: bool,
        vms: HashSet<VmId>,
    },
    Done,
}

impl Default for FirstReading {
    fn default() -> Self {
        Self::Awaits { swept: false, vms: HashSet::new() }
    }
}

impl FirstReading {
    /// It isn't known yet where this VM is counted.
    pub(super) fn awaits(&mut self, id: VmId) {
        if let Self::Awaits { vms, .. } = self {
            vms.insert(id);
        }
    }

    /// The first sweep ended.
    pub(super) fn is_swept(&mut self) {
        if let Self::Awaits { swept, .. } = self {
            *swept = true;
        }
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Registry {
    pub(super) vms: Vms,
    /// Status of QEMUs whose main thread ended, until the process is gone.
    pub(super) statuses: HashMap<u32, i32>,
    /// VMs were found since memory was last given back.
    pub(super) has_grown: bool,
    /// Many VMs are silent together, in words.
    pub(super) storm: Option<String>,
    /// What is still awaited before the first reading of all.
    pub(super) first_reading: FirstReading,
}

impl Registry {
    /// The one VM that a client means.
    ///
    /// # Errors
    /// The answer where there is none, or more than one.
    pub(super) fn find(&self, wanted: &str) -> Result<&WatchedVm, Reply> {
        let matches: Vec<&WatchedVm> =
            self.vms.values().filter(|watched| watched.vm.is_called(wanted)).collect();
        match matches[..] {
            [only] => Ok(only),
            [] => Err(Reply::error(RefusalKind::NoSuchVm, format!("no VM {wanted}"))),
            _ => Err(Reply::error(
                RefusalKind::AmbiguousVm,
                format!("several VMs match {wanted}; give a UUID or a pid"),
            )),
        }
    }

    /// Whether some of a VM's storage is not seen by the host, or can't be told to be its own.
    pub(super) fn has_unseen_storage(&self, id: VmId) -> bool {
        self.vms.get(&id).is_some_and(|watched| !self.unseen_storage(watched).is_empty())
    }

    /// What of a VM's storage the host does not see, or can't tell to be its own, in words.
    pub(super) fn unseen_storage(&self, watched: &WatchedVm) -> Vec<String> {
        let keys = &watched.vm.plugged.files.keys;
        let shares = |other: &&WatchedVm| {
            let theirs = &other.vm.plugged.files.keys;
            other.vm.id != watched.vm.id && keys.iter().any(|key| theirs.contains(key))
        };
        let shared = self.vms.values().filter(shares).map(|other| {
            let name = &other.vm.name;
            format!("what is written back to a file that is VM {name}'s too, or numbered as its is")
        });
        watched.vm.unseen_storage().chain(shared).collect()
    }

    /// Whether all VMs that the first sweep found can be read since just now, and none was read yet: two
    /// readings one after the other would measure nothing.
    pub(super) fn first_reading_is_due(&mut self) -> bool {
        let FirstReading::Awaits { swept: true, vms } = &self.first_reading else { return false };
        if !vms.is_empty() {
            return false;
        }
        self.first_reading = FirstReading::Done;
        self.vms.values().all(|watched| watched.sensors.sample.is_none())
    }

    pub(super) fn no_longer_awaited(&mut self, id: VmId) {
        if let FirstReading::Awaits { vms, .. } = &mut self.first_reading {
            vms.remove(&id);
        }
    }
}
