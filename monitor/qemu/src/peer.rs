//! Connections to a QEMU's sockets: finds one, connects, and makes sure that this QEMU is at its other end. So it is with the sockets of QMP, of
//! the guest agent and of flatline's own. Console logs are found by QEMU's descriptors instead, and looked up here only to
//! tell which of these is meant.
//!
//! A socket is found by the descriptor on which that QEMU listens (`listening_socket`), whatever has become of its
//! path. Where the kernel doesn't permit that look, the path tells. It means something in the QEMU's mount namespace
//! and root only, and the links on the way may be the work of a hostile QEMU. So it is resolved by the kernel with
//! the QEMU's root (or working directory) as a wall. Either way, the very socket that was found is connected to,
//! through its descriptor: the path cannot change in between, nor be too long for `sun_path`.
//!
//! Of a path, the socket that it leads to is connected to only if it is the file that a socket is bound to on which this QEMU
//! listens, as the kernel tells both: whatever else it leads to sees no connection.
//!
//! The kernel also names the process that called `listen` last (`other_end`). QEMU (since 5.0) does so itself, also on a socket
//! that it was handed (`-chardev socket,fd=N`).
//!
//! No QEMU is connected to that waits for its first client: see `discover::launch`.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;
use tokio::net::UnixStream;

use crate::discover::{
    Found, Launch, ListeningSocket, NotFound, SocketAt, ThreadsTold, VmId, launch,
    listening_socket, listens_at,
};
use crate::other_end;

/// Why there is no connection to the QEMU.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The root or working directory of the process is not to be had.
    #[error("process {pid} has no {what}")]
    NoBase {
        /// The QEMU process.
        pid: u32,
        /// Which folder or link of `/proc/PID`.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The system call that resolves a path within a root is not available.
    #[error(
        "openat2, which finds {path:?} safely, is not to be had: a kernel before Linux 5.6, or RestrictSUIDSGID= in flatline's unit, keeps it away"
    )]
    NoOpenat2 {
        /// The path that QEMU was told.
        path: PathBuf,
    },
    /// A relative path leaves its base.
    #[error("{path:?} leads out of the working directory of process {pid}")]
    Escapes {
        /// The path that QEMU was told.
        path: PathBuf,
        /// The QEMU process.
        pid: u32,
    },
    /// There is nothing at the path.
    #[error("cannot find {path:?} as process {pid} sees it")]
    NotFound {
        /// The path that QEMU was told.
        path: PathBuf,
        /// The QEMU process.
        pid: u32,
        /// Why.
        source: io::Error,
    },
    /// The path is something else.
    #[error("{path:?} is not a socket")]
    NotASocket {
        /// The path that QEMU was told.
        path: PathBuf,
    },
    /// The path leads to another process' socket, or to none that is served.
    #[error("{path:?} leads to a socket on which process {pid} does not listen")]
    NotItsOwn {
        /// The path that QEMU was told.
        path: PathBuf,
        /// The QEMU process.
        pid: u32,
    },
    /// Whose socket the path leads to can't be told.
    #[error("it can't be told whether process {pid} listens on {path:?}")]
    Untold {
        /// The path that QEMU was told.
        path: PathBuf,
        /// The QEMU process.
        pid: u32,
        /// Why.
        source: io::Error,
    },
    /// No descriptor of the QEMU listens there.
    #[error(transparent)]
    NotListening(NotFound),
    /// A client would start the guest.
    #[error("QEMU has no vCPUs yet, and waits until somebody connects to {at}: flatline doesn't")]
    WaitsForAClient {
        /// Where it listens.
        at: SocketAt,
    },
    /// The QEMU is still in its initialisation.
    #[error("QEMU has no vCPUs yet, and answers nobody before it has")]
    InInit,
    /// `connect` failed.
    #[error("cannot connect to {at}")]
    Connect {
        /// Where it listens.
        at: SocketAt,
        /// Why.
        source: io::Error,
    },
    /// Others wait to be accepted.
    #[error("the listen queue of {at} is full")]
    QueueFull {
        /// Where it listens.
        at: SocketAt,
    },
    /// A process listened that has ended, and another one has kept its socket.
    #[error("the process that listened on the socket has ended")]
    ListenerEnded,
    /// Another process listens.
    #[error(
        "the socket belongs to {}, not to {expected}",
        found.map_or("a process that the kernel does not tell".to_owned(), |pid| format!("process {pid}"))
    )]
    WrongProcess {
        /// The listener, as the kernel tells it.
        found: Option<i32>,
        /// The QEMU process.
        expected: u32,
    },
    /// The process ended.
    #[error("process {vm} is gone")]
    ProcessGone {
        /// Which.
        vm: VmId,
    },
}

/// Finds a socket of a QEMU that may be connected to. `threads` are what `launch` needs. May block, as [`find`]
/// does, where the kernel permits no look at the QEMU's descriptors.
pub fn resolve(
    pid: u32,
    socket: &ListeningSocket,
    threads: ThreadsTold,
) -> Result<Found, PeerError> {
    let found = match (listening_socket(pid, &socket.at), &socket.at) {
        (Ok(found), _) => found,
        (Err(NotFound::Unseen { .. }), SocketAt::Path(path)) => {
            Found { file: own_socket(pid, path)?, is_held: false }
        }
        (Err(error), _) => return Err(PeerError::NotListening(error)),
    };
    let is_handed_over = matches!(socket.at, SocketAt::Descriptor(_));
    // After it was found: its QEMU has all threads then that each QEMU has from its beginning.
    match launch(pid, threads) {
        Ok(Launch::Over) => Ok(found),
        // What was handed over listened before its QEMU did, and nothing says for which client.
        Ok(Launch::Untold) if !(socket.waits || is_handed_over) => Ok(found),
        Ok(Launch::Untold | Launch::UnderWay) if socket.waits => {
            Err(PeerError::WaitsForAClient { at: socket.at.clone() })
        }
        Ok(Launch::Untold | Launch::UnderWay) => Err(PeerError::InInit),
        Err(error) => {
            Err(PeerError::NoBase { pid, what: "threads", source: io::Error::other(error) })
        }
    }
}

