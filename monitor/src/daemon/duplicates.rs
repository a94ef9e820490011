//! Duplicate identities: QEMUs of one user that live at the same time and claim one UUID, or one name where they have none.
//!
//! Which of them is the VM that was known by that before can't be told, and a guest that took its QEMU over may have
//! started the others. So none is taken for another: from then on the restarts of each are counted by its process, until
//! that ends. It is said, and told as an event.

use std::collections::BTreeMap;

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::AsFd,
};

use super::{conditions, event_loop::EventLoop, registry::Registry};
use crate::{identity::Key, vm::WatchedVm};
use flatline_qemu::discover::VmId;

/// So many processes, and so many VMs, are named.
const MOST_NAMED: usize = 4;

impl EventLoop {
    /// A VM is watched from now on, or its QEMU runs as another user than before.
    pub(super) fn look_for_duplicates(&mut self, id: VmId) {
        let Some(key) = self.registry.vms.get(&id).map(|it| it.key.clone()) else { return };
        // One that it takes the place of has ended, though that may not have been heard of.
        let lives = |watched: &&WatchedVm| watched.vm.id == id || !has_ended(&watched.vm.pidfd);
        let claimants = self.registry.claimants(&key).filter(lives);
        let claimants: Vec<VmId> = claimants.map(|watched| watched.vm.id).collect();
        if claimants.len() < 2 {
            return;
        }
        for id in &claimants {
            if let Some(watched) = self.registry.vms.get_mut(id) {
                self.recovery.count_by_process(watched);
            }
        }
        let why = self.registry.duplicates(&key);
        if let (Some(watched), Some(why)) = (self.registry.vms.get(&id), why) {
            conditions::publish_duplicate(&self.publisher.notifier, watched, why);
        }
    }

    /// A VM is no longer watched: what it claimed to be may be one QEMU's now.
    pub(super) fn end_duplicates(&self, gone: &WatchedVm) {
        if gone.key.process.is_some() && self.registry.claimants(&gone.key).nth(1).is_none() {
            conditions::publish_duplicate_over(&self.publisher.notifier, gone);
        }
    }
}

impl Registry {
    /// The VMs of one user that claim the same.
    fn claimants(&self, key: &Key) -> impl Iterator<Item = &WatchedVm> {
        self.vms.values().filter(|watched| watched.key.claims_the_same(key))
    }

    /// Which processes claim what `key` does, in a sentence; `None`: no two.
    fn duplicates(&self, key: &Key) -> Option<String> {
        let mut pids: Vec<String> =
            self.claimants(key).map(|watched| watched.vm.id.pid.to_string()).collect();
        if pids.len() < 2 {
            return None;
        }
        let more = pids.len().saturating_sub(MOST_NAMED);
        pids.truncate(MOST_NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let (pids, uid, claim) = (pids.join(", "), key.uid?, &key.claim);
        Some(format!(
            "processes {pids}{more} of user {uid} all claim to be {claim}: their restarts are counted by process"
        ))
    }

    /// The same of a VM, also once the others have ended.
    pub(super) fn duplicates_of(&self, watched: &WatchedVm) -> Option<String> {
        watched.key.process?;
        let claim = &watched.key.claim;
        let was_so = || {
            format!(
                "another process of its user claimed to be {claim} as well: its restarts are counted by process"
            )
        };
        Some(self.duplicates(&watched.key).unwrap_or_else(was_so))
    }

    /// All VMs that several claim to be, a sentence each.
    pub(super) fn all_duplicates(&self) -> Vec<String> {
        let by_process = self.vms.values().map(|it| &it.key).filter(|key| key.process.is_some());
        let claims: BTreeMap<_, _> = by_process.map(|key| ((key.uid, &key.claim), key)).collect();
        let mut said: Vec<String> =
            claims.into_values().filter_map(|key| self.duplicates(key)).collect();
        let more = said.len().saturating_sub(MOST_NAMED);
        if more > 0 {
            said.truncate(MOST_NAMED);
            said.push(format!("of {more} more VMs several processes claim to be it"));
        }
        said
    }
}

/// Whether the process of this pidfd has ended, though its parent may not have waited for it.
fn has_ended(pidfd: impl AsFd) -> bool {
    let mut polled = [PollFd::new(&pidfd, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}
