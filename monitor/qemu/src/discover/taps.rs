//! Which taps a QEMU process has open.
//!
//! The command line does not tell: libvirt hands taps over as descriptors, and networks come and
//! go while the guest runs. The descriptor itself is asked, through a copy of it: a tap may have been moved
//! to whichever namespace, and another one may have its name where QEMU is. Where no copy may be made,
//! its name is taken from `fdinfo` and looked up in the namespace of the QEMU, and in ours if it is not there, as far as these
//! belong to the user namespace that the QEMU is in: else any user could make a tap of another's name, and hold it where
//! that one is. That names had to do is handed on, since it may be the wrong tap all the same.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::netdevice;
use serde::{Deserialize, Serialize};

use super::common::{Common, any_socket};
use super::descriptor::{Holder, Place, Said, TUN, device_at, place_of};
use super::netns::{in_netns, is_of_its_users, netns_of, own_netns};
use super::{DiscoverError, display_text, macvtaps, proc};

/// Most taps of one VM that are looked up; QEMU itself takes no more than 288 network cards.
const TAPS: usize = 512;
/// So often a tap is looked up that is renamed or moved meanwhile.
const LOOK_UPS: u32 = 3;

/// Which end of an interface a QEMU holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TapKind {
    /// A tap: the host receives on it what the guest sends.
    Tap,
    /// A macvtap: the host sends on it what the guest sends, to the interface below. So no frame can be sent
    /// to the guest alone, and none may be sent to ask it.
    Macvtap,
}

/// A tap that a VM is attached to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Tap {
    /// Which kind.
    pub kind: TapKind,
    /// Name of the interface.
    pub name: String,
    /// Inode number of the network namespace in which it was found.
    pub netns: u32,
    /// Index of the interface within that namespace.
    pub ifindex: u32,
}

/// What was found among the descriptors of a QEMU.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Each once, however many queues it has.
    pub(super) taps: BTreeSet<Tap>,
    /// A note for each network that is there but cannot be watched, saying why.
    pub(super) unseen: BTreeSet<String>,
    /// Why taps could only be told by their names, where that is so.
    pub(super) by_name: Option<String>,
}

/// The taps among the `descriptors` of `pid`.
///
/// # Errors
/// If the descriptors or the namespace of `pid` cannot be read, which is never the same as having no tap.
pub(super) fn taps_among(
    pid: u32,
    descriptors: &[(u32, PathBuf)],
    common: &mut Common,
) -> Result<Found, DiscoverError> {
    let failed = |source| DiscoverError::ResolveTaps { pid, source };
    let mut found = Found::default();
    let mut places = BTreeSet::new();
    let mut named = BTreeSet::new();
    let mut holder = None;
    for (fd, target) in descriptors {
        let kind = match macvtaps::index(target) {
            Some(_) => TapKind::Macvtap,
            None if may_be_tun(target) => TapKind::Tap,
            None => continue,
        };
        if found.taps.len() + named.len() >= TAPS {
            found.unseen.insert(format!("taps beyond the first {TAPS}"));
            break;
        }
        let copy = holder.get_or_insert_with(|| Holder::open(pid));
        let asked = match copy.as_ref().map(|holder| holder.copy(*fd)) {
            Ok(Ok(Some(copy))) if kind == TapKind::Macvtap => {
                macvtaps::find(pid, &copy, target, &mut found)?;
                continue;
            }
            Ok(Ok(Some(copy))) => place_of(copy.as_fd()).map(|said| Some((copy, said))),
            // Closed meanwhile.
            Ok(Ok(None)) => Ok(None),
            Ok(Err(error)) => Err(error),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        };
        match asked {
            Ok(Some((copy, Said::Known(place)))) => {
                // Another queue of a tap that was found already.
                if places.insert((place.netns, place.name.clone())) {
                    find(&copy, place, &mut found, common).map_err(failed)?;
                }
            }
            Ok(Some((_, Said::Unattached))) => {
                found.unseen.insert("tap without a name".to_owned());
            }
            Ok(Some((_, Said::NoTap)) | None) => {}
            Err(why) => {
                found.by_name.get_or_insert_with(|| why.to_string());
                named.extend(by_name(pid, *fd, target, &mut found.unseen)?);
            }
        }
    }
    if !named.is_empty() {
        found.taps.extend(resolve(pid, &named, &mut found.unseen)?);
    }
    Ok(found)
}

