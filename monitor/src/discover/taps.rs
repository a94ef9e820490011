//! Which taps a QEMU process has open.
//!
//! The command line does not tell: libvirt hands taps over as descriptors, and networks come and
//! go while the guest runs. A descriptor of `/dev/net/tun` names its interface in `fdinfo`; the
//! name is then looked up in the namespace of the QEMU, and in ours if it is not there, since a
//! descriptor keeps working in whatever namespace it was handed to.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};

use super::netns::{in_netns, netns_of, own_netns};
use super::{DiscoverError, display_text, proc};

/// Most taps of one VM that are looked up; QEMU itself takes no more than 288 network cards.
const TAPS: usize = 512;

/// Which end of an interface a QEMU holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TapKind {
    /// A tap: the host receives on it what the guest sends.
    Tap,
    /// A macvtap: the host sends on it what the guest sends, to the interface below. So no frame can be sent
    /// to the guest alone, and none may be sent to ask it.
    Macvtap,
}

/// A tap that a VM is attached to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
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

/// The taps among the `descriptors` of `pid`, each once however many queues it has, and a note for each
/// network that is there but cannot be watched, saying why.
///
/// # Errors
/// If the descriptors or the namespace of `pid` cannot be read, which is never the same as having no tap.
pub(super) fn taps_among(
    pid: u32,
    descriptors: &[(u32, std::path::PathBuf)],
) -> Result<(Vec<Tap>, Vec<String>), DiscoverError> {
    let mut interfaces = BTreeSet::new();
    let mut notes = BTreeSet::new();
    for (fd, target) in descriptors {
        let interface = if let Some(index) = macvtap_index(target) {
            Interface::Index(index)
        } else if is_tun(target) {
            let info = match proc::descriptor_info(pid, *fd) {
                Ok(info) => info,
                // Closed meanwhile, or the process is gone, which the caller's next read will find.
                Err(DiscoverError::Gone { .. }) => continue,
                Err(error) => return Err(error),
            };
            match interface_name(&info) {
                Some(name) => Interface::Name(name.to_owned()),
                None => {
                    notes.insert("tap without a name".to_owned());
                    continue;
                }
            }
        } else {
            continue;
        };
        if interfaces.len() < TAPS {
            interfaces.insert(interface);
        } else {
            notes.insert(format!("taps beyond the first {TAPS}"));
        }
    }
    let taps =
        if interfaces.is_empty() { Vec::new() } else { resolve(pid, &interfaces, &mut notes)? };
    Ok((taps, notes.into_iter().collect()))
}

/// An interface as a descriptor names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Interface {
    /// A tap, by its name.
    Name(String),
    /// A macvtap, by its index.
    Index(u32),
}

/// Seen from another mount namespace the path may start at the root of the device file system.
fn is_tun(target: &Path) -> bool {
    target == Path::new("/dev/net/tun") || target == Path::new("/net/tun")
}

/// `/dev/tapN` is the descriptor side of a macvtap interface with index N.
pub(super) fn macvtap_index(target: &Path) -> Option<u32> {
    let target = target.to_str()?;
    let number = target.strip_prefix("/dev/tap").or_else(|| target.strip_prefix("/tap"))?;
    number.bytes().all(|byte| byte.is_ascii_digit()).then(|| number.parse().ok())?
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
        in_namespace(&namespace, here).map_err(failed)?
    };
    let mut taps = Vec::new();
    for ((interface, in_theirs), in_ours) in interfaces.iter().zip(in_theirs).zip(in_ours) {
        let found = in_theirs.map(|found| (theirs, found)).or(in_ours.map(|found| (ours, found)));
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

fn in_namespace<T: Send>(
    namespace: &File,
    f: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    in_netns(namespace, f)?
}

/// Name and index of an interface in the calling thread's namespace; `None` if there is none so named.
/// An index that another kind of interface has is another namespace's.
fn look_up(interface: &Interface) -> io::Result<Option<(String, u32)>> {
    // Any socket will do. `/sys/class/net` would not: it shows the namespace it was mounted in.
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let found = match interface {
        Interface::Name(name) => {
            netdevice::name_to_index(&socket, name).map(|index| (name.clone(), index))
        }
        Interface::Index(index) => {
            netdevice::index_to_name(&socket, *index).map(|name| (name, *index))
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

    use super::{Interface, interface_name, is_tun, look_up, macvtap_index};

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
    fn only_the_tun_device_and_numbered_taps_are_networks() {
        assert!(is_tun(Path::new("/dev/net/tun")) && is_tun(Path::new("/net/tun")));
        assert!(!is_tun(Path::new("/home/x/net/tun")));
        assert_eq!(macvtap_index(Path::new("/dev/tap12")), Some(12));
        assert_eq!(macvtap_index(Path::new("/tap3")), Some(3));
        for other in ["/dev/tap", "/dev/tap1x", "/home/x/tap1", "socket:[1]"] {
            assert_eq!(macvtap_index(Path::new(other)), None, "{other}");
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
