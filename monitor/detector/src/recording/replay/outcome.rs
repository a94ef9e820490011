//! Outcome of a replay: its lines and its numbers, and how both are written.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};

use super::StateSummary;
use crate::verdict::Act;

/// What was decided at a moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decision {
    /// In words: `suspect -> crashed (spinning)`.
    pub what: String,
    /// Why.
    pub reason: String,
}

/// One moment at which something was decided, live or in the replay.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// When.
    #[serde(serialize_with = "to_the_millisecond")]
    pub at: SystemTime,
    /// What was decided live.
    pub live: Option<Decision>,
    /// What the replay decides.
    pub replay: Option<Decision>,
    /// Whether both are the same.
    pub same: bool,
    /// A remark for people.
    pub note: Option<String>,
}

/// How the decisions compare.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Inputs that were judged.
    pub inputs: u64,
    /// Moments at which something was decided, live or in the replay.
    pub decisions: u64,
    /// Those at which both are not the same.
    pub differing: u64,
    /// Convictions at the same moment, of the same cause.
    pub same_convictions: u64,
    /// Those at the same moment, of another cause.
    pub other_causes: u64,
    /// Those that the replay gives earlier.
    pub earlier_convictions: u64,
    /// Those that it gives later.
    pub later_convictions: u64,
    /// Those that it doesn't give.
    pub missing_convictions: u64,
    /// Those that only it gives.
    pub additional_convictions: u64,
    /// Rounds of questions that the replay wants, and that were not asked live.
    pub unasked_rounds: u64,
    /// Rounds for which the last answers were taken to stand, since no witness was asked live any more.
    pub assumed_rounds: u64,
    /// Times that it began anew, since something is missing in the recording.
    pub gaps: u64,
    /// Lines beyond those that are kept.
    pub lines_left_out: u64,
}

/// Outcome of a replay.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Replay {
    /// The VM.
    pub vm: String,
    /// Its UUID.
    pub uuid: Option<String>,
    /// Its QEMU's process id.
    pub pid: u32,
    /// Begin of the recording; `None` for an empty one.
    pub begins: Option<Moment>,
    /// Its end.
    pub ends: Option<Moment>,
    /// Whether it was judged by the recorded policy.
    pub recorded_terms: bool,
    /// Whether every decision came out the same.
    pub same: bool,
    /// In the order of time.
    pub lines: Vec<Line>,
    /// All of it in numbers.
    pub summary: Summary,
}

/// A moment by the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Moment(#[serde(serialize_with = "to_the_millisecond")] pub SystemTime);

fn to_the_millisecond<S: Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&rfc3339_millis(*time))
}

/// The last second that the format can hold, 9999-12-31T23:59:59Z.
const LAST_SECOND: u64 = 253_402_300_799;

/// RFC 3339 with milliseconds, rounded down; the nearest such time where the format has none.
pub fn rfc3339_millis(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let inside = Duration::new(since.as_secs().min(LAST_SECOND), since.subsec_nanos());
    humantime::format_rfc3339_millis(UNIX_EPOCH + inside).to_string()
}

/// What was decided, if anything was.
pub(super) fn decision(
    before: StateSummary,
    after: StateSummary,
    act: &Act,
    reason: &str,
) -> Option<Decision> {
    let act = match act {
        // A conviction is told by the state.
        Act::Nothing | Act::Ask(_) | Act::Convict(_) => None,
        Act::Recovered => Some("recovered".to_owned()),
        Act::NotRecovered(cause) => Some(format!("not recovered ({cause})")),
        Act::GuestReset(times) => Some(format!("the guest reset itself, number {times}")),
        Act::GiveUp(cause) => Some(format!("given up ({cause})")),
        Act::Report(cause) => Some(format!("told ({cause})")),
        Act::BeatsAgain => Some("its heart beats again".to_owned()),
    };
    let to = |after: StateSummary| match after.cause {
        None => after.state.to_owned(),
        Some(cause) => format!("{} ({cause})", after.state),
    };
    let what = match (before == after, act) {
        (true, None) => return None,
        (true, Some(act)) => format!("{}: {act}", to(after)),
        (false, None) => format!("{} -> {}", before.state, to(after)),
        (false, Some(act)) => format!("{} -> {}: {act}", before.state, to(after)),
    };
    Some(Decision { what, reason: reason.to_owned() })
}
