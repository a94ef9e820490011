//! Snapshot of a tick, of which metrics are made: numbers, and names that are shared.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use monitor_ebpf::{NetworkCounters, StorageCounters};

use flatline_detector::{policy::Mode, verdict::Cause};
use flatline_qemu::discover::Vm;
use flatline_samples::{Memory, RunState, VcpuTime};

/// The map of what is in flight.
pub(crate) const IN_FLIGHT: &str = "in_flight";

/// The host and its VMs at the end of a tick.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    /// When that was.
    pub at: SystemTime,
    /// The host's mode.
    pub mode: Mode,
    /// Many VMs are silent together.
    pub is_storm: bool,
    /// Something doesn't work as it should; `status` says what.
    pub is_degraded: bool,
    /// The eBPF programs.
    pub programs: Vec<ProgramFigures>,
    /// The maps that can become full.
    pub maps: Vec<MapFill>,
    /// Taps whose packets can't be counted.
    pub uncounted_taps: usize,
    /// So many VMs have series of their own, at most.
    pub most_vms: usize,
    /// All VMs.
    pub vms: Vec<VmFigures>,
}

impl Snapshot {
    /// The same with the figures of its VMs, and what these add up to.
    #[must_use]
    pub(crate) fn with(mut self, vms: Vec<VmFigures>) -> Self {
        let in_flight = vms.iter().filter_map(VmFigures::in_flight).sum();
        for fill in self.maps.iter_mut().filter(|fill| fill.map == IN_FLIGHT) {
            fill.used = in_flight;
        }
        Self { vms, ..self }
    }
}

/// An eBPF program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProgramFigures {
    /// Its name.
    pub name: &'static str,
    /// Whether it is in place.
    pub is_attached: bool,
}

/// How full a map is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MapFill {
    /// Its name.
    pub map: &'static str,
    /// Rows that are taken.
    pub used: u64,
    /// Rows that there are.
    pub of: u64,
}

/// One VM.
#[derive(Clone, Debug)]
pub(crate) struct VmFigures {
    /// Which one.
    pub vm: Arc<Vm>,
    /// Its mode.
    pub mode: Mode,
    /// The state's name.
    pub state: &'static str,
    /// What it is convicted of, or what was told of it.
    pub cause: Option<Cause>,
    /// QMP's run state, where it is known.
    pub run_state: Option<RunState>,
    /// Time since the last sign of life, where that is known.
    pub flat: Option<Duration>,
    /// It is on hold.
    pub is_held: bool,
    /// It has a row that it is counted in.
    pub is_counted: bool,
    /// Restarts that were begun since its QEMU was found.
    pub restarts: u64,
    /// Resets of the guest's own within `boot_loop_window`.
    pub guest_resets_in_window: usize,
    /// Its taps' counters together.
    pub network: Option<NetworkCounters>,
    /// Whether that has what was sent to the guest.
    pub sees_to_guest: bool,
    /// Its disks' counters together.
    pub storage: Option<StorageCounters>,
    /// Age of the oldest request in flight, where none completed during the last tick.
    pub oldest_in_flight: Option<Duration>,
    /// What its guest's agent said, where it ever said anything.
    pub heartbeats: Option<Beats>,
    /// Its memory, as last told; `None` before that.
    pub memory: Option<Arc<Memory>>,
    /// Its vCPU threads' times; `None` where they can't be read.
    pub vcpus: Option<Vec<VcpuTime>>,
}

/// What a guest's agent said.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Beats {
    /// Beats that came, each as often as the guest has cards.
    pub beats: u64,
    /// Times that it said that its check failed.
    pub failures: u64,
    /// Frames that begin like a beat and are none.
    pub malformed: u64,
    /// Seconds since it last said anything.
    pub last_seconds: Option<f64>,
}

impl VmFigures {
    /// Requests that are submitted and not completed.
    pub(crate) fn in_flight(&self) -> Option<u64> {
        self.storage.map(|storage| storage.in_flight())
    }
}
