//! The JSON of `status` and `show`: names that scripts hold on to.
//!
//! States and causes are strings here, so that a client shows a newer daemon's words instead of
//! failing on them. `null` always means *not known*, never zero.

mod history;
mod lines;
mod link;
mod memory;
mod peer;
mod policy;

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

pub(crate) use history::{HistoryView, MarkKind, MarkView};
pub(crate) use lines::{LineView, LinesView};
pub(crate) use link::LinkView;
pub(crate) use memory::{MemoryMomentView, MemoryView};
pub(crate) use peer::PeerView;
pub(crate) use policy::PolicyView;

use crate::rfc3339;
use flatline_detector::policy::{Mode, Policy};

/// The answer to `status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StatusView {
    /// The daemon and its host.
    pub host: HostView,
    /// One for each VM.
    pub vms: Vec<VmView>,
}

/// The daemon and its host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct HostView {
    /// flatline's version.
    pub version: String,
    /// The host's name, if it has one.
    pub hostname: Option<String>,
    /// The kernel's release.
    pub kernel: String,
    /// Seconds since the daemon started.
    pub uptime_seconds: u64,
    /// The host's mode; single VMs may have another.
    pub mode: Mode,
    /// How many VMs are watched.
    pub vms: usize,
    /// The eBPF programs.
    pub probes: Vec<ProbeView>,
    /// What does not work as it should, in words; `None` if all does.
    pub degraded: Option<String>,
}

/// Whether an eBPF program is in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ProbeState {
    /// It runs.
    Attached,
    /// The kernel refused it.
    Failed,
    /// The kernel lacks its hook.
    Unsupported,
}

/// One eBPF program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProbeView {
    /// The program's name.
    pub name: String,
    /// Whether the daemon needs it.
    pub required: bool,
    /// Whether it is in place.
    pub state: ProbeState,
    /// Where it is attached, or why it is not.
    pub detail: String,
}

/// One VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct VmView {
    /// QEMU's `-name`.
    pub name: String,
    /// QEMU's `-uuid`.
    pub uuid: Option<String>,
    /// The QEMU's process id on the host.
    pub pid: u32,
    /// The real user id that it runs as; older daemons tell it in `show` alone.
    #[serde(default)]
    pub uid: Option<u32>,
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// Who started it.
    #[serde(default)]
    pub owner: OwnerView,
    /// QMP's run state; `None` while it isn't known.
    pub run_state: Option<String>,
    /// The VM's state: `alive`, `suspect` and so on.
    pub state: String,
    /// The cause of a verdict; `None` without one.
    pub cause: Option<String>,
    /// Why the state is what it is.
    pub reason: String,
    /// Since when it is.
    #[serde(with = "rfc3339")]
    pub since: SystemTime,
    /// Seconds since the last sign of life; `None` if that isn't known.
    pub flat_seconds: Option<f64>,
    /// Restarts that count towards the limit now, the guest's own among them.
    pub restarts_in_window: u32,
    /// Why it is to be left alone; `None`: it isn't.
    #[serde(default)]
    pub hold: Option<String>,
    /// Resets of the guest's own within `boot_loop_window`; a burst of them counts once.
    pub guest_resets_in_window: usize,
    /// The vCPUs.
    pub vcpus: Vec<VcpuView>,
    /// The taps' counters together; `None` if they can't be read.
    pub network: Option<NetworkView>,
    /// The disks' counters together; `None` if they can't be read.
    pub storage: Option<StorageView>,
    /// What its guest's agent said; `None`: nothing so far.
    #[serde(default)]
    pub heartbeat: Option<HeartbeatView>,
    /// Its memory.
    #[serde(default)]
    pub memory: MemoryView,
}

/// Who started a QEMU, and by what it would be restarted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OwnerView {
    /// `bare`, `systemd`, `libvirt`, `proxmox`, `ganeti`, `incus`, `lxd`, `kubevirt`, `kata` or `unclear`.
    pub kind: String,
    /// What the owner calls it.
    pub name: Option<String>,
    /// Whether a trace says so that neither a QEMU nor a user can leave.
    pub certain: bool,
    /// What restarts it: `qmp`, `libvirt`, `proxmox`, `systemd` or `command`; `None`: nothing.
    pub actuator: Option<String>,
    /// Why nothing does, and what to configure.
    pub refusal: Option<String>,
    /// Why the configured command is not run for it, where something else restarts it, and what to configure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command_refusal: Option<String>,
}

/// The answer to `hold` and `release`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct HoldView {
    /// The VMs that it is about.
    pub vms: Vec<String>,
    /// When a hold ends by itself.
    #[serde(with = "rfc3339::option", default)]
    pub until: Option<SystemTime>,
}

/// One vCPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct VcpuView {
    /// QEMU's index of it.
    pub id: u32,
    /// Its thread's id.
    pub tid: u32,
    /// Share of the last sampling interval that it ran, 0 to 1; `None` if it can't be read.
    pub busy_ratio: Option<f64>,
}

