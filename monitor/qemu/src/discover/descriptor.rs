//! What the descriptor of a tap says of itself, asked of a copy that is held for that moment only.
//!
//! Neither the command line nor `fdinfo` tells which network namespace a tap is in: a tap may be moved while
//! QEMU holds it, and its name then belongs to another tap in QEMU's own namespace. The descriptor stays
//! that of the one tap. A macvtap's tells less (drivers/net/tap.c of Linux 6.12): its name and hardware address.
//!
//! Only a device is asked. A file of any name may stand in its place in a mount namespace of QEMU's own, and one of a file
//! server (FUSE) answers what its user likes, for as long as that likes: a descriptor's number, say, which would then be
//! taken for one of ours.

use std::ffi::{CStr, c_char};
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, statx};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::netns::inode_number;

/// The number of `/dev/net/tun` (`TUN_MINOR` of include/linux/miscdevice.h).
pub(super) const TUN: Device = Device { major: 10, minor: 200 };
/// The length of an Ethernet address, in bytes.
const MAC_BYTES: usize = 6;

/// A process whose descriptors can be copied (Linux 5.6), which takes the right to trace it.
pub(super) struct Holder(OwnedFd);

/// What came of asking a descriptor.
#[derive(Debug)]
pub(super) enum Said<T> {
    /// It answered.
    Known(T),
    /// It is not attached to an interface, or no longer.
    Unattached,
    /// It is another kind of file, whatever its name.
    NoTap,
}

/// The number of a character device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) major: u32,
    pub(super) minor: u32,
}

/// A tap as its descriptor knows it.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) name: String,
    /// The namespace that the tap is in now. To hold it longer than a moment would keep it alive.
    pub(super) namespace: File,
    /// The namespace's inode number.
    pub(super) netns: u32,
}

impl Holder {
    pub(super) fn open(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(Self(pidfd_open(pid, PidfdFlags::empty())?))
    }

