//! The Unix sockets on which a QEMU listens, by its descriptors: where it was told to listen, and where it does.
//!
//! A path on a command line says little. QEMU binds it early, and then leaves its working directory
//! (`-daemonize`) and its root (`-chroot`); a file may have been moved away since, or another be in its place.
//! What the kernel keeps of a bound socket is the name as it was written and the very file. So a QEMU's
//! listening socket is found among its descriptors by its name (`pidfd_getfd`), and its file is asked of the
//! socket itself: `SIOCUNIXFILE` (`unix_open_file` in net/unix/af_unix.c, Linux 4.14) opens it as `O_PATH`,
//! which leads to it through `/proc/self/fd` from any root, mount or network namespace.
//!
//! A duplicate of a listening socket would keep it alive after its QEMU: none is kept.

use std::{
    fmt, io,
    os::{
        fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, net::UnixListener},
    },
    path::{Path, PathBuf},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketType, sockopt},
    process::{PidfdGetfdFlags, pidfd_getfd},
};

use serde::{Deserialize, Serialize};

use super::{open_pidfd, proc};

/// `SIOCPROTOPRIVATE + 0` of a Unix socket (include/uapi/linux/un.h).
const SIOCUNIXFILE: libc::Ioctl = 0x89e0;

/// Where QEMU was told to listen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SocketAt {
    /// At this path, as QEMU was told: in what was its root and working directory then.
    Path(PathBuf),
    /// On a socket that it was handed as this descriptor.
    Descriptor(i32),
}

/// A Unix socket on which QEMU listens, as it was told at its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListeningSocket {
    /// Where.
    pub at: SocketAt,
    /// Whether QEMU starts its guest only once a client has come (`wait=on`).
    pub waits: bool,
}

impl ListeningSocket {
    /// One with this path, where QEMU doesn't wait for a client.
    pub fn at_path(path: impl AsRef<Path>) -> Self {
        Self { at: SocketAt::Path(path.as_ref().to_owned()), waits: false }
    }
}

impl fmt::Display for SocketAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{path:?}"),
            Self::Descriptor(fd) => write!(f, "its descriptor {fd}"),
        }
    }
}

/// A listening socket that was found.
#[derive(Debug)]
pub struct Found {
    /// Its file (`O_PATH`).
    pub file: OwnedFd,
    /// Whether a client is connected to it.
    pub is_held: bool,
}

