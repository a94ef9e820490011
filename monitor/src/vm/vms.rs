//! All VMs that are watched, by their processes.

use std::collections::BTreeMap;

use super::WatchedVm;
use flatline_qemu::discover::VmId;

/// See the module. In boxes: a tree's nodes are half empty, and to go through its keys should touch nothing else.
#[derive(Debug, Default)]
pub(crate) struct Vms(BTreeMap<VmId, Box<WatchedVm>>);

impl Vms {
    pub(crate) fn insert(&mut self, id: VmId, watched: WatchedVm) {
        self.0.insert(id, Box::new(watched));
    }

    pub(crate) fn remove(&mut self, id: &VmId) -> Option<WatchedVm> {
        self.0.remove(id).map(|watched| *watched)
    }

    pub(crate) fn get(&self, id: &VmId) -> Option<&WatchedVm> {
        self.0.get(id).map(|watched| &**watched)
    }

    pub(crate) fn get_mut(&mut self, id: &VmId) -> Option<&mut WatchedVm> {
        self.0.get_mut(id).map(|watched| &mut **watched)
    }

    pub(crate) fn contains_key(&self, id: &VmId) -> bool {
        self.0.contains_key(id)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// As they stand in their order.
    pub(crate) fn tree(&self) -> &BTreeMap<VmId, Box<WatchedVm>> {
        &self.0
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &VmId> {
        self.0.keys()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&VmId, &WatchedVm)> {
        self.0.iter().map(|(id, watched)| (id, &**watched))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&VmId, &mut WatchedVm)> {
        self.0.iter_mut().map(|(id, watched)| (id, &mut **watched))
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &WatchedVm> {
        self.0.values().map(|watched| &**watched)
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut WatchedVm> {
        self.0.values_mut().map(|watched| &mut **watched)
    }

    pub(crate) fn into_values(self) -> impl Iterator<Item = WatchedVm> {
        self.0.into_values().map(|watched| *watched)
    }
}
