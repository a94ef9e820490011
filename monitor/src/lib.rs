//! flatline notices from outside that a QEMU guest's operating system has crashed, and brings it back.
//!
//! The modules stand in the order in which the data flows; each stage takes the previous one's output
//! type, and nothing calls backwards. `ARCHITECTURE.md` has the map.

pub mod config;

pub mod balloon;
pub mod insight;

pub mod bpf;
pub mod sampler;

pub mod probes;

pub mod recovery;
mod vm;

pub mod history;
pub mod metrics;
pub mod notify;
pub mod recorder;
mod single_flight;

pub mod api;
pub mod storage;
pub mod web;

pub mod rfc3339;

#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzzing;

pub mod check;
pub mod daemon;
