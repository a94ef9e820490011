//! Outcomes of a step: more is asked, the verdict is withheld, or it is given.

use std::time::Duration;

use super::{
    Act, Cause, Questions, State, Tally, Watch,
    window::{has_time, past_grace},
};
use crate::policy::Policy;

/// What may be asked now of a guest that is silent.
pub(super) fn questions(watch: &Watch, policy: &Policy, now: Duration) -> Questions {
    if !past_grace(&watch.boot, policy, now) {
        Questions::DuringBoot
    } else if matches!(watch.state, State::Recovering { .. }) {
        Questions::Recovering
    } else {
        Questions::All
    }
}

/// Asks on about a guest that is held: whether that still holds, only the witnesses know.
pub(super) fn ask_on(watch: &Watch, policy: &Policy, now: Duration) -> Act {
    // No witness is asked about a guest that has time yet.
    if watch.state.is_convicted() || has_time(watch, policy, now) {
        Act::Nothing
    } else {
        Act::Ask(questions(watch, policy, now))
    }
}

/// Withholds a verdict while `reason` applies; afterwards the guest's window begins anew. Its silence goes on.
pub(super) fn hold(watch: &mut Watch, reason: String, elapsed: Duration, now: Duration) -> Act {
    watch.liveness.begin_anew(now, format!("none since it was held: {reason}"));
    held(watch, reason, elapsed, now)
}

/// Withholds a verdict while the VM is stopped, so that it can show no life: that is no silence, either.
pub(super) fn pause(watch: &mut Watch, reason: String, elapsed: Duration, now: Duration) -> Act {
    watch.silence.pause(now);
    hold(watch, reason, elapsed, now)
}

pub(super) fn held(watch: &mut Watch, reason: String, elapsed: Duration, now: Duration) -> Act {
    // A guest that waits to be started, or that was paused while it booted, has its grace before it.
    watch.boot.held = watch.boot.held.saturating_add(elapsed);
    no_verdict(watch, State::Held, reason, elapsed, now)
}

/// Withholds a verdict while a figure is missing; afterwards the guest's window begins anew.
pub(super) fn unobservable(
    watch: &mut Watch,
    reason: String,
    elapsed: Duration,
    now: Duration,
) -> Act {
    watch.liveness.begin_anew(now, "none since a figure was missing".to_owned());
    watch.silence.pause(now);
    no_verdict(watch, State::Unobservable, reason, elapsed, now)
}

fn no_verdict(
    watch: &mut Watch,
    state: State,
    reason: String,
    elapsed: Duration,
    now: Duration,
) -> Act {
    if !watch.state.is_convicted() {
        watch.silence.held = watch.silence.held.saturating_add(elapsed);
    }
    match &mut watch.state {
        // A conviction outlasts the pause that QEMU itself makes of it.
        State::Crashed { .. } | State::Failed { .. } => {}
        // Time in which it could show no life, or could not be seen, is not its own.
        State::Recovering { deadline, tally, .. } => {
            *deadline += elapsed;
            *tally = Tally::default();
        }
        State::Starting
        | State::Alive
        | State::Suspect { .. }
        | State::Held
        | State::Unobservable => watch.enter(state, reason, now),
    }
    Act::Nothing
}

/// Convicts a guest that was asked: of one that was restarted, this says that it did not recover.
pub(super) fn convict_suspect(
    watch: &mut Watch,
    cause: Cause,
    reason: String,
    now: Duration,
) -> Act {
    let recovers = matches!(watch.state, State::Recovering { .. });
    let act = convict(watch, cause, reason, now);
    if recovers { Act::NotRecovered(cause) } else { act }
}

/// Convicts a guest, in whichever state it was.
pub(super) fn convict(watch: &mut Watch, cause: Cause, reason: String, now: Duration) -> Act {
    watch.excuse = None;
    watch.enter(State::Crashed { cause }, reason, now);
    Act::Convict(cause)
}