/// A descriptor (`O_PATH`) of the socket that process `pid` knows as `path`, if it listens there itself.
fn own_socket(pid: u32, path: &Path) -> Result<OwnedFd, PeerError> {
    let socket = resolve_path(pid, path)?;
    let path = path.to_owned();
    match listens_at(pid, &socket) {
        Ok(true) => Ok(socket),
        Ok(false) => Err(PeerError::NotItsOwn { path, pid }),
        Err(source) => Err(PeerError::Untold { path, pid, source }),
    }
}

/// A descriptor (`O_PATH`) of the socket that process `pid` knows as `path`.
fn resolve_path(pid: u32, path: &Path) -> Result<OwnedFd, PeerError> {
    let socket = find(pid, path)?;
    match fstat(&socket) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Socket => Ok(socket),
        _ => Err(PeerError::NotASocket { path: path.to_owned() }),
    }
}

/// A descriptor (`O_PATH`) of what process `pid` knows as `path`. Blocks on the file systems that the path
/// leads through, for as long as these like.
pub fn find(pid: u32, path: &Path) -> Result<OwnedFd, PeerError> {
    below(base(pid, path)?, pid, path)
}

/// A descriptor (`O_PATH`) of where process `pid` begins to look for `path`: its root, or its working directory.
pub fn base(pid: u32, path: &Path) -> Result<OwnedFd, PeerError> {
    let what = if path.is_absolute() { "root" } else { "cwd" };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, format!("/proc/{pid}/{what}"), flags, Mode::empty())
        .map_err(|errno| PeerError::NoBase { pid, what, source: errno.into() })
}

/// As [`find`], from that base on.
pub fn below(base: OwnedFd, pid: u32, path: &Path) -> Result<OwnedFd, PeerError> {
    // RESOLVE_IN_ROOT would turn `..` and absolute links below a working directory into other paths
    // than the QEMU means; RESOLVE_BENEATH reports them.
    let wall = if path.is_absolute() { ResolveFlags::IN_ROOT } else { ResolveFlags::BENEATH };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = wall | ResolveFlags::NO_MAGICLINKS;
    openat2(base, path, flags, Mode::empty(), resolve).map_err(|errno| {
        let path = path.to_owned();
        match errno {
            Errno::NOSYS => PeerError::NoOpenat2 { path },
            Errno::XDEV => PeerError::Escapes { path, pid },
            _ => PeerError::NotFound { path, pid, source: errno.into() },
        }
    })
}

/// Connects to a socket of [`resolve`] and checks that `vm` is at its other end. `at` is for errors.
pub async fn connect(vm: VmId, socket: Found, at: &SocketAt) -> Result<UnixStream, PeerError> {
    let connected = UnixStream::connect(format!("/proc/self/fd/{}", socket.file.as_raw_fd())).await;
    let stream = connected.map_err(|source| {
        let at = at.clone();
        match source.kind() {
            io::ErrorKind::WouldBlock => PeerError::QueueFull { at },
            _ => PeerError::Connect { at, source },
        }
    })?;
    other_end::check(&stream, vm)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn an_absolute_path_is_found_below_the_root_of_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        resolve_path(std::process::id(), &path).unwrap();
        symlink(&path, dir.path().join("link")).unwrap();
        resolve_path(std::process::id(), &dir.path().join("link")).unwrap();
    }

    #[test]
    fn a_relative_socket_path_is_found_below_the_working_directory_and_not_above() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("cwd/sub");
        std::fs::create_dir_all(&below).unwrap();
        let _outer = UnixListener::bind(dir.path().join("outer.sock")).unwrap();
        let _inner = UnixListener::bind(below.join("inner.sock")).unwrap();
        symlink(dir.path(), dir.path().join("cwd/out")).unwrap();
        let mut sleeper = std::process::Command::new("sleep")
            .arg("60")
            .current_dir(dir.path().join("cwd"))
            .spawn()
            .unwrap();
        let pid = sleeper.id();
        let inner = resolve_path(pid, Path::new("sub/inner.sock"));
        let dotdot = resolve_path(pid, Path::new("../outer.sock"));
        let linked = resolve_path(pid, Path::new("out/outer.sock"));
        let missing = resolve_path(pid, Path::new("sub/no.sock"));
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        inner.unwrap();
        assert!(matches!(dotdot, Err(PeerError::Escapes { .. })));
        assert!(matches!(linked, Err(PeerError::Escapes { .. })));
        assert!(matches!(missing, Err(PeerError::NotFound { .. })));
    }

    #[test]
    fn a_file_that_is_no_socket_is_said_to_be_none() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let found = resolve_path(std::process::id(), file.path());
        assert!(matches!(found, Err(PeerError::NotASocket { .. })));
    }

    #[test]
    fn a_process_that_is_gone_has_no_socket() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let found = resolve_path(child.id(), Path::new("/x"));
        assert!(matches!(found, Err(PeerError::NoBase { .. })));
    }
}
