//! Ends of QEMUs, told apart: a stop that was asked for, a replacement under way, or a crash of QEMU itself.
//!
//! A QEMU that ended without having been asked to is started again by its owner's actuation, where that is configured and
//! its budget allows it: see [`respawn`](super::respawn).

use tracing::info;

use super::{
    Case, EventKind, ExitReason, Stage, Supervisor,
    actuator::{chosen, is_power_cycle, start_plan},
    case::{Progress, Respawn},
    exit_reason,
    respawn::FOUND_WITHIN,
};
use crate::{
    config::Actuator,
    storage::incident::{Incident, Outcome},
    vm::{Context, Vms, WatchedVm},
};
use flatline_detector::verdict::Cause;
use flatline_qemu::discover::{Owner, Vm};

impl Supervisor {
    /// QEMU itself is gone: told apart from a stop that was wanted, and started again where that is configured. Returns how
    /// it ended, in words, where that was wanted and no case was open.
    pub(crate) fn qemu_ended(
        &mut self,
        watched: &mut WatchedVm,
        status: Option<i32>,
        vms: &Vms,
        context: &Context<'_>,
    ) -> Option<String> {
        let last_words = watched.link.shutdown.take();
        let why = exit_reason(status, last_words.as_ref(), watched.detector.watch.state.cause());
        let words = why.words();
        let open = watched.recovery.case.take().filter(|case| case.stage != Stage::Closed);
        let mut open = open.map(|case| *case);
        let under_way = open.as_ref().and_then(|Case { incident, stage, .. }| match stage {
            Stage::Restarting => Some((incident.attempts.len(), Progress::Starting)),
            // A command may end before what it leads to: then the last attempt is what it waits for the end of.
            Stage::AwaitingLife { .. } => Some((
                incident.attempts.len().saturating_sub(1),
                Progress::Expected(context.now + FOUND_WITHIN),
            )),
            _ => None,
        });
        if let Some((attempts, progress)) = under_way
            && let Some(Case { incident, .. }) = open.take_if(|case| {
                Self::is_being_replaced(&watched.vm, &case.incident, attempts, context)
            })
        {
            info!(vm = watched.vm.name, "its QEMU is being replaced: {words}");
            self.expect(watched, incident, progress);
            return None;
        }
        let is_news = open.is_none();
        let incident = match open {
            Some(Case { mut incident, stage, .. }) => {
                let was_told =
                    matches!(stage, Stage::AwaitingLife { .. }) || !incident.attempts.is_empty();
                incident.outcome =
                    Some(if was_told { Outcome::NotRecovered } else { Outcome::Refused });
                incident.reason = format!("{}; then QEMU ended: {words}", incident.reason);
                incident
            }
            None if why.is_crash() => {
                let reason = format!("QEMU is gone: {words}");
                let incident = self.new_incident(watched, Cause::QemuExited, reason, context);
                Incident { outcome: Some(Outcome::Refused), ..incident }
            }
            None => {
                return Some(words);
            }
        };
        self.start_again(watched, incident, (is_news, &why), vms, context);
        None
    }

    /// Whether what is being done to it ends its QEMU on purpose, after so many `attempts` that brought no life.
    fn is_being_replaced(
        vm: &Vm,
        incident: &Incident,
        attempts: usize,
        context: &Context<'_>,
    ) -> bool {
        if incident.cause == Cause::QemuUnresponsive.as_str() {
            // Nothing else is done to one that hangs.
            return true;
        }
        let actuation = context.config.actuation_for(&vm.name, vm.origin.uid);
        if is_power_cycle(vm, &actuation, attempts) {
            return true;
        }
        match chosen(vm, &actuation) {
            Ok(Actuator::Systemd | Actuator::Command) => true,
            Ok(Actuator::Qmp) => {
                // Without a monitor, a unit is restarted, and a command run.
                vm.qmp_sockets.is_empty()
                    && (!actuation.command.is_empty()
                        || matches!(vm.ownership.owner, Owner::SystemdUnit { .. }))
            }
            _ => false,
        }
    }

    /// Has a VM started again whose QEMU ended so, as far as that is configured and policy lets it.
    fn start_again(
        &mut self,
        watched: &WatchedVm,
        mut incident: Incident,
        (is_news, why): (bool, &ExitReason),
        vms: &Vms,
        context: &Context<'_>,
    ) {
        let actuation = context.config.actuation_for(&watched.vm.name, watched.vm.origin.uid);
        let refusal = if why.is_crash() {
            start_plan(&watched.vm, &actuation).err().map(|refusal| refusal.to_string())
        } else {
            Some("one that may have been stopped on purpose is not started".to_owned())
        };
        match refusal {
            Some(refusal) => incident.reason = format!("{}; {refusal}", incident.reason),
            None => incident.outcome = None,
        }
        let recording = watched.detector.recorder.evidence(&mut incident);
        if is_news {
            self.writer.events.emit(EventKind::Detected, &incident);
        }
        if let Some(outcome) = incident.outcome {
            self.writer.events.emit(EventKind::Closed(outcome), &incident);
        }
        self.writer.write(&incident, Vec::new(), recording);
        if incident.outcome.is_none() {
            self.expect(watched, incident, Progress::Pausing(context.now));
            self.start_due(vms, context);
        }
    }

    fn expect(&mut self, watched: &WatchedVm, incident: Incident, progress: Progress) {
        let (vm, key) = (watched.vm.clone(), watched.key.clone());
        let detection = watched.detector.detection.clone();
        self.respawns.push(Respawn { vm, key, detection, incident, progress });
    }
}
