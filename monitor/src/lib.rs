//! flatline notices from outside that a QEMU guest's operating system has crashed, and brings it back.
//!
//! The modules stand in the order in which the data flows; each stage takes the previous one's output
//! type, and nothing calls backwards. `ARCHITECTURE.md` has the map.

mod config;

mod balloon;
mod insight;

mod bpf;
mod sampler;

mod probes;

mod recovery;
mod vm;

mod history;
mod metrics;
mod notify;
mod recorder;
mod single_flight;
mod words;

mod api;
mod storage;
mod web;

mod identity;
mod rfc3339;

#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzzing;

mod check;
mod cli;
mod daemon;

pub use cli::main;

/// Parts of the daemon that benchmarks, and tests with real guests, use by themselves.
#[doc(hidden)]
pub mod parts {
    pub use crate::bpf::{KvmHooks, ProbeReport, ProbeThread, THREADS};
    pub use crate::config::Config;
    pub use crate::probes::kvm::{KvmLook, SHORTEST_SILENCE, judge};
    pub use crate::probes::{ProbeSocket, arp, ndp};
    pub use crate::sampler::{
        CounterMaps, KvmReader, ProcessReader, TapAddress, TapAddresses, ThreadReader, VcpuClocks,
        interrupts_are_hidden,
    };
}
