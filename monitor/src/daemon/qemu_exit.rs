//! What is made of a QEMU's end: a stop that somebody wanted, a replacement under way, or a crash of QEMU itself.
//!
//! A QEMU that ended without having been asked to is started again by its owner's means, where that is configured and
//! its budget allows it: see [`awaited`](super::respawn).

use tracing::info;

use super::{
    engine::Engine,
    respawn::{Awaited, FOUND_WITHIN, Progress},
    telling::subject,
};
use crate::{
    config::Actuator,
    recovery::{
        Case, EventKind, ExitReason, Stage,
        actuator::{chosen, is_power_cycle, start_plan},
        exit_reason,
    },
    storage::incident::{Incident, Outcome},
    vm::WatchedVm,
};
use flatline_detector::verdict::Cause;
use flatline_qemu::discover::{Owner, Vm};

impl Engine {
    /// QEMU itself is gone: told apart from a stop that somebody wanted, and started again where that is configured.
    pub(super) fn qemu_ended(&mut self, watched: &mut WatchedVm, status: Option<i32>) {
        let last_words = watched.link.shutdown.take();
        let why = exit_reason(status, last_words.as_ref(), watched.detector.watch.state.cause());
        let words = why.words();
        let open = watched.recovery.case.take().filter(|case| case.stage != Stage::Closed);
        let is_news = open.is_none();
        let incident = match open {
            Some(case)
                if case.stage == Stage::Restarting
                    && self.is_being_replaced(
                        &watched.vm,
                        &case.incident,
                        case.incident.attempts.len(),
                    ) =>
            {
                info!(vm = watched.vm.name, "its QEMU is being replaced: {words}");
                self.expect(watched, case.incident, Progress::Starting);
                return;
            }
            Some(Case { incident, stage: Stage::AwaitingLife { .. }, .. })
                // The last one is what it waits for the end of.
                if self.is_being_replaced(
                    &watched.vm,
                    &incident,
                    incident.attempts.len().saturating_sub(1),
                ) =>
            {
                // A command may end before what it leads to.
                info!(vm = watched.vm.name, "its QEMU is being replaced: {words}");
                self.expect(watched, incident, Progress::Expected(self.now() + FOUND_WITHIN));
                return;
            }
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
                let incident = self.new_incident(watched, Cause::QemuExited, reason);
                Incident { outcome: Some(Outcome::Refused), ..incident }
            }
            None => {
                info!(vm = watched.vm.name, "QEMU has ended: {words}");
                let who = subject(&watched.vm);
                self.notifier.publish(|events, now| events.ended(who, &words, now));
                return;
            }
        };
        self.start_again(watched, incident, is_news, &why);
    }

    /// Whether what is being done to it ends its QEMU on purpose, after so many `attempts` that brought no life.
    fn is_being_replaced(&self, vm: &Vm, incident: &Incident, attempts: usize) -> bool {
        if incident.cause == Cause::QemuUnresponsive.as_str() {
            // Nothing else is done to one that hangs.
            return true;
        }
        let actuation = self.config.actuation_for(&vm.name);
        if is_power_cycle(&vm.ownership, &actuation, attempts) {
            return true;
        }
        match chosen(&vm.ownership, &actuation) {
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
        watched: &mut WatchedVm,
        mut incident: Incident,
        is_news: bool,
        why: &ExitReason,
    ) {
        let actuation = self.config.actuation_for(&watched.vm.name);
        let refusal = if why.is_crash() {
            start_plan(&watched.vm.ownership, &actuation).err().map(|refusal| refusal.to_string())
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
            self.expect(watched, incident, Progress::Pausing(self.now()));
            self.start_due();
        }
    }

    fn expect(&mut self, watched: &WatchedVm, incident: Incident, progress: Progress) {
        let (vm, terms) = (watched.vm.clone(), watched.detector.terms.clone());
        self.awaited.push(Awaited { vm, terms, incident, progress });
    }
}