/// The network namespace numbered `netns` in which a tap of `pid` is, opened; `None` if it has none there.
///
/// # Errors
/// If the descriptors of `pid` cannot be read or copied.
pub fn netns_of_tap(pid: u32, netns: u32) -> Result<Option<File>, DiscoverError> {
    let failed = |source| DiscoverError::ResolveTaps { pid, source };
    let holder = Holder::open(pid).map_err(failed)?;
    for (fd, target) in proc::descriptors(pid)?.each {
        if !may_be_tun(&target) {
            continue;
        }
        let Some(copy) = holder.copy(fd).map_err(failed)? else { continue };
        if let Said::Known(place) = place_of(copy.as_fd()).map_err(failed)?
            && place.netns == netns
        {
            return Ok(Some(place.namespace));
        }
    }
    Ok(None)
}

/// Finds the index of the tap behind `copy`, which was at `place` just now.
fn find(
    copy: &OwnedFd,
    mut place: Place,
    found: &mut Found,
    common: &mut Common,
) -> io::Result<()> {
    for _ in 0..LOOK_UPS {
        let interface = Interface::Name(place.name.clone());
        let looked_up = look_up_by(common.socket_in(&place)?, &interface)?;
        let Said::Known(now) = place_of(copy.as_fd())? else { return Ok(()) };
        let is_same = (now.netns, &now.name) == (place.netns, &place.name);
        if let Some((name, ifindex)) = looked_up
            && is_same
        {
            found.taps.insert(Tap { kind: TapKind::Tap, name, netns: place.netns, ifindex });
            return Ok(());
        }
        place = now;
    }
    found.unseen.insert(format!("tap {} (renamed or moved just now)", display_text(&place.name)));
    Ok(())
}

/// An interface as far as the link and `fdinfo` of a descriptor tell.
fn by_name(
    pid: u32,
    fd: u32,
    target: &Path,
    notes: &mut BTreeSet<String>,
) -> Result<Option<Interface>, DiscoverError> {
    let device = device_at(pid, fd);
    if let Some(index) = macvtaps::index(target) {
        let is_macvtap = device.is_some_and(macvtaps::is_one);
        return Ok(is_macvtap.then_some(Interface::Index(index)));
    }
    if device != Some(TUN) {
        return Ok(None);
    }
    // Should the process be gone, the caller's next read will find that.
    let Some(info) = proc::descriptor_info(pid, fd)? else { return Ok(None) };
    let name = interface_name(&info);
    if name.is_none() {
        notes.insert("tap without a name".to_owned());
    }
    Ok(name.map(|name| Interface::Name(name.to_owned())))
}

/// An interface by what names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Interface {
    /// A tap, by its name.
    Name(String),
    /// A macvtap, by its index.
    Index(u32),
}

/// Whether it may be the device of taps, which its number alone tells: seen from another mount namespace the path may start
/// at the root of the device file system, and a QEMU in a root of its own has it below that one's `/dev`.
fn may_be_tun(target: &Path) -> bool {
    target.is_absolute() && target.file_name().is_some_and(|name| name == "tun")
}

/// The `iff:` line of a `fdinfo`: `None` if there is none, it is empty (a descriptor that is not
/// attached, or no longer), or still the pattern (`tap%d`) from which a name is to be made.
pub(super) fn interface_name(fdinfo: &str) -> Option<&str> {
    let name = fdinfo.lines().find_map(|line| line.strip_prefix("iff:"))?.trim();
    (!name.is_empty() && !name.contains('%')).then_some(name)
}

