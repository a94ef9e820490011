//! What VMs that are looked at one after the other have in common: parents, control groups, a network namespace. Each is asked
//! once, and believed for a moment.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::descriptor::Place;
use super::netns::in_netns;
use super::{origin, proc};

/// How long what was read is believed. Pids come round again, and a socket keeps its namespace alive.
const MOMENT: Duration = Duration::from_millis(500);

/// See the module.
#[derive(Debug)]
pub(super) struct Common {
    since: Instant,
    /// Executable and parent of a process from which VMs come.
    parents: HashMap<u32, (PathBuf, u32)>,
    /// By the text of a `/proc/PID/cgroup`.
    folders: HashMap<String, Vec<PathBuf>>,
    /// The network namespace in which a tap was looked up last, by its number, and a socket in it.
    socket: Option<(u32, OwnedFd)>,
}

impl Common {
    /// Nothing, so far.
    pub(super) fn new() -> Self {
        let (parents, folders) = (HashMap::new(), HashMap::new());
        Self { since: Instant::now(), parents, folders, socket: None }
    }

    /// Another VM is looked at.
    pub(super) fn begin_another(&mut self) {
        if self.since.elapsed() > MOMENT {
            *self = Self::new();
        }
    }

    /// The executable of a process, and its parent; 0 where that can't be read.
    pub(super) fn parent(&mut self, pid: u32) -> (PathBuf, u32) {
        let read = || {
            // That of process 1 may be hidden from us; that it is the parent says enough.
            let executable = proc::executable(pid).unwrap_or_default();
            (executable, proc::stat(pid).map_or(0, |stat| stat.parent))
        };
        self.parents.entry(pid).or_insert_with(read).clone()
    }

    /// The folders of the groups in a `/proc/PID/cgroup`.
    pub(super) fn folders(&mut self, cgroups: &str) -> Vec<PathBuf> {
        if let Some(known) = self.folders.get(cgroups) {
            return known.clone();
        }
        let folders = origin::folders(cgroups, origin::is_there);
        self.folders.insert(cgroups.to_owned(), folders.clone());
        folders
    }

    /// Any socket in the namespace in which a tap is.
    pub(super) fn socket_in(&mut self, place: &Place) -> io::Result<&OwnedFd> {
        let (_, socket) = match self.socket.take() {
            Some(known) if known.0 == place.netns => self.socket.insert(known),
            _ => {
                self.socket.insert((place.netns, in_netns(&place.namespace, any_socket).flatten()?))
            }
        };
        Ok(socket)
    }
}

/// A socket of the calling thread's namespace, to ask it for interfaces.
pub(super) fn any_socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_believed_for_a_moment() {
        let mut common = Common::new();
        let own = std::process::id();
        let (executable, parent) = common.parent(own);
        assert_eq!(Some(executable), std::env::current_exe().ok());
        assert_eq!(parent, std::os::unix::process::parent_id());
        common.parents.insert(own, (PathBuf::from("/another"), 7));
        common.begin_another();
        assert_eq!(common.parent(own), (PathBuf::from("/another"), 7));
        common.since -= MOMENT * 2;
        common.begin_another();
        assert_eq!(common.parent(own).1, parent);
        assert_eq!(common.parent(u32::MAX), (PathBuf::new(), 0));
    }
}
