//! A guest that the host starves: it is held, since it may answer nothing in time, and it is asked on. What it says or shows
//! itself is no matter of time: its last words, and vCPUs that no interrupt can reach. That passes the hold, and is
//! evaluated.

use std::time::Duration;

use super::{
    Act, DetectionPolicy, State, Testimony, Watch,
    outcome::{ask_on, held},
    window::{has_grace, is_flat},
};

/// Whether the guest said or showed something itself in its last round, which passes the hold.
pub(super) fn is_passed(watch: &Watch) -> bool {
    watch.state.tally().is_some_and(|tally| tally.last_words > 0 || tally.stuck > 0)
}

/// Holds a guest that the host hardly lets run; afterwards its window begins anew. How long it has wanted to run, and how
/// much it did, is known still.
pub(super) fn hold(watch: &mut Watch, reason: String, elapsed: Duration, now: Duration) -> Act {
    watch.liveness.last_life = now;
    watch.liveness.last_sign = format!("none since it was held: {reason}");
    held(watch, reason, elapsed, now)
}

/// Asks about a starved guest once it has been silent for as long as any suspect: it may say itself that it is dead.
pub(super) fn ask(watch: &mut Watch, detection: &DetectionPolicy, now: Duration) -> Act {
    if !is_flat(watch, detection, now) || has_grace(watch, &detection.policy, now) {
        return Act::Nothing;
    }
    watch.silence.suspected |= watch.state == State::Held;
    ask_on(watch, &detection.policy, now)
}

/// Weighs a round of answers about a starved guest; `None` where they are weighed as any other's: an acquittal, and what
/// `passes` the hold.
pub(super) fn weigh(
    watch: &mut Watch,
    said: &Testimony,
    acquittal: Option<String>,
    passes: bool,
    reason: String,
    now: Duration,
) -> Option<Act> {
    match (acquittal, &watch.state) {
        // What holds it does so however well it answers.
        (Some(sign), State::Held) => {
            watch.acquitted(now, sign);
            return Some(Act::Nothing);
        }
        (Some(_), _) => return None,
        (None, _) if passes => return None,
        (None, State::Suspect { .. }) => {
            hold(watch, reason, Duration::ZERO, now);
        }
        (None, _) => {}
    }
    // What excused it besides holds it for as long as it is heard.
    watch.excuse = said.excuse(true).and(watch.excuse.take());
    Some(Act::Nothing)
}
