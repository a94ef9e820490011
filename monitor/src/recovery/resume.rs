//! What an earlier daemon left undone, whether it was told to end or killed at any moment.
//!
//! The last incident of a QEMU that still runs says how far it had come: nothing was begun, a restart was begun, QEMU
//! was told to reset the guest, or a limit was reached. What QEMU says of its run state then tells the rest.

use std::{
    collections::HashSet,
    time::{Duration, SystemTime},
};

use tracing::{info, warn};

use super::{
    Case, Clearance, Effect, EventKind, HOST_WINDOW, RecoveryState, Remainder, RestartError, Stage,
    Supervisor, remainder,
};
use crate::{
    identity::Key,
    storage::incident::{Attempt, Incident, Outcome},
    vm::{Context, WatchedVm},
};
use flatline_detector::verdict::{Cause, DetectionPolicy, Input, Monitor, State, Tally};
use flatline_qemu::{
    discover::{self, Vm, VmId},
    text::error_chain,
};

/// How a VM is taken up that has an incident.
#[derive(Clone, Debug, PartialEq)]
enum TakenUp {
    /// It is a suspect, of which no life was seen since; should it be convicted before it shows any, it is of the same
    /// crash.
    Afresh(Incident),
    /// Its restart was begun: as one that crashed.
    Crashed(Incident, Cause),
    /// As one for which a person was called.
    Failed(Incident, Cause),
}

/// How to go on after `incident`, the last one of a QEMU that was started at `started_at` and still runs; `None` where all
/// was done, or it was another one before the host's last start. An operator gave the VM a new start at `released_at`.
fn take_up(incident: Incident, started_at: SystemTime, released_at: SystemTime) -> Option<TakenUp> {
    // Times in records have whole seconds, rounded down.
    if incident.detected_at + Duration::from_secs(1) < started_at {
        return None;
    }
    // It lived after all, though nothing was done.
    if incident.recovered_at.is_some() {
        return None;
    }
    let cause = Cause::parse(&incident.cause);
    match (incident.outcome, cause) {
        (Some(Outcome::Recovered), _) => None,
        (Some(Outcome::LimitReached), Some(cause)) if incident.detected_at >= released_at => {
            Some(TakenUp::Failed(incident, cause))
        }
        // It was told, and that was all; a crash after it is another one.
        (Some(Outcome::Observed), Some(cause)) if cause.is_of_user_space() => None,
        (None, Some(cause)) if !incident.attempts.is_empty() => {
            Some(TakenUp::Crashed(incident, cause))
        }
        (_, _) => Some(TakenUp::Afresh(incident)),
    }
}

impl TakenUp {
    /// Its incident.
    fn incident(&self) -> &Incident {
        match self {
            Self::Afresh(incident) | Self::Crashed(incident, _) | Self::Failed(incident, _) => {
                incident
            }
        }
    }

    /// The state to begin in, with its reason, if it is not that of any VM; and the case.
    fn begin(self, now: Duration) -> (Option<(State, String)>, Case) {
        let case = |incident, stage| Case::new(incident, stage, now);
        match self {
            Self::Afresh(incident) => {
                // Only a guest whose kernel died is known to show no life.
                let died = Cause::parse(&incident.cause).filter(|cause| !cause.is_of_user_space());
                let suspect = died.map(|cause| {
                    let reason = format!(
                        "an earlier daemon found that it was {cause}, and saw no life of it since"
                    );
                    (State::Suspect { tally: Tally::default() }, reason)
                });
                (suspect, case(incident, Stage::Reopened))
            }
            Self::Crashed(incident, cause) => {
                let reason =
                    format!("{}; its restart was begun by an earlier daemon", incident.reason);
                let state = State::Crashed { cause };
                (Some((state, reason)), case(incident, Stage::Resuming))
            }
            Self::Failed(incident, cause) => {
                let state = State::Failed { cause };
                (Some((state, incident.reason.clone())), case(incident, Stage::Closed))
            }
        }
    }
}

