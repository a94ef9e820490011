//! Evaluation of a suspect: what the witnesses said is weighed, and more is asked until it is enough.

use std::time::Duration;

use super::{
    Act, Answer, Cause, DetectionPolicy, Liveness, Monitor, Questions, ROUNDS_TO_CONVICT,
    SILENT_ROUNDS_TO_CONVICT, STILL_BUSY_RATIO, State, Tally, Testimony, Tick, Watch,
    outcome::{convict_suspect, questions, unobservable},
    window::past_grace,
};
use crate::policy::Policy;

/// Asks a guest that is well, where that is due, so that a silence later means something.
pub(super) fn calibrate(watch: &mut Watch, tick: &Tick, policy: &Policy, now: Duration) -> Act {
    let due = watch.wants_calibration(now);
    if !(due && tick.calibratable && past_grace(&watch.boot, policy, now)) {
        return Act::Nothing;
    }
    watch.boot.calibrated = Some(now);
    Act::Ask(Questions::Calibrate)
}

/// Weighs what was answered, and asks again where that isn't enough; until then a guest that was restarted is still
/// recovering, and any other one a suspect.
pub(super) fn evaluate(
    watch: &mut Watch,
    tick: &Tick,
    said: Option<&Testimony>,
    detection: &DetectionPolicy,
    now: Duration,
) -> Act {
    if let Some(reason) = nothing_to_evaluate(tick) {
        return unobservable(watch, reason, Duration::ZERO, now);
    }
    let questions = questions(watch, &detection.policy, now);
    let tally = watch.state.tally().unwrap_or_default();
    let Some(said) = said else {
        // Between two rounds the last answers stay in view.
        if tally.rounds == 0 {
            let reason = suspicion(watch, None, now);
            watch.enter(undecided(&watch.state, tally), reason, now);
        }
        return Act::Ask(questions);
    };
    let tally = tally.count(said, &watch.boot.answered, now);
    let convicted = conviction(watch, tick, said, tally, detection, now);
    // Where it may be the host's fault that many are silent, only what no host does to a guest counts.
    let is_host_suspect = tick.undecided || watch.storm.is_some();
    if let Some((cause, reason)) = convicted.filter(|_| !is_host_suspect || tally.proves_deafness())
    {
        return convict_suspect(watch, cause, reason, now);
    }
    let reason = suspicion(watch, Some(said), now);
    watch.enter(undecided(&watch.state, tally), reason, now);
    Act::Ask(questions)
}

/// The state of a guest that is asked on.
fn undecided(state: &State, tally: Tally) -> State {
    match *state {
        State::Recovering { cause, deadline, was_up, .. } => {
            State::Recovering { cause, deadline, tally, was_up }
        }
        _ => State::Suspect { tally },
    }
}

/// Why a suspect can't be judged: neither its vCPUs' level nor QEMU's word can be had.
pub(super) fn nothing_to_evaluate(tick: &Tick) -> Option<String> {
    match (&tick.activity.vcpus, &tick.monitor) {
        (Err(missing), _) => Some(missing.to_string()),
        (_, Monitor::Unresponsive(why)) => Some(format!("QEMU's monitor does not answer: {why}")),
        _ => None,
    }
}

/// Why the guest may only be paused: QEMU doesn't tell the run state, and a paused guest stands just as still, and answers
/// nothing.
pub(super) fn paused_maybe(liveness: &Liveness, tick: &Tick) -> Option<String> {
    match &tick.monitor {
        Monitor::Unknown(why) if liveness.still_since.is_some() => Some(format!(
            "QEMU does not tell its run state ({why}), and a guest that somebody paused stands \
             just as still"
        )),
        Monitor::Unknown(_)
        | Monitor::NotStarted(_)
        | Monitor::Unresponsive(_)
        | Monitor::Answers(_) => None,
    }
}

fn suspicion(watch: &Watch, said: Option<&Testimony>, now: Duration) -> String {
    let Watch { liveness, silence, .. } = watch;
    let silent = silence.length(now).as_secs_f64();
    let held = silence.held_in_words().unwrap_or_default();
    match said {
        None => format!("silent for {silent:.1} s; asking its witnesses{held}"),
        Some(said) => {
            let held_back = liveness.held_back(now).unwrap_or_default();
            format!("silent for {silent:.1} s; {}{held_back}{held}", said.summary())
        }
    }
}

