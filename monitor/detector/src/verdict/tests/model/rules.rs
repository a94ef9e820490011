//! The declared rules, evaluated over a model's facts: when a conviction may be given, and when it must have been.

use std::time::Duration;

use super::{Fact, Level, Model, PATIENCE, Said, says_crash};
use crate::{
    policy::Policy,
    verdict::{Cause, DUMP_BOOTS_WITHIN, Input, Monitor, State, tests::rig::TICK},
};
use flatline_samples::QmpEvent;

impl Model {
    /// Whether the declared rules allow this act, which the input that was noted last brought.
    pub(in crate::verdict::tests) fn may(
        &self,
        cause: Cause,
        input: &Input,
        before: &State,
        policy: &Policy,
        now: Duration,
    ) -> bool {
        if announces(input) {
            return matches!(cause, Cause::Panicked | Cause::InternalError | Cause::Watchdog);
        }
        let quiet = policy.flat_for.min(DUMP_BOOTS_WITHIN);
        if cause == Cause::Panicked && self.dump.is_some_and(|since| now - since >= quiet) {
            return true;
        }
        // Half a tick of the window is let off.
        let let_off = TICK / 2;
        let window = policy.flat_for - let_off;
        // A guest that does I/O in its firmware beyond its deadline shows life all the while.
        if let (State::Recovering { deadline, was_up: true, .. }, Input::Testimony(said)) =
            (before, input)
            && said.not_up().is_some()
        {
            return now >= *deadline;
        }
        if cause == Cause::QemuUnresponsive {
            let long = policy.unresponsive_for;
            return !long.is_zero()
                && !self.storm
                && self.last_level().judgeable_if_hanging
                && now - self.cleared_at() >= long
                && self.all_along(long, now, |level| level.hanging);
        }
        if now - self.cleared_at() < window || !self.last_level().judgeable {
            return false;
        }
        let last = |count: usize, so: fn(&Said) -> bool| {
            self.last_said(count).is_some_and(|said| said.iter().all(so))
        };
        let still = self.all_along(window, now, |level| level.still);
        let pinned = self.all_along(window, now, |level| level.pinned);
        let (halted, stuck) = (last(2, |said| said.halted), last(2, |said| said.stuck));
        // Last words name the cause, whatever else convicts; those from before the suspicion are not remembered.
        if cause == Cause::Panicked && !self.had_last_words() {
            return false;
        }
        let by_level = match cause {
            Cause::Halted => still && halted,
            Cause::Spinning => pinned && stuck,
            Cause::Panicked => still && halted || pinned && (stuck || self.last_said(2).is_some()),
            _ => false,
        };
        let lasted = still || pinned || self.silent_since().is_some_and(|at| now - at >= window);
        let by_silence =
            lasted && last(3, |said| said.silent) && last(1, |said| !said.unresponsive);
        let long = policy.unconfirmed_flat_for;
        let alone = now - self.cleared_at() >= long && last(2, |said| said.unseen && !said.silent);
        let unconfirmed = match cause {
            Cause::Halted => self.all_along(long - let_off, now, |level| level.zero),
            Cause::Spinning => self.all_along(long - let_off, now, |level| level.pinned),
            Cause::Panicked => {
                self.all_along(long - let_off, now, |level| level.zero)
                    || self.all_along(long - let_off, now, |level| level.pinned)
            }
            _ => false,
        };
        let is_deaf = halted || stuck || self.had_last_words() && self.last_said(2).is_some();
        (is_deaf || !(self.storm || self.last_level().undecided))
            && (by_level || by_silence || (alone && unconfirmed))
    }

    pub(super) fn had_last_words(&self) -> bool {
        self.said().any(|(_, said)| said.last_words)
    }

    /// Whether it has been dead so long, in all that can be seen, that it must have been convicted by now, and
    /// of what it died.
    /// `free_since`: since when it has neither been convicted nor restarted.
    pub(in crate::verdict::tests) fn must(
        &self,
        policy: &Policy,
        free_since: Duration,
        now: Duration,
    ) -> Option<Cause> {
        let span = policy.flat_for + PATIENCE;
        let begin = now.checked_sub(span)?;
        if begin < self.cleared_at().max(free_since) || self.dump.is_some() {
            return None;
        }
        // Starvation is remembered for a while.
        if self.starved.is_some_and(|at| begin < at + TICK * 5) {
            return None;
        }
        // Time in which it was held is none of its grace, and no tick is shorter than this.
        let (boot_began, age) = self.boot;
        let silent = |(at, fact): &&(Duration, Fact)| {
            (boot_began..=begin).contains(at)
                && matches!(fact, Fact::Silent(level) if level.usual && !level.excused)
        };
        let spent = u32::try_from(self.facts.iter().filter(silent).count()).unwrap_or(u32::MAX);
        if age + TICK * spent < policy.boot_grace {
            return None;
        }
        let all = |level: fn(&Level) -> bool, said: fn(&Said) -> bool| {
            self.since(begin).all(|fact| match fact {
                Fact::Silent(seen) => seen.usual && level(&seen),
                Fact::Said(answers) => said(&answers),
                Fact::Clears => false,
            })
        };
        // Ticks enough that nothing can have gone unseen.
        let ticks = self.since(begin).filter(|fact| matches!(fact, Fact::Silent(_))).count();
        if ticks + 1 < usize::try_from(span.as_secs()).unwrap() {
            return None;
        }
        if all(|level| level.still, |said| said.halted) {
            return Some(Cause::Halted);
        }
        if all(|level| level.pinned, |said| said.stuck) {
            return Some(Cause::Spinning);
        }
        all(|level| level.pinned, |said| said.silent && !said.unresponsive).then_some(Cause::Silent)
    }
}

/// Whether this input itself says that the guest crashed.
fn announces(input: &Input) -> bool {
    let told = |monitor: &Monitor| matches!(monitor, Monitor::Answers(state) if says_crash(state));
    match input {
        Input::Tick(tick) => told(&tick.monitor),
        Input::Event { monitor, event } => {
            told(monitor) || matches!(event, QmpEvent::GuestPanicked { .. })
        }
        Input::RunState(run_state) => says_crash(run_state),
        _ => false,
    }
}
