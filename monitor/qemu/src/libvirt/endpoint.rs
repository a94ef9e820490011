//! Where a libvirt is to be reached by its socket.

use std::path::PathBuf;

/// Where the daemons of a host listen: the one for QEMU alone, and the one for all, which is older. The first that is there
/// serves (`remoteGetUNIXSocket` in libvirt's src/remote/remote_sockets.c).
const SYSTEM: [&str; 2] = ["/run/libvirt/virtqemud-sock", "/run/libvirt/libvirt-sock"];

/// A libvirt on this host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Its sockets, the first of which that is there serves.
    pub(super) sockets: Vec<PathBuf>,
    /// What is opened there.
    pub(super) name: &'static str,
    /// Whether it is root's.
    pub(super) is_system: bool,
}

impl Endpoint {
    /// From a connection URI; `None` of one that leads to another machine, or says more than a path.
    pub fn parse(uri: &str) -> Option<Self> {
        let (scheme, rest) = uri.split_once("://")?;
        let (place, query) =
            rest.split_once('?').map_or((rest, None), |(at, query)| (at, Some(query)));
        let (name, is_system) = match place {
            "/system" => ("qemu:///system", true),
            "/session" => ("qemu:///session", false),
            _ => return None,
        };
        let socket = match (scheme, query) {
            ("qemu" | "qemu+unix", None) => None,
            ("qemu+unix", Some(query)) => Some(query.strip_prefix("socket=")?),
            _ => return None,
        };
        // What is escaped, or another word of the query, is left to libvirt's own client.
        let is_path = |path: &&str| path.starts_with('/') && !path.contains(['%', '&']);
        let sockets = match socket {
            Some(path) => vec![PathBuf::from(Some(path).filter(is_path)?)],
            None if is_system => SYSTEM.map(PathBuf::from).to_vec(),
            // Which user's session is meant depends on the caller.
            None => return None,
        };
        Some(Self { sockets, name, is_system })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_this_host_is_reached_by_its_socket_and_nothing_else() {
        let system = Endpoint::parse("qemu:///system").unwrap();
        assert_eq!((system.sockets.len(), system.is_system), (2, true));
        assert_eq!(Endpoint::parse("qemu+unix:///system"), Some(system));
        let own =
            Endpoint::parse("qemu+unix:///session?socket=/run/user/1000/libvirt/sock").unwrap();
        assert_eq!(own.sockets, [PathBuf::from("/run/user/1000/libvirt/sock")]);
        assert_eq!((own.name, own.is_system), ("qemu:///session", false));
        for uri in [
            "qemu+ssh://host/system",
            "qemu+tls://host/system",
            "qemu://host/system",
            "qemu:///session",
            "qemu:///embed?root=/x",
            "qemu+unix:///system?socket=/a%20b",
            "qemu+unix:///system?mode=legacy&socket=/a",
            "qemu+unix:///system?socket=a",
            "xen:///system",
            "",
        ] {
            assert_eq!(Endpoint::parse(uri), None, "{uri}");
        }
    }
}