/// Why it was not found.
#[derive(Debug, thiserror::Error)]
pub enum NotFound {
    /// There is none.
    #[error("process {pid} listens on no socket that is bound to {at}")]
    None {
        /// The process.
        pid: u32,
        /// Where it was told to listen.
        at: SocketAt,
    },
    /// The descriptor is something else.
    #[error("descriptor {fd}, which process {pid} was told to listen on, is {what}")]
    Unfit {
        /// The process.
        pid: u32,
        /// The descriptor.
        fd: i32,
        /// What it is instead.
        what: &'static str,
    },
    /// It can't be told.
    #[error("the sockets of process {pid} can't be looked at")]
    Unseen {
        /// The process.
        pid: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The socket of process `pid` that is bound as `at` says. Looks at descriptors only, and waits for nothing.
///
/// # Errors
/// [`NotFound`]; `Unseen` where the kernel doesn't permit the look: it needs `CAP_SYS_PTRACE`, and
/// `CAP_NET_ADMIN` in the network namespace of the socket.
pub(crate) fn listening_socket(pid: u32, at: &SocketAt) -> Result<Found, NotFound> {
    let unseen = |source: io::Error| NotFound::Unseen { pid, source };
    let gone = || unseen(Errno::SRCH.into());
    let pidfd = open_pidfd(pid).map_err(|error| unseen(io::Error::other(error)))?;
    let pidfd = pidfd.ok_or_else(gone)?;
    let handed = match at {
        SocketAt::Path(_) => None,
        SocketAt::Descriptor(fd) => {
            let unfit = |what| NotFound::Unfit { pid, fd: *fd, what };
            let socket = match pidfd_getfd(&pidfd, *fd, PidfdGetfdFlags::empty()) {
                Ok(socket) => socket,
                Err(Errno::BADF) => return Err(unfit("not open")),
                Err(errno) => return Err(unseen(errno.into())),
            };
            let socket = Socket::look(socket).ok_or_else(|| unfit("no Unix socket"))?;
            if !socket.listens {
                return Err(unfit("a socket on which no process listens"));
            }
            if socket.path.is_none() {
                return Err(unfit("a socket that is bound to no path"));
            }
            Some(socket)
        }
    };
    let path = match (at, &handed) {
        (SocketAt::Path(path), _) => Some(path),
        (SocketAt::Descriptor(_), handed) => {
            handed.as_ref().and_then(|socket| socket.path.as_ref())
        }
    };
    let (first, is_held) = bound_to(path, pid, &pidfd).map_err(unseen)?;
    let listening = handed.as_ref().or(first.as_ref());
    let listening = listening.ok_or_else(|| NotFound::None { pid, at: at.clone() })?;
    Ok(Found { file: file_of(&listening.socket).map_err(unseen)?, is_held })
}

/// A Unix stream socket of a process.
struct Socket {
    socket: OwnedFd,
    listens: bool,
    /// What it is bound to; a connection that was accepted bears its listening socket's name.
    path: Option<PathBuf>,
}

impl Socket {
    /// `None` if it is another kind of socket, or none.
    fn look(socket: OwnedFd) -> Option<Self> {
        let is_stream = sockopt::socket_domain(&socket) == Ok(AddressFamily::UNIX)
            && sockopt::socket_type(&socket) == Ok(SocketType::STREAM);
        let listens = is_stream && sockopt::socket_acceptconn(&socket).ok()?;
        // The type has the one function that is needed, whatever state the socket is in.
        let named = UnixListener::from(socket);
        let path = named.local_addr().ok().filter(|_| is_stream)?;
        let path = path.as_pathname().map(Path::to_owned);
        Some(Self { socket: named.into(), listens, path })
    }
}

/// The first Unix stream socket of a process that is bound to `path` and listens, and whether there is one more so bound: a
/// client's. One copy is held at a time, and that of the first: a process may have more sockets than this one may open.
fn bound_to(
    path: Option<&PathBuf>,
    pid: u32,
    pidfd: &OwnedFd,
) -> io::Result<(Option<Socket>, bool)> {
    let descriptors = proc::descriptors(pid).map_err(io::Error::other)?.each;
    let (mut first, mut is_held) = (None, false);
    for (fd, link) in descriptors {
        if !link.as_os_str().as_bytes().starts_with(b"socket:") {
            continue;
        }
        let Ok(fd) = i32::try_from(fd) else { continue };
        match pidfd_getfd(pidfd, fd, PidfdGetfdFlags::empty()) {
            Ok(socket) => match Socket::look(socket).filter(|it| it.path.as_ref() == path) {
                Some(socket) if socket.listens => first = first.or(Some(socket)),
                Some(_) => is_held = true,
                None => {}
            },
            // Closed meanwhile.
            Err(Errno::BADF) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok((first, is_held))
}

/// The file that a socket is bound to, as a descriptor.
fn file_of(socket: impl AsFd) -> io::Result<OwnedFd> {
    // SAFETY: SIOCUNIXFILE takes no argument, and touches no memory of ours.
    let fd = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCUNIXFILE, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just opened it for this caller, and nothing else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::MetadataExt as _, net::UnixStream};

    use super::*;

    fn own(at: &SocketAt) -> Result<Found, NotFound> {
        listening_socket(std::process::id(), at)
    }

    /// Whether this process may look at all: not without root's capabilities.
    fn may_look() -> bool {
        !matches!(own(&SocketAt::Path("/nowhere".into())), Err(NotFound::Unseen { .. }))
    }

    #[test]
    fn a_bound_socket_is_found_though_its_file_was_moved() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let moved = dir.path().join("moved");
        std::fs::rename(&path, &moved).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        if !may_look() {
            return;
        }
        drop(_other);
        let at = SocketAt::Path(path);
        let found = own(&at).unwrap();
        let file = std::fs::File::from(found.file);
        assert_eq!(file.metadata().unwrap().ino(), std::fs::metadata(&moved).unwrap().ino());
        assert!(!found.is_held);
        let client = UnixStream::connect(&moved).unwrap();
        let server = listener.accept().unwrap();
        assert!(own(&at).unwrap().is_held);
        drop((client, server, listener));
        assert!(matches!(own(&at), Err(NotFound::None { .. })));
    }

    #[test]
    fn a_descriptor_that_leads_to_no_path_says_what_it_is() {
        if !may_look() {
            return;
        }
        let what = |fd: i32| match own(&SocketAt::Descriptor(fd)) {
            Err(NotFound::Unfit { what, .. }) => what,
            other => panic!("{other:?}"),
        };
        let (pair, _other) = UnixStream::pair().unwrap();
        assert_eq!(what(pair.as_raw_fd()), "a socket on which no process listens");
        let file = tempfile::tempfile().unwrap();
        assert_eq!(what(file.as_raw_fd()), "no Unix socket");
        assert_eq!(what(i32::MAX), "not open");
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("a")).unwrap();
        own(&SocketAt::Descriptor(listener.as_raw_fd())).unwrap();
    }
}
