//! Steps of the state machine that is drawn in the parent module: one for a tick, one for a testimony.

use std::time::Duration;

use super::{
    Act, Answer, Cause, DetectionPolicy, LOOP_OVER_AFTER, Questions, ROUNDS_TO_CONVICT, State,
    Tally, Testimony, Tick, Watch, announcements,
    evaluate::{calibrate, evaluate, nothing_to_evaluate, paused_maybe},
    heartbeat,
    inhibit::{self, HostFault, counted},
    outcome::{ask_on, convict_suspect, hold, pause, questions, unobservable},
    qemu_hang, starvation,
    window::{HELD_UP, begin_anew, has_grace, has_time, is_due, is_flat, longest_tick, past_grace},
};
use crate::activity::Activity;

/// Judges a tick that ended at `now`.
pub(super) fn tick(
    watch: &mut Watch,
    tick: &Tick,
    detection: &DetectionPolicy,
    now: Duration,
) -> Act {
    let stormy = watch.storm.is_some();
    let held_up = tick.activity.elapsed > longest_tick(detection);
    heartbeat::note(watch, &tick.activity, now);
    match judge(watch, tick, detection, now) {
        Act::Nothing => heartbeat::miss(watch, tick, stormy, held_up, detection, now),
        act => act,
    }
}

fn judge(watch: &mut Watch, tick: &Tick, detection: &DetectionPolicy, now: Duration) -> Act {
    let Tick { activity, monitor, .. } = tick;
    let asked = watch.is_being_asked();
    watch.liveness.level(activity, asked, now);
    if activity.elapsed > longest_tick(detection) {
        begin_anew(watch, HELD_UP, now);
    }
    let monitor_silent_since = watch.monitor_silent_since.take();
    if announcements::ended_badly(monitor) {
        // QEMU stops such a guest: should it be let run on all the same, this was no silence.
        match sign_of_life(activity) {
            Some(sign) if !watch.state.is_convicted() => watch.lived(now, sign),
            _ => {
                let why = "none since it was said to have crashed".to_owned();
                watch.liveness.begin_anew(now, why);
            }
        }
        return announcements::announcement(watch, monitor, now).unwrap_or(Act::Nothing);
    }
    if let Some(reason) = inhibit::pause_reason(tick) {
        watch.excuse = None;
        inhibit::pause_dump(watch, activity.elapsed, now);
        return pause(watch, reason, activity.elapsed, now);
    }
    if let Some(act) = inhibit::dumping(watch, tick, &detection.policy, now) {
        return act;
    }
    if let Some(reason) = heartbeat::leaving(watch, now) {
        return pause(watch, reason, activity.elapsed, now);
    }
    if let Some(sign) = sign_of_life(activity) {
        return match lives(watch, sign, now) {
            Act::Nothing => calibrate(watch, tick, &detection.policy, now),
            act => act,
        };
    }
    let fault = inhibit::host_fault(watch, tick);
    if let Some(HostFault::Storage(reason)) = fault {
        return hold(watch, reason, activity.elapsed, now);
    }
    if let Some(missing) = inhibit::missing_signal(activity) {
        return unobservable(watch, missing.to_string(), activity.elapsed, now);
    }
    let is_deaf = watch.state.tally().is_some_and(|tally| tally.shows_deafness());
    let storm = watch.storm.clone().filter(|_| !is_deaf);
    if let Some(excuse) = storm.or_else(|| watch.excuse.clone()) {
        hold(watch, excuse, activity.elapsed, now);
        return ask_on(watch, &detection.policy, now);
    }
    // After all that begins the window anew: this alone leaves to last words the time that went by.
    if let Some(HostFault::Starved(reason)) = fault
        && !starvation::is_passed(watch)
    {
        starvation::hold(watch, reason, activity.elapsed, now);
        return starvation::ask(watch, detection, now);
    }
    qemu_hang::note(watch, tick, monitor_silent_since, now);
    let hangs = qemu_hang::hangs(watch, tick, &detection.policy, now);
    match silent(watch, tick, None, detection, now) {
        Act::Nothing if hangs => Act::Ask(questions(watch, &detection.policy, now)),
        act => act,
    }
}

/// Judges a round of questions that ended at `now`.
pub(super) fn testimony(
    watch: &mut Watch,
    said: &Testimony,
    detection: &DetectionPolicy,
    now: Duration,
) -> Act {
    let act = weigh(watch, said, detection, now);
    heartbeat::asked(watch, said);
    act
}

