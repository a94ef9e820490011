//! Stage three: one reading of all that is known of a VM in numbers, and the only reader of maps.

mod counters;
mod lost_completions;
mod vcpu_time;

use std::fmt;

use monitor_ebpf::{NetworkCounters, StorageCounters};

pub use counters::{CounterMaps, TapAddress, totals};
pub use lost_completions::{LostCompletions, no_device_has_requests};
pub use vcpu_time::{VcpuClocks, VcpuTime};

/// A figure, or why it couldn't be read. Missing is not zero.
pub type Reading<T> = Result<T, Missing>;

/// A figure that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Which figure.
    pub what: &'static str,
    /// Why, in words for an operator.
    pub why: String,
}

impl Missing {
    /// `what` could not be read because of `why`.
    pub fn new(what: &'static str, why: impl Into<String>) -> Self {
        Self { what, why: why.into() }
    }

    /// The same reason, for the figure `what` that depends on this one.
    #[must_use]
    pub fn of(self, what: &'static str) -> Self {
        Self { what, why: self.why }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cannot be read: {}", self.what, self.why)
    }
}

/// Whether the QEMU process can run at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessState {
    /// Running or sleeping, as it should.
    Running,
    /// Stopped by a signal or a debugger (`T`, `t`).
    Stopped,
    /// Waiting for the kernel, as on a stalled disk, or frozen (`D`).
    Uninterruptible,
    /// Gone, or about to be (`Z`, `X`), or unreadable.
    Gone,
}

impl ProcessState {
    /// From the third field of `/proc/PID/stat`.
    pub fn from_letter(letter: char) -> Self {
        match letter {
            'T' | 't' => Self::Stopped,
            'D' => Self::Uninterruptible,
            'Z' | 'X' => Self::Gone,
            _ => Self::Running,
        }
    }
}

/// One VM's figures at one moment. Counters only grow while their source lives.
#[derive(Clone, Debug, PartialEq)]
pub struct VmSample {
    /// All taps together; `Ok(None)` where the VM has none.
    pub network: Reading<Option<NetworkCounters>>,
    /// What its QEMU submitted to the block layer.
    pub storage: Reading<StorageCounters>,
    /// CPU time of each vCPU thread.
    pub vcpus: Reading<Vec<VcpuTime>>,
    /// The state of the process.
    pub process: ProcessState,
}
