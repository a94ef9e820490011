//! The process at the other end of a Unix socket, told from an earlier one that had its number.
//!
//! `SO_PEERCRED` is the number of the process that called `listen` last. That process may have ended since, another one have
//! kept its socket, and its number have come round to a QEMU. A pidfd (`SO_PEERPIDFD`, Linux 6.5) stays that one process',
//! and tells that it has ended. On older kernels the number is all there is.

use std::{
    fs, io, mem,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use rustix::io::Errno;
use tokio::net::UnixStream;

use crate::{
    discover::{self, VmId},
    peer::PeerError,
};

/// Makes sure that the process of `vm` is at the other end of `stream`, which was connected while that was known to live.
///
/// # Errors
/// If it is not.
pub(crate) fn check(stream: &UnixStream, vm: VmId) -> Result<(), PeerError> {
    let told = stream.peer_cred().ok().and_then(|peer| peer.pid());
    let found = match pidfd(stream) {
        Ok(pidfd) => number(&pidfd).ok_or(PeerError::ListenerEnded)?,
        Err(Errno::NOPROTOOPT) => told,
        // Kernels before 6.16 have none for a process that has ended.
        Err(Errno::INVAL | Errno::SRCH | Errno::NODATA) => return Err(PeerError::ListenerEnded),
        Err(_) => None,
    };
    if found.and_then(|pid| u32::try_from(pid).ok()) != Some(vm.pid) {
        return Err(PeerError::WrongProcess { found, expected: vm.pid });
    }
    // After that: whichever process had the number while the one at the other end lived is the one that is asked about.
    match discover::start_ticks(vm.pid) {
        Ok(ticks) if ticks == vm.start_ticks => Ok(()),
        _ => Err(PeerError::ProcessGone { vm }),
    }
}

/// The pidfd of the process at the other end.
fn pidfd(stream: &UnixStream) -> Result<OwnedFd, Errno> {
    let mut fd: libc::c_int = -1;
    #[expect(clippy::cast_possible_truncation, reason = "four bytes")]
    let mut length = mem::size_of_val(&fd) as libc::socklen_t;
    // SAFETY: the socket is open, and both pointers are to values that outlive the call, the first as long as the second says.
    let got = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERPIDFD,
            (&raw mut fd).cast(),
            &raw mut length,
        )
    };
    if got != 0 {
        return Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    // SAFETY: the kernel just opened it for this caller, and nothing else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The number of a pidfd's process, `Some(None)` where it has none here; `None` once it has ended.
fn number(pidfd: &OwnedFd) -> Option<Option<i32>> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pid:"))?;
    match line.trim().parse().ok()? {
        -1 => None,
        pid => Some((pid > 0).then_some(pid)),
    }
}

#[cfg(test)]
mod tests {
    use std::{mem::size_of, os::unix::net::UnixListener, path::Path};

    use rustix::{
        net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with},
        process::{Pid, Signal, WaitOptions, kill_process, waitpid},
    };

    use super::*;

    /// A process that does nothing but wait; ended with the test.
    struct Waits(Pid);

    impl Waits {
        /// One with this number, which is free; `None` where none may be chosen.
        fn with_number(pid: Pid) -> Option<Self> {
            let wanted = [pid.as_raw_nonzero().get()];
            // SAFETY: it is made of integers, for which zero is a value.
            let mut arguments: libc::clone_args = unsafe { mem::zeroed() };
            arguments.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
            arguments.set_tid = wanted.as_ptr() as u64;
            arguments.set_tid_size = 1;
            // SAFETY: the arguments outlive the call. The child has memory of its own, and makes one system call only.
            let number = unsafe {
                libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>())
            };
            if number == 0 {
                loop {
                    // SAFETY: a plain call without pointers.
                    unsafe { libc::pause() };
                }
            }
            (number > 0).then_some(Self(pid))
        }
    }

    impl Drop for Waits {
        fn drop(&mut self) {
            let _ = kill_process(self.0, Signal::KILL);
            let _ = waitpid(Some(self.0), WaitOptions::empty());
        }
    }

    /// A socket on which a process listened that has ended, and the number that it had.
    fn left_behind(path: &Path) -> (OwnedFd, Pid) {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        // SAFETY: the child makes two system calls, and ends by the second.
        let child = match unsafe { libc::fork() } {
            // SAFETY: the same.
            0 => unsafe {
                libc::listen(socket.as_raw_fd(), 8);
                libc::_exit(0)
            },
            pid => Pid::from_raw(pid).expect("a child"),
        };
        waitpid(Some(child), WaitOptions::empty()).unwrap();
        (socket, child)
    }

    fn vm(pid: u32) -> VmId {
        VmId { pid, start_ticks: discover::start_ticks(pid).unwrap_or_default() }
    }

    #[tokio::test]
    async fn a_process_that_listens_is_told_by_its_number_and_its_start() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        let stream = UnixStream::connect(&path).await.unwrap();
        let own = vm(std::process::id());
        check(&stream, own).unwrap();
        let later = VmId { start_ticks: own.start_ticks + 1, ..own };
        assert!(matches!(check(&stream, later), Err(PeerError::ProcessGone { .. })));
        let parent = vm(std::os::unix::process::parent_id());
        assert!(matches!(check(&stream, parent), Err(PeerError::WrongProcess { .. })));
    }

    #[tokio::test]
    async fn a_number_that_came_round_again_is_not_that_of_the_process_that_listened() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let (_kept, pid) = left_behind(&path);
        // Only root may choose a number, and another test may have it by now.
        let Some(_again) = Waits::with_number(pid) else { return };
        let stream = UnixStream::connect(&path).await.unwrap();
        let number = pid.as_raw_nonzero().get();
        assert_eq!(stream.peer_cred().unwrap().pid(), Some(number), "the older way is taken in");
        if matches!(pidfd(&stream), Err(Errno::NOPROTOOPT)) {
            return;
        }
        let refused = check(&stream, vm(number.unsigned_abs()));
        assert!(matches!(refused, Err(PeerError::ListenerEnded)), "{refused:?}");
    }
}