fn weigh(watch: &mut Watch, said: &Testimony, detection: &DetectionPolicy, now: Duration) -> Act {
    let Some((ticked, tick)) = watch.last.clone() else { return Act::Nothing };
    if let Some(act) = weigh_restarted(watch, said, detection, now) {
        return act;
    }
    if said.not_up().is_none() {
        // Whatever it is accused of: a witness that was asked once is not asked again for a while. Firmware that answers says
        // nothing of its operating system.
        watch.boot.answered.extend(said.answered().cloned());
    }
    if now.saturating_sub(ticked) > longest_tick(detection) {
        // The sign of life that it would be weighed against may be waiting to be read.
        begin_anew(watch, HELD_UP, now);
        return Act::Nothing;
    }
    let proven = said.proves() || watch.state.tally().is_some_and(|tally| tally.last_words > 0);
    let acquittal = said.acquittal(words_stand(watch, said));
    let fault = inhibit::host_fault(watch, &tick);
    // One that is held is asked about, too, or was when the round began: a storm may have ended meanwhile.
    let asked =
        matches!(watch.state, State::Suspect { .. } | State::Recovering { .. } | State::Held);
    let is_starved = matches!(fault, Some(HostFault::Starved(_)));
    if asked && let Some(excuse) = said.excuse(proven || is_starved) {
        // Whatever else withholds the verdict: once that is over, no window began before this.
        watch.liveness.begin_anew(now, format!("none since it was held: {excuse}"));
    }
    if watch.state.is_convicted() || inhibit::is_unjudged(watch, &tick) {
        if let Some(sign) = acquittal {
            // It changes no verdict now; but one that comes later has a window that didn't begin before this.
            watch.liveness.begin_anew(now, String::new());
            watch.liveness.alive(now, sign);
        }
        return Act::Nothing;
    }
    if let Some(HostFault::Starved(reason)) = fault {
        let passes = proven && is_flat(watch, detection, now);
        if let Some(act) = starvation::weigh(watch, said, acquittal.clone(), passes, reason, now) {
            return act;
        }
    }
    if let Some(sign) = acquittal {
        return lives(watch, sign, now);
    }
    if asked && said.may_save_dump() {
        return inhibit::may_save_dump(watch, now);
    }
    if let Some(storm) = watch.storm.clone()
        && !said.shows_deafness()
        && watch.state.tally().is_none_or(|tally| tally.last_words == 0)
    {
        if watch.state.tally().is_some_and(|tally| tally.shows_deafness()) {
            // The last round was of no deaf one any more.
            hold(watch, storm, Duration::ZERO, now);
        }
        return Act::Nothing;
    }
    let hangs = qemu_hang::hangs(watch, &tick, &detection.policy, now);
    if asked || hangs || watch.excuse.is_some() {
        let excuse = said
            .excuse(proven)
            .map(ToOwned::to_owned)
            .or_else(|| paused_maybe(&watch.liveness, &tick));
        if let Some(excuse) = excuse {
            watch.excuse = Some(excuse.clone());
            hold(watch, excuse, Duration::ZERO, now);
            return Act::Ask(questions(watch, &detection.policy, now));
        }
        if watch.excuse.take().is_some() && !proven {
            begin_anew(watch, "what excused it is over", now);
            return Act::Nothing;
        }
    }
    if hangs {
        return qemu_hang::convict(watch, said, now);
    }
    silent(watch, &tick, Some(said), detection, now)
}

/// Whether the guest's kernel has said that it dies, and a vCPU has been pinned since: what its interrupt handlers answer
/// acquits it no more. That it is pinned alone says nothing, nor do words on the console of a guest that rests: a user may
/// read an old log there.
fn words_stand(watch: &Watch, said: &Testimony) -> bool {
    let heard = watch.state.tally().is_some_and(|tally| tally.last_words > 0)
        || said.any(|answer| matches!(answer, Answer::LastWords(_)));
    heard && watch.liveness.pinned_since.is_some()
}

/// Weighs a round of answers about a guest that was restarted; `None` where they are weighed as any other's.
fn weigh_restarted(
    watch: &mut Watch,
    said: &Testimony,
    detection: &DetectionPolicy,
    now: Duration,
) -> Option<Act> {
    let State::Recovering { cause, deadline, tally, was_up } = watch.state else { return None };
    let due = is_due(watch, deadline, &detection.policy, now);
    if let (true, Some(why)) = (was_up, said.not_up()) {
        if let Some(sign) = said.acquittal(false) {
            // Firmware answers probes, too, and isn't dead then.
            watch.lived(now, sign);
        }
        return Some(not_up(watch, why, due, now));
    }
    // A guest that was restarted is to show life itself; it is asked only when its time is up. That its window began anew
    // is no life.
    let lives = watch.boot.first_life.is_some()
        && watch.silence.since_life(now) < detection.policy.flat_for;
    match (lives, due) {
        (true, _) => return Some(is_up(watch, now)),
        (false, true) => {}
        (false, false) => return Some(Act::Nothing),
    }
    let tally = Tally { not_up: 0, ..tally };
    watch.state = State::Recovering { cause, deadline, tally, was_up };
    None
}

