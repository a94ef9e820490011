//! A VM's last minutes as JSON: figures a second, and what was decided meanwhile.

use serde::{Deserialize, Serialize};

use super::MemoryMomentView;

/// The last minutes of a VM, a figure a second, the oldest first; `None` where it is not known, or the VM has
/// nothing that it could be read of. All rows are of the same length.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct HistoryView {
    /// How many seconds.
    pub seconds: usize,
    /// Packets that the guest sent of its own accord.
    pub packets_from_guest: Vec<Option<f64>>,
    /// Packets that were sent to it; empty where an older daemon doesn't tell.
    #[serde(default)]
    pub packets_to_guest: Vec<Option<f64>>,
    /// Requests that completed.
    pub completed: Vec<Option<f64>>,
    /// CPUs that the vCPUs used together.
    pub vcpu: Vec<Option<f64>>,
    /// Share of the time in which the vCPU that wanted to most ran, or waited for a CPU of the host.
    pub vcpu_wanted: Vec<Option<f64>>,
    /// Requests in flight.
    pub in_flight: Vec<Option<f64>>,
    /// Answers to flatline's own probes.
    pub probe_answers: Vec<Option<f64>>,
    /// Its memory, whenever that was read, the oldest first.
    #[serde(default)]
    pub memory: Vec<MemoryMomentView>,
    /// What was decided meanwhile, the oldest first.
    pub marks: Vec<MarkView>,
}

/// Something that was decided, or done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MarkView {
    /// In which second of the rows.
    pub second: usize,
    /// What.
    pub kind: MarkKind,
    /// Why.
    pub text: String,
}

/// What was decided, or done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum MarkKind {
    /// It was suspected.
    Suspicion,
    /// It was convicted.
    Verdict,
    /// It was restarted.
    Restart,
    /// It lives.
    Life,
    /// No verdict is given, for a reason that lies outside of it.
    Held,
    /// A figure that the verdict needs could not be read.
    Unobservable,
    /// A kind that this version doesn't know.
    #[serde(other)]
    Other,
}