    /// A copy of the descriptor `fd`; `None` if it was closed meanwhile, or the process is gone.
    pub(super) fn copy(&self, fd: u32) -> io::Result<Option<OwnedFd>> {
        let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
        match pidfd_getfd(&self.0, fd, PidfdGetfdFlags::empty()) {
            Ok(copy) => Ok(Some(copy)),
            Err(Errno::BADF | Errno::SRCH) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Which character device is open as `file`; `None` if it is another kind of file.
pub(super) fn device_of(file: impl AsFd) -> Option<Device> {
    device(file, "", AtFlags::EMPTY_PATH)
}

/// The same of the descriptor `fd` of `pid`, where that can't be copied.
pub(super) fn device_at(pid: u32, fd: u32) -> Option<Device> {
    device(CWD, &format!("/proc/{pid}/fd/{fd}"), AtFlags::empty())
}

/// Asks the kernel alone: a file server could answer anything, or not at all. What it would like to be a device can't be
/// opened as one by its user.
fn device(at: impl AsFd, path: &str, flags: AtFlags) -> Option<Device> {
    let found = statx(at, path, flags | AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE).ok()?;
    let is_device = FileType::from_raw_mode(found.stx_mode.into()) == FileType::CharacterDevice;
    let device = Device { major: found.stx_rdev_major, minor: found.stx_rdev_minor };
    is_device.then_some(device)
}

/// Where the tap behind a descriptor of `/dev/net/tun` is now.
pub(super) fn place_of(tap: BorrowedFd<'_>) -> io::Result<Said<Place>> {
    if device_of(tap) != Some(TUN) {
        return Ok(Said::NoTap);
    }
    let name = match name_of(tap)? {
        Said::Known(name) => name,
        Said::Unattached => return Ok(Said::Unattached),
        Said::NoTap => return Ok(Said::NoTap),
    };
    // SAFETY: the descriptor is open, and this request (Linux 5.2) takes no argument.
    let raw = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNGETDEVNETNS) };
    if raw < 0 {
        return match last_errno() {
            // Detached since it told its name.
            Errno::BADFD => Ok(Said::Unattached),
            errno => Err(errno.into()),
        };
    }
    // SAFETY: the kernel just returned it, and nothing else has it.
    let namespace = File::from(unsafe { OwnedFd::from_raw_fd(raw) });
    let netns = inode_number(&namespace.metadata()?)?;
    Ok(Said::Known(Place { name, namespace, netns }))
}

/// The name that the interface behind a descriptor has now, be it a tap's or a macvtap's.
pub(super) fn name_of(tap: BorrowedFd<'_>) -> io::Result<Said<String>> {
    if device_of(tap).is_none() {
        return Ok(Said::NoTap);
    }
    let request = match ask(tap, libc::TUNGETIFF, "") {
        Ok(request) => request,
        // A tap that is not attached; a macvtap whose interface is gone.
        Err(Errno::BADFD | Errno::NOLINK) => return Ok(Said::Unattached),
        // Another device; one that is open as a path only.
        Err(Errno::NOTTY | Errno::INVAL | Errno::BADF) => return Ok(Said::NoTap),
        Err(errno) => return Err(errno.into()),
    };
    let name = request.ifr_name.map(byte_of);
    let name = CStr::from_bytes_until_nul(&name).map_err(io::Error::other)?;
    Ok(Said::Known(name.to_string_lossy().into_owned()))
}

/// The hardware address of the macvtap behind a descriptor.
pub(super) fn mac_of(tap: BorrowedFd<'_>) -> io::Result<[u8; MAC_BYTES]> {
    Ok(mac_in(&ask(tap, libc::SIOCGIFHWADDR, "")?))
}

/// The same by its name, through any socket of the namespace; `None` if there is none so called.
pub(super) fn mac_of_name(
    socket: BorrowedFd<'_>,
    name: &str,
) -> io::Result<Option<[u8; MAC_BYTES]>> {
    if name.len() >= libc::IFNAMSIZ {
        return Ok(None);
    }
    match ask(socket, libc::SIOCGIFHWADDR, name) {
        Ok(request) => Ok(Some(mac_in(&request))),
        Err(Errno::NODEV) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Asks a descriptor something that concerns the interface called `name`, or, of a tap's descriptor, its own.
fn ask(file: BorrowedFd<'_>, what: libc::Ioctl, name: &str) -> Result<libc::ifreq, Errno> {
    // SAFETY: it is made of integers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    // SAFETY: the descriptor is open, and the request is a whole `ifreq` that outlives the call.
    match unsafe { libc::ioctl(file.as_raw_fd(), what, &raw mut request) } {
        0 => Ok(request),
        _ => Err(last_errno()),
    }
}

/// A letter of C's, which is signed on x86 and not on Arm.
fn byte_of(letter: c_char) -> u8 {
    let [byte] = letter.to_ne_bytes();
    byte
}

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// The hardware address in the answer to `SIOCGIFHWADDR`.
fn mac_in(request: &libc::ifreq) -> [u8; MAC_BYTES] {
    // SAFETY: that request fills this member; any bytes are a value of it.
    let address = unsafe { request.ifr_ifru.ifru_hwaddr };
    std::array::from_fn(|index| byte_of(address.sa_data[index]))
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, AsRawFd};

    use super::{Holder, Said, name_of, place_of};

    #[test]
    fn a_file_that_is_no_tap_is_none_whatever_it_is_called() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = std::fs::File::create(directory.path().join("tun")).expect("a file");
        assert!(matches!(name_of(file.as_fd()), Ok(Said::NoTap)));
        let null = std::fs::File::open("/dev/null").expect("the null device");
        assert!(matches!(place_of(null.as_fd()), Ok(Said::NoTap)));
    }

    #[test]
    fn a_descriptor_that_is_not_open_has_no_copy() {
        let us = Holder::open(std::process::id()).expect("ourselves");
        let null = std::fs::File::open("/dev/null").expect("the null device");
        let fd = u32::try_from(null.as_raw_fd()).expect("a descriptor");
        assert!(us.copy(fd).expect("our own can be copied").is_some());
        assert!(us.copy(1_000_000).expect("an answer").is_none());
        assert!(Holder::open(0).is_err() && Holder::open(u32::MAX).is_err());
    }

    #[test]
    fn a_tap_that_is_not_attached_says_so() {
        // Where there is no such device, or no right to open it, there is nothing to be asked.
        let Ok(tun) = std::fs::File::options().read(true).write(true).open("/dev/net/tun") else {
            return;
        };
        assert!(matches!(place_of(tun.as_fd()), Ok(Said::Unattached)));
    }
}
