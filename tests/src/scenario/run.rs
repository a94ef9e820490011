//! Plays a scenario: does what it says, and watches what the daemon makes of it.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Expected, FLAT_FOR, Scenario, Stage};
use crate::cpu;
use crate::guest::Guest;
use crate::interrupt;

/// How long a guest is watched that is to be left alone, and how long one may take to be convicted: time enough
/// for all that the daemon would do about a silence.
pub(super) const WATCHED_FOR: Duration = Duration::from_secs(40);
/// For what QEMU says outright.
const TOLD_WITHIN: Duration = Duration::from_secs(20);
/// For a guest to come back, while others boot too.
const BACK_WITHIN: Duration = Duration::from_secs(60);
/// For a person to be called: a loop turns many times meanwhile.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(120);
/// Lines of the daemon's log that are kept.
const LOG_LINES: usize = 60;
/// How often the daemon is asked.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// What came of a scenario.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// What the daemon made of it, such as `crashed`, `held`, `left alone` or `gone`.
    pub verdict: String,
    /// The verdict's cause, if it has one.
    pub cause: Option<String>,
    /// Its reason in the daemon's words, and what was wrong about it.
    pub reason: String,
    /// From the fault to the verdict, where a verdict was due; it is looked for five times a second.
    pub detect: Option<Duration>,
    /// How long the host kept the daemon and the guest from its CPUs meanwhile, where a crash was to be found: the daemon gives
    /// a vCPU that is not let run the time that it did not get.
    pub withheld: Option<Duration>,
    /// When that verdict was seen.
    pub found_at: Option<SystemTime>,
    /// From the verdict to the first sign of life afterwards.
    pub recover: Option<Duration>,
    /// From QEMU's own word of the crash to its taking `system_reset`, by its own account, where it gave one.
    pub announced: Option<Duration>,
    /// Resets from outside of guests that had to be left alone, by the account of their own QEMUs, and of the
    /// scenario's guest after the one that it needed.
    pub wrong_resets: u32,
    /// Whether it is what was due, and no other guest was convicted.
    pub as_expected: bool,
    /// The end of the daemon's log, if it is not.
    pub log: Option<String>,
}

/// What the daemon says now.
pub(super) struct Look {
    /// No row: QEMU is gone.
    pub(super) state: Option<String>,
    pub(super) cause: Option<String>,
    pub(super) reason: String,
    pub(super) incidents: Vec<Value>,
}

/// Plays `scenario` on its stage, which is no use afterwards.
///
/// # Errors
///
/// If something does not work that has nothing to do with the verdict, or on a signal.
pub fn run(scenario: &Scenario, stage: &Stage) -> Result<Outcome> {
    if scenario.boots {
        // What happened while it booted is no fault of it.
        for guest in stage.others().chain([stage.guest()]) {
            guest.events()?;
        }
    }
    let fault = (scenario.fault)(stage).context("the fault could not be made")?;
    let mut outcome = watch(scenario.expected, stage, fault)?;
    let others: u32 = stage.others().map(resets_from_outside).sum();
    // A QEMU that has gone has said all before.
    let events = stage.guest().events().unwrap_or_default();
    let own = from_outside(&events);
    outcome.announced = announced(stage.guest(), outcome.cause.as_deref(), &events)?;
    let due = match scenario.expected {
        Expected::Crashed { recovers: true, .. } => 1,
        Expected::AsItAnswers { .. } => u32::from(outcome.cause.is_some()),
        // Each reset of a guest that is as dead afterwards is due.
        Expected::Crashed { recovers: false, .. } | Expected::Failed { .. } => own,
        Expected::LeftAlone { .. }
        | Expected::Held { .. }
        | Expected::Gone
        | Expected::SelfReboot => 0,
    };
    outcome.wrong_resets = others + own.saturating_sub(due);
    let incidents = stage.daemon.incidents()?;
    for incident in incidents.iter().filter(|incident| incident["vm"] != stage.guest().name()) {
        outcome.as_expected = false;
        outcome.reason.push_str(&format!("; {} was convicted: {incident}", incident["vm"]));
    }
    outcome.keep_log(stage);
    Ok(outcome)
}

