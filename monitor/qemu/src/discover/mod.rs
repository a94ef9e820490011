//! Stage 1: which processes are VMs, and what is known of each from its command line and `/proc`.
//!
//! Nothing here asks QEMU, loads a program or changes anything, and nothing waits: a process is
//! read as it is now. A caller that is told of VMs as they start and end calls [`inspect`] then.
//!
//! A VM is its pid *and* start time, since pids come round again. A pidfd is opened before
//! anything else is read and the start time compared at the end, so that what was read belongs to
//! the process that the pidfd holds.
//!
//! A process with QEMU's executable is no VM while it is about to become something else: a child
//! that QEMU forked to run a script, or the launcher of a `-daemonize`d QEMU, which only waits for
//! its grandchild to be ready. The grandchild never executes anything, so only a sweep finds it.

mod architecture;
mod bound;
mod chardevs;
mod command_line;
mod common;
mod descriptor;
mod disks;
mod encryption;
mod error;
mod executables;
mod extent;
mod fdinfo;
mod files;
pub(crate) mod fuzzing;
mod launch;
mod listening;
mod macvtaps;
mod netns;
mod options;
mod origin;
mod owner;
mod proc;
mod remembered;
mod rights;
mod strangers;
mod sweep;
mod taps;
mod vm;
mod written;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

pub use architecture::Architecture;
pub(crate) use bound::listens_at;
pub use disks::Disk;
pub use encryption::Encryption;
pub use error::DiscoverError;
pub use executables::{executable_inode, executables};
pub use extent::Extent;
pub use files::OpenFiles;
pub(crate) use launch::launch;
pub use launch::{Launch, ThreadsTold};
pub(crate) use listening::listening_socket;
pub use listening::{Found, ListeningSocket, NotFound, SocketAt};
pub use netns::{find_netns, in_netns};
pub use origin::{Origin, is_there};
pub use owner::{LibvirtScope, Owner, Ownership, Peer, peers};
pub use proc::{
    ThreadIds, VcpuThread, VcpuThreads, cgroup_lines, has_thread, process_state, start_ticks,
    statm, status, vcpu_threads,
};
pub use remembered::{recall, to_remember};
pub use rights::{Rights, RightsError};
pub use strangers::strangers;
pub use sweep::{Passed, sweep};
pub use taps::{Tap, TapKind, netns_of_tap};
pub use vm::{Accelerator, AgentSocket, ResetAction, Scope, Vm, VmId};
pub use written::{Descriptor, Inode, Written, descriptors};

use common::Common;
use proc::{DESCRIPTORS, Descriptors};
use vm::display_text;

/// What is known of `pid`. `None` if it is no VM, out of `scope`, or gone; also while it is the
/// launcher of a `-daemonize`d QEMU or a child of QEMU that has not yet executed anything.
///
/// # Errors
/// If a process that is in scope, or looks like a QEMU, cannot be read.
pub fn inspect(pid: u32, scope: &Scope) -> Result<Option<Vm>, DiscoverError> {
    match read_vm(pid, scope) {
        Err(DiscoverError::Gone { .. }) => Ok(None),
        other => other,
    }
}

/// Whether `pid` runs what may be a QEMU: one that is no VM may be about to begin another process that is.
pub fn runs_qemu(pid: u32, scope: &Scope) -> bool {
    matches!(executable_in_scope(pid, scope), Ok(Some(_)))
}

/// What a VM has open that may change while it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenDevices {
    /// Its taps, each once.
    pub taps: Vec<Tap>,
    /// Networks that are there but cannot be watched, and why.
    pub unseen_taps: Vec<String>,
    /// Why its taps are known by their names only, where that is so: another namespace may have others so called.
    pub taps_by_name: Option<String>,
    /// Its images.
    pub files: OpenFiles,
}

/// Reads again what `pid` has open.
///
/// # Errors
/// [`DiscoverError::Gone`] if there is no such process; otherwise if its descriptors cannot be read,
/// which is never the same as having none.
pub fn plugged(pid: u32) -> Result<OpenDevices, DiscoverError> {
    plugged_among(pid, &proc::descriptors(pid)?, &mut Common::new())
}

