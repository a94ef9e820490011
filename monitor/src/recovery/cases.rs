//! Cases: from a conviction to what came of it.
//!
//! One crash is one incident, however often the guest has to be restarted for it (`restarts`). What is to be done is
//! written down before it is done (`journal`), so that a later daemon goes on where this one was ended (`resume`).

use std::time::Duration;

use rustix::param::clock_ticks_per_second;
use tracing::info;

use super::{Case, Clearance, EventKind, Files, Stage, Supervisor, Tries};
use crate::{
    storage::incident::{Incident, Outcome, incident_id},
    vm::{Context, WatchedVm},
};
use flatline_detector::verdict::{Cause, Input, State};
use flatline_qemu::discover::VmId;

impl Supervisor {
    /// A VM was convicted just now.
    pub(super) fn convicted(
        &mut self,
        watched: &mut WatchedVm,
        cause: Cause,
        context: &Context<'_>,
    ) {
        let reason = watched.detector.watch.reason.clone();
        let silence = watched.detector.watch.silence.since_life(context.now);
        let earlier = watched.recovery.case.take().filter(|case| case.stage.is_open());
        // One that was not restarted, or showed no life since, crashed once and not twice.
        let (incident, tries) = match earlier.map(|case| *case) {
            Some(Case { incident, tries, .. }) => {
                (Incident { reason, outcome: None, ..incident }, tries)
            }
            None => {
                let incident = self.new_incident(watched, cause, reason, context);
                let detect_seconds = Some(silence.as_secs_f64());
                let incident = Incident { detect_seconds, ..incident };
                // At once, and not only when its restart is written down.
                self.writer.events.emit(EventKind::Detected, &incident);
                (incident, Tries::default())
            }
        };
        let case = Case::new(incident, Stage::WaitingForMonitor, context.now);
        watched.recovery.case = Some(Box::new(Case { tries, ..case }));
        self.proceed(watched, cause, context);
    }

    /// Restarts a convicted VM, as far as policy lets it.
    pub(super) fn proceed(&mut self, watched: &mut WatchedVm, cause: Cause, context: &Context<'_>) {
        match self.clearance(watched, context) {
            Clearance::Granted(limit) => {
                let room = self.room(context);
                match self.places.ask(watched.vm.id, watched.vm.origin.uid, room) {
                    Ok(place) => self.begin_restart(watched, limit, place, context),
                    Err(why) => self.await_turn(watched, &why),
                }
            }
            withheld => self.withhold(watched, cause, withheld, context),
        }
    }

    /// Does what is to be done of a VM that may not be restarted now by its own policy.
    pub(super) fn withhold(
        &mut self,
        watched: &mut WatchedVm,
        cause: Cause,
        clearance: Clearance,
        context: &Context<'_>,
    ) {
        let now = context.now;
        let Some(case) = &mut watched.recovery.case else { return };
        match clearance {
            Clearance::Granted(_) => {}
            Clearance::Wait(left, why) => {
                let begins = !matches!(case.stage, Stage::Pausing { .. });
                case.stage = Stage::Pausing { until: now + left };
                if begins {
                    let left = Duration::from_secs(left.as_secs().saturating_add(1));
                    let left = humantime::format_duration(left);
                    let incident = &case.incident.id;
                    info!(vm = watched.vm.name, incident, "restarted in {left} and not now: {why}");
                    watched.detector.watch.reason =
                        format!("{}; restarted in {left}: {why}", case.incident.reason);
                    self.writer.record(&case.incident);
                }
            }
            Clearance::ObserveOnly => {
                let why = "only observing, nothing is touched";
                self.close(watched, Outcome::Observed, Some(why));
            }
            Clearance::Held(why) => self.leave_on_hold(watched, &why),
            Clearance::LimitReached(why) => {
                watched.step(&Input::LimitReached { cause, reason: why.clone() }, now);
                self.close(watched, Outcome::LimitReached, Some(&why));
            }
        }
    }

    /// The record of a crash that was found just now.
    pub(super) fn new_incident(
        &mut self,
        watched: &WatchedVm,
        cause: Cause,
        reason: String,
        context: &Context<'_>,
    ) -> Incident {
        let (detected_at, vm) = (context.wall, &watched.vm);
        let (name, uid) = (&vm.name, vm.origin.uid);
        let ran = context.now.saturating_sub(began(vm.id));
        let most_old = context.config.probes.max_vms;
        let is_written = self.allowances.take(uid, ran, most_old, context.now);
        let id = if is_written {
            self.store.new_id(detected_at, name)
        } else {
            incident_id(detected_at, name)
        };
        let silence = &watched.detector.watch.silence;
        Incident {
            uuid: watched.vm.uuid.clone(),
            uid: watched.key.uid,
            counted_for: watched.key.process,
            pid: watched.vm.id.pid,
            start_ticks: watched.vm.id.start_ticks,
            last_sign_of_life: Some(context.wall_clock(silence.life)),
            held_seconds: Some(silence.held.as_secs_f64()),
            is_only_counted: !is_written,
            ..Incident::new(id, name.clone(), cause.to_string(), reason, detected_at)
        }
    }

    /// A guest that resets itself again and again is not helped by one more reset.
    pub(super) fn give_up(&mut self, watched: &mut WatchedVm, cause: Cause, context: &Context<'_>) {
        self.close(watched, Outcome::NotRecovered, None);
        let reason = watched.detector.watch.reason.clone();
        let incident = self.new_incident(watched, cause, reason, context);
        let incident = self.write_only(watched, incident, Outcome::LimitReached);
        watched.recovery.case = Some(Box::new(Case::new(incident, Stage::Closed, context.now)));
    }