fn resolve(
    pid: u32,
    interfaces: &BTreeSet<Interface>,
    notes: &mut BTreeSet<String>,
) -> Result<Vec<Tap>, DiscoverError> {
    let (namespace, theirs) = netns_of(pid)?;
    let failed = |source| DiscoverError::ResolveTaps { pid, source };
    let ours = own_netns().map_err(failed)?;
    let here = || interfaces.iter().map(look_up).collect::<io::Result<Vec<_>>>();
    let in_ours = here().map_err(failed)?;
    let in_theirs = if theirs == ours {
        in_ours.clone()
    } else {
        in_netns(&namespace, here).flatten().map_err(failed)?
    };
    let are_theirs = is_of_its_users(&namespace, pid).map_err(failed)?;
    let own = File::open("/proc/thread-self/ns/net").map_err(failed)?;
    let are_ours = is_of_its_users(&own, pid).map_err(failed)?;
    let mut taps = Vec::new();
    for ((interface, in_theirs), in_ours) in interfaces.iter().zip(in_theirs).zip(in_ours) {
        let in_theirs = in_theirs.filter(|_| are_theirs).map(|found| (theirs, found));
        let found = in_theirs.or(in_ours.filter(|_| are_ours).map(|found| (ours, found)));
        let kind = match interface {
            Interface::Name(_) => TapKind::Tap,
            Interface::Index(_) => TapKind::Macvtap,
        };
        match found {
            Some((netns, (name, ifindex))) => taps.push(Tap { kind, name, netns, ifindex }),
            None => {
                let name = match interface {
                    Interface::Name(name) => display_text(name),
                    Interface::Index(index) => format!("number {index}"),
                };
                notes.insert(format!("tap {name} (in a namespace that is not known)"));
            }
        }
    }
    Ok(taps)
}

/// Name and index of an interface in the calling thread's namespace; `None` if there is none so named.
/// An index that another kind of interface has is another namespace's.
pub(super) fn look_up(interface: &Interface) -> io::Result<Option<(String, u32)>> {
    // Any socket will do. `/sys/class/net` would not: it shows the namespace it was mounted in.
    look_up_by(&any_socket()?, interface)
}

/// The same in the namespace of a socket.
fn look_up_by(socket: &OwnedFd, interface: &Interface) -> io::Result<Option<(String, u32)>> {
    let found = match interface {
        Interface::Name(name) => {
            netdevice::name_to_index(socket, name).map(|index| (name.clone(), index))
        }
        Interface::Index(index) => {
            netdevice::index_to_name(socket, *index).map(|name| (name, *index))
        }
    };
    match found {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NODEV | Errno::NXIO | Errno::INVAL | Errno::NAMETOOLONG) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Interface, interface_name, look_up, may_be_tun};

    #[test]
    fn the_interface_is_named_in_fdinfo() {
        assert_eq!(interface_name("pos:\t0\nflags:\t02\nino:\t8\niff:\tvnet0\n"), Some("vnet0"));
    }

    #[test]
    fn an_unattached_descriptor_has_no_interface() {
        for info in ["", "pos:\t0\n", "iff:\t\n", "iff:\ttap%d\n"] {
            assert_eq!(interface_name(info), None, "{info:?}");
        }
    }

    #[test]
    fn what_may_be_a_tap_is_told_by_its_name_wherever_its_root_is() {
        for path in ["/dev/net/tun", "/net/tun", "/srv/qemu/dev/net/tun"] {
            assert!(may_be_tun(Path::new(path)), "{path}");
        }
        for path in ["/dev/kvm", "/srv/tun/disk", "anon_inode:tun", "tun", "/dev/net/tun (deleted)"]
        {
            assert!(!may_be_tun(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn an_interface_that_is_not_there_has_neither_name_nor_index() {
        let by_name = |name: &str| look_up(&Interface::Name(name.to_owned())).expect("a look-up");
        assert_eq!(by_name("lo"), Some(("lo".to_owned(), 1)));
        for name in ["flatline-none", "a-name-longer-than-any-interface-may-have"] {
            assert_eq!(by_name(name), None, "{name}");
        }
        let by_index = |index| look_up(&Interface::Index(index)).expect("a look-up");
        assert_eq!(by_index(1), Some(("lo".to_owned(), 1)));
        assert_eq!(by_index(u32::MAX >> 1), None);
    }
}
