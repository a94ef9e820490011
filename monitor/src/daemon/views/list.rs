//! Views for the web page's list: the rows, and the figures of VMs in sight.

use std::collections::BTreeMap;

use super::{
    KeptClocks, Views, VmFacts,
    teller::{Teller, vcpus},
    vm::whole_reason,
};
use crate::{
    daemon::registry::Registry,
    vm::{Level, WatchedVm},
    web::{
        page_rows::{PageRows, Row},
        page_snapshot::FiguresView,
    },
};
use flatline_detector::verdict::Cause;
use flatline_qemu::discover::VmId;
use flatline_samples::VcpuTime;

/// Ticks in which the row of each VM that rests has its turn: little of it changes, with time or with what was read of its memory.
const TURNS: u64 = 4;

impl Views<'_> {
    /// Brings the list's rows up to this tick.
    pub(in crate::daemon) fn update_rows(&self, rows: &PageRows) {
        let Registry { vms, awake, .. } = self.registry;
        let tick = self.sampler.ticks;
        // As VMs are: by id.
        let is_due = |id: &VmId| {
            u64::from(id.pid) % TURNS == tick % TURNS || awake.binary_search(id).is_ok()
        };
        let ids = vms.keys().map(|id| (*id, is_due(id)));
        rows.update(tick, ids, |id| Some(self.row(vms.get(&id)?)));
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
        clocks: &KeptClocks,
    ) -> BTreeMap<u32, FiguresView> {
        let threads = if clocks.keep(vms) { None } else { Some(self.read_threads(vms)) };
        let times = |facts: &VmFacts| match &threads {
            None => clocks.read(facts),
            Some(threads) => vcpus(facts.vm.id, &facts.sight, threads.as_ref()),
        };
        vms.iter().map(|facts| (facts.vm.id.pid, self.in_sight(facts, &times))).collect()
    }

    fn in_sight(
        &self,
        facts: &VmFacts,
        times: &impl Fn(&VmFacts) -> Option<Vec<VcpuTime>>,
    ) -> FiguresView {
        let vcpu = match &facts.sight.level {
            // It was read in the tick.
            Level::OfTick(shares) => {
                (!shares.is_empty()).then(|| shares.iter().map(|(_, busy)| busy).sum())
            }
            level @ Level::Since(..) => {
                times(facts).filter(|vcpus| !vcpus.is_empty()).and_then(|vcpus| {
                    vcpus.iter().map(|vcpu| self.busy(level, vcpu)).sum::<Option<f64>>()
                })
            }
            Level::Unknown => None,
        };
        FiguresView {
            vcpu,
            in_flight: self.storage(facts).map(|storage| storage.in_flight()),
            flat_seconds: facts.flat.map(|flat| flat.as_secs_f64()),
        }
    }
}
