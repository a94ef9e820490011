//! What an earlier daemon left undone, whether it was told to end or killed at any moment.
//!
//! The last incident of a QEMU that still runs says how far it had come: nothing was begun, a restart was begun, QEMU
//! was told to reset the guest, or a limit was reached. What QEMU says of its run state then tells the rest.

use std::{
    collections::HashSet,
    time::{Duration, SystemTime},
};

use tracing::{info, warn};

use super::{Message, engine::Engine, incident_writer::RestartJournal};
use crate::{
    recovery::{Case, Clearance, EventKind, Remainder, RestartError, Stage, finish, remainder},
    storage::incident::{Attempt, Incident, Outcome},
};
use flatline_detector::verdict::{Cause, Input, Monitor, State, Tally};
use flatline_qemu::{
    discover::{self, VmId},
    text::error_chain,
};

/// How a VM is taken up that has an incident.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum TakenUp {
    /// It is a suspect, of which no life was seen since; should it be convicted before it shows any, it is of the same
    /// crash.
    Afresh(Incident),
    /// Its restart was begun: as one that crashed.
    Crashed(Incident, Cause),
    /// As one for which a person was called.
    Failed(Incident, Cause),
}

/// How to go on after `incident`, the last one of a QEMU that was started at `started_at` and still runs; `None` where all
/// was done, or it was another one before the host's last start. Somebody gave the VM a new start at `released_at`.
pub(super) fn take_up(
    incident: Incident,
    started_at: SystemTime,
    released_at: SystemTime,
) -> Option<TakenUp> {
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
    pub(super) fn incident(&self) -> &Incident {
        match self {
            Self::Afresh(incident) | Self::Crashed(incident, _) | Self::Failed(incident, _) => {
                incident
            }
        }
    }

    /// The state to begin in, with its reason, if it is not that of any VM; and the case.
    pub(super) fn begin(self, now: Duration) -> (Option<(State, String)>, Case) {
        let case = |incident, stage| Case::new(incident, stage, now);
        match self {
            Self::Afresh(incident) => {
                // Only of a guest whose kernel died it is known that it shows no life.
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

impl Engine {
    /// Goes on with a restart that an earlier daemon was ended in, as soon as QEMU tells its run state.
    pub(super) fn resume(&mut self, id: VmId, cause: Cause) {
        let Some(watched) = self.vms.get(&id) else { return };
        let (Monitor::Answers(run_state), Ok(qmp)) = (watched.link.monitor(), watched.link.ready())
        else {
            return;
        };
        let Some(attempt) =
            watched.recovery.case.as_ref().and_then(|case| case.incident.attempts.last())
        else {
            return;
        };
        let (configured, limit) = (watched.vm.reboot_action, attempt.limit.clone());
        let rest = remainder(&run_state, attempt.reset_at.is_some());
        info!(vm = watched.vm.name, %run_state, "an earlier daemon was ended while it restarted it: {rest:?} is left");
        match rest {
            Remainder::All => match self.clearance_of(id) {
                // The one that was begun is the one that counts.
                Some(Clearance::ObserveOnly | Clearance::Held(_)) => self.proceed(id, cause),
                _ => self.begin_restart(id, limit),
            },
            Remainder::Steps(steps) => {
                let Some(case) = self.vms.get_mut(&id).and_then(|vm| vm.recovery.case.as_mut())
                else {
                    return;
                };
                case.stage = Stage::Restarting;
                let (writer, store) = (self.writer.clone(), self.store.clone());
                let mut log =
                    RestartJournal { writer, store, incident: case.incident.clone(), limit };
                let messages = self.messages.clone();
                tokio::spawn(async move {
                    let result = finish(&qmp, &steps, configured, &mut log).await;
                    let _ = messages.send(Message::Finished(id, log.incident.attempts, result));
                });
            }
            Remainder::Nothing => self.finished(id, cause, None),
        }
    }

    /// What was left of a restart is done, or was nothing.
    pub(super) fn rest_is_done(
        &mut self,
        id: VmId,
        attempts: Vec<Attempt>,
        result: Result<String, RestartError>,
    ) {
        let Some(watched) = self.vms.get_mut(&id) else { return };
        let Some(cause) = watched.detector.watch.state.cause() else { return };
        if let Some(case) = &mut watched.recovery.case {
            case.incident.attempts = attempts;
        }
        if let Err(error) = &result {
            warn!(vm = watched.vm.name, "the rest of its restart: {}", error_chain(error));
        }
        self.finished(id, cause, result.ok().as_deref());
    }

    fn finished(&mut self, id: VmId, cause: Cause, done: Option<&str>) {
        let now = self.now();
        let Some(watched) = self.vms.get_mut(&id) else { return };
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
        self.writer.write(&case.incident, Vec::new(), None);
        // QEMU may have been told or not, where that was not written down.
        let reason = (!is_certain).then(|| {
            let begun = format!("its restart was begun because it was {cause}");
            format!("{begun}, and may have taken place; waiting for a sign of life")
        });
        watched.detector.step_saying(&watched.vm, &Input::Restarted { cause, was_up }, reason, now);
        self.forget_boot(id);
        self.put_back_later(id, configured);
    }

    /// The first sweep found these: whoever else has an incident without an end has no QEMU any more.
    pub(super) fn give_up_the_gone(&mut self, found: &HashSet<VmId>) {
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
            self.writer.events.emit(EventKind::Closed(outcome), &incident);
            self.writer.write(&incident, Vec::new(), None);
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
    fn who_had_failed_has_failed_until_somebody_released_it() {
        let failed = incident("spinning", Some(Outcome::LimitReached), 3);
        let up = |at| take_up(failed.clone(), UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(at));
        assert_eq!(up(0), Some(TakenUp::Failed(failed.clone(), Cause::Spinning)));
        assert_eq!(up(101), Some(TakenUp::Afresh(failed.clone())));
    }
}