fn plugged_among(
    pid: u32,
    descriptors: &Descriptors,
    common: &mut Common,
) -> Result<OpenDevices, DiscoverError> {
    let taps::Found { taps, mut unseen, by_name } =
        taps::taps_among(pid, &descriptors.each, common)?;
    let mut files = files::files_among(pid, &descriptors.each)?;
    if descriptors.is_cut {
        // What is among the others is not known: it is not there for nothing.
        let beyond = |what: &str| format!("{what} beyond the first {DESCRIPTORS} descriptors");
        unseen.insert(beyond("taps"));
        files.unseen.push(beyond("files"));
    }
    Ok(OpenDevices {
        taps: taps.into_iter().collect(),
        unseen_taps: unseen.into_iter().collect(),
        taps_by_name: by_name,
        files,
    })
}

fn read_vm(pid: u32, scope: &Scope) -> Result<Option<Vm>, DiscoverError> {
    match executable_in_scope(pid, scope)? {
        Some(executable) => read_vm_of(pid, executable, scope, &mut Common::new()),
        None => Ok(None),
    }
}

/// What it runs, where that may be a QEMU.
fn executable_in_scope(pid: u32, scope: &Scope) -> Result<Option<PathBuf>, DiscoverError> {
    match proc::executable(pid) {
        Ok(executable) => Ok(scope.has_executable(&executable).then_some(executable)),
        // Without privileges that is so for most processes; only a QEMU is worth a word.
        Err(error @ DiscoverError::Read { .. }) => {
            let comm = proc::stat(pid)?.comm;
            if comm.starts_with("qemu") || comm == "kvm" { Err(error) } else { Ok(None) }
        }
        Err(error) => Err(error),
    }
}

fn read_vm_of(
    pid: u32,
    executable: PathBuf,
    scope: &Scope,
    common: &mut Common,
) -> Result<Option<Vm>, DiscoverError> {
    common.begin_another();
    let Some(pidfd) = open_pidfd(pid)? else {
        return Ok(None);
    };
    let before = proc::stat(pid)?;
    let status = proc::status(pid)?;
    let cgroups = proc::cgroups(pid)?;
    let origin = origin::parse(pid, &status, &cgroups, common)?;
    if !scope.has_user(origin.uid) {
        return Ok(None);
    }
    let cmdline = proc::command_line(pid)?;
    let Some(told) = command_line::describe(&options::split_arguments(&cmdline)) else {
        return Ok(None);
    };
    if is_forked_child(&before, &executable, &cmdline)
        || (told.daemonizes && !is_in_background(pid, &before))
    {
        return Ok(None);
    }
    let descriptors = proc::descriptors(pid)?;
    let plugged = plugged_among(pid, &descriptors, common)?;
    let (_, netns) = netns::netns_of(pid)?;
    let ownership = owner::read(cgroups, before.parent, told.traces, common);
    let vm = Vm {
        id: VmId { pid, start_ticks: before.start_ticks },
        name: told.name.unwrap_or_else(|| format!("qemu-{pid}")),
        uuid: told.uuid,
        accelerator: accelerator(&told.accelerators, &descriptors.each),
        architecture: Architecture::of_executable(&executable),
        encryption: told.encryption,
        executable,
        origin,
        ownership,
        netns,
        qmp_sockets: told.qmp_sockets,
        unused_monitors: told.unused_monitors,
        threads: told.threads,
        plugged,
        unseen_networks: told.unseen_networks,
        disks: told.disks,
        vcpus: told.vcpus,
        machine: told.machine,
        reboot_action: told.reboot_action,
        has_balloon: told.has_balloon,
        has_agent_channel: told.has_agent_channel,
        agent_socket: told.agent_socket,
        heartbeat_socket: told.heartbeat_socket,
        console_logs: told.console_logs,
        notes: told.notes,
        pidfd: Arc::new(pidfd),
    };
    // The executable was read before the pidfd was opened, so it is read once more as well.
    let is_same =
        proc::start_ticks(pid)? == before.start_ticks && proc::executable(pid)? == vm.executable;
    Ok(is_same.then_some(vm))
}

