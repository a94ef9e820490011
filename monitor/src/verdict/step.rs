//! One step of the state machine that is drawn in the parent module.

use std::time::Duration;

use super::{
    ARP_ROUNDS_TO_CONVICT, Act, ArpAnswer, Boot, Cause, DUMP_PATIENCE, Line, Questions,
    ROUNDS_TO_CONVICT, RegistersFinding, RequestsAnswer, STALLED_AFTER, STILL_BUSY_RATIO, State,
    Tally, Testimony, Watch,
};
use crate::{
    activity::Activity,
    config::Policy,
    qmp::{QmpEvent, RunState},
    sample::{Missing, ProcessState},
};

/// What QEMU's monitor has to say about a VM.
#[derive(Clone, Debug, PartialEq)]
pub enum Monitor {
    /// It answers; the run state as last told.
    Answers(RunState),
    /// Nothing is known through it, and why: no socket, held by another client, refused.
    Unknown(String),
    /// It answered before, and no longer does.
    Unresponsive(String),
}

/// All that one step goes by.
#[derive(Clone, Debug)]
pub struct Evidence<'a> {
    /// What moved during this tick.
    pub activity: &'a Activity,
    /// QEMU's monitor.
    pub monitor: &'a Monitor,
    /// The witnesses' answers, where a round has ended since the last step.
    pub testimony: Option<&'a Testimony>,
    /// An address is known that ARP could be asked for.
    pub arp_possible: bool,
}

/// Advances `watch` by one tick that ended at `now`; `tick` is how long one should take.
pub fn step(
    watch: &mut Watch,
    evidence: &Evidence<'_>,
    policy: &Policy,
    tick: Duration,
    now: Duration,
) -> Act {
    if evidence.activity.elapsed > tick * 3 + Duration::from_secs(1) {
        // Nobody watched meanwhile: what looks like one long silence may be our own.
        begin_anew(watch, "the daemon itself was held up", now);
    }
    watch.line.level(evidence.activity, now);
    match hear(watch, evidence.monitor, None, now) {
        Some(act) => return act,
        None if convicted(&watch.state) && ended_badly(evidence.monitor) => return Act::Nothing,
        None => {}
    }
    if let Some(reason) = suspended(evidence) {
        return hold(watch, reason, evidence.activity.elapsed, now);
    }
    // A guest that was restarted is to show life itself; it is asked only when its time is up.
    let heard = match watch.state {
        State::Crashed { .. } | State::Failed { .. } => false,
        State::Recovering { deadline, .. } => now >= deadline,
        State::Starting
        | State::Alive
        | State::Suspect { .. }
        | State::Held
        | State::Unobservable => true,
    };
    let testimony = evidence.testimony.filter(|_| heard);
    if testimony.is_some_and(|said| matches!(said.arp, ArpAnswer::Answered(_))) {
        watch.boot.arp_answered = true;
    }
    if let Some(sign) = sign_of_life(evidence.activity) {
        return match lives(watch, sign, now) {
            Act::Nothing => calibrate(watch, evidence, policy, now),
            act => act,
        };
    }
    if let Some(reason) = not_the_guests_fault(watch, evidence, now) {
        return hold(watch, reason, evidence.activity.elapsed, now);
    }
    if let Some(missing) = blind(evidence.activity) {
        return unobservable(watch, missing.to_string(), evidence.activity.elapsed, now);
    }
    if let Some(sign) = testimony.and_then(acquittal) {
        return lives(watch, sign, now);
    }
    silent(watch, evidence, policy, now)
}

