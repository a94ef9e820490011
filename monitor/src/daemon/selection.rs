//! Selection of the VM that a client names: by its process id, by `NAME@USER`, or by its name or UUID.
//!
//! Names and UUIDs are what processes of any user claim, so that none of these may keep a client from another VM: a number
//! that is a watched QEMU's process id means that one, and `NAME@USER` a VM of that user's, whatever others are called.

use std::fmt::Write as _;

use super::registry::Registry;
use crate::{
    api::{RefusalKind, Reply},
    config::passwd::Passwd,
    identity::ProcessId,
    storage::incident::Incident,
    vm::WatchedVm,
};
use flatline_qemu::discover::{Vm, VmId};

/// So many matches are listed.
const MOST_LISTED: usize = 16;

impl Registry {
    /// The one VM that a client means.
    ///
    /// # Errors
    /// The answer where there is none, or more than one.
    pub(super) fn find(&self, wanted: &str) -> Result<&WatchedVm, Reply> {
        let users = Passwd::default();
        let all: Vec<&WatchedVm> = self.vms.values().collect();
        let matches = matching(&all, |watched| &watched.vm, wanted, &users);
        match matches[..] {
            [only] => Ok(only),
            [] => Err(Reply::error(RefusalKind::NoSuchVm, format!("no VM {wanted}"))),
            _ => {
                let matches: Vec<&Vm> = matches.iter().map(|watched| &*watched.vm).collect();
                Err(Reply::error(RefusalKind::AmbiguousVm, several(wanted, &matches, &users)))
            }
        }
    }

    /// The process of the one VM that a client means.
    ///
    /// # Errors
    /// As [`Self::find`].
    pub(super) fn select(&self, wanted: &str) -> Result<VmId, Reply> {
        self.find(wanted).map(|watched| watched.vm.id)
    }

    /// Which incidents a client means: a VM that is gone keeps them, so that it need not be found here.
    pub(super) fn incidents_of(&self, wanted: &str) -> IncidentFilter {
        match self.find(wanted) {
            Ok(WatchedVm { vm, key, .. }) => IncidentFilter {
                called: vec![Called { name: vm.name.clone(), uuid: vm.uuid.clone(), uid: key.uid }],
                process: key.process,
            },
            Err(_) => {
                let called = |name: &str, uid| {
                    let (name, uuid) = (name.to_owned(), Some(name.to_owned()));
                    Called { name, uuid, uid }
                };
                let of_user = of_user(wanted, &Passwd::default());
                let of_user = of_user.map(|(name, uid)| called(name, Some(uid)));
                let called = [called(wanted, None)].into_iter().chain(of_user).collect();
                IncidentFilter { called, process: None }
            }
        }
    }
}

/// What a VM is called in incidents.
#[derive(Debug)]
struct Called {
    name: String,
    uuid: Option<String>,
    /// The user; `None`: any.
    uid: Option<u32>,
}

/// See [`Registry::incidents_of`].
#[derive(Debug)]
pub(super) struct IncidentFilter {
    /// One of these.
    called: Vec<Called>,
    /// Which process alone, of several that claim the same.
    process: Option<ProcessId>,
}

impl IncidentFilter {
    /// Whether it is one of those. One of an earlier version doesn't say of which user it is.
    pub(super) fn has(&self, incident: &Incident) -> bool {
        let is_so_called = self.called.iter().any(|Called { name, uuid, uid }| {
            let is_called = incident.vm == *name || uuid.is_some() && incident.uuid == *uuid;
            is_called && (uid.is_none() || incident.uid.is_none() || incident.uid == *uid)
        });
        let (process, its) = (self.process, incident.counted_for);
        is_so_called && (process.is_none() || its.is_none() || process == its)
    }
}

/// Those of `vms` that `wanted` means.
fn matching<T: Copy>(vms: &[T], vm: impl Fn(&T) -> &Vm, wanted: &str, users: &Passwd) -> Vec<T> {
    let those = |is_it: &dyn Fn(&Vm) -> bool| -> Vec<T> {
        vms.iter().filter(|one| is_it(vm(one))).copied().collect()
    };
    let is_called = |vm: &Vm, name: &str| vm.name == name || vm.uuid.as_deref() == Some(name);
    let of_process = those(&|vm| vm.id.pid.to_string() == wanted);
    if !of_process.is_empty() {
        return of_process;
    }
    if let Some((name, uid)) = of_user(wanted, users) {
        let of_user = those(&|vm| vm.origin.uid == uid && is_called(vm, name));
        if !of_user.is_empty() {
            return of_user;
        }
    }
    those(&|vm| is_called(vm, wanted))
}

