//! What is known of a VM as a line of text, for a daemon that comes after this one.
//!
//! A VM is a pid and a start time: what was read of that process holds for as long as it lives, in one daemon or in two. What
//! may have changed since (taps and files that were plugged in or out, and its user) is to be looked at again, as it is in a
//! daemon that goes on.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, de::Error as _};

use super::{Scope, Vm, open_pidfd, start_ticks};

/// A VM as one line of JSON; `None` where it has no such form, as with a path that is no UTF-8: the next daemon finds it by a sweep.
pub fn to_remember(vm: &Vm) -> Option<String> {
    serde_json::to_string(vm).ok()
}

/// The VM that a line tells of, if it lives still and is in scope. Another process with its pid started at another time.
pub fn recall(line: &[u8], scope: &Scope) -> Option<Vm> {
    let mut vm: Vm = serde_json::from_slice(line).ok()?;
    // The descriptor first: what is compared then is the process that it holds.
    vm.pidfd = Arc::new(open_pidfd(vm.id.pid).ok()??);
    let is_the_same = start_ticks(vm.id.pid).ok()? == vm.id.start_ticks;
    (is_the_same && scope.has(&vm)).then_some(vm)
}

/// A process has no text, and is opened once it is known which one it is.
pub(super) mod pidfd {
    use std::{
        fs::File,
        os::fd::OwnedFd,
        sync::{Arc, OnceLock},
    };

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(in crate::discover) fn serialize<S: Serializer>(
        _: &Arc<OwnedFd>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.serialize_unit()
    }

    pub(in crate::discover) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Arc<OwnedFd>, D::Error> {
        static UNOPENED: OnceLock<Arc<OwnedFd>> = OnceLock::new();
        <()>::deserialize(from)?;
        if let Some(unopened) = UNOPENED.get() {
            return Ok(unopened.clone());
        }
        let null = File::open("/dev/null").map_err(D::Error::custom)?;
        Ok(UNOPENED.get_or_init(|| Arc::new(null.into())).clone())
    }
}

/// One of the products that [`Owner::Incus`](super::Owner::Incus) may have.
pub(super) fn incus_product<'de, D: Deserializer<'de>>(from: D) -> Result<&'static str, D::Error> {
    match String::deserialize(from)?.as_str() {
        "incus" => Ok("incus"),
        "lxd" => Ok("lxd"),
        _ => Err(D::Error::custom("neither incus nor lxd")),
    }
}

/// Keys of files as pairs of an inode and a device.
pub(super) mod file_keys {
    use monitor_ebpf::FileKey;
    use serde::{Deserialize, Deserializer, Serialize as _, Serializer};

    pub(in crate::discover) fn serialize<S: Serializer>(
        keys: &[FileKey],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        let pairs: Vec<(u64, u32)> = keys.iter().map(|key| (key.inode, key.device)).collect();
        pairs.serialize(to)
    }

    pub(in crate::discover) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<FileKey>, D::Error> {
        let pairs = Vec::<(u64, u32)>::deserialize(from)?;
        let keys = pairs.into_iter();
        Ok(keys.map(|(inode, device)| FileKey { inode, device, reserved: 0 }).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use monitor_ebpf::FileKey;

    use super::*;
    use crate::discover::{Owner, Ownership, Tap, TapKind, VmId};

    /// Ourselves, as if we were a VM.
    fn ourselves(owner: Owner) -> Vm {
        let ownership = Ownership {
            owner,
            is_certain: true,
            evidence: vec!["it is so".to_owned()],
            openstack: Some("by its product".to_owned()),
        };
        let mut vm = Vm::stand_in(ownership, &["/run/a\nb.qmp"]);
        let pid = std::process::id();
        vm.id = VmId { pid, start_ticks: start_ticks(pid).expect("our own") };
        let tap = Tap { kind: TapKind::Tap, name: "tap0".to_owned(), netns: 7, ifindex: 3 };
        vm.plugged.taps.push(tap);
        vm.plugged.files.keys.push(FileKey { inode: 11, device: 8 << 20, reserved: 0 });
        vm
    }

    fn any() -> Scope {
        Scope { executables: vec![glob::Pattern::new("/usr/bin/*").unwrap()], users: Vec::new() }
    }

    #[test]
    fn all_that_is_known_of_a_vm_is_recalled_from_one_line() {
        let incus = Owner::Incus {
            product: "lxd",
            project: "default".to_owned(),
            instance: "web".to_owned(),
        };
        for owner in [Owner::Bare, Owner::SystemdUnit { unit: "a.service".to_owned() }, incus] {
            let vm = ourselves(owner);
            let line = to_remember(&vm).expect("a line");
            assert!(!line.contains('\n'), "{line}");
            let recalled = recall(line.as_bytes(), &any()).expect("we live");
            let without = |of: &Vm| Vm { pidfd: vm.pidfd.clone(), ..of.clone() };
            assert_eq!(format!("{:?}", without(&recalled)), format!("{vm:?}"));
            let held = std::fs::read_link(format!("/proc/self/fd/{}", recalled.pidfd.as_raw_fd()));
            assert!(held.unwrap().to_string_lossy().contains("pidfd"), "its process is held");
        }
    }

    #[test]
    fn another_process_one_out_of_scope_and_a_torn_line_are_not_recalled() {
        let vm = ourselves(Owner::Bare);
        let line = to_remember(&vm).expect("a line");
        assert!(recall(&line.as_bytes()[..line.len() - 1], &any()).is_none(), "torn");
        assert!(recall(line.as_bytes(), &Scope::default()).is_none(), "out of scope");
        let mut other = vm.clone();
        other.id.start_ticks += 1;
        let line = to_remember(&other).expect("a line");
        assert!(recall(line.as_bytes(), &any()).is_none(), "another process with its pid");
        other.id.pid = u32::MAX;
        let line = to_remember(&other).expect("a line");
        assert!(recall(line.as_bytes(), &any()).is_none(), "no process");
    }

    #[test]
    fn an_owner_that_is_unclear_is_not_remembered() {
        let owner = Owner::Unclear { product: "libvirt", why: "two names".to_owned() };
        assert_eq!(to_remember(&ourselves(owner)), None);
    }
}
