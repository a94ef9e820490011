//! All VMs that are watched, by their processes.

use std::collections::{BTreeMap, btree_map::Entry};

use super::{WatchedVm, rests::Rests};
use flatline_qemu::discover::VmId;

/// See the module. In boxes: a tree's nodes are half empty, and to go through its keys should touch nothing else.
#[derive(Debug, Default)]
pub(crate) struct Vms {
    vms: BTreeMap<VmId, Box<WatchedVm>>,
    /// How many each user has.
    by_owner: BTreeMap<u32, u32>,
    rests: Rests,
}

impl Vms {
    pub(crate) fn insert(&mut self, id: VmId, watched: WatchedVm) {
        *self.by_owner.entry(watched.vm.origin.uid).or_default() += 1;
        self.rests.found(id);
        if let Some(before) = self.vms.insert(id, Box::new(watched)) {
            self.forget_one_of(before.vm.origin.uid);
        }
    }

    pub(crate) fn remove(&mut self, id: &VmId) -> Option<WatchedVm> {
        let watched = self.vms.remove(id)?;
        self.forget_one_of(watched.vm.origin.uid);
        Some(*watched)
    }

    fn forget_one_of(&mut self, uid: u32) {
        if let Entry::Occupied(mut count) = self.by_owner.entry(uid) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    /// What a tick looks at of those that rest.
    pub(crate) fn rests(&self) -> &Rests {
        &self.rests
    }

    /// How many VMs there are of each user that has one: its uid, as it was when the VM was found.
    pub(crate) fn by_owner(&self) -> &BTreeMap<u32, u32> {
        &self.by_owner
    }

    pub(crate) fn get(&self, id: &VmId) -> Option<&WatchedVm> {
        self.vms.get(id).map(|watched| &**watched)
    }

    pub(crate) fn get_mut(&mut self, id: &VmId) -> Option<&mut WatchedVm> {
        self.vms.get_mut(id).map(|watched| &mut **watched)
    }

    pub(crate) fn contains_key(&self, id: &VmId) -> bool {
        self.vms.contains_key(id)
    }

    pub(crate) fn len(&self) -> usize {
        self.vms.len()
    }

    /// As they stand in their order.
    pub(crate) fn tree(&self) -> &BTreeMap<VmId, Box<WatchedVm>> {
        &self.vms
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &VmId> {
        self.vms.keys()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&VmId, &WatchedVm)> {
        self.vms.iter().map(|(id, watched)| (id, &**watched))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&VmId, &mut WatchedVm)> {
        self.vms.iter_mut().map(|(id, watched)| (id, &mut **watched))
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &WatchedVm> {
        self.vms.values().map(|watched| &**watched)
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut WatchedVm> {
        self.vms.values_mut().map(|watched| &mut **watched)
    }

    pub(crate) fn into_values(self) -> impl Iterator<Item = WatchedVm> {
        self.vms.into_values().map(|watched| *watched)
    }
}
