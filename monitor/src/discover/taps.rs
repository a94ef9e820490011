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

/// A tap that a VM is attached to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tap {
    /// Name of the interface.
    pub name: String,
    /// Inode number of the network namespace in which it was found.
    pub netns: u32,
    /// Index of the interface within that namespace.
    pub ifindex: u32,
}

/// The taps that `pid` has open now, each once however many queues it has, and a note for each
/// network that is there but cannot be watched, saying why.
///
/// # Errors
/// [`DiscoverError::Gone`] if there is no such process; otherwise if its descriptors or its
/// namespace cannot be read, which is never the same as having no tap.
pub fn taps(pid: u32) -> Result<(Vec<Tap>, Vec<String>), DiscoverError> {
    taps_among(pid, &proc::descriptors(pid)?)
}

/// As [`taps`], for descriptors that were listed already.
pub(super) fn taps_among(
    pid: u32,
    descriptors: &[(u32, std::path::PathBuf)],
) -> Result<(Vec<Tap>, Vec<String>), DiscoverError> {
    let mut names = BTreeSet::new();
    let mut notes = BTreeSet::new();
    for (fd, target) in descriptors {
        if is_macvtap(target) {
            notes.insert("macvtap (not read)".to_owned());
        }
        if !is_tun(target) {
            continue;
        }
        let info = match proc::descriptor_info(pid, *fd) {
            Ok(info) => info,
            // Closed meanwhile, or the process is gone, which the caller's next read will find.
            Err(DiscoverError::Gone { .. }) => continue,
            Err(error) => return Err(error),
        };
        match interface_name(&info) {
            Some(name) if names.len() < TAPS => {
                names.insert(name.to_owned());
            }
            Some(_) => {
                notes.insert(format!("taps beyond the first {TAPS}"));
            }
            None => {
                notes.insert("tap without a name".to_owned());
            }
        }
    }
    let taps = if names.is_empty() { Vec::new() } else { resolve(pid, &names, &mut notes)? };
    Ok((taps, notes.into_iter().collect()))
}

/// Seen from another mount namespace the path may start at the root of the device file system.
fn is_tun(target: &Path) -> bool {
    target == Path::new("/dev/net/tun") || target == Path::new("/net/tun")
}

/// `/dev/tapN` is the descriptor side of a macvtap interface with index N.
fn is_macvtap(target: &Path) -> bool {
    let Some(target) = target.to_str() else {
        return false;
    };
    let number = target.strip_prefix("/dev/tap").or_else(|| target.strip_prefix("/tap"));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

/// The `iff:` line of a `fdinfo`: `None` if there is none, it is empty (a descriptor that is not
/// attached, or no longer), or still the pattern (`tap%d`) from which a name is to be made.
fn interface_name(fdinfo: &str) -> Option<&str> {
    let name = fdinfo.lines().find_map(|line| line.strip_prefix("iff:"))?.trim();
    (!name.is_empty() && !name.contains('%')).then_some(name)
}

fn resolve(
    pid: u32,
    names: &BTreeSet<String>,
    notes: &mut BTreeSet<String>,
) -> Result<Vec<Tap>, DiscoverError> {
    let (namespace, theirs) = netns_of(pid)?;
    let failed = |source| DiscoverError::ResolveTaps { pid, source };
    let ours = own_netns().map_err(failed)?;
    let here = || names.iter().map(|name| index_of(name)).collect::<io::Result<Vec<_>>>();
    let in_ours = here().map_err(failed)?;
    let in_theirs = if theirs == ours {
        in_ours.clone()
    } else {
        in_namespace(&namespace, here).map_err(failed)?
    };
    let mut taps = Vec::new();
    for ((name, in_theirs), in_ours) in names.iter().zip(in_theirs).zip(in_ours) {
        let found = in_theirs.map(|index| (theirs, index)).or(in_ours.map(|index| (ours, index)));
        match found {
            Some((netns, ifindex)) => taps.push(Tap { name: name.clone(), netns, ifindex }),
            None => {
                let name = display_text(name);
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

/// The index of an interface in the calling thread's namespace; `None` if it has none so named.
fn index_of(name: &str) -> io::Result<Option<u32>> {
    // Any socket will do. `/sys/class/net` would not: it shows the namespace it was mounted in.
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    match netdevice::name_to_index(&socket, name) {
        Ok(index) => Ok(Some(index)),
        Err(Errno::NODEV | Errno::INVAL | Errno::NAMETOOLONG) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{index_of, interface_name, is_macvtap, is_tun};

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
        assert!(is_macvtap(Path::new("/dev/tap12")) && is_macvtap(Path::new("/tap3")));
        for other in ["/dev/tap", "/dev/tap1x", "/home/x/tap1", "socket:[1]"] {
            assert!(!is_macvtap(Path::new(other)), "{other}");
        }
    }

    #[test]
    fn an_interface_that_is_not_there_has_no_index() {
        assert_eq!(index_of("lo").expect("a look-up"), Some(1));
        for name in ["flatline-none", "a-name-longer-than-any-interface-may-have"] {
            assert_eq!(index_of(name).expect("a look-up"), None, "{name}");
        }
    }
}
