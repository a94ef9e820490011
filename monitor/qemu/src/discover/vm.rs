//! What is handed on to the later stages: a VM as its host sees it, and which ones are wanted.

use std::fmt;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    Architecture, Disk, Encryption, ListeningSocket, OpenDevices, Origin, Ownership, ThreadsTold,
};

/// Most characters of a name that came from outside; a longer one spoils every table.
const DISPLAY_CHARS: usize = 128;

/// Names one VM for as long as the host is up.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct VmId {
    /// The QEMU's process id.
    pub pid: u32,
    /// When it started, in clock ticks after boot.
    pub start_ticks: u64,
}

impl VmId {
    /// All that had this process id: of several that are known, all but the last have ended.
    #[must_use]
    pub fn of_pid(pid: u32) -> RangeInclusive<Self> {
        Self { pid, start_ticks: 0 }..=Self { pid, start_ticks: u64::MAX }
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.pid, self.start_ticks)
    }
}

/// What runs the guest's code.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Accelerator {
    /// The host's kernel.
    Kvm,
    /// QEMU's translator.
    Tcg,
    /// Another one, by QEMU's name for it.
    Other(String),
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
            Self::Other(name) => name,
        })
    }
}

/// What QEMU does when the guest reboots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ResetAction {
    /// It resets the guest.
    #[default]
    Reset,
    /// It shuts down (`-no-reboot`, `-action reboot=shutdown`); so it does on a bare
    /// `system_reset`.
    Shutdown,
}

impl ResetAction {
    /// QEMU's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Shutdown => "shutdown",
        }
    }
}

/// The character device of an agent's channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentSocket {
    /// Its id, by which QMP's `query-chardev` names it.
    pub chardev: String,
    /// The Unix socket on which QEMU listens.
    pub socket: ListeningSocket,
}

/// All that is known of a VM from outside. What came from the command line is as of QEMU's start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Vm {
    /// The process.
    pub id: VmId,
    /// `-name`, fit for display; `qemu-PID` if there is none.
    pub name: String,
    /// `-uuid`, or that of `-smbios type=1`; in lower case.
    pub uuid: Option<String>,
    /// From the descriptors, which tell what QEMU chose of those it was offered.
    pub accelerator: Accelerator,
    /// Of the guest's instructions, by the executable's name; QEMU itself knows better.
    pub architecture: Architecture,
    /// What the command line says that is encrypted of its guest; QEMU itself knows better.
    pub encryption: Encryption,
    /// The executable, as seen from within the process' own file system.
    pub executable: PathBuf,
    /// As whom and where it runs.
    pub origin: Origin,
    /// What started it.
    pub ownership: Ownership,
    /// Inode number of the process' network namespace.
    pub netns: u32,
    /// Unix sockets on which QEMU listens for QMP, as QEMU was told.
    pub qmp_sockets: Vec<ListeningSocket>,
    /// QMP monitors that are not used, and why, for people to read.
    pub unused_monitors: Vec<String>,
    /// What it was told of its threads.
    pub threads: ThreadsTold,
    /// Taps and images that are open now; [`plugged()`](super::plugged()) reads them again.
    pub plugged: OpenDevices,
    /// Networks on the command line whose packets cannot be seen: `user`, `vhost-user`, `vfio-pci`, ..
    pub unseen_networks: Vec<String>,
    /// Images of its disks.
    pub disks: Vec<Disk>,
    /// vCPUs at start, at most 4096; 1 by default.
    pub vcpus: u32,
    /// The machine type, without which QEMU takes its default.
    pub machine: Option<String>,
    /// What a guest's reboot leads to.
    pub reboot_action: ResetAction,
    /// Whether there is a virtio balloon.
    pub has_balloon: bool,
    /// Whether there is a channel for the guest agent, on virtio.
    pub has_agent_channel: bool,
    /// Where that is reached, if QEMU listens on a socket with a path.
    pub agent_socket: Option<AgentSocket>,
    /// Where flatline's own agent is heard, likewise.
    pub heartbeat_socket: Option<AgentSocket>,
    /// Files that QEMU writes a serial console to, as QEMU was told.
    pub console_logs: Vec<PathBuf>,
    /// What else the command line has that could not be made use of, for people to read.
    pub notes: Vec<String>,
    /// Holds the process: readable once it has ended.
    #[serde(with = "super::remembered::pidfd")]
    pub pidfd: Arc<OwnedFd>,
}

