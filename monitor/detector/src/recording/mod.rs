//! Recordings: all inputs of the verdict on a VM with its decisions, to be judged once more.
//!
//! A recording is a row of [`Segment`]s. Each begins with a *checkpoint*, the complete [`Watch`] as it was at
//! that moment, and holds the inputs that it was then told ([`record`] has their form). So one can begin at any
//! segment, and the oldest can be dropped as a whole, which is how a [`Ring`] keeps the last minutes of a VM in
//! memory. [`file`](mod@file) is the form on disk, and [`replay`](mod@replay) judges once more.
//!
//! Only what changes from one tick to the next is kept of a tick. One of an idle VM with a vCPU takes 17 bytes
//! and 0.25 µs, with 16 vCPUs 128 bytes and 1.4 µs; so the five to six minutes that are kept of these are 6.6 KiB
//! and 46 KiB in memory, and half of that on disk (measured by `cargo run --release -p flatline --example bench --
//! --bpffs / records`).
//!
//! [`Watch`]: crate::verdict::Watch

pub mod file;
#[doc(hidden)]
pub mod fuzzing;
mod limits;
pub mod record;
pub mod replay;
mod ring;
#[cfg(test)]
mod tests;

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

pub use ring::{Decoded, Limits, Recording, Ring, Segment};

use crate::verdict::{Cause, DetectionPolicy, Watch};

/// The form of what is recorded. It counts up with every change to [`crate::verdict::Input`], to what a
/// [`Watch`] holds, or to the form of records or files, but for a variant that is added at an enum's end.
///
/// | format | has besides |
/// |---|---|
/// | 1 | |
/// | 2 | [`Silence`](crate::verdict::Silence) behind each checkpoint |
pub const FORMAT: u32 = 2;
/// The oldest format that is still read.
pub(crate) const OLDEST_FORMAT: u32 = 1;

/// Head of a recording: the VM, and the policy by which it was judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// flatline's version.
    pub flatline: String,
    /// The daemon's start, from which all moments are counted.
    pub started: SystemTime,
    /// The VM's name.
    pub vm: String,
    /// Its UUID.
    pub uuid: Option<String>,
    /// Its QEMU's process id.
    pub pid: u32,
    /// When that process started, in clock ticks since the host's start.
    pub start_ticks: u64,
    /// The policy by which it was judged.
    pub detection: DetectionPolicy,
}

impl Header {
    /// The wall-clock time of a moment; the daemon's start for one that can't be told.
    pub fn wall_clock(&self, moment: Duration) -> SystemTime {
        self.started.checked_add(moment).unwrap_or(self.started)
    }
}

/// A VM's state, as far as a recording holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateSummary {
    /// The state's name.
    pub(crate) state: &'static str,
    /// What it was convicted of.
    pub(crate) cause: Option<Cause>,
}

impl StateSummary {
    /// The summary of what `watch` holds.
    pub fn of(watch: &Watch) -> Self {
        Self { state: watch.state.name(), cause: watch.state.cause() }
    }
}

/// Bytes that are no valid recording, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub(crate) String);

impl Malformed {
    fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}