/// The name, or UUID, and the user id in `NAME@USER`; `None` where it is nothing like that, or there is no such user.
fn of_user<'a>(wanted: &'a str, users: &Passwd) -> Option<(&'a str, u32)> {
    let (name, user) = wanted.rsplit_once('@')?;
    let uid = user.parse().ok().or_else(|| users.uid_of(user))?;
    Some((name, uid))
}

/// What `wanted` may mean, and how to say which.
fn several(wanted: &str, matches: &[&Vm], users: &Passwd) -> String {
    let mut said = format!("several VMs match {wanted}:");
    for vm in matches.iter().take(MOST_LISTED) {
        let Vm { name, id, origin, ownership, .. } = vm;
        let (pid, user, owner) = (id.pid, users.show(origin.uid), ownership.owner.kind());
        // Writing to a string can't fail.
        let _ = write!(said, " {name} (process {pid}, user {user}, {owner}),");
    }
    let more = matches.len().saturating_sub(MOST_LISTED);
    if more > 0 {
        let _ = write!(said, " and {more} more,");
    }
    said.pop();
    said + "; give its process id, or NAME@USER with a user's name or number"
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use flatline_qemu::discover::{Origin, Ownership};

    const UUID: &str = "7f3b6a10-58e2-4c6d-9a37-0d1c5e2b4f60";

    fn vm(pid: u32, uid: u32, name: &str, uuid: Option<&str>) -> Vm {
        Vm {
            id: VmId { pid, start_ticks: 1 },
            name: name.to_owned(),
            uuid: uuid.map(str::to_owned),
            origin: Origin { uid, ..Origin::default() },
            ..Vm::stand_in(Ownership::bare(), &[])
        }
    }

    /// The process ids of those that are meant, among a VM and what another user calls its own to hide it.
    fn meant(wanted: &str) -> Vec<u32> {
        let vms = [
            vm(11, 1000, "web-1", Some(UUID)),
            vm(12, 2000, "web-1", Some(UUID)),
            vm(13, 2000, UUID, None),
            vm(14, 2000, "11", None),
            vm(15, 2000, "web-1@1000", None),
            vm(16, 1000, "a@b", None),
        ];
        let vms: Vec<&Vm> = vms.iter().collect();
        matching(&vms, |vm| vm, wanted, &Passwd::default()).iter().map(|vm| vm.id.pid).collect()
    }

    #[test]
    fn a_process_id_means_that_process_and_a_user_its_own_vm_whatever_others_are_called() {
        assert_eq!(meant("11"), [11]);
        assert_eq!(meant("web-1@1000"), [11]);
        assert_eq!(meant(&format!("{UUID}@1000")), [11]);
        assert_eq!(meant("web-1@2000"), [12]);
        assert_eq!(meant(&format!("{UUID}@2000")), [12, 13]);
        assert_eq!(meant("web-1@0"), [0; 0], "root has none so called");
        assert_eq!(meant("web-1"), [11, 12]);
        assert_eq!(meant("a@b"), [16]);
        assert_eq!(meant("17"), [0; 0]);
    }

    #[test]
    fn a_user_may_be_named() {
        let (root, users) = (vm(1, 0, "web-1", None), Passwd::default());
        assert_eq!(matching(&[&root], |vm| vm, "web-1@root", &users).len(), 1);
        assert_eq!(of_user("web-1@no-such-user", &users), None);
        assert_eq!(of_user("a@b@7", &users), Some(("a@b", 7)));
    }

    #[test]
    fn what_may_be_meant_is_listed_with_whose_it_is() {
        let vms: Vec<Vm> = (1..=18).map(|pid| vm(pid, 0, "w", None)).collect();
        let said = several("w", &vms.iter().collect::<Vec<_>>(), &Passwd::default());
        let begins = "several VMs match w: w (process 1, user root (0), bare), w (process 2,";
        assert!(said.starts_with(begins), "{said}");
        assert!(said.contains("), and 2 more; give its process id, or NAME@USER"), "{said}");
    }

    #[test]
    fn incidents_of_earlier_versions_are_those_of_any_user() {
        let of = |uid| {
            let text = |text: &str| text.to_owned();
            let (id, vm, cause, reason) = (text("id"), text("web-1"), text("halted"), text("r"));
            Incident { uid, ..Incident::new(id, vm, cause, reason, UNIX_EPOCH) }
        };
        let called = vec![Called { name: "web-1".to_owned(), uuid: None, uid: Some(1000) }];
        let filter = IncidentFilter { called, process: None };
        assert!(filter.has(&of(Some(1000))) && filter.has(&of(None)) && !filter.has(&of(Some(1))));
        let one = ProcessId { pid: 1, start_ticks: 1 };
        let filter = IncidentFilter { process: Some(ProcessId { pid: 2, ..one }), ..filter };
        let of_another = Incident { counted_for: Some(one), ..of(Some(1000)) };
        assert!(filter.has(&of(Some(1000))) && !filter.has(&of_another));
    }
}