impl Vm {
    /// Its images of which the requests never reach this host's block layer, or not under their own name, for people
    /// to read.
    pub fn unseen_storage(&self) -> impl Iterator<Item = String> {
        let elsewhere = self
            .disks
            .iter()
            .filter(|disk| !matches!(disk.backend.as_str(), "file" | "host_device"))
            .map(|disk| format!("{} ({})", disk.path, disk.backend));
        self.plugged.files.unseen.iter().cloned().chain(elsewhere)
    }
}

impl Vm {
    /// For tests: a VM called `web-1` of this owner, which is no process.
    #[doc(hidden)]
    #[must_use]
    pub fn stand_in(ownership: Ownership, qmp_sockets: &[&str]) -> Self {
        let devnull = std::fs::File::open("/dev/null").expect("it is everywhere");
        Self {
            id: VmId { pid: u32::MAX, start_ticks: 1 },
            name: "web-1".to_owned(),
            uuid: None,
            accelerator: Accelerator::Kvm,
            architecture: Architecture::X86,
            encryption: Encryption::None,
            executable: PathBuf::from("/usr/bin/kvm"),
            origin: Origin::default(),
            ownership,
            netns: 1,
            qmp_sockets: qmp_sockets.iter().map(ListeningSocket::at_path).collect(),
            unused_monitors: Vec::new(),
            threads: ThreadsTold::default(),
            plugged: OpenDevices::default(),
            unseen_networks: Vec::new(),
            disks: Vec::new(),
            vcpus: 1,
            machine: None,
            reboot_action: ResetAction::Reset,
            has_balloon: false,
            has_agent_channel: false,
            agent_socket: None,
            heartbeat_socket: None,
            console_logs: Vec::new(),
            notes: Vec::new(),
            pidfd: Arc::new(OwnedFd::from(devnull)),
        }
    }
}

/// Which processes count.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// Executables; `*` does not match a slash. None: no process counts.
    pub executables: Vec<glob::Pattern>,
    /// Real user ids; empty: any.
    pub users: Vec<u32>,
}

impl Scope {
    /// How its patterns are compared with paths.
    pub const MATCHING: glob::MatchOptions = glob::MatchOptions {
        case_sensitive: true,
        require_literal_separator: true,
        require_literal_leading_dot: false,
    };

    /// Whether a VM is in scope.
    pub fn has(&self, vm: &Vm) -> bool {
        self.has_executable(&vm.executable) && self.has_user(vm.origin.uid)
    }

    /// Whether a process that runs `path` is in scope.
    pub fn has_executable(&self, path: &Path) -> bool {
        self.executables.iter().any(|pattern| pattern.matches_path_with(path, Self::MATCHING))
    }

    /// Whether a process of the user `uid` is in scope.
    pub fn has_user(&self, uid: u32) -> bool {
        self.users.is_empty() || self.users.contains(&uid)
    }
}

/// Text from outside, fit for a terminal and a table: control and direction characters become
/// U+FFFD, and it is cut at 128 characters.
pub(super) fn display_text(text: &str) -> String {
    let is_unfit = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let fit = |c| {
        if is_unfit(c) { char::REPLACEMENT_CHARACTER } else { c }
    };
    text.chars().take(DISPLAY_CHARS).map(fit).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Scope, VmId, display_text};

    #[test]
    fn a_star_does_not_reach_into_folders() {
        let scope = Scope {
            executables: vec![glob::Pattern::new("/usr/bin/qemu-system-*").expect("a pattern")],
            users: Vec::new(),
        };
        assert!(scope.has_executable(Path::new("/usr/bin/qemu-system-x86_64")));
        assert!(!scope.has_executable(Path::new("/usr/bin/qemu-system-x/evil")));
        assert!(!scope.has_executable(Path::new("/tmp/usr/bin/qemu-system-x86_64")));
    }

    #[test]
    fn no_users_means_any() {
        let scope = |users: &[u32]| Scope { executables: Vec::new(), users: users.to_vec() };
        assert!(scope(&[]).has_user(7) && scope(&[7]).has_user(7) && !scope(&[0]).has_user(7));
    }

    #[test]
    fn an_id_reads_as_pid_and_start() {
        assert_eq!(VmId { pid: 4711, start_ticks: 99 }.to_string(), "4711@99");
    }

    #[test]
    fn direction_characters_are_not_shown() {
        assert_eq!(display_text("a\u{202e}b\u{0}"), "a\u{fffd}b\u{fffd}");
    }
}
