//! The network namespace that a tap is in, opened for as long as something is done there.
//!
//! Not longer: a descriptor keeps it, and all interfaces in it, alive. The QEMU's and ours live in any
//! case; one that a tap was moved to is its owner's to delete.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
};

use flatline_qemu::{
    discover::{Tap, find_netns, netns_of_tap},
    text::error_chain,
};

/// The namespace of a tap, if that is the one that its QEMU is in, or our own. Never waits.
///
/// # Errors
/// If these cannot be opened.
pub(crate) fn near_namespace(pid: u32, tap: &Tap) -> io::Result<Option<File>> {
    for path in [format!("/proc/{pid}/ns/net"), "/proc/self/ns/net".to_owned()] {
        let file = File::open(path)?;
        if file.metadata()?.ino() == u64::from(tap.netns) {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

/// Whether [`near_namespace`] has the namespace of a tap, without opening it.
pub(super) fn is_near(pid: u32, tap: &Tap) -> bool {
    let is_it = |path: &str| fs::metadata(path).is_ok_and(|of| of.ino() == u64::from(tap.netns));
    is_it(&format!("/proc/{pid}/ns/net")) || is_it("/proc/self/ns/net")
}

/// The namespace of a tap, whichever it is. May wait for the kernel's lock on its network configuration.
///
/// # Errors
/// If it cannot be opened, or no tap of the QEMU is there any more.
pub(crate) fn namespace_of(pid: u32, tap: &Tap) -> io::Result<File> {
    if let Some(near) = near_namespace(pid, tap)? {
        return Ok(near);
    }
    netns_of_tap(pid, tap.netns).map_err(|error| io::Error::other(error_chain(&error)))?.ok_or_else(
        || io::Error::other(format!("{} is in another network namespace now", tap.name)),
    )
}

/// The same of a tap that its QEMU may have let go of; `None` where nothing leads there any more.
pub(super) fn namespace_left(pid: u32, tap: &Tap) -> Option<File> {
    namespace_of(pid, tap).ok().or_else(|| find_netns(tap.netns))
}