pub(super) fn sign_of_life(activity: &Activity) -> Option<String> {
    if let Ok(Some(network)) = &activity.network
        && network.guest_packets > 0
    {
        return Some(format!("guest sent {}", counted(network.guest_packets, "packet")));
    }
    match &activity.storage {
        Ok(storage) if storage.completed > 0 => {
            Some(format!("guest completed {}", counted(storage.completed, "request")))
        }
        _ => activity.heartbeat.as_ref().ok()?.as_ref().map(heartbeat::sign),
    }
}

pub(super) fn lives(watch: &mut Watch, sign: String, now: Duration) -> Act {
    watch.acquitted(now, sign.clone());
    if let State::Recovering { was_up, .. } = watch.state {
        // A boot loader reads the disk, and a network boot sends packets; an agent says that its user space runs.
        let may_be_firmware = was_up && !watch.agent_speaks(now);
        return if may_be_firmware { Act::Ask(Questions::IsItUp) } else { is_up(watch, now) };
    }
    let loops = watch.state == State::Failed { cause: Cause::BootLoop } && in_a_loop(watch, now);
    // That its kernel lives was known.
    let is_known = |cause: Cause| cause.is_of_user_space() && !watch.beats(now);
    if !loops && !watch.state.conviction().is_some_and(is_known) {
        watch.enter(State::Alive, sign, now);
    }
    Act::Nothing
}

/// Counts a round in which a restarted guest was still in its firmware or boot loader, whatever it does there: when its
/// time is up, that is no recovery.
fn not_up(watch: &mut Watch, why: &str, due: bool, now: Duration) -> Act {
    let State::Recovering { cause, tally, .. } = &mut watch.state else {
        return Act::Nothing;
    };
    let cause = *cause;
    // One look may have met a call into the firmware.
    tally.not_up = if due { tally.not_up.saturating_add(1) } else { 0 };
    watch.reason = format!("restarted, but not up: {why}");
    if tally.not_up < ROUNDS_TO_CONVICT {
        return Act::Nothing;
    }
    let reason = watch.reason.clone();
    convict_suspect(watch, cause, reason, now)
}

/// Ends the recovery of a guest that is back.
fn is_up(watch: &mut Watch, now: Duration) -> Act {
    let sign = watch.liveness.last_sign.clone();
    watch.enter(State::Alive, sign, now);
    Act::Recovered
}

/// Whether the guest reset itself lately: each turn of a boot loop shows life.
fn in_a_loop(watch: &Watch, now: Duration) -> bool {
    watch.resets.last().is_some_and(|last| now.saturating_sub(*last) < LOOP_OVER_AFTER)
}

/// Judges a tick or a round without a sign of life, for which the host is not at fault.
fn silent(
    watch: &mut Watch,
    tick: &Tick,
    said: Option<&Testimony>,
    detection: &DetectionPolicy,
    now: Duration,
) -> Act {
    let sooner = heartbeat::sooner(watch, detection, now);
    let detection = sooner.as_ref().unwrap_or(detection);
    let policy = &detection.policy;
    let flat = is_flat(watch, detection, now);
    // A sensor that comes and goes says nothing new of a suspect, either.
    let seen_for = watch.liveness.silence(now) + detection.tick / 2;
    let is_seen = watch.silence.suspected && seen_for >= detection.tick * 2;
    if watch.state == State::Unobservable
        && let Some(reason) = nothing_to_evaluate(tick)
    {
        return unobservable(watch, reason, tick.activity.elapsed, now);
    }
    match watch.state {
        State::Crashed { .. } | State::Failed { .. } => Act::Nothing,
        State::Recovering { .. } if has_time(watch, policy, now) => Act::Nothing,
        State::Starting if !past_grace(&watch.boot, policy, now) => Act::Nothing,
        State::Held | State::Unobservable
            if has_grace(watch, policy, now) && !watch.silence.suspected =>
        {
            watch.enter(State::Starting, "within the boot grace".to_owned(), now);
            Act::Nothing
        }
        State::Alive if !flat => calibrate(watch, tick, policy, now),
        State::Unobservable if seen_for < policy.flat_for && !is_seen => {
            watch.reason = "not heard since a figure was missing".to_owned();
            Act::Nothing
        }
        State::Starting | State::Held if !flat => {
            watch.enter(State::Alive, "no sign of life was due yet".to_owned(), now);
            Act::Nothing
        }
        State::Starting
        | State::Alive
        | State::Suspect { .. }
        | State::Recovering { .. }
        | State::Held
        | State::Unobservable => evaluate(watch, tick, said, detection, now),
    }
}