/// Rounds since a kernel's last words that convict it.
fn rounds_of_last_words(said: &Testimony) -> u32 {
    if said.serves_interrupts() { SILENT_ROUNDS_TO_CONVICT } else { ROUNDS_TO_CONVICT }
}

/// What a guest that answers no more died of, as far as its registers tell.
fn cause_of_silence(said: &Testimony) -> Cause {
    if said.any(|answer| *answer == Answer::Halted) {
        Cause::Halted
    } else if said.any(|answer| matches!(answer, Answer::Stuck(_))) {
        Cause::Spinning
    } else {
        Cause::Silent
    }
}

/// Whether the evidence is complete, and what it convicts the guest of.
fn conviction(
    watch: &Watch,
    tick: &Tick,
    said: &Testimony,
    tally: Tally,
    detection: &DetectionPolicy,
    now: Duration,
) -> Option<(Cause, String)> {
    let Watch { liveness, silence, .. } = watch;
    let policy = &detection.policy;
    // Ticks are never on the dot: what is a hair's breadth too short is long enough.
    let all_along = |since, span: Duration| {
        Liveness::held_for(since, span.saturating_sub(detection.tick / 2), now)
    };
    let seen = suspicion(watch, Some(said), now);
    // A kernel that ended its panic has nothing left to do by itself, however little the host lets it run. Where its interrupt
    // handlers answer, more rounds have to agree.
    if tally.last_words >= rounds_of_last_words(said)
        && all_along(Some(silence.since), policy.flat_for)
        && all_along(liveness.pinned_since, policy.flat_for)
    {
        return Some((Cause::Panicked, format!("{seen}; a vCPU was pinned all along")));
    }
    if said.any(Answer::acquits) {
        // It is asked on for its last words alone.
        return None;
    }
    if !all_along(Some(liveness.last_life), policy.flat_for) {
        // One that is asked because its time is up may have been unseen a moment ago.
        return None;
    }
    if liveness.wants_more_time(policy.flat_for.saturating_sub(detection.tick / 2), now) {
        return None;
    }
    // However it stands now: what its kernel said it died of.
    let of = |cause| if tally.last_words > 0 { Cause::Panicked } else { cause };
    if tally.halted >= ROUNDS_TO_CONVICT && all_along(liveness.still_since, policy.flat_for) {
        return Some((
            of(Cause::Halted),
            format!(
                "{seen}; its vCPUs together used less than {STILL_BUSY_RATIO} of a CPU all along"
            ),
        ));
    }
    if tally.stuck >= ROUNDS_TO_CONVICT && all_along(liveness.pinned_since, policy.flat_for) {
        return Some((of(Cause::Spinning), format!("{seen}; a vCPU was pinned all along")));
    }
    // A QEMU that stopped answering may be frozen with its guest in it.
    let frozen_maybe = said.any(|answer| matches!(answer, Answer::Unresponsive(_)))
        || paused_maybe(liveness, tick).is_some();
    // A guest that jumps into another kernel answers nothing for seconds, either: what speaks against this one must
    // have lasted.
    let lasted = all_along(liveness.still_since, policy.flat_for)
        || all_along(liveness.pinned_since, policy.flat_for)
        || all_along(tally.silent_since, policy.flat_for);
    if tally.silent >= SILENT_ROUNDS_TO_CONVICT && lasted && !frozen_maybe {
        let cause = of(cause_of_silence(said));
        return Some((cause, format!("{seen}; it had answered before in this boot")));
    }
    let no_answers = tally.unseen == tally.rounds && tally.silent == 0;
    let long = policy.unconfirmed_flat_for;
    if no_answers && tally.rounds >= ROUNDS_TO_CONVICT && liveness.silence(now) >= long {
        let unconfirmed =
            |level| format!("{seen}; unconfirmed, but {level} for {} s", long.as_secs());
        // That an idle guest never stands quite still was measured of x86's alone.
        let opaque = said.any(|answer| matches!(answer, Answer::Opaque(_)));
        if all_along(liveness.zero_since, long) && !frozen_maybe && !opaque {
            return Some((of(Cause::Halted), unconfirmed("its vCPUs stood still")));
        }
        if all_along(liveness.pinned_since, long) {
            return Some((of(Cause::Spinning), unconfirmed("a vCPU was pinned")));
        }
    }
    None
}