/// `None` if there is no such process, or it is a thread and not a process.
fn open_pidfd(pid: u32) -> Result<Option<OwnedFd>, DiscoverError> {
    use rustix::io::Errno;
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Ok(None);
    };
    match pidfd_open(raw, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Some(pidfd)),
        Err(Errno::SRCH | Errno::NOENT | Errno::INVAL) => Ok(None),
        Err(error) => Err(DiscoverError::Pidfd { pid, source: error.into() }),
    }
}

/// Whether the process is a mere copy of its parent that has not yet executed anything.
fn is_forked_child(child: &proc::Stat, executable: &Path, cmdline: &[u8]) -> bool {
    proc::executable(child.parent).is_ok_and(|parent| parent == executable)
        && proc::command_line(child.parent).is_ok_and(|parent| parent == cmdline)
}

/// Whether a `-daemonize`d QEMU is the one that stays: it alone belongs to the session of a process in
/// between, which ended at once (`os_daemonize` in QEMU's os-posix.c). The launcher's session is its
/// own or its parent's; that one's leader may have ended too, as that of a detached script has.
fn is_in_background(pid: u32, stat: &proc::Stat) -> bool {
    let of_parent = proc::stat(stat.parent).map(|parent| parent.session);
    stat.session != pid
        && of_parent.ok() != Some(stat.session)
        && proc::process_state(stat.session).map_or(true, |state| matches!(state, 'Z' | 'X'))
}

/// Which of `offered` is in use: KVM if a descriptor of a KVM guest is open, else the first other.
fn accelerator(offered: &[String], descriptors: &[(u32, PathBuf)]) -> Accelerator {
    if descriptors.iter().any(|(_, target)| target == Path::new("anon_inode:kvm-vm")) {
        return Accelerator::Kvm;
    }
    // A QEMU that has just started has not opened KVM yet, so an only offer is believed.
    match offered.iter().find(|name| *name != "kvm") {
        Some(name) if name == "tcg" => Accelerator::Tcg,
        Some(name) => Accelerator::Other(name.clone()),
        None => Accelerator::Kvm,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{Accelerator, Scope, accelerator, inspect, is_forked_child, proc};

    #[test]
    fn a_copy_of_its_parent_is_told_from_one_that_was_started_by_it() {
        let parent = std::process::id();
        let child = proc::Stat { parent, ..proc::stat(parent).expect("our own process") };
        let executable = proc::executable(parent).expect("our own executable");
        let cmdline = proc::command_line(parent).expect("our own command line");
        assert!(is_forked_child(&child, &executable, &cmdline));
        assert!(!is_forked_child(&child, &executable, b"another\0"));
        assert!(!is_forked_child(&child, &executable.join("x"), &cmdline));
    }

    #[test]
    fn an_open_kvm_guest_outweighs_the_order_of_offers() {
        let offers = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let open = [(9, PathBuf::from("anon_inode:kvm-vm"))];
        assert_eq!(accelerator(&offers(&["tcg", "kvm"]), &open), Accelerator::Kvm);
        assert_eq!(accelerator(&offers(&["kvm", "tcg"]), &[]), Accelerator::Tcg);
        assert_eq!(accelerator(&offers(&["kvm"]), &[]), Accelerator::Kvm);
        let other = accelerator(&offers(&["xen"]), &[]);
        assert_eq!(other.to_string(), "xen");
    }

    #[test]
    fn a_process_out_of_scope_and_one_that_is_gone_are_none() {
        let everything = Scope {
            executables: vec![glob::Pattern::new("/**/*").expect("a pattern")],
            users: vec![u32::MAX],
        };
        let own = std::process::id();
        assert!(inspect(own, &Scope::default()).expect("our own process").is_none());
        assert!(inspect(own, &everything).expect("our own process").is_none());
        assert!(inspect(u32::MAX, &everything).expect("no process").is_none());
    }
}
