//! What a VM's owner has to do with it: by what it is restarted, and what is remembered of a QEMU beyond its end.

use std::collections::{HashMap, HashSet};

use super::{engine::Engine, respawn::Awaited, vm::Stage};
use crate::{
    api::view::OwnerView,
    config::Means,
    discover::{Vm, VmId},
    qmp::{QmpEvent, QmpHandle},
    recovery::{
        Refusal,
        actuator::{MonitorSays, RestartContext, Situation, chosen, restart_plan},
        evidence::Wanted,
    },
    storage::incident::Incident,
    verdict::Cause,
};

/// What is remembered beyond a QEMU's end.
#[derive(Debug, Default)]
pub(super) struct Owners {
    /// The last `SHUTDOWN` event of each, unless it was reset since.
    pub(super) last_words: HashMap<VmId, QmpEvent>,
    /// QEMUs whose events are heard late or never: while they are suspected, their run state is asked for.
    late: HashSet<VmId>,
    /// VMs whose QEMU is gone, and that are to come back.
    pub(super) awaited: Vec<Awaited>,
}

impl Owners {
    /// Takes note of what may be a QEMU's last words.
    pub(super) fn hear(&mut self, id: VmId, event: &QmpEvent) {
        match event {
            QmpEvent::Shutdown { .. } => drop(self.last_words.insert(id, event.clone())),
            QmpEvent::Reset { .. } => drop(self.last_words.remove(&id)),
            _ => {}
        }
    }

    /// Notes that its events are heard late, or never.
    pub(super) fn hears_late_of(&mut self, id: VmId) {
        self.late.insert(id);
    }

    /// Whether its events are heard late, or never.
    pub(super) fn hears_late(&self, id: VmId) -> bool {
        self.late.contains(&id)
    }

    /// It is gone, and what was to be told of it was told.
    pub(super) fn forget(&mut self, id: VmId) {
        self.late.remove(&id);
        self.last_words.remove(&id);
    }
}

impl Engine {
    /// Who started it, for people.
    pub(super) fn owner_view(&self, vm: &Vm) -> OwnerView {
        let means = self.config.means_for(&vm.name);
        let by = chosen(&vm.ownership, &means);
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
        let case = watched.case.as_ref().ok_or_else(gone)?;
        let means = self.config.means_for(&watched.vm.name);
        chosen(&watched.vm.ownership, &means).map_err(|why| (why.to_string(), Stage::Closed))?;
        let hangs = watched.watch.state.cause() == Some(Cause::QemuUnresponsive);
        let waits = |why: String| (why, Stage::WaitingForMonitor);
        let is_planned = |says| {
            let situation = Situation {
                ownership: &watched.vm.ownership,
                means: &means,
                monitor: says,
                reboot_action: watched.vm.reboot_action,
                pid: id.pid,
                attempts: case.incident.attempts.len(),
            };
            restart_plan(&situation).map(drop).map_err(|refusal: Refusal| waits(refusal.0))
        };
        let monitor = match self.monitor_of(id) {
            // It hung, and may be in the best of health now.
            Ok(_) if hangs => return Err(waits("its monitor answers again".to_owned())),
            Ok(qmp) => Ok(qmp),
            Err(why) if hangs => is_planned(MonitorSays::Hangs).map(|()| Err(Some(why)))?,
            Err(why) if watched.qmp.is_some() => return Err(waits(why)),
            Err(_) => is_planned(MonitorSays::IsNotThere).map(|()| Err(None))?,
        };
        let wanted = self.wanted(watched, &case.incident);
        Ok(scene_of(wanted, means, monitor, &case.incident))
    }
}

/// What a program of its owner's is run for.
pub(super) fn scene_of(
    evidence: Wanted,
    means: Means,
    monitor: Result<QmpHandle, Option<String>>,
    incident: &Incident,
) -> RestartContext {
    let Incident { id, cause, reason, attempts, .. } = incident;
    let attempts = attempts.len();
    let hangs = cause == Cause::QemuUnresponsive.as_str();
    let (vm, incident) = (evidence.vm.clone(), (id.clone(), cause.clone(), reason.clone()));
    RestartContext { vm, means, monitor, attempts, hangs, incident, evidence }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_count_until_the_machine_is_reset() {
        let id = VmId { pid: 1, start_ticks: 2 };
        let said = QmpEvent::Shutdown { guest: true, reason: "guest-shutdown".to_owned() };
        let mut owners = Owners::default();
        owners.hear(id, &said);
        owners.hear(id, &QmpEvent::Stop);
        assert_eq!(owners.last_words.get(&id), Some(&said));
        owners.hear(id, &QmpEvent::Reset { guest: false });
        assert_eq!(owners.last_words.get(&id), None);
    }
}