    /// Something is wrong inside of a guest that is left alone all the same.
    pub(super) fn report(&mut self, watched: &mut WatchedVm, cause: Cause, context: &Context<'_>) {
        let reason = format!("{}; it is only told", watched.detector.watch.reason);
        let incident = self.new_incident(watched, cause, reason, context);
        let incident = self.write_only(watched, incident, Outcome::Observed);
        watched.recovery.reported = Some(incident);
    }

    /// Writes down an incident for which nothing is done, with its recording.
    fn write_only(
        &self,
        watched: &WatchedVm,
        mut incident: Incident,
        outcome: Outcome,
    ) -> Incident {
        incident.outcome = Some(outcome);
        let recording = watched.detector.recorder.evidence(&mut incident);
        let kind = match outcome {
            Outcome::Observed => EventKind::AgentLost,
            _ => EventKind::Closed(outcome),
        };
        self.writer.events.emit(kind, &incident);
        self.writer.write(&incident, Vec::new(), recording);
        incident
    }

    /// What was reported of a guest is over.
    pub(super) fn beats_again(&mut self, watched: &mut WatchedVm, context: &Context<'_>) {
        let Some(mut incident) = watched.recovery.reported.take() else { return };
        let now = context.wall;
        incident.recovered_at = Some(now);
        incident.recover_seconds =
            now.duration_since(incident.detected_at).ok().map(|took| took.as_secs_f64());
        incident.reason = format!("{}; its heart beats again", incident.reason);
        self.writer.say(EventKind::AgentBack, &incident);
    }

    /// What was reported of a guest's agent is over with the boot in which it was so.
    pub(crate) fn end_reports(&self, watched: &mut WatchedVm) {
        if watched.detector.watch.state == State::Alive
            && watched.detector.watch.missed_beats().is_none()
            && let Some(reported) = watched.recovery.reported.take()
        {
            self.writer.events.emit(EventKind::AliveAgain, &reported);
        }
    }

    /// A guest that was convicted lives after all, or came back by a restart whose end was not seen.
    pub(super) fn lives_after_all(&mut self, watched: &mut WatchedVm, context: &Context<'_>) {
        let Some(case) = &mut watched.recovery.case else { return };
        let waits = case.stage.is_open() && !matches!(case.stage, Stage::AwaitingLife { .. });
        let heard = watched.detector.watch.liveness.heard.is_some_and(|at| at > case.since);
        if !(waits && heard && watched.detector.watch.state == State::Alive) {
            return;
        }
        if matches!(case.stage, Stage::ResetItself | Stage::ResetByAnother) {
            return self.recovered_by_itself(watched, context);
        }
        // A later crash is another one, for a later daemon as well.
        let lived_at = context.wall;
        if let (Some(last), None) = (case.incident.attempts.last(), case.incident.outcome) {
            let at = last.reset_at.unwrap_or(last.begun_at);
            case.incident.action.get_or_insert_with(|| "system_reset".to_owned());
            case.incident.action_at = Some(at);
            case.incident.recovered_at = Some(lived_at);
            case.incident.recover_seconds =
                lived_at.duration_since(at).ok().map(|took| took.as_secs_f64());
            self.close(watched, Outcome::Recovered, None);
        } else if case.incident.outcome.is_none() {
            self.writer.events.emit(EventKind::AliveAgain, &case.incident);
            case.incident.reason = format!("{}; it lives after all", case.incident.reason);
            case.incident.recovered_at = Some(lived_at);
            self.write_outcome(watched, Outcome::Refused, None);
        } else {
            case.stage = Stage::Closed;
            case.incident.recovered_at = Some(lived_at);
            self.writer.record(&case.incident);
        }
    }

    /// Closes a case of which nothing can be done for now; it waits in `stage`.
    pub(super) fn refuse(&mut self, watched: &mut WatchedVm, why: &str, stage: Stage) {
        self.close(watched, Outcome::Refused, Some(why));
        if let Some(case) = &mut watched.recovery.case {
            case.stage = stage;
        }
    }

    /// Says and writes down the outcome, and why where that isn't plain.
    pub(super) fn close(&mut self, watched: &mut WatchedVm, outcome: Outcome, why: Option<&str>) {
        let is_open = |case: &Case| case.stage != Stage::Closed;
        if watched.recovery.case.as_deref().is_some_and(is_open) {
            self.write_outcome(watched, outcome, why);
            if let Some(case) = &watched.recovery.case {
                self.writer.events.emit(EventKind::Closed(outcome), &case.incident);
            }
        }
    }

    fn write_outcome(&self, watched: &mut WatchedVm, outcome: Outcome, why: Option<&str>) {
        let is_crashed = watched.is_crashed();
        let Some(case) = &mut watched.recovery.case else { return };
        case.stage = Stage::Closed;
        case.incident.outcome = Some(outcome);
        if let Some(why) = why {
            case.incident.reason = format!("{}; {why}", case.grounds);
            // What the operator sees says both what it died of and why nothing was done.
            if is_crashed {
                case.incident.reason.clone_into(&mut watched.detector.watch.reason);
            }
        }
        self.write_case(watched, Vec::new());
    }

    /// Writes down the case of a VM as it stands, with its recording and further evidence.
    pub(super) fn write_case(&self, watched: &mut WatchedVm, files: Files) {
        let Some(case) = &mut watched.recovery.case else { return };
        let recording = watched.detector.recorder.evidence(&mut case.incident);
        self.writer.write(&case.incident, files, recording);
    }
}

/// When a process began, in whole seconds since the host's start.
fn began(vm: VmId) -> Duration {
    Duration::from_secs(vm.start_ticks / clock_ticks_per_second().max(1))
}
