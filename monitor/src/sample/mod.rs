//! Stage three: one reading of all that is known of a VM in numbers, and the only reader of maps.

mod addresses;
mod batch;
mod counters;
mod devices;
mod heartbeats;
mod kvm;
mod lost_completions;
mod memory;
pub mod port;
mod threads;
mod vcpu_time;

use std::{borrow::Cow, fmt, time::Duration};

use monitor_ebpf::{NetworkCounters, StorageCounters};
use rustix::time::{ClockId, clock_getres};
use serde::{Deserialize, Serialize};

pub use addresses::{TapAddress, TapAddresses};
pub use counters::{CounterMaps, InFlightAges, VmRows, totals};
pub use devices::{DeviceWatch, Devices};
pub use heartbeats::{Heard, HeartbeatReader, HeartbeatRows, Heartbeats, LastBeat};
pub use kvm::{KvmReader, interrupts_are_hidden};
pub use lost_completions::LostCompletions;
pub use memory::{GuestMemory, Memory, QemuMemory, SCARCE_SHARE, Strain, THRASHING_FAULTS};
pub use threads::{ThreadReader, ThreadTimes};
pub use vcpu_time::{VcpuClocks, VcpuTime, thread_run_ns};

/// So many of the kernel's ticks, in which the programs tell the time.
pub fn ticks(jiffies: u64) -> Duration {
    // The coarse clocks move with them (`posix_get_coarse_res` in kernel/time/posix-timers.c).
    let tick = Duration::try_from(clock_getres(ClockId::MonotonicCoarse)).unwrap_or_default();
    let nanos = tick.as_nanos().saturating_mul(u128::from(jiffies));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// A figure, or why it couldn't be read. Missing is not zero.
pub type Reading<T> = Result<T, Missing>;

/// A figure that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// Which figure.
    pub what: Cow<'static, str>,
    /// Why, in words for an operator.
    pub why: String,
}

impl Missing {
    /// `what` could not be read because of `why`.
    pub fn new(what: &'static str, why: impl Into<String>) -> Self {
        Self { what: what.into(), why: why.into() }
    }

    /// The same reason, for the figure `what` that depends on this one.
    #[must_use]
    pub fn of(self, what: &'static str) -> Self {
        Self { what: what.into(), why: self.why }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cannot be read: {}", self.what, self.why)
    }
}

/// Whether the QEMU process can run at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcessState {
    /// Running or sleeping, as it should.
    Running,
    /// Stopped by a signal or a debugger (`T`, `t`).
    Stopped,
    /// Frozen by the cgroup freezer. The letter in `/proc` doesn't tell it from the next.
    Frozen,
    /// Waiting for the kernel, as on a stalled disk (`D`).
    Uninterruptible,
    /// Gone, or about to be (`Z`, `X`), or unreadable.
    Gone,
}

impl ProcessState {
    /// From `task_struct.__state` (include/linux/sched.h of Linux 6.12): 4 and 8 are stopped, 2 sleeps
    /// whatever comes, bit 15 is frozen, 0x10 and above up to 0x80 are dead or about to be.
    pub fn from_bits(state: u32) -> Self {
        const STOPPED: u32 = 0x4 | 0x8;
        const UNINTERRUPTIBLE: u32 = 0x2;
        const FROZEN: u32 = 0x8000;
        const DEAD: u32 = 0x10 | 0x20 | 0x80;
        if state & DEAD != 0 {
            Self::Gone
        } else if state & STOPPED != 0 {
            Self::Stopped
        } else if state & FROZEN != 0 {
            Self::Frozen
        } else if state & UNINTERRUPTIBLE != 0 {
            Self::Uninterruptible
        } else {
            Self::Running
        }
    }

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
    /// Whether that has what was sent to the guest on all of them.
    pub sees_to_guest: bool,
    /// What its guest's agent said so far, on its network cards.
    pub heartbeats: Reading<Heartbeats>,
    /// And through its port, if it has one.
    pub port: Reading<Heartbeats>,
    /// What was submitted to the block layer for it.
    pub storage: Reading<StorageCounters>,
    /// How long its requests have been in flight; looked at only where none completed during the last tick.
    pub in_flight: Option<InFlightAges>,
    /// CPU time of each vCPU thread.
    pub vcpus: Reading<Vec<VcpuTime>>,
    /// The state of the process.
    pub process: ProcessState,
}
