//! Which macvtap a descriptor is of.
//!
//! The device node `/dev/tapN` bears the interface's index, and is removed as the interface is moved to another
//! namespace, though a descriptor of it goes on working. That one tells the interface's name and hardware
//! address, but not its namespace (drivers/net/tap.c of Linux 6.12 has no `TUNGETDEVNETNS`). So one is looked for that
//! agrees in all of these where the QEMU is, and where we are.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::descriptor::{Device, Said, device_of, mac_of, mac_of_name, name_of};
use super::netns::{in_netns, netns_of, own_netns};
use super::taps::{Found, Interface, Tap, TapKind, look_up};
use super::{DiscoverError, display_text};

/// The kernel's lists of such devices, in which those of the reader's own namespace are seen.
const CLASSES: [&str; 2] = ["/sys/class/macvtap", "/sys/class/ipvtap"];
const DELETED: &str = " (deleted)";

/// What is known of a macvtap without its namespace.
#[derive(Clone, Debug)]
struct Macvtap {
    name: String,
    mac: [u8; 6],
    /// Its index; `None` where the node of that number is gone.
    index: Option<u32>,
    /// The number of its device, as `MAJOR:MINOR`.
    device: String,
}

/// The `N` of `/dev/tapN`, be it removed or not.
pub(super) fn index(target: &Path) -> Option<u32> {
    let target = target.to_str()?;
    let target = target.strip_suffix(DELETED).unwrap_or(target);
    let number = target.strip_prefix("/dev/tap").or_else(|| target.strip_prefix("/tap"))?;
    number.bytes().all(|byte| byte.is_ascii_digit()).then(|| number.parse().ok())?
}

/// Finds the macvtap behind `copy`, a descriptor of `pid` that links to `target`.
pub(super) fn find(
    pid: u32,
    copy: &OwnedFd,
    target: &Path,
    found: &mut Found,
) -> Result<(), DiscoverError> {
    let failed = |source| DiscoverError::ResolveTaps { pid, source };
    let wanted = match describe(copy, target).map_err(failed)? {
        Said::Known(wanted) => wanted,
        Said::Unattached => {
            found.unseen.insert("macvtap whose interface is gone".to_owned());
            return Ok(());
        }
        Said::NoTap => return Ok(()),
    };
    let (namespace, theirs) = netns_of(pid)?;
    let ours = own_netns().map_err(failed)?;
    let mut fitting = BTreeSet::new();
    let mut add = |netns, ifindex: Option<u32>| {
        let name = wanted.name.clone();
        fitting.extend(ifindex.map(|ifindex| Tap { kind: TapKind::Macvtap, name, netns, ifindex }));
    };
    if theirs != ours {
        add(theirs, in_netns(&namespace, || matching(&wanted)).flatten().map_err(failed)?);
    }
    // Our own has one like it in any case, if a name and an address are chosen so: its device must be the one.
    if theirs == ours || is_listed(&wanted.device, &CLASSES) != Some(false) {
        add(ours, matching(&wanted).map_err(failed)?);
    }
    let name = display_text(&wanted.name);
    match (fitting.pop_first(), fitting.is_empty()) {
        (Some(only), true) => drop(found.taps.insert(only)),
        (Some(_), false) => {
            found.unseen.insert(format!("macvtap {name} (there are two of them)"));
        }
        (None, _) => {
            found.unseen.insert(format!("macvtap {name} (in a namespace that is not known)"));
        }
    }
    Ok(())
}

fn describe(copy: &OwnedFd, target: &Path) -> io::Result<Said<Macvtap>> {
    let name = match name_of(copy.as_fd())? {
        Said::Known(name) => name,
        Said::Unattached => return Ok(Said::Unattached),
        Said::NoTap => return Ok(Said::NoTap),
    };
    let is_gone = target.to_str().is_some_and(|target| target.ends_with(DELETED));
    let Some(Device { major, minor }) = device_of(copy) else { return Ok(Said::NoTap) };
    Ok(Said::Known(Macvtap {
        name,
        mac: mac_of(copy.as_fd())?,
        index: index(target).filter(|_| !is_gone),
        device: format!("{major}:{minor}"),
    }))
}

/// The index of the interface in the calling thread's namespace that is like the wanted one in all that is known.
fn matching(wanted: &Macvtap) -> io::Result<Option<u32>> {
    let Some((name, ifindex)) = look_up(&Interface::Name(wanted.name.clone()))? else {
        return Ok(None);
    };
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mac = mac_of_name(socket.as_fd(), &name)?;
    let fits = mac == Some(wanted.mac) && wanted.index.is_none_or(|index| index == ifindex);
    Ok(fits.then_some(ifindex))
}

/// Whether a device is one of a macvtap, whichever namespace that is in.
pub(super) fn is_one(device: Device) -> bool {
    let text = fs::read_to_string("/proc/devices").unwrap_or_default();
    text.lines().filter_map(|line| line.trim().split_once(' ')).any(|(major, name)| {
        matches!(name, "macvtap" | "ipvtap") && major.parse() == Ok(device.major)
    })
}

/// Whether a device of this number is in one of the lists; `None` where there are none.
fn is_listed(device: &str, classes: &[&str]) -> Option<bool> {
    let mut lists = classes.iter().filter_map(|class| fs::read_dir(class).ok()).peekable();
    lists.peek()?;
    let mut devices = lists.flatten().flatten().map(|entry| entry.path().join("dev"));
    Some(devices.any(|path| fs::read_to_string(path).is_ok_and(|text| text.trim() == device)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{index, is_listed};

    #[test]
    fn only_numbered_taps_are_macvtaps() {
        assert_eq!(index(Path::new("/dev/tap12")), Some(12));
        assert_eq!(index(Path::new("/tap3")), Some(3));
        assert_eq!(index(Path::new("/dev/tap12 (deleted)")), Some(12));
        for other in ["/dev/tap", "/dev/tap1x", "/home/x/tap1", "socket:[1]", "/dev/tap (deleted)"]
        {
            assert_eq!(index(Path::new(other)), None, "{other}");
        }
    }

    #[test]
    fn a_device_is_listed_by_its_number_and_without_a_list_nothing_is_known() {
        let directory = tempfile::tempdir().expect("a directory");
        let class = directory.path().to_str().expect("a path");
        std::fs::create_dir(directory.path().join("tap6")).expect("a device");
        std::fs::write(directory.path().join("tap6/dev"), "246:1\n").expect("its number");
        assert_eq!(is_listed("246:1", &[class, "/nowhere"]), Some(true));
        assert_eq!(is_listed("246:2", &[class]), Some(false));
        assert_eq!(is_listed("246:1", &["/nowhere"]), None);
    }
}
