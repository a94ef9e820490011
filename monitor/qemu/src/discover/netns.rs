//! Network namespaces: which one a process is in, and running code inside one.
//!
//! Moving a thread is for good and concerns whatever runs on it later, so nothing but a thread of
//! its own is ever moved.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{DiscoverError, proc};

/// Runs `f` inside the network namespace behind `pid_of_ns`, an opened `/proc/PID/ns/net` or
/// `/run/netns/NAME`: on a fresh thread that was moved there, unless it is the calling thread's own.
/// Sockets that `f` opens stay in that namespace; `/sys` shows the old one all the same.
///
/// # Errors
/// If the thread cannot be started or moved (which needs `CAP_SYS_ADMIN`), or if `f` panicked.
pub fn in_netns<T: Send>(pid_of_ns: &File, f: impl FnOnce() -> T + Send) -> io::Result<T> {
    let panicked = || io::Error::other("the code in the namespace panicked");
    if pid_of_ns.metadata()?.ino() == u64::from(own_netns()?) {
        // Nothing is looked at that `f` may have left half done: its result is gone, as a thread's is.
        return catch_unwind(AssertUnwindSafe(f)).map_err(|_| panicked());
    }
    thread::scope(|scope| {
        thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, || {
                move_into_link_name_space(pid_of_ns.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(f())
            })?
            .join()
            .unwrap_or_else(|_| Err(panicked()))
    })
}

/// The network namespace of `pid`, opened, and its inode number.
pub(super) fn netns_of(pid: u32) -> Result<(File, u32), DiscoverError> {
    let open = || {
        let file = File::open(format!("/proc/{pid}/ns/net"))?;
        let inode = inode_number(&file.metadata()?)?;
        Ok((file, inode))
    };
    open().map_err(|source| DiscoverError::read(pid, "ns/net", source))
}

/// Whether a network namespace belongs to the user namespace that `pid` is in. What the interfaces in another one's are called
/// is no affair of that process.
pub(super) fn is_of_its_users(netns: &File, pid: u32) -> io::Result<bool> {
    // SAFETY: the descriptor is open, and this request (Linux 4.9) takes no argument.
    let raw = unsafe { libc::ioctl(netns.as_raw_fd(), libc::NS_GET_USERNS) };
    if raw < 0 {
        return match io::Error::last_os_error() {
            // It is outside of our own.
            error if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
            error => Err(error),
        };
    }
    // SAFETY: the kernel just returned it, and nothing else has it.
    let owner = File::from(unsafe { OwnedFd::from_raw_fd(raw) }).metadata()?;
    let its = fs::metadata(format!("/proc/{pid}/ns/user"))?;
    Ok((owner.dev(), owner.ino()) == (its.dev(), its.ino()))
}

/// The inode number of the calling thread's own network namespace.
pub(super) fn own_netns() -> io::Result<u32> {
    inode_number(&fs::metadata("/proc/thread-self/ns/net")?)
}

/// The network namespace with this inode number, opened, if `ip netns` keeps it or a process is in it. Looks
/// through all of `/proc`, for when neither the VM nor its tap can be asked any more.
pub fn find_netns(netns: u32) -> Option<File> {
    let is_it = |file: &File| {
        file.metadata().is_ok_and(|metadata| inode_number(&metadata).ok() == Some(netns))
    };
    let named =
        fs::read_dir("/run/netns").into_iter().flatten().flatten().map(|entry| entry.path());
    let pids = proc::pids().unwrap_or_default();
    let of_processes = pids.into_iter().map(|pid| PathBuf::from(format!("/proc/{pid}/ns/net")));
    named.chain(of_processes).filter_map(|path| File::open(path).ok()).find(is_it)
}

/// The kernel numbers namespaces with 32 bits.
pub(super) fn inode_number(metadata: &fs::Metadata) -> io::Result<u32> {
    u32::try_from(metadata.ino()).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::{find_netns, in_netns, own_netns};

    #[test]
    fn a_namespace_is_found_by_its_number_while_somebody_is_in_it() {
        let own = own_netns().expect("our own namespace");
        let found = find_netns(own).expect("we are in it");
        assert_eq!(super::inode_number(&found.metadata().expect("its inode")).ok(), Some(own));
        assert!(find_netns(1).is_none());
    }

    #[test]
    fn a_panic_inside_is_an_error_outside() {
        let own = File::open("/proc/self/ns/net").expect("our own namespace");
        let answer = in_netns(&own, || panic!("on purpose"));
        let error = answer.map(|()| "an answer").expect_err("a panic has no answer");
        // Without the privilege to move, the thread never gets as far as to panic.
        assert!(error.to_string().contains("panicked") || error.raw_os_error() == Some(1));
    }

    #[test]
    fn a_file_that_is_no_namespace_is_refused() {
        let file = File::open("/dev/null").expect("the null device");
        assert!(in_netns(&file, || ()).is_err());
    }

    #[test]
    fn the_calling_thread_stays_where_it_is() {
        let before = own_netns().expect("our own namespace");
        let own = File::open("/proc/self/ns/net").expect("our own namespace");
        if let Ok(inside) = in_netns(&own, own_netns) {
            assert_eq!(inside.expect("the namespace inside"), before);
        }
        assert_eq!(own_netns().expect("our own namespace"), before);
    }
}
