//! Views for the web page's list: the rows, and the figures of VMs in sight.

use std::collections::BTreeMap;

use super::{
    Views, VmFacts,
    teller::{Read, Teller},
    vm::whole_reason,
};
use crate::{
    sampler::ThreadTimes,
    vm::WatchedVm,
    web::{page_rows::Row, page_snapshot::FiguresView},
};
use flatline_detector::verdict::Cause;
use flatline_qemu::discover::VmId;

impl Views<'_> {
    /// The rows of all VMs.
    pub(in crate::daemon) fn rows(&self) -> impl Iterator<Item = (VmId, Row<'_>)> {
        self.registry.vms.iter().map(|(id, watched)| (*id, self.row(watched)))
    }

    fn row<'a>(&self, watched: &'a WatchedVm) -> Row<'a> {
        let vm = &watched.vm;
        let (state, cause, reason) = watched.detector.watch.shown_state();
        Row {
            pid: vm.id.pid,
            name: &vm.name,
            uuid: vm.uuid.as_deref(),
            uid: vm.origin.uid,
            state,
            cause: cause.map(Cause::as_str),
            reason: whole_reason(state, reason, watched.memory.told()),
            hold: self.recovery.held(&watched.key, self.context.wall),
            restarts_in_window: self.recovery.restarts_in_window(watched, self.context.wall).len(),
            vcpus: watched.sensors.threads.len(),
        }
    }
}

impl Teller {
    /// The figures of these VMs, by pid.
    pub(in crate::daemon) fn figures_in_sight(
        &self,
        vms: &[VmFacts],
    ) -> BTreeMap<u32, FiguresView> {
        let threads = self.read_threads(vms);
        vms.iter().map(|facts| (facts.vm.id.pid, self.in_sight(facts, threads.as_ref()))).collect()
    }

    fn in_sight(&self, facts: &VmFacts, threads: Option<&ThreadTimes>) -> FiguresView {
        let Read { storage, vcpus, .. } = self.read(facts, threads);
        let busy = |vcpus: Vec<_>| {
            vcpus.iter().map(|vcpu| self.busy(&facts.sight.level, vcpu)).sum::<Option<f64>>()
        };
        FiguresView {
            vcpu: vcpus.filter(|vcpus| !vcpus.is_empty()).and_then(busy),
            in_flight: storage.map(|storage| storage.in_flight()),
            flat_seconds: facts.flat.map(|flat| flat.as_secs_f64()),
        }
    }
}
