//! The rights to files that a QEMU's user has, and reaching files with no more than these.
//!
//! What a QEMU names may lead to anything: it may have been taken over by its guest, and belong to a user that
//! would like to read root's files. The kernel is asked to judge that, with the QEMU's own user, groups and no
//! capability: on a thread of its own, which is thrown away, and of which only what concerns files is changed
//! (`setfsuid`). Its user id stays root's, so that the QEMU's user can neither signal nor trace it.
//!
//! Changing a thread so makes the daemon as a whole undumpable, as the kernel does for each process that changes
//! sides: its core goes where `fs.suid_dumpable` says.

use std::{io, thread};

use rustix::{
    fs::Gid,
    process::getgroups,
    thread::{CapabilitySet, CapabilitySets, set_capabilities, set_thread_groups},
};

use super::{DiscoverError, Vm, proc};

/// A user with its groups, as far as files are concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rights {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

/// Why a QEMU's rights are not to be had.
#[derive(Debug, thiserror::Error)]
pub enum RightsError {
    /// Its process can't be read.
    #[error(transparent)]
    Process(#[from] DiscoverError),
    /// It runs something else by now.
    #[error("process {pid} is no longer the QEMU that was found")]
    AnotherProgram {
        /// The process.
        pid: u32,
    },
    /// A program that is another user's in part (set-user-ID) reaches files that its caller doesn't.
    #[error("process {pid} runs as several users or groups at once")]
    SeveralUsers {
        /// The process.
        pid: u32,
    },
    /// It became another user's, which only root's can do by themselves.
    #[error("process {pid} runs as user {now}, and was found as user {then}")]
    AnotherUser {
        /// The process.
        pid: u32,
        /// The user id that it has now.
        now: u32,
        /// The one that it was found with.
        then: u32,
    },
    /// The thread couldn't be given them.
    #[error("cannot act with the rights of user {uid}, which takes CAP_SETUID and CAP_SETGID")]
    NotLent {
        /// The user id.
        uid: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Rights {
    /// Those that the QEMU of `vm` has now. They are meant for what was opened *before* they are asked for: a process
    /// that became another one in between is refused.
    ///
    /// # Errors
    /// If it is gone, or is not, or not only, what was found.
    pub fn of(vm: &Vm) -> Result<Self, RightsError> {
        let pid = vm.id.pid;
        let status = proc::status(pid)?;
        let rights = parse(&status)
            .ok_or_else(|| DiscoverError::Malformed { pid, file: "status".to_owned() })?
            .ok_or(RightsError::SeveralUsers { pid })?;
        if proc::start_ticks(pid)? != vm.id.start_ticks {
            return Err(DiscoverError::Gone { pid }.into());
        }
        if proc::executable(pid)? != vm.executable {
            return Err(RightsError::AnotherProgram { pid });
        }
        let (now, then) = (rights.uid, vm.origin.uid);
        // One that root started gives its rights up itself (`-runas`), and may have done so since.
        if then != 0 && (now != then || rights.gid != vm.origin.gid) {
            return Err(RightsError::AnotherUser { pid, now, then });
        }
        Ok(rights)
    }

    /// Runs `f` with these rights to files, and without any capability, on a thread that ends with it.
    ///
    /// # Errors
    /// If there is no such thread to be had; never is `f` run with other rights. Also if it panicked.
    pub fn lend<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, RightsError> {
        let lent = thread::scope(|scope| {
            thread::Builder::new()
                .name("lent-rights".to_owned())
                .spawn_scoped(scope, || {
                    self.take()?;
                    Ok(f())
                })?
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("what was to be done panicked")))
        });
        lent.map_err(|source| RightsError::NotLent { uid: self.uid, source })
    }

    /// Gives them to the calling thread, for good.
    fn take(&self) -> io::Result<()> {
        let wanted: Vec<Gid> = self.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        // A process without the right to change them may have the very ones.
        if getgroups()? != wanted {
            set_thread_groups(&wanted)?;
        }
        // The group first: that takes a capability which goes with the user.
        set_fs_id(libc::SYS_setfsgid, self.gid)?;
        set_fs_id(libc::SYS_setfsuid, self.uid)?;
        // setfsuid takes root's rights to files away where it makes root another user; a QEMU that is root's itself
        // has no more than root's user id here.
        let none = CapabilitySet::empty();
        set_capabilities(
            None,
            CapabilitySets { effective: none, permitted: none, inheritable: none },
        )?;
        Ok(())
    }
}

/// `setfsuid` or `setfsgid` of the calling thread. Both report no failure but by what they leave unchanged.
fn set_fs_id(call: libc::c_long, id: u32) -> io::Result<()> {
    let unchanged = u32::MAX;
    // SAFETY: both take one integer and touch no memory of ours. The kernel's own call concerns the calling thread.
    let _before = unsafe { libc::syscall(call, id) };
    // SAFETY: the same; an id that is none changes nothing, and the one in use is returned.
    let now = unsafe { libc::syscall(call, unchanged) };
    if u32::try_from(now) == Ok(id) {
        Ok(())
    } else {
        Err(io::Error::from(io::ErrorKind::PermissionDenied))
    }
}

/// The ids of a `/proc/PID/status`, and `None` in their place if the process has several at once.
pub(super) fn parse(status: &str) -> Option<Option<Rights>> {
    let only = |field: &str| {
        // Real, effective, saved, and that for files.
        let [real, rest @ ..] = <[u32; 4]>::try_from(proc::ids(status, field)?).ok()?;
        Some(rest.iter().all(|id| *id == real).then_some(real))
    };
    let (uid, gid, groups) = (only("Uid:")?, only("Gid:")?, proc::ids(status, "Groups:")?);
    Some(uid.zip(gid).map(|(uid, gid)| Rights { uid, gid, groups }))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn status(uid: &str, gid: &str) -> String {
        format!("Name:\tqemu\nUid:\t{uid}\nGid:\t{gid}\nGroups:\t5 36 \n")
    }

    #[test]
    fn only_a_process_that_is_one_users_has_rights() {
        let rights = Rights { uid: 107, gid: 108, groups: vec![5, 36] };
        let user = "107\t107\t107\t107";
        assert_eq!(parse(&status(user, "108\t108\t108\t108")), Some(Some(rights)));
        for several in ["107\t0\t0\t0", "107\t107\t0\t107", "107\t107\t107\t0"] {
            assert_eq!(parse(&status(several, "108\t108\t108\t108")), Some(None), "{several}");
            assert_eq!(parse(&status(user, several)), Some(None), "{several}");
        }
        for torn in ["107", "", "107\t107\t107", "107\t107\t107\tx"] {
            assert_eq!(parse(&status(torn, "1\t1\t1\t1")), None, "{torn}");
        }
    }

    fn own() -> Vm {
        let mut vm = Vm::stand_in(crate::discover::Ownership::bare(), &[]);
        let pid = std::process::id();
        vm.id = crate::discover::VmId { pid, start_ticks: proc::start_ticks(pid).unwrap() };
        vm.executable = proc::executable(pid).unwrap();
        vm.origin = crate::discover::origin::read(pid).unwrap();
        vm
    }

    #[test]
    fn a_process_that_became_another_is_refused() {
        let vm = own();
        Rights::of(&vm).unwrap();
        let mut later = vm.clone();
        later.id.start_ticks += 1;
        assert!(matches!(Rights::of(&later), Err(RightsError::Process(_))));
        let mut program = vm.clone();
        program.executable.push("x");
        assert!(matches!(Rights::of(&program), Err(RightsError::AnotherProgram { .. })));
        let mut user = vm;
        user.origin.uid = u32::MAX - 1;
        assert!(matches!(Rights::of(&user), Err(RightsError::AnotherUser { .. })));
    }

    #[test]
    fn what_is_lent_is_taken_from_the_kernel_and_the_calling_thread_keeps_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let secret = directory.path().join("secret");
        fs::write(&secret, "x").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
        let own = Rights::of(&own()).unwrap();
        // Without capabilities, root is a user like any other.
        let read = own.lend(|| fs::read(&secret).map_err(|error| error.kind())).unwrap();
        assert_eq!(read, Err(io::ErrorKind::PermissionDenied));
        let panicked = own.lend(|| panic!("on purpose"));
        assert!(matches!(panicked, Err(RightsError::NotLent { .. })));
        if own.uid == 0 {
            assert_eq!(fs::read(&secret).unwrap(), b"x");
            let other = Rights { uid: 65_534, gid: 65_534, groups: Vec::new() };
            fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
            assert!(other.lend(|| fs::read(&secret)).unwrap().is_err());
            assert!(own.lend(|| fs::read(&secret)).unwrap().is_ok());
        } else {
            let other = Rights { uid: own.uid + 1, ..own };
            assert!(matches!(other.lend(|| ()), Err(RightsError::NotLent { .. })));
        }
    }
}