/// Takes note of what the guest or KVM says outright, which needs no silence and no witness: an event,
/// or the run state. `None` where that changes nothing.
pub fn hear(
    watch: &mut Watch,
    monitor: &Monitor,
    event: Option<&QmpEvent>,
    now: Duration,
) -> Option<Act> {
    match event {
        // One reset from outside brings up to four of the guest's own: they belong to it.
        Some(QmpEvent::Reset { .. }) if matches!(watch.state, State::Recovering { .. }) => {
            watch.boot = Boot::new(now);
        }
        Some(QmpEvent::Reset { guest: true }) => {
            reset(watch, "the guest reset itself", now);
            return Some(Act::GuestReset);
        }
        Some(QmpEvent::Reset { guest: false }) => {
            reset(watch, "it was reset from outside", now);
            // The run state is still that of the boot before.
            return None;
        }
        Some(QmpEvent::GuestCrashloaded) => watch.boot.dumping_since = Some(now),
        Some(QmpEvent::GuestPanicked { action }) if !convicted(&watch.state) => {
            let reason = format!("the guest reported its own panic (QEMU's action: {action})");
            return Some(convict(watch, Cause::Panicked, reason, now));
        }
        _ => {}
    }
    let Monitor::Answers(run_state) = monitor else { return None };
    let (cause, reason) = announcement(run_state)?;
    (!convicted(&watch.state)).then(|| convict(watch, cause, reason.to_owned(), now))
}

/// The run states that say that a guest crashed.
fn announcement(run_state: &RunState) -> Option<(Cause, &'static str)> {
    match run_state {
        RunState::GuestPanicked => Some((Cause::Panicked, "QEMU says that the guest panicked")),
        RunState::InternalError => Some((Cause::InternalError, "KVM gave up: an internal error")),
        RunState::Watchdog => {
            Some((Cause::Watchdog, "the guest's watchdog fired, and QEMU paused it"))
        }
        _ => None,
    }
}

fn ended_badly(monitor: &Monitor) -> bool {
    matches!(monitor, Monitor::Answers(run_state) if announcement(run_state).is_some())
}

fn reset(watch: &mut Watch, why: &str, now: Duration) {
    watch.reboot(now, why);
    watch.enter(State::Starting, why.to_owned(), now);
}

/// Convicted, and nothing came of it yet.
fn convicted(state: &State) -> bool {
    matches!(state, State::Crashed { .. } | State::Failed { .. })
}

/// Whether somebody stopped this VM on purpose, so that it can show no life.
fn suspended(evidence: &Evidence<'_>) -> Option<String> {
    if let Monitor::Answers(run_state) = evidence.monitor
        && *run_state != RunState::Running
    {
        return Some(match run_state {
            RunState::Paused => "paused by someone".to_owned(),
            RunState::Suspended => "the guest suspended itself".to_owned(),
            RunState::Shutdown => "the guest powered itself off; QEMU was told to stay".to_owned(),
            RunState::Inmigrate => "waiting for a migration to come in".to_owned(),
            RunState::Prelaunch => "not started yet".to_owned(),
            RunState::IoError => {
                "paused by a storage error: mend the storage, then `cont`; a reset would lose data"
                    .to_owned()
            }
            other => format!("its run state is {other}"),
        });
    }
    match evidence.activity.process {
        ProcessState::Stopped => {
            Some("QEMU itself is stopped by a signal (SIGSTOP) or a debugger".to_owned())
        }
        ProcessState::Gone => Some("QEMU is ending".to_owned()),
        ProcessState::Running | ProcessState::Uninterruptible => None,
    }
}

/// Why this VM's silence says nothing about its guest, if so.
fn not_the_guests_fault(watch: &Watch, evidence: &Evidence<'_>, now: Duration) -> Option<String> {
    if let Ok(storage) = evidence.activity.storage
        && storage.in_flight > 0
        && storage.oldest.is_none_or(|oldest| oldest >= STALLED_AFTER)
    {
        let requests = counted(storage.in_flight, "request");
        let oldest = storage.oldest.map_or_else(String::new, |oldest| {
            format!(", the oldest for {:.1} s", oldest.as_secs_f64())
        });
        return Some(format!(
            "{requests} in flight and none completes{oldest}: the host's storage is stalled"
        ));
    }
    if watch.line.starved {
        return Some("its vCPUs want to run, and the host hardly lets them".to_owned());
    }
    let dumping =
        watch.boot.dumping_since.filter(|since| now.saturating_sub(*since) < DUMP_PATIENCE);
    dumping.map(|_| "the guest said that it is writing its own crash dump".to_owned())
}