/// How often QEMU was told to reset the guest.
pub(super) fn resets_from_outside(guest: &Guest) -> u32 {
    // A QEMU that has gone without an event cannot have been reset since.
    from_outside(&guest.events().unwrap_or_default())
}

fn from_outside(events: &[Value]) -> u32 {
    let is_one = |event: &&Value| event["event"] == "RESET" && event["data"]["guest"] == false;
    u32::try_from(events.iter().filter(is_one).count()).unwrap_or(u32::MAX)
}

/// How long QEMU's word of such a crash was left without an answer.
fn announced(guest: &Guest, cause: Option<&str>, events: &[Value]) -> Result<Option<Duration>> {
    match cause {
        Some("panicked") => guest.reset_after("GUEST_PANICKED", events),
        Some("watchdog") => guest.reset_after("WATCHDOG", events),
        // It says no more than that the vCPUs were stopped.
        Some("internal-error") => guest.reset_after("STOP", events),
        _ => Ok(None),
    }
}

fn look(stage: &Stage) -> Result<Look> {
    let name = stage.guest().name();
    let row = stage.row(name)?;
    let incidents = stage.daemon.incidents()?;
    let text = |field: &str| row.as_ref().and_then(|row| row[field].as_str()).map(str::to_owned);
    Ok(Look {
        state: text("state"),
        cause: text("cause"),
        reason: text("reason").unwrap_or_default(),
        incidents: incidents.into_iter().filter(|incident| incident["vm"] == name).collect(),
    })
}

/// Looks until `done` has an answer; after `limit` there is none, and the last look is returned.
pub(super) fn look_until(
    stage: &Stage,
    limit: Duration,
    mut done: impl FnMut(&Look) -> Result<bool>,
) -> Result<(bool, Look)> {
    let begin = Instant::now();
    loop {
        let now = look(stage)?;
        if done(&now)? {
            return Ok((true, now));
        }
        if begin.elapsed() >= limit {
            return Ok((false, now));
        }
        interrupt::sleep(POLL_INTERVAL)?;
    }
}

/// Looks for `watched_for` whether there is a conviction, and then for a moment when the state is as it should be:
/// also a healthy guest is suspected now and then, until it has answered. Returns the last look.
fn look_for(stage: &Stage, watched_for: Duration, states: &[&str]) -> Result<Look> {
    let (convicted, last) = look_until(stage, watched_for, |now| Ok(is_convicted(now)))?;
    if convicted {
        return Ok(last);
    }
    let is_so = |now: &Look| now.state.as_deref().is_some_and(|state| states.contains(&state));
    Ok(look_until(stage, TOLD_WITHIN, |now| Ok(is_so(now) || is_convicted(now)))?.1)
}

