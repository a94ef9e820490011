//! One restart: begun, waited for, and what came of it.

use std::time::SystemTime;

use tracing::{info, warn};

use super::{Message, engine::Engine, incident_writer::RestartJournal};
use crate::{
    recovery::{
        Case, Kept, PUT_BACK_AFTER, Restart, RestartError, Stage, Stand, actuator::restart,
        put_back,
    },
    storage::incident::{Attempt, Outcome},
};
use flatline_detector::verdict::{Cause, Input};
use flatline_qemu::{
    discover::{ResetAction, VmId},
    text::error_chain,
};

impl Engine {
    /// Has the guest restarted, or notes why it can't be told.
    pub(super) fn begin_restart(&mut self, id: VmId, limit: String) {
        let scene = match self.scene(id) {
            Ok(scene) => scene,
            Err((why, stage)) => return self.refuse(id, &why, stage),
        };
        let Some(watched) = self.vms.get_mut(&id) else { return };
        let Some(case) = &mut watched.recovery.case else { return };
        case.stage = Stage::Restarting;
        watched.memory.give_up();
        case.incident.outcome = None;
        // What became of a try before this one is over.
        case.incident.reason.clone_from(&case.grounds);
        watched.recovery.restarts += 1;
        let mut log = RestartJournal {
            writer: self.writer.clone(),
            store: self.store.clone(),
            incident: case.incident.clone(),
            limit,
        };
        let messages = self.messages.clone();
        let (counters, slot) = (self.counters.clone(), watched.sensors.slot.clone());
        let writes = move || {
            let row = counters.row(id, slot.clone().ok()?).ok()?;
            Some(row.storage.write_ops)
        };
        tokio::spawn(async move {
            let result = restart(&scene, writes, &mut log).await;
            let _ = messages.send(Message::Restarted(id, log.incident.attempts, result));
        });
    }

    /// A VM that waits for its restart: until its QEMU can be told of it, or its pause is over.
    pub(super) fn retry_restart(&mut self, id: VmId) {
        let Some(watched) = self.vms.get(&id) else { return };
        let Some(case) = &watched.recovery.case else { return };
        let (stage, cause) = (case.stage, watched.detector.watch.state.cause());
        let is_due = case.tries.not_before <= self.now();
        let (true, Some(cause)) = (watched.is_crashed(), cause) else { return };
        match stage {
            Stage::Pausing { until } if until <= self.now() => self.proceed(id, cause),
            Stage::WaitingForMonitor if is_due && watched.link.ready().is_ok() => {
                self.retry(id, cause);
            }
            Stage::Resuming if is_due => self.resume(id, cause),
            Stage::OnHold => self.end_of_hold(id),
            Stage::Pausing { .. }
            | Stage::Restarting
            | Stage::AwaitingLife { .. }
            | Stage::WaitingForMonitor
            | Stage::Resuming
            | Stage::WaitingForDump
            | Stage::Reopened
            | Stage::Closed => {}
        }
    }

    fn retry(&mut self, id: VmId, cause: Cause) {
        let now = self.now();
        match cause {
            // Said by the guest or KVM, and still to be read in the run state.
            Cause::Panicked | Cause::InternalError | Cause::Watchdog => self.proceed(id, cause),
            // Convicted without a look at its registers, which can be had now.
            Cause::Halted
            | Cause::Spinning
            | Cause::Silent
            | Cause::BootLoop
            | Cause::QemuExited
            | Cause::QemuUnresponsive
            | Cause::UserlandDead
            | Cause::ServiceDead => {
                let Some(watched) = self.vms.get_mut(&id) else { return };
                watched.step(&Input::Reexamine, now);
            }
        }
    }

    /// A restart ended, one way or the other.
    pub(super) fn restarted(
        &mut self,
        id: VmId,
        attempts: Vec<Attempt>,
        result: Result<Restart, RestartError>,
    ) {
        let now = self.now();
        let Some(watched) = self.vms.get_mut(&id) else { return };
        let cause = watched.detector.watch.state.cause();
        let (Some(case), Some(cause)) = (&mut watched.recovery.case, cause) else { return };
        case.incident.attempts = attempts;
        match result {
            Ok(done) => {
                info!(
                    vm = watched.vm.name,
                    pid = id.pid,
                    incident = case.incident.id,
                    "{}: {} -> {}",
                    done.action,
                    done.run_states.0,
                    done.run_states.1
                );
                case.stage = Stage::AwaitingLife { since: done.at };
                case.incident.action = Some(done.action);
                case.incident.action_at = Some(done.at);
                let Kept { files, was_up } = done.kept;
                // A try before this one may have seen it.
                case.incident.was_up = was_up.unwrap_or(case.incident.was_up);
                let was_up = case.incident.was_up;
                case.incident.name_evidence(&files);
                let recording = watched.detector.recorder.evidence(&mut case.incident);
                self.writer.write(&case.incident, files, recording);
                watched.link.run_state = Some(done.run_states.1);
                // Whatever was asked before belongs to the time before.
                watched.link.run_state_answered = watched.link.run_state_asked;
                watched.step(&Input::Restarted { cause, was_up }, now);
                self.forget_boot(id);
                self.put_back_later(id, done.put_back);
            }
            Err(RestartError::StillWriting) => {
                case.stage = Stage::WaitingForDump;
                watched.step(&Input::StillWriting, now);
            }
            Err(RestartError::Refused(why)) => {
                watched.step(&Input::SetAside(format!("not restarted: {why}")), now);
                self.refuse(id, &why.to_string(), Stage::Reopened);
            }
            Err(error) => self.restart_failed(id, cause, error),
        }
    }