impl Supervisor {
    /// What an earlier daemon left of `vm`, which was found just now and was started `age` ago: how to begin with it, if
    /// that is not as with any other, and what recovery remembers of it.
    pub(crate) fn begin(
        &mut self,
        vm: &Vm,
        age: Duration,
        detection: &DetectionPolicy,
        context: &Context<'_>,
    ) -> (Option<(State, String)>, RecoveryState) {
        let mut left = self.left.remove(&(vm.id.pid, vm.id.start_ticks));
        if let Some(incident) = &mut left {
            // An earlier version did not say whose it was.
            incident.uid.get_or_insert(vm.origin.uid);
        }
        let put_back = left.as_ref().is_some_and(|incident| !incident.attempts.is_empty());
        let process = left.as_ref().and_then(|incident| incident.counted_for);
        let released_at = self.ledger.counts_from(&Key::of(vm).of_process(process));
        let left = left.and_then(|incident| take_up(incident, context.wall - age, released_at));
        let (state, case) = match left {
            Some(taken_up) => {
                self.writer.events.emit(EventKind::TakenUp, taken_up.incident());
                let (state, case) = taken_up.begin(context.now);
                (state, Some(case))
            }
            None => self.adopt(vm, detection, context).unzip(),
        };
        (state, RecoveryState { case: case.map(Box::new), put_back, ..RecoveryState::default() })
    }

    /// Goes on with a restart that an earlier daemon was ended in, as soon as QEMU tells its run state.
    pub(super) fn resume(&mut self, watched: &mut WatchedVm, cause: Cause, context: &Context<'_>) {
        let (Monitor::Answers(run_state), Ok(qmp)) = (watched.link.monitor(), watched.link.ready())
        else {
            return;
        };
        let clearance = self.clearance(watched, context);
        let Some(case) = &mut watched.recovery.case else { return };
        let Some(attempt) = case.incident.attempts.last() else { return };
        let (configured, limit) = (watched.vm.reboot_action, attempt.limit.clone());
        let rest = remainder(&run_state, attempt.reset_at.is_some());
        let ago = context.wall.duration_since(attempt.begun_at);
        let counts = ago.map_or(true, |ago| ago < HOST_WINDOW);
        let room = self.room(context);
        let place = self.places.ask_again(watched.vm.origin.uid, counts, room);
        if rest == Remainder::All && place.is_none() {
            return;
        }
        info!(vm = watched.vm.name, %run_state, "an earlier daemon was ended while it restarted it: {rest:?} is left");
        match (rest, clearance) {
            // The one that was begun is the one that counts.
            (Remainder::All, Clearance::ObserveOnly | Clearance::Held(_)) => {
                self.proceed(watched, cause, context);
            }
            (Remainder::All, _) => {
                if let Some(place) = place {
                    self.begin_restart(watched, limit, place, context);
                }
            }
            (Remainder::Steps(steps), _) => {
                case.stage = Stage::Restarting;
                let (vm, journal) = (watched.vm.id, self.journal(&case.incident, limit, None));
                self.effects.push(Effect::Finish { vm, qmp, steps, configured, journal });
            }
            (Remainder::Nothing, _) => self.finished(watched, cause, None, context),
        }
    }

    /// What was left of a restart is done, in QEMU's words, or was nothing.
    pub(crate) fn rest_is_done(
        &mut self,
        watched: &mut WatchedVm,
        attempts: Vec<Attempt>,
        result: Result<String, RestartError>,
        context: &Context<'_>,
    ) {
        let Some(cause) = watched.detector.watch.state.cause() else { return };
        if let Some(case) = &mut watched.recovery.case {
            case.incident.attempts = attempts;
        }
        if let Err(error) = &result {
            warn!(vm = watched.vm.name, "the rest of its restart: {}", error_chain(error));
        }
        self.finished(watched, cause, result.ok().as_deref(), context);
    }