fn watch(expected: Expected, stage: &Stage, fault: SystemTime) -> Result<Outcome> {
    match expected {
        Expected::Crashed { causes, recovers } => crashed(stage, fault, causes, recovers),
        Expected::AsItAnswers { causes } => as_it_answers(stage, fault, causes),
        Expected::LeftAlone { states } => {
            let last = look_for(stage, WATCHED_FOR, states)?;
            let convicted = is_convicted(&last);
            let state = last.state.as_deref().unwrap_or("gone");
            let mut outcome = last.outcome("left alone");
            outcome.verdict = format!("left alone ({state})");
            outcome.as_expected = !convicted && states.contains(&state);
            Ok(outcome)
        }
        Expected::Held { reason_contains } => {
            let held = |now: &Look| {
                now.state.as_deref() == Some("held") && now.reason.contains(reason_contains)
            };
            let (is_held, _) = look_until(stage, TOLD_WITHIN, |now| Ok(held(now)))?;
            let detect = is_held.then(|| since(fault));
            let (convicted, last) = look_until(stage, WATCHED_FOR, |now| Ok(is_convicted(now)))?;
            let mut outcome = last.outcome(last.state.as_deref().unwrap_or("gone"));
            outcome.as_expected = is_held && held(&last) && !convicted;
            outcome.detect = detect;
            Ok(outcome)
        }
        Expected::Gone => {
            let (gone, last) = look_until(stage, TOLD_WITHIN, |now| Ok(now.state.is_none()))?;
            let detect = gone.then(|| since(fault));
            let mut outcome = last.outcome(last.state.as_deref().unwrap_or("gone"));
            outcome.as_expected = gone && last.incidents.is_empty();
            outcome.detect = detect;
            Ok(outcome)
        }
        Expected::SelfReboot => {
            let back = || stage.guest().banner_count() >= 2;
            let (is_back, _) = look_until(stage, BACK_WITHIN, |_| Ok(back()))?;
            let recover = is_back.then(|| since(fault));
            // Also what becomes of it afterwards.
            let last = look_for(stage, WATCHED_FOR, &["alive"])?;
            let convicted = is_convicted(&last);
            let mut outcome = last.outcome(if is_back { "rebooted itself" } else { "not back" });
            outcome.as_expected = is_back && !convicted && last.state.as_deref() == Some("alive");
            outcome.recover = recover;
            Ok(outcome)
        }
        Expected::Failed { causes } => {
            let (failed, last) = look_until(stage, GIVEN_UP_WITHIN, |now| {
                Ok(now.state.as_deref() == Some("failed"))
            })?;
            let detect = failed.then(|| since(fault));
            let mut outcome = last.outcome(last.state.as_deref().unwrap_or("gone"));
            if failed {
                // Not that of a conviction on the way there.
                (outcome.cause, outcome.reason) = (last.cause, last.reason);
            }
            outcome.as_expected = failed && outcome.has_cause_of(causes);
            outcome.detect = detect;
            Ok(outcome)
        }
    }
}

/// What the host withheld so far of the daemon that looks and of the guest that it looks at; `None` where one is gone.
fn withheld(stage: &Stage) -> Option<Duration> {
    let daemon = cpu::withheld(stage.daemon.pid()?).ok()?;
    Some(daemon + cpu::withheld(stage.guest().pid()).ok()?)
}

/// An incident is due, and where it helps one restart.
fn crashed(stage: &Stage, fault: SystemTime, causes: &[&str], recovers: bool) -> Result<Outcome> {
    let before = withheld(stage);
    let (convicted, last) = look_until(stage, WATCHED_FOR, |now| Ok(is_convicted(now)))?;
    if !convicted {
        return Ok(last.missed());
    }
    let detect = since(fault);
    let withheld = withheld(stage).zip(before).map(|(now, before)| now.saturating_sub(before));
    let mut outcome = with_incident(stage, last)?.outcome("crashed");
    (outcome.detect, outcome.withheld) = (Some(detect), withheld);
    outcome.found_at = Some(fault + detect);
    outcome.as_expected = outcome.has_cause_of(causes);
    if recovers {
        let verdict = Instant::now();
        let recovered =
            |now: &Look| now.incidents.iter().any(|incident| incident["outcome"] == "recovered");
        let limit = interrupt::patient(BACK_WITHIN);
        let (back, last) = look_until(stage, limit, |now| Ok(recovered(now)))?;
        outcome.recover = back.then(|| verdict.elapsed());
        outcome.as_expected &= back && last.incidents.len() == 1;
        if !back {
            let state = last.state.as_deref().unwrap_or("gone");
            outcome.reason.push_str(&format!("; not back, but {state}: {}", last.reason));
        }
    }
    Ok(outcome)
}

