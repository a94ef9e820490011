//! One restart: begun, waited for, and what came of it.

use tracing::{info, warn};

use super::{Case, Effect, Kept, Restart, RestartError, Stage, Stand, Supervisor, places::Place};
use crate::{
    storage::incident::{Attempt, Outcome},
    vm::{Context, WatchedVm},
};
use flatline_detector::verdict::{Cause, Input};
use flatline_qemu::{discover::ResetAction, text::error_chain};

impl Supervisor {
    /// Has the guest restarted at its place among the host's restarts, or notes why it can't be told.
    pub(super) fn begin_restart(
        &mut self,
        watched: &mut WatchedVm,
        limit: String,
        place: Place,
        context: &Context<'_>,
    ) {
        let restart = match self.restart_context(watched, context) {
            Ok(restart) => Box::new(restart),
            Err((why, stage)) => return self.refuse(watched, &why, stage),
        };
        let Some(case) = &mut watched.recovery.case else { return };
        case.stage = Stage::Restarting;
        watched.recovery.overtaken = restart.overtaken.clone();
        watched.memory.give_up();
        case.incident.outcome = None;
        // What became of a try before this one is over.
        case.incident.reason.clone_from(&case.grounds);
        watched.recovery.restarts += 1;
        let journal = self.journal(&case.incident, limit, Some(place));
        self.effects.push(Effect::Restart { vm: watched.vm.id, context: restart, journal });
    }

    /// A VM that waits for its restart: until its QEMU can be told of it, or its pause is over.
    pub(super) fn retry_restart(&mut self, watched: &mut WatchedVm, context: &Context<'_>) {
        let Some(case) = &watched.recovery.case else { return };
        let (stage, now) = (case.stage, context.now);
        let is_due = case.tries.not_before <= now;
        let (true, Some(cause)) = (watched.is_crashed(), watched.detector.watch.state.cause())
        else {
            return;
        };
        match stage {
            Stage::Pausing { until } if until <= now => self.proceed(watched, cause, context),
            Stage::WaitingForMonitor if is_due && watched.link.ready().is_ok() => {
                self.retry(watched, cause, context);
            }
            Stage::Resuming if is_due => self.resume(watched, cause, context),
            Stage::OnHold => self.end_hold(watched, context),
            Stage::Pausing { .. }
            | Stage::AwaitingPlace
            | Stage::Restarting
            | Stage::AwaitingLife { .. }
            | Stage::WaitingForMonitor
            | Stage::Resuming
            | Stage::WaitingForDump
            | Stage::ResetItself
            | Stage::ResetByAnother
            | Stage::Reopened
            | Stage::Closed => {}
        }
    }

    fn retry(&mut self, watched: &mut WatchedVm, cause: Cause, context: &Context<'_>) {
        match cause {
            // Said by the guest or KVM, and still to be read in the run state.
            Cause::Panicked | Cause::InternalError | Cause::Watchdog => {
                self.proceed(watched, cause, context);
            }
            // Convicted without a look at its registers, which can be had now.
            Cause::Halted
            | Cause::Spinning
            | Cause::Silent
            | Cause::BootLoop
            | Cause::QemuExited
            | Cause::QemuUnresponsive
            | Cause::UserlandDead
            | Cause::ServiceDead => {
                watched.step(&Input::Reexamine, context.now);
            }
        }
    }

