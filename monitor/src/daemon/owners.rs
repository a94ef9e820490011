//! What a VM's owner has to do with it: by what it is restarted, and what is remembered of a QEMU beyond its end.

use super::engine::Engine;
use crate::{
    api::view::OwnerView,
    config::ActuatorConfig,
    recovery::{
        Refusal, Stage,
        actuator::{MonitorSays, RestartContext, Situation, chosen, restart_plan},
        evidence::Wanted,
    },
    storage::incident::Incident,
};
use flatline_detector::verdict::Cause;
use flatline_qemu::{
    discover::{Vm, VmId},
    qmp::QmpHandle,
};

impl Engine {
    /// Who started it, for people.
    pub(super) fn owner_view(&self, vm: &Vm) -> OwnerView {
        let actuation = self.config.actuation_for(&vm.name);
        let by = chosen(&vm.ownership, &actuation);
        OwnerView {
            kind: vm.ownership.owner.kind().to_owned(),
            name: vm.ownership.owner.name(),
            certain: vm.ownership.is_certain,
            actuator: by.as_ref().ok().map(|actuator| actuator.as_str().to_owned()),
            refusal: by.err().map(|refusal| refusal.to_string()),
        }
    }

    /// What a restart of this VM may use, or why it can't be begun, and what its case waits for then.
    pub(super) fn scene(&self, id: VmId) -> Result<RestartContext, (String, Stage)> {
        let gone = || ("it is gone".to_owned(), Stage::Closed);
        let watched = self.vms.get(&id).ok_or_else(gone)?;
        let case = watched.recovery.case.as_ref().ok_or_else(gone)?;
        let actuation = self.config.actuation_for(&watched.vm.name);
        chosen(&watched.vm.ownership, &actuation)
            .map_err(|why| (why.to_string(), Stage::Closed))?;
        let hangs = watched.detector.watch.state.cause() == Some(Cause::QemuUnresponsive);
        let waits = |why: String| (why, Stage::WaitingForMonitor);
        let is_planned = |says| {
            let situation = Situation {
                ownership: &watched.vm.ownership,
                actuation: &actuation,
                monitor: says,
                reboot_action: watched.vm.reboot_action,
                pid: id.pid,
                attempts: case.incident.attempts.len(),
            };
            restart_plan(&situation).map(drop).map_err(|refusal: Refusal| waits(refusal.0))
        };
        let monitor = match watched.link.ready() {
            // It hung, and may be in the best of health now.
            Ok(_) if hangs => return Err(waits("its monitor answers again".to_owned())),
            Ok(qmp) => Ok(qmp),
            Err(why) if hangs => is_planned(MonitorSays::Hangs).map(|()| Err(Some(why)))?,
            Err(why) if watched.link.qmp.is_some() => return Err(waits(why)),
            Err(_) => is_planned(MonitorSays::IsNotThere).map(|()| Err(None))?,
        };
        let wanted = self.wanted(watched, &case.incident);
        Ok(scene_of(wanted, actuation, monitor, &case.incident))
    }
}

/// What a program of its owner's is run for.
pub(super) fn scene_of(
    evidence: Wanted,
    actuation: ActuatorConfig,
    monitor: Result<QmpHandle, Option<String>>,
    incident: &Incident,
) -> RestartContext {
    let Incident { id, cause, reason, attempts, .. } = incident;
    let attempts = attempts.len();
    let hangs = cause == Cause::QemuUnresponsive.as_str();
    let (vm, incident) = (evidence.vm.clone(), (id.clone(), cause.clone(), reason.clone()));
    RestartContext { vm, actuation, monitor, attempts, hangs, incident, evidence }
}