/// No verdict while `reason` holds; afterwards its window begins anew.
fn hold(watch: &mut Watch, reason: String, elapsed: Duration, now: Duration) -> Act {
    watch.line = Line::begin(now, &format!("none since it was held: {reason}"));
    // A guest that waits to be started, or that was paused while it booted, has its grace before it.
    watch.boot.began = now.min(watch.boot.began + elapsed);
    no_verdict(watch, State::Held, reason, elapsed, now)
}

/// No verdict while a figure is missing; afterwards its window begins anew.
fn unobservable(watch: &mut Watch, reason: String, elapsed: Duration, now: Duration) -> Act {
    watch.line = Line::begin(now, "none since a figure was missing");
    no_verdict(watch, State::Unobservable, reason, elapsed, now)
}

fn no_verdict(
    watch: &mut Watch,
    state: State,
    reason: String,
    elapsed: Duration,
    now: Duration,
) -> Act {
    match &mut watch.state {
        // A conviction outlasts the pause that QEMU itself makes of it.
        State::Crashed { .. } | State::Failed { .. } => {}
        // Time in which it could show no life, or nobody could see it, is not its own.
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

/// Nobody watched meanwhile: what was seen before says nothing about a silence now.
pub(super) fn begin_anew(watch: &mut Watch, why: &str, now: Duration) {
    watch.line = Line::begin(now, &format!("none since the window began anew: {why}"));
    match &mut watch.state {
        State::Suspect { .. } => {
            watch.enter(State::Alive, format!("its window began anew: {why}"), now);
        }
        State::Recovering { tally, .. } => *tally = Tally::default(),
        State::Starting
        | State::Alive
        | State::Crashed { .. }
        | State::Held
        | State::Failed { .. }
        | State::Unobservable => {}
    }
}

fn sign_of_life(activity: &Activity) -> Option<String> {
    if let Ok(Some(network)) = &activity.network
        && network.guest_packets > 0
    {
        return Some(format!("guest sent {}", counted(network.guest_packets, "packet")));
    }
    match &activity.storage {
        Ok(storage) if storage.completed > 0 => {
            Some(format!("guest completed {}", counted(storage.completed, "request")))
        }
        _ => None,
    }
}

fn counted(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// An answer that only a living guest gives.
fn acquittal(testimony: &Testimony) -> Option<String> {
    let Testimony { arp, registers, requests } = testimony;
    match (arp, registers, requests) {
        (ArpAnswer::Answered(address), _, _) => {
            Some(format!("no I/O, but answered an ARP probe for {address}"))
        }
        (_, _, RequestsAnswer::Completed(number)) => {
            let requests = counted(*number, "request");
            Some(format!("no I/O that the host sees, but QEMU completed {requests} for it"))
        }
        (_, RegistersFinding::Healthy(what), _) => {
            Some(format!("no I/O, but its registers are sound: {what}"))
        }
        _ => None,
    }
}

fn lives(watch: &mut Watch, sign: String, now: Duration) -> Act {
    let act = match watch.state {
        State::Recovering { .. } => Act::Recovered,
        _ => Act::Nothing,
    };
    watch.boot.first_life.get_or_insert(now);
    watch.line.alive(now, sign.clone());
    watch.enter(State::Alive, sign, now);
    act
}

/// No sign of life in this tick, and nobody else to blame for it.
fn silent(watch: &mut Watch, evidence: &Evidence<'_>, policy: &Policy, now: Duration) -> Act {
    let flat = watch.line.silence(now) >= policy.flat_for;
    if watch.state == State::Unobservable
        && let Some(reason) = nothing_to_examine(evidence)
    {
        return unobservable(watch, reason, evidence.activity.elapsed, now);
    }
    match watch.state.clone() {
        State::Crashed { .. } | State::Failed { .. } => Act::Nothing,
        State::Recovering { deadline, .. } if now < deadline => Act::Nothing,
        State::Recovering { cause, deadline, tally } => {
            let stays = |tally| State::Recovering { cause, deadline, tally };
            match examine(watch, evidence, policy, tally, stays, now) {
                Act::Convict(cause) => Act::NotRecovered(cause),
                act => act,
            }
        }
        State::Starting if !past_grace(&watch.boot, policy, now) => Act::Nothing,
        State::Held | State::Unobservable
            if watch.boot.first_life.is_none() && !past_grace(&watch.boot, policy, now) =>
        {
            watch.enter(State::Starting, "within the boot grace".to_owned(), now);
            Act::Nothing
        }
        State::Alive if !flat => calibrate(watch, evidence, policy, now),
        State::Starting | State::Held | State::Unobservable if !flat => {
            watch.enter(State::Alive, "no sign of life was due yet".to_owned(), now);
            Act::Nothing
        }
        State::Starting | State::Held | State::Unobservable | State::Alive => {
            examine(watch, evidence, policy, Tally::default(), suspect, now)
        }
        State::Suspect { tally } => examine(watch, evidence, policy, tally, suspect, now),
    }
}

/// Probes an address while all is well, so that its silence later means something.
fn calibrate(watch: &mut Watch, evidence: &Evidence<'_>, policy: &Policy, now: Duration) -> Act {
    let due = watch.wants_calibration(now);
    if !(due && evidence.arp_possible && past_grace(&watch.boot, policy, now)) {
        return Act::Nothing;
    }
    watch.boot.calibrated = Some(now);
    Act::Ask(Questions { arp: true, registers: false })
}

/// A guest that still tests its address for duplicates would take a probe for a conflict (RFC 5227).
fn past_grace(boot: &Boot, policy: &Policy, now: Duration) -> bool {
    now.saturating_sub(boot.began) >= policy.boot_grace
}

fn suspect(tally: Tally) -> State {
    State::Suspect { tally }
}

/// Weighs what was answered, and asks again where that isn't enough; until then the state is what
/// `undecided` makes of the tally.
fn examine(
    watch: &mut Watch,
    evidence: &Evidence<'_>,
    policy: &Policy,
    tally: Tally,
    undecided: impl FnOnce(Tally) -> State,
    now: Duration,
) -> Act {
    if let Some(reason) = nothing_to_examine(evidence) {
        return unobservable(watch, reason, evidence.activity.elapsed, now);
    }
    let questions = Questions { arp: past_grace(&watch.boot, policy, now), registers: true };
    let Some(testimony) = evidence.testimony else {
        // Between two rounds the last answers stay in view.
        if tally.rounds == 0 {
            let reason = suspicion(&watch.line, None, now);
            watch.enter(undecided(tally), reason, now);
        }
        return Act::Ask(questions);
    };
    let tally = tally.count(testimony, watch.boot.arp_answered);
    let paused_maybe = !matches!(evidence.monitor, Monitor::Answers(_));
    let convicted = conviction(&watch.line, testimony, tally, paused_maybe, policy, now);
    if let Some((cause, reason)) = convicted {
        return convict(watch, cause, reason, now);
    }
    let reason = suspicion(&watch.line, Some(testimony), now);
    watch.enter(undecided(tally), reason, now);
    Act::Ask(questions)
}

/// Why a suspect can't be examined: neither its vCPUs' level nor QEMU's word can be had.
fn nothing_to_examine(evidence: &Evidence<'_>) -> Option<String> {
    match (&evidence.activity.vcpus, evidence.monitor) {
        (Err(missing), _) => Some(missing.to_string()),
        (_, Monitor::Unresponsive(why)) => Some(format!("QEMU's monitor does not answer: {why}")),
        _ => None,
    }
}

/// A figure without which silence can't be told from blindness.
fn blind(activity: &Activity) -> Option<&Missing> {
    activity.network.as_ref().err().or(activity.storage.as_ref().err())
}

fn suspicion(line: &Line, testimony: Option<&Testimony>, now: Duration) -> String {
    let silence = line.silence(now).as_secs_f64();
    let Some(Testimony { arp, registers, requests }) = testimony else {
        return format!("silent for {silence:.1} s; asking its witnesses");
    };
    let arp = match arp {
        ArpAnswer::NotAsked(why) => format!("ARP not asked ({why})"),
        ArpAnswer::Answered(address) => format!("{address} answers ARP"),
        ArpAnswer::Silent { address, probes } => {
            format!("{address} left {probes} ARP probes unanswered")
        }
    };
    let registers = match registers {
        RegistersFinding::Unavailable(why) => format!("registers not seen ({why})"),
        RegistersFinding::Unresponsive(why) => format!("QEMU's monitor did not answer ({why})"),
        RegistersFinding::Healthy(what) => format!("registers are sound ({what})"),
        RegistersFinding::AllHalted => "every vCPU is halted with interrupts off".to_owned(),
        RegistersFinding::Stuck(what) => format!("registers are stuck ({what})"),
        RegistersFinding::Inconclusive(what) => format!("registers say neither ({what})"),
    };
    let requests = match requests {
        // Of most VMs the host sees all, and nothing is to be said.
        RequestsAnswer::NotAsked(_) => "",
        RequestsAnswer::Unmoved => "; QEMU completed no request for it",
        RequestsAnswer::Completed(_) => "; QEMU completed requests for it",
    };
    format!("silent for {silence:.1} s; {arp}; {registers}{requests}")
}

/// Whether the evidence is complete, as the rows of the verdict's table have it.
///
/// `paused_maybe`: QEMU doesn't tell the run state. A VM that somebody paused stands still and answers
/// nothing, just as a halted one, so that only a vCPU that runs on can then speak against it.
fn conviction(
    line: &Line,
    testimony: &Testimony,
    tally: Tally,
    paused_maybe: bool,
    policy: &Policy,
    now: Duration,
) -> Option<(Cause, String)> {
    let still = Line::held_for(line.still_since, policy.flat_for, now);
    let pinned = Line::held_for(line.pinned_since, policy.flat_for, now);
    let seen = suspicion(line, Some(testimony), now);
    if tally.halted >= ROUNDS_TO_CONVICT && still {
        return Some((
            Cause::Halted,
            format!(
                "{seen}; its vCPUs together used less than {STILL_BUSY_RATIO} of a CPU all along"
            ),
        ));
    }
    if tally.stuck >= ROUNDS_TO_CONVICT && pinned {
        return Some((Cause::Spinning, format!("{seen}; a vCPU was pinned all along")));
    }
    // A QEMU that stopped answering may be frozen with its guest in it.
    let frozen_maybe = matches!(testimony.registers, RegistersFinding::Unresponsive(_))
        || paused_maybe && line.still_since.is_some();
    if tally.arp_silent >= ARP_ROUNDS_TO_CONVICT && !frozen_maybe {
        let cause = match testimony.registers {
            RegistersFinding::AllHalted => Cause::Halted,
            RegistersFinding::Stuck(_) => Cause::Spinning,
            _ => Cause::Silent,
        };
        return Some((cause, format!("{seen}; it had answered ARP before in this boot")));
    }
    let nobody_to_ask = tally.unseen == tally.rounds && tally.arp_silent == 0;
    let long = policy.unconfirmed_flat_for;
    if nobody_to_ask && tally.rounds >= ROUNDS_TO_CONVICT && line.silence(now) >= long {
        let unconfirmed =
            |level| format!("{seen}; unconfirmed, but {level} for {} s", long.as_secs());
        if Line::held_for(line.zero_since, long, now) && !paused_maybe {
            return Some((Cause::Halted, unconfirmed("its vCPUs stood still")));
        }
        if Line::held_for(line.pinned_since, long, now) {
            return Some((Cause::Spinning, unconfirmed("a vCPU was pinned")));
        }
    }
    None
}

fn convict(watch: &mut Watch, cause: Cause, reason: String, now: Duration) -> Act {
    watch.enter(State::Crashed { cause }, reason, now);
    Act::Convict(cause)
}