/// Traffic of all taps, counted since flatline found the VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct NetworkView {
    /// Packets that the guest sent.
    pub guest_tx_packets: u64,
    /// Bytes that the guest sent.
    pub guest_tx_bytes: u64,
    /// Packets sent to the guest; `None` where they are not counted on all of its taps.
    pub guest_rx_packets: Option<u64>,
    /// Bytes sent to the guest, likewise.
    pub guest_rx_bytes: Option<u64>,
    /// Time since the guest last sent anything but an answer to a probe; `None` if it never did.
    pub guest_last_sent_seconds: Option<f64>,
    /// What it sent because flatline had probed it, which is among what it sent: answers, and questions
    /// whether flatline is still there.
    pub probe_answers: u64,
    /// Of those, the answers to ARP probes.
    pub arp_answers: u64,
    /// Of those, the answers to NDP probes.
    pub ndp_answers: u64,
}

/// What a guest's agent said since flatline found the VM.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct HeartbeatView {
    /// Beats that came, each as often as the guest has network cards.
    pub beats: u64,
    /// Times that it said that its check failed.
    pub failures: u64,
    /// Frames that begin like a beat and are none.
    pub malformed: u64,
    /// Time since it last said anything.
    pub last_seconds: Option<f64>,
    /// From one beat to the next, by its own account.
    pub interval_seconds: Option<f64>,
    /// The boot's number, in hexadecimal digits.
    pub boot: Option<String>,
    /// The number of the last beat in that boot.
    pub sequence: Option<u64>,
    /// Whether it said that the guest goes down in good order.
    pub leaving: bool,
    /// What it checks; `None`: nothing.
    pub check: Option<String>,
}

/// Requests of all disks, counted since flatline found the VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct StorageView {
    /// Reads submitted.
    pub read_ops: u64,
    /// Bytes of those.
    pub read_bytes: u64,
    /// Writes submitted, written back pages included.
    pub write_ops: u64,
    /// Bytes of those.
    pub write_bytes: u64,
    /// Of the writes, those by which the host wrote back pages of the VM's images.
    pub writeback_ops: u64,
    /// Bytes of those.
    pub writeback_bytes: u64,
    /// Flushes that carry no data.
    pub flush_ops: u64,
    /// Discards.
    pub discard_ops: u64,
    /// Bytes of those.
    pub discard_bytes: u64,
    /// Requests of any kind that completed, also with an error.
    pub completed_ops: u64,
    /// Of those, the ones that completed with an error.
    pub failed_ops: u64,
    /// Time that the completed ones took together.
    pub completion_seconds: f64,
    /// Requests that are submitted and not completed.
    pub in_flight: u64,
    /// Age of the oldest of those; `None` while requests complete.
    pub oldest_in_flight_seconds: Option<f64>,
    /// Mean age of those; `None` while requests complete.
    pub mean_in_flight_seconds: Option<f64>,
}

/// The answer to `show`: a VM, and why its verdict is what it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ShowView {
    /// What `status` says of it.
    #[serde(flatten)]
    pub vm: VmView,
    /// The QEMU's executable.
    pub executable: String,
    /// When it started, in clock ticks since the host's start: field 22 of `/proc/PID/stat`.
    pub start_ticks: u64,
    /// What its owner was told by, a sentence each.
    #[serde(default)]
    pub owner_evidence: Vec<String>,
    /// What else restarts it by itself.
    #[serde(default)]
    pub also_restarted_by: Vec<PeerView>,
    /// The QMP connection's state in words.
    pub qmp: String,
    /// Its taps.
    pub taps: Vec<TapView>,
    /// Its disks' files and devices.
    pub disks: Vec<String>,
    /// Why traffic exists that no tap shows (user-mode networking, vhost-user); `None` if all is
    /// seen.
    pub unseen_networks: Option<String>,
    /// Its images whose requests never reach this host's block layer, or not under their own name; `None`
    /// if there is none.
    pub unseen_storage: Option<String>,
    /// What the verdict was made from.
    pub signals: Vec<SignalView>,
    /// The terms on which it is judged.
    #[serde(with = "PolicyView")]
    pub policy: Policy,
    /// Its last minutes; `None` where nothing is recorded.
    #[serde(default)]
    pub history: Option<HistoryView>,
    /// The dump of its memory that is being taken before its restart; `None` while none is.
    #[serde(default)]
    pub memory_dump: Option<DumpView>,
    /// Anything else that a person should know.
    pub notes: Vec<String>,
}

/// One tap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TapView {
    /// The interface's name.
    pub name: String,
    /// Its network namespace.
    pub netns: String,
    /// Its index there.
    pub ifindex: u32,
    /// Whether its packets are counted.
    pub attached: bool,
    /// `tcx`, `clsact` or `ingress`; empty if not attached.
    pub hook: String,
    /// Why not, if it isn't; what is not counted all the same, if it is.
    pub detail: String,
}

/// One signal of the verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SignalView {
    /// What was looked at.
    pub name: String,
    /// What it was, with its unit.
    pub value: String,
    /// What it is held against.
    pub threshold: String,
    /// Since when it is so, in words or RFC 3339.
    pub since: Option<String>,
    /// What it says of the guest.
    pub verdict: String,
}

/// A memory dump that is being taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DumpView {
    /// When it was begun.
    #[serde(with = "rfc3339")]
    pub since: SystemTime,
    /// Bytes of the guest's memory that are done.
    pub completed_bytes: u64,
    /// Of so many; `None` while that isn't known.
    pub total_bytes: Option<u64>,
    /// Bytes of the file, which may be compressed.
    pub written_bytes: u64,
}

/// The answer to `record`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RecordView {
    /// The files that were written.
    pub paths: Vec<String>,
    /// What could not be, one sentence each.
    pub complaints: Vec<String>,
}

#[cfg(test)]
mod tests;
