//! One VM's figures at one moment.

use std::time::Duration;

use monitor_ebpf::{NetworkCounters, StorageCounters};
use serde::{Deserialize, Serialize};

use crate::{Heartbeats, Reading};

/// One VM's figures at one moment. Counters only grow while their source lives.
#[derive(Clone, Debug, PartialEq)]
pub struct VmSample {
    /// All taps together; `Ok(None)` where the VM has none.
    pub network: Reading<Option<NetworkCounters>>,
    /// Whether packets to the guest are counted on all of them.
    pub sees_to_guest: bool,
    /// What its guest's agent said so far, on its network cards.
    pub heartbeats: Reading<Heartbeats>,
    /// What its guest's agent said so far through its port, if it has one.
    pub port: Reading<Heartbeats>,
    /// Requests that were submitted to the block layer for it.
    pub storage: Reading<StorageCounters>,
    /// How long its requests have been in flight; looked at only where none completed during the last tick.
    pub in_flight: Option<InFlightAges>,
    /// CPU time of each vCPU thread.
    pub vcpus: Reading<Vec<VcpuTime>>,
    /// The state of the process.
    pub process: ProcessState,
}

/// How long a VM's requests have been in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InFlightAges {
    /// Number of requests in flight.
    pub requests: u64,
    /// Age of the oldest one, to the kernel's tick.
    pub oldest: Duration,
    /// Sum of their ages.
    pub total: Duration,
}

/// CPU time of one vCPU thread since it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuTime {
    /// vCPU index. With TCG's single thread for all vCPUs, only index 0 exists.
    pub index: u32,
    /// Host thread id.
    pub tid: u32,
    /// Time spent running, in ns.
    pub run_ns: u64,
    /// Time spent runnable but waiting for a CPU, in ns.
    pub wait_ns: u64,
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