/// A conviction is due when the guest has sent nothing for long enough, by its tap's own counters, and wrong
/// before. Without one, the guest is asked in the end.
fn as_it_answers(stage: &Stage, fault: SystemTime, causes: &[&str]) -> Result<Outcome> {
    let tap = stage.tap.as_ref().context("a guest without a tap answers nothing")?;
    let (mut sent, mut heard) = (tap.counters()?.rx_packets, Instant::now());
    let mut convicted_within = |limit| {
        look_until(stage, limit, |now| {
            let packets = tap.counters()?.rx_packets;
            // A packet after the conviction is of the next boot.
            if packets != sent && !is_convicted(now) {
                (sent, heard) = (packets, Instant::now());
            }
            Ok(is_convicted(now))
        })
    };
    let (mut convicted, mut last) = convicted_within(WATCHED_FOR)?;
    if !convicted && stage.answers()? {
        let last = look_for(stage, Duration::ZERO, &["alive"])?;
        let mut outcome = last.outcome("left alone, as it answers");
        outcome.as_expected = !is_convicted(&last) && last.state.as_deref() == Some("alive");
        return Ok(outcome);
    }
    if !convicted {
        // It may have fallen silent just now.
        (convicted, last) = convicted_within(WATCHED_FOR)?;
    }
    if !convicted {
        let mut outcome = last.missed();
        outcome.reason.push_str("; it does not answer");
        return Ok(outcome);
    }
    let (detect, silence) = (since(fault), heard.elapsed());
    let mut outcome = with_incident(stage, last)?.outcome("crashed");
    outcome.detect = Some(detect);
    // The daemon looks once a second, and this is not at the same moment.
    outcome.as_expected =
        outcome.has_cause_of(causes) && silence + Duration::from_secs(2) >= FLAT_FOR;
    outcome.reason.push_str(&format!("; its tap was silent for {:.1} s", silence.as_secs_f64()));
    Ok(outcome)
}

/// An incident is written a moment after its verdict is shown.
pub(super) fn with_incident(stage: &Stage, now: Look) -> Result<Look> {
    if !now.incidents.is_empty() {
        return Ok(now);
    }
    Ok(look_until(stage, TOLD_WITHIN, |now| Ok(!now.incidents.is_empty()))?.1)
}

pub(super) fn is_convicted(now: &Look) -> bool {
    let state = now.state.as_deref();
    !now.incidents.is_empty() || matches!(state, Some("crashed" | "recovering" | "failed"))
}

pub(super) fn since(fault: SystemTime) -> Duration {
    fault.elapsed().unwrap_or_default()
}

impl Look {
    /// What it comes to; an incident counts for more than what is called for.
    pub(super) fn outcome(&self, verdict: &str) -> Outcome {
        let text = |incident: &Value, field: &str| incident[field].as_str().map(str::to_owned);
        let first = self.incidents.first();
        let cause = first.and_then(|incident| text(incident, "cause"));
        let cause = cause.or_else(|| self.cause.clone());
        let reason = first.and_then(|incident| text(incident, "reason"));
        Outcome {
            verdict: verdict.to_owned(),
            reason: reason.unwrap_or_else(|| self.reason.clone()),
            cause,
            ..Outcome::default()
        }
    }

    /// No verdict, and one was due.
    fn missed(&self) -> Outcome {
        self.outcome(&format!("missed ({})", self.state.as_deref().unwrap_or("gone")))
    }
}

impl Outcome {
    /// Keeps the daemon's log if there is something to look for.
    pub(super) fn keep_log(&mut self, stage: &Stage) {
        if !self.as_expected || self.wrong_resets > 0 {
            self.log = Some(stage.daemon.log_tail(LOG_LINES));
        }
    }

    fn has_cause_of(&self, causes: &[&str]) -> bool {
        self.cause.as_deref().is_some_and(|cause| causes.contains(&cause))
    }
}
