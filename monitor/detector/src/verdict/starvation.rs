//! A guest that the host starves: it is held, since it may answer nobody in time, and it is asked on. What it says or shows
//! itself is no matter of time: its last words, and vCPUs that no interrupt can reach. That passes the hold, and is tried.

use std::time::Duration;

use super::{
    Act, DetectionPolicy, State, Testimony, Watch, inhibit,
    step::{ask_on, has_grace, is_flat, tally_of},
};

/// Whether what it said or showed itself in its last round is being tried.
pub(super) fn is_passed(watch: &Watch) -> bool {
    tally_of(watch).is_some_and(|tally| tally.last_words > 0 || tally.stuck > 0)
}

/// No verdict while the host hardly lets it run; afterwards its window begins anew. How long it has wanted to run, and how
/// much it did, is known still.
pub(super) fn hold(watch: &mut Watch, reason: String, elapsed: Duration, now: Duration) -> Act {
    watch.liveness.last_life = now;
    watch.liveness.last_sign = format!("none since it was held: {reason}");
    inhibit::held(watch, reason, elapsed, now)
}

/// Asks it once it has been silent for as long as any suspect: it may say itself that it is
/// dead.
pub(super) fn ask(watch: &mut Watch, detection: &DetectionPolicy, now: Duration) -> Act {
    if !is_flat(watch, detection, now) || has_grace(watch, &detection.policy, now) {
        return Act::Nothing;
    }
    watch.quiet.suspected |= watch.state == State::Held;
    ask_on(watch, &detection.policy, now)
}

/// What a round says of it; `None` where that is weighed as of any other: an acquittal, and
/// what `passes` the hold.
pub(super) fn weigh(
    watch: &mut Watch,
    said: &Testimony,
    passes: bool,
    reason: String,
    now: Duration,
) -> Option<Act> {
    match (said.acquittal(), &watch.state) {
        // What holds it does so however well it answers.
        (Some(sign), State::Held) => {
            watch.boot.first_life.get_or_insert(now);
            watch.lived(now, sign);
            (watch.excuse, watch.storm, watch.monitor_silent_since) = (None, None, None);
            return Some(Act::Nothing);
        }
        (Some(_), _) => return None,
        (None, _) if passes => return None,
        (None, State::Suspect { .. }) => {
            hold(watch, reason, Duration::ZERO, now);
        }
        (None, _) => {}
    }
    Some(Act::Nothing)
}