    /// A restart ended, one way or the other; `attempts` are all restarts of its incident so far.
    pub(crate) fn restarted(
        &mut self,
        watched: &mut WatchedVm,
        attempts: Vec<Attempt>,
        mut result: Result<Restart, RestartError>,
        context: &Context<'_>,
    ) {
        let (id, now) = (watched.vm.id, context.now);
        if let Err(error) = &mut result
            && self.was_overtaken(watched, &attempts, error, context)
        {
            return;
        }
        let cause = watched.detector.watch.state.cause();
        let (Some(case), Some(cause)) = (&mut watched.recovery.case, cause) else { return };
        case.incident.attempts = attempts;
        match result {
            Ok(done) => {
                let incident = &case.incident.id;
                let (before, after) = done.run_states;
                let action = done.action;
                info!(
                    vm = watched.vm.name,
                    pid = id.pid,
                    incident,
                    "{action}: {before} -> {after}"
                );
                case.stage = Stage::AwaitingLife { since: done.at };
                case.incident.action = Some(action);
                case.incident.action_at = Some(done.at);
                let Kept { files, was_up } = done.kept;
                // A try before this one may have seen it.
                case.incident.was_up = was_up.unwrap_or(case.incident.was_up);
                let was_up = case.incident.was_up;
                case.incident.name_evidence(&files);
                self.write_case(watched, files);
                // What was asked before belongs to the time before.
                watched.link.forget_run_state();
                watched.link.run_state = Some(after);
                watched.step(&Input::Restarted { cause, was_up }, now);
                self.effects.push(Effect::ForgetBoot(id));
                self.put_back_later(watched, done.put_back);
            }
            Err(RestartError::StillWriting) => {
                case.stage = Stage::WaitingForDump;
                watched.step(&Input::StillWriting, now);
            }
            Err(RestartError::Refused(why)) => {
                watched.step(&Input::SetAside(format!("not restarted: {why}")), now);
                self.refuse(watched, &why.to_string(), Stage::Reopened);
            }
            Err(RestartError::Locked(why)) => self.leave_locked(watched, why, context),
            Err(RestartError::Unlocked) => self.end_lock(watched, context),
            Err(error) => self.restart_failed(watched, cause, error, context),
        }
    }

    /// A restart failed. Nothing says that the guest was restarted unless QEMU was told to reset it.
    fn restart_failed(
        &mut self,
        watched: &mut WatchedVm,
        cause: Cause,
        mut error: RestartError,
        context: &Context<'_>,
    ) {
        let (id, now) = (watched.vm.id, context.now);
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
                let why = format!("not restarted: {why}");
                self.refuse(watched, &why, Stage::WaitingForMonitor);
                self.put_back_later(watched, configured);
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
                self.write_case(watched, files);
                watched.link.forget_run_state();
                self.effects.push(Effect::AskRunState(id));
            }
            Stand::Told { at, action } => {
                case.stage = Stage::AwaitingLife { since: at };
                case.incident.action = Some(action.to_owned());
                case.incident.action_at = Some(at);
                case.incident.reason = format!("{}; {why}", case.grounds);
                self.write_case(watched, files);
                let reason = format!(
                    "its restart was begun because it was {cause}, and {why}; waiting for a sign of life"
                );
                watched.step_saying(&Input::Restarted { cause, was_up }, Some(reason), now);
                self.effects.push(Effect::ForgetBoot(id));
                self.put_back_later(watched, configured);
            }
        }
    }

    /// Has QEMU told again what it was `configured` to do at a reset, once this one is over.
    pub(super) fn put_back_later(&mut self, watched: &WatchedVm, configured: ResetAction) {
        if configured != ResetAction::Reset {
            let (vm, number) = (watched.vm.id, watched.recovery.restarts);
            self.effects.push(Effect::PutBackLater { vm, number, configured });
        }
    }

    /// The time for that has come after restart `number`, unless there was another one since.
    pub(crate) fn put_back(&mut self, watched: &WatchedVm, number: u64, configured: ResetAction) {
        let Ok(qmp) = watched.link.ready() else { return };
        if watched.recovery.restarts != number || watched.recovery.is_restarting() {
            return;
        }
        let name = watched.vm.name.clone();
        // Commands reach QEMU in this order: a restart that begins now tells it otherwise after this.
        self.effects.push(Effect::PutBack { name, qmp, configured });
    }

    /// QEMU's monitor can be used: it may not have been told again what to do at a reset after an earlier daemon's restart.
    pub(crate) fn monitor_ready(&mut self, watched: &mut WatchedVm) {
        if std::mem::take(&mut watched.recovery.put_back) {
            self.put_back_later(watched, watched.vm.reboot_action);
        }
    }

    /// A restarted guest showed life.
    pub(super) fn recovered(&mut self, watched: &mut WatchedVm, context: &Context<'_>) {
        if let Some(Case { incident, stage: Stage::AwaitingLife { since }, .. }) =
            watched.recovery.case.as_deref_mut()
        {
            let now = context.wall;
            incident.recovered_at = Some(now);
            incident.recover_seconds =
                now.duration_since(*since).ok().map(|took| took.as_secs_f64());
        }
        self.close(watched, Outcome::Recovered, None);
    }
}
