//! One restart: begun, waited for, and what came of it.

use std::time::SystemTime;

use tracing::{info, warn};

use super::{
    Message,
    engine::Engine,
    scribe::Log,
    vm::{Case, Stage},
};
use crate::{
    discover::{ResetAction, VmId},
    error_text::in_full,
    recover::{PUT_BACK_AFTER, Restart, RestartError, actuator::restart, put_back},
    report::incident::{Attempt, Outcome},
    verdict::{Cause, Input},
};

impl Engine {
    /// Has the guest restarted, or notes why it can't be told.
    pub(super) fn begin_restart(&mut self, id: VmId, limit: String) {
        let scene = match self.scene(id) {
            Ok(scene) => scene,
            Err((why, stage)) => return self.refuse(id, &why, stage),
        };
        let Some(watched) = self.vms.get_mut(&id) else { return };
        let Some(case) = &mut watched.case else { return };
        case.stage = Stage::Restarting;
        watched.memory.give_up();
        case.incident.outcome = None;
        watched.restarts += 1;
        let mut log = Log {
            scribe: self.scribe.clone(),
            store: self.store.clone(),
            incident: case.incident.clone(),
            limit,
        };
        let messages = self.messages.clone();
        let (counters, slot) = (self.counters.clone(), watched.slot.clone());
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
        let Some(case) = &watched.case else { return };
        let (stage, cause) = (case.stage, watched.watch.state.cause());
        let (true, Some(cause)) = (self.is_crashed(id), cause) else { return };
        match stage {
            Stage::Pausing { until } if until <= self.now() => self.proceed(id, cause),
            Stage::WaitingForMonitor if self.monitor_of(id).is_ok() => self.retry(id, cause),
            Stage::Resuming => self.resume(id, cause),
            Stage::OnHold => self.end_of_hold(id),
            Stage::Pausing { .. }
            | Stage::Restarting
            | Stage::AwaitingLife { .. }
            | Stage::WaitingForMonitor
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
                watched.feed(&Input::Reexamine, now);
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
        let cause = watched.watch.state.cause();
        let (Some(case), Some(cause)) = (&mut watched.case, cause) else { return };
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
                case.incident.was_up = done.was_up;
                case.incident.name_evidence(&done.evidence);
                let recording = watched.recorder.evidence(&mut case.incident);
                self.scribe.write(&case.incident, done.evidence, recording);
                watched.run_state = Some(done.run_states.1);
                // Whatever was asked before belongs to the time before.
                watched.run_state_answered = watched.run_state_asked;
                watched.feed(&Input::Restarted { cause, was_up: done.was_up }, now);
                self.forget_boot(id);
                self.put_back_later(id, done.put_back);
            }
            Err(RestartError::StillWriting) => {
                case.stage = Stage::WaitingForDump;
                watched.feed(&Input::StillWriting, now);
            }
            Err(RestartError::Refused(why)) => {
                watched.feed(&Input::SetAside(format!("not restarted: {why}")), now);
                self.refuse(id, &why.to_string(), Stage::Reopened);
            }
            Err(error @ (RestartError::Unknown(_) | RestartError::NotAsked(_))) => {
                self.refuse(id, &in_full(&error), Stage::WaitingForMonitor);
            }
            Err(mut error) => {
                // It may have been reset all the same: it gets its time to show life.
                let evidence = error.take_evidence();
                let why = in_full(&error);
                let incident = &case.incident.id;
                warn!(vm = watched.vm.name, pid = id.pid, incident, "restart: {why}");
                let (at, told) = match error {
                    RestartError::Step { reset_at, .. } => (reset_at, "system_reset"),
                    RestartError::Owner { reset_at, step, .. } => (reset_at, step),
                    _ => (Some(SystemTime::now()), "system_reset"),
                };
                case.stage = Stage::AwaitingLife { since: at.unwrap_or_else(SystemTime::now) };
                case.incident.action = at.map(|_| told.to_owned());
                case.incident.action_at = at;
                case.incident.reason = format!("{}; {why}", case.incident.reason);
                case.incident.name_evidence(&evidence);
                let recording = watched.recorder.evidence(&mut case.incident);
                self.scribe.write(&case.incident, evidence, recording);
                let configured = watched.vm.reboot_action;
                watched.feed(&Input::Restarted { cause, was_up: false }, now);
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
        let (number, messages) = (watched.restarts, self.messages.clone());
        tokio::spawn(async move {
            tokio::time::sleep(PUT_BACK_AFTER).await;
            let _ = messages.send(Message::PutBack(id, number, configured));
        });
    }

    /// The time for that has come after restart `number`, unless there was another one since.
    pub(super) fn put_back(&self, id: VmId, number: u64, configured: ResetAction) {
        let Some(watched) = self.vms.get(&id) else { return };
        let Ok(qmp) = self.monitor_of(id) else { return };
        if watched.restarts != number || watched.is_restarting() {
            return;
        }
        let vm = watched.vm.name.clone();
        // Commands reach QEMU in this order: a restart that begins now tells it otherwise after this.
        tokio::spawn(async move {
            match put_back(&qmp, configured).await {
                Ok(()) => info!(vm, "set-action reboot={}, as it was", configured.as_str()),
                Err(error) => {
                    warn!(vm, "what it does at a reset stays changed: {}", in_full(&error))
                }
            }
        });
    }

    /// A restarted guest showed life.
    pub(super) fn recovered(&mut self, id: VmId) {
        let Some(watched) = self.vms.get_mut(&id) else { return };
        if let Some(Case { incident, stage: Stage::AwaitingLife { since }, .. }) = &mut watched.case
        {
            let now = SystemTime::now();
            incident.recovered_at = Some(now);
            incident.recover_seconds =
                now.duration_since(*since).ok().map(|took| took.as_secs_f64());
        }
        self.close(id, Outcome::Recovered, None);
    }
}
