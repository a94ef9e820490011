//! Sampler, stage three: readers of all that is known of VMs in numbers, and the only readers of maps.

mod addresses;
mod counters;
mod devices;
mod heartbeats;
mod kvm;
mod life;
mod lost_completions;
mod mapped;
pub(crate) mod memory;
pub(crate) mod port;
mod process_threads;
mod threads;
mod vcpu_time;

use std::time::Duration;

use rustix::time::{ClockId, clock_getres};

use flatline_samples::{
    Heard, Heartbeats, InFlightAges, LastBeat, Missing, ProcessState, QemuMemory, Reading, VcpuTime,
};

pub use addresses::{TapAddress, TapAddresses};
pub use counters::CounterMaps;
pub(crate) use devices::{DeviceWatch, Devices};
pub(crate) use heartbeats::HeartbeatReader;
pub use kvm::{KvmReader, interrupts_are_hidden};
pub(crate) use life::LifeReader;
pub(crate) use lost_completions::LostCompletions;
pub use process_threads::ProcessReader;
pub(crate) use process_threads::ProcessThreads;
pub use threads::ThreadReader;
pub(crate) use threads::ThreadTimes;
pub use vcpu_time::VcpuClocks;
pub(crate) use vcpu_time::{thread_run_ns, thread_wanted_ns};

/// So many of the kernel's ticks, in which the programs tell the time.
pub(crate) fn ticks(jiffies: u64) -> Duration {
    let nanos = tick_length().as_nanos().saturating_mul(u128::from(jiffies));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// How many of them fit into `span`.
pub(crate) fn jiffies_in(span: Duration) -> u64 {
    let jiffies = span.as_nanos() / tick_length().as_nanos().max(1);
    u64::try_from(jiffies).unwrap_or(u64::MAX)
}

fn tick_length() -> Duration {
    // The coarse clocks move with them (`posix_get_coarse_res` in kernel/time/posix-timers.c).
    Duration::try_from(clock_getres(ClockId::MonotonicCoarse)).unwrap_or_default()
}
