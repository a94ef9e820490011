//! VMs' lines as JSON: what a live picture begins with.

use serde::{Deserialize, Serialize};

/// The answer to `lines`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct LinesView {
    /// Time from one figure to the next.
    pub interval_seconds: f64,
    /// One for each VM, by process id.
    pub vms: Vec<LineView>,
}

/// A VM's last ticks, a figure each, the oldest first; `None` where it is not known, or the VM has nothing that it
/// could be read of. All rows are of the same length.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct LineView {
    /// QEMU's `-name`.
    pub name: String,
    /// The QEMU's process id on the host.
    pub pid: u32,
    /// When it started, in clock ticks since the host's start: with `pid`, it names the VM for good.
    pub start_ticks: u64,
    /// Packets a second that the guest sent of its own accord.
    pub packets_from_guest: Vec<Option<f32>>,
    /// Packets a second that were sent to it.
    pub packets_to_guest: Vec<Option<f32>>,
    /// Requests a second that completed.
    pub completed: Vec<Option<f32>>,
    /// CPUs that the vCPUs used together.
    pub vcpu: Vec<Option<f32>>,
    /// Requests in flight at the tick.
    pub in_flight: Vec<Option<f32>>,
}