    fn finished(
        &mut self,
        watched: &mut WatchedVm,
        cause: Cause,
        done: Option<&str>,
        context: &Context<'_>,
    ) {
        let Some(case) = &mut watched.recovery.case else { return };
        let Some(attempt) = case.incident.attempts.last() else { return };
        let at = attempt.reset_at.unwrap_or(attempt.begun_at);
        let is_certain = attempt.reset_at.is_some() || done.is_some();
        let steps = ["system_reset"].into_iter().chain(done.filter(|done| !done.is_empty()));
        case.incident.action = Some(steps.collect::<Vec<_>>().join(", "));
        case.incident.action_at = Some(at);
        case.stage = Stage::AwaitingLife { since: at };
        case.incident.reason.clone_from(&case.grounds);
        let (was_up, configured) = (case.incident.was_up, watched.vm.reboot_action);
        self.writer.record(&case.incident);
        // QEMU may have been told or not, where that was not written down.
        let reason = (!is_certain).then(|| {
            let begun = format!("its restart was begun because it was {cause}");
            format!("{begun}, and may have taken place; waiting for a sign of life")
        });
        watched.step_saying(&Input::Restarted { cause, was_up }, reason, context.now);
        self.effects.push(Effect::ForgetBoot(watched.vm.id));
        self.put_back_later(watched, configured);
    }

    /// The first sweep found these: the others that have an incident without an end have no QEMU any more.
    pub(crate) fn give_up_the_gone(&mut self, found: &HashSet<VmId>) {
        for ((pid, start_ticks), incident) in std::mem::take(&mut self.left) {
            let is_there = found.contains(&VmId { pid, start_ticks })
                || discover::start_ticks(pid).ok() == Some(start_ticks);
            if is_there || incident.outcome.is_some() || pid == 0 {
                continue;
            }
            let outcome =
                if incident.attempts.is_empty() { Outcome::Refused } else { Outcome::NotRecovered };
            let reason = format!("{}; its QEMU ended while no daemon watched", incident.reason);
            let incident = Incident { outcome: Some(outcome), reason, ..incident };
            self.writer.say(EventKind::Closed(outcome), &incident);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn incident(cause: &str, outcome: Option<Outcome>, attempts: usize) -> Incident {
        let attempt = Attempt {
            begun_at: UNIX_EPOCH,
            run_state: "running".to_owned(),
            steps: Vec::new(),
            limit: "restart 1 of 3 within 1h".to_owned(),
            reset_at: None,
        };
        let text = |text: &str| text.to_owned();
        let detected_at = UNIX_EPOCH + Duration::from_secs(100);
        Incident {
            outcome,
            attempts: vec![attempt; attempts],
            ..Incident::new(text("id"), text("vm"), text(cause), text("why"), detected_at)
        }
    }

    #[test]
    fn what_is_over_is_left_alone_and_what_was_begun_goes_on() {
        let up = |incident: &Incident| take_up(incident.clone(), UNIX_EPOCH, UNIX_EPOCH);
        let over = incident("halted", Some(Outcome::Recovered), 1);
        assert_eq!(up(&over), None);
        let begun = incident("halted", None, 1);
        assert_eq!(up(&begun), Some(TakenUp::Crashed(begun.clone(), Cause::Halted)));
        for (outcome, attempts) in [
            (None, 0),
            (Some(Outcome::Observed), 0),
            (Some(Outcome::Refused), 0),
            (Some(Outcome::Refused), 1),
        ] {
            let undone = incident("halted", outcome, attempts);
            assert_eq!(up(&undone), Some(TakenUp::Afresh(undone.clone())));
        }
        assert_eq!(up(&incident("userland-dead", Some(Outcome::Observed), 0)), None);
        // A newer flatline may know more causes.
        let unknown = incident("bored", None, 1);
        assert_eq!(up(&unknown), Some(TakenUp::Afresh(unknown.clone())));
    }

    #[test]
    fn a_qemu_that_began_after_the_incident_is_another_one_though_it_has_its_pid() {
        let begun = incident("halted", None, 1);
        let up = |at| take_up(begun.clone(), UNIX_EPOCH + Duration::from_secs(at), UNIX_EPOCH);
        assert!(up(101).is_some());
        assert_eq!(up(102), None);
    }

    #[test]
    fn a_vm_that_had_failed_has_failed_until_it_is_released() {
        let failed = incident("spinning", Some(Outcome::LimitReached), 3);
        let up = |at| take_up(failed.clone(), UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(at));
        assert_eq!(up(0), Some(TakenUp::Failed(failed.clone(), Cause::Spinning)));
        assert_eq!(up(101), Some(TakenUp::Afresh(failed.clone())));
    }
}
