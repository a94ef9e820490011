//! Builds what a restart may use: its owner's actuation, the monitor, and what is to be gathered before.

use super::{
    Overtaken, Refusal, Stage, Supervisor,
    actuator::{MonitorSays, RestartContext, Situation, chosen, restart_plan},
    evidence::{Wanted, dump},
};
use crate::{
    config::{ActuatorConfig, EvidencePolicy, MemoryDump},
    storage::{incident::Incident, incidents::incidents_in},
    vm::{Context, WatchedVm},
};
use flatline_detector::verdict::Cause;
use flatline_qemu::{discover::VmId, qmp::QmpHandle};

impl Supervisor {
    /// What a restart of this VM may use, or why it can't be begun, and what its case waits for then.
    pub(super) fn restart_context(
        &self,
        watched: &WatchedVm,
        context: &Context<'_>,
    ) -> Result<RestartContext, (String, Stage)> {
        let gone = || ("it is gone".to_owned(), Stage::Closed);
        let case = watched.recovery.case.as_ref().ok_or_else(gone)?;
        let actuation = context.config.actuation_for(&watched.vm.name, watched.vm.origin.uid);
        chosen(&watched.vm, &actuation).map_err(|why| (why.to_string(), Stage::Closed))?;
        let hangs = watched.detector.watch.state.cause() == Some(Cause::QemuUnresponsive);
        let waits = |why: String| (why, Stage::WaitingForMonitor);
        let is_planned = |says| {
            let situation = Situation {
                vm: &watched.vm,
                actuation: &actuation,
                monitor: says,
                reboot_action: watched.vm.reboot_action,
                pid: watched.vm.id.pid,
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
        let wanted = self.wanted(watched, &case.incident, context);
        let was_locked = case.locked.is_some();
        let context = context_of(wanted, actuation, monitor, &case.incident);
        Ok(RestartContext { was_locked, ..context })
    }

    /// What is to be gathered of a VM that is about to be restarted. What is shown of it is added where that is known.
    fn wanted(&self, watched: &WatchedVm, incident: &Incident, context: &Context<'_>) -> Wanted {
        let EvidencePolicy { evidence_limit, memory_dump, memory_dump_limit, inject_nmi } =
            context.config.evidence_policy_for(&watched.vm.name, watched.vm.origin.uid);
        let retention = &context.config.retention;
        let memory = (memory_dump == MemoryDump::On).then(|| dump::Wanted {
            directory: retention.memory_dump_dir.clone(),
            quota_bytes: u64::from(retention.memory_dump_quota_mib) << 20,
            incidents: incidents_in(&context.config.paths.state_dir),
            user: watched.vm.origin.uid,
            limit: memory_dump_limit,
            under_way: self.dumps.clone(),
        });
        Wanted {
            limit: evidence_limit,
            announced: watched.detector.watch.state.cause() == Some(Cause::Panicked),
            memory,
            insight: watched.sensors.insight.clone(),
            own_dump: inject_nmi,
            asks: watched.recovery.case.as_ref().is_none_or(|case| !case.tries.is_curt),
            ..Wanted::nothing(watched.vm.clone(), incident.id.clone())
        }
    }

    /// How far the memory dump of a VM is.
    pub(crate) fn dump_of(&self, id: VmId) -> Option<dump::State> {
        self.dumps.of(id)
    }
}

/// What a program of its owner's is run for.
pub(super) fn context_of(
    evidence: Wanted,
    actuation: ActuatorConfig,
    monitor: Result<QmpHandle, Option<String>>,
    incident: &Incident,
) -> RestartContext {
    let Incident { id, cause, reason, attempts, .. } = incident;
    let attempts = attempts.len();
    let hangs = cause == Cause::QemuUnresponsive.as_str();
    let (vm, incident) = (evidence.vm.clone(), (id.clone(), cause.clone(), reason.clone()));
    let (was_locked, overtaken) = (false, Overtaken::default());
    RestartContext {
        vm,
        actuation,
        monitor,
        attempts,
        hangs,
        was_locked,
        incident,
        evidence,
        overtaken,
    }
}