    /// A restart failed. Nothing says that the guest was restarted unless QEMU was told to reset it.
    fn restart_failed(&mut self, id: VmId, cause: Cause, mut error: RestartError) {
        let now = self.now();
        let Some(watched) = self.vms.get_mut(&id) else { return };
        let Some(case) = &mut watched.recovery.case else { return };
        let (why, stand, Kept { files, was_up }) =
            (error_chain(&error), error.stand(), error.take_kept());
        let incident = &case.incident.id;
        warn!(vm = watched.vm.name, pid = id.pid, incident, "restart: {why}");
        case.incident.was_up = was_up.unwrap_or(case.incident.was_up);
        case.incident.name_evidence(&files);
        let (was_up, configured) = (case.incident.was_up, watched.vm.reboot_action);
        match stand {
            Stand::Untouched => {
                case.tries.fail(error.is_silence(), now);
                // QEMU never heard of it, so that it counts towards no limit.
                case.incident.attempts.pop_if(|last| last.reset_at.is_none());
                self.store.note_restarts(&case.incident);
                if !files.is_empty() {
                    self.writer.write(&case.incident, files, None);
                }
                self.refuse(id, &format!("not restarted: {why}"), Stage::WaitingForMonitor);
                self.put_back_later(id, configured);
            }
            Stand::Open { reset_at } => {
                case.tries.fail(true, now);
                case.stage = Stage::Resuming;
                case.incident.action = reset_at.map(|_| "system_reset".to_owned());
                case.incident.action_at = reset_at;
                case.grounds = format!("{}; {why}", case.grounds);
                let what = "what is left of its restart will be seen when QEMU answers";
                case.incident.reason = format!("{}; {what}", case.grounds);
                case.incident.reason.clone_into(&mut watched.detector.watch.reason);
                let recording = watched.detector.recorder.evidence(&mut case.incident);
                self.writer.write(&case.incident, files, recording);
                // What it was says nothing about what it is, nor does an answer to an earlier question.
                watched.link.run_state = None;
                watched.link.run_state_answered = watched.link.run_state_asked;
                self.ask_run_state(id);
            }
            Stand::Told { at, action } => {
                case.stage = Stage::AwaitingLife { since: at };
                case.incident.action = Some(action.to_owned());
                case.incident.action_at = Some(at);
                case.incident.reason = format!("{}; {why}", case.grounds);
                let recording = watched.detector.recorder.evidence(&mut case.incident);
                self.writer.write(&case.incident, files, recording);
                let reason = format!(
                    "its restart was begun because it was {cause}, and {why}; waiting for a sign of life"
                );
                watched.detector.step_saying(
                    &watched.vm,
                    &Input::Restarted { cause, was_up },
                    Some(reason),
                    now,
                );
                self.forget_boot(id);
                self.put_back_later(id, configured);
            }
        }
    }

    /// Has QEMU told again what it was `configured` to do at a reset, once this one is over.
    pub(super) fn put_back_later(&self, id: VmId, configured: ResetAction) {
        let Some(watched) = self.vms.get(&id).filter(|_| configured != ResetAction::Reset) else {
            return;
        };
        let (number, messages) = (watched.recovery.restarts, self.messages.clone());
        tokio::spawn(async move {
            tokio::time::sleep(PUT_BACK_AFTER).await;
            let _ = messages.send(Message::PutBack(id, number, configured));
        });
    }

    /// The time for that has come after restart `number`, unless there was another one since.
    pub(super) fn put_back(&self, id: VmId, number: u64, configured: ResetAction) {
        let Some(watched) = self.vms.get(&id) else { return };
        let Ok(qmp) = watched.link.ready() else { return };
        if watched.recovery.restarts != number || watched.recovery.is_restarting() {
            return;
        }
        let vm = watched.vm.name.clone();
        // Commands reach QEMU in this order: a restart that begins now tells it otherwise after this.
        tokio::spawn(async move {
            match put_back(&qmp, configured).await {
                Ok(()) => info!(vm, "set-action reboot={}, as it was", configured.as_str()),
                Err(error) => {
                    warn!(vm, "what it does at a reset stays changed: {}", error_chain(&error))
                }
            }
        });
    }

    /// A restarted guest showed life.
    pub(super) fn recovered(&mut self, id: VmId) {
        let Some(watched) = self.vms.get_mut(&id) else { return };
        if let Some(Case { incident, stage: Stage::AwaitingLife { since }, .. }) =
            &mut watched.recovery.case
        {
            let now = SystemTime::now();
            incident.recovered_at = Some(now);
            incident.recover_seconds =
                now.duration_since(*since).ok().map(|took| took.as_secs_f64());
        }
        self.close(id, Outcome::Recovered, None);
    }
}
