//! Figures of one VM, as metrics have them.

use super::{
    VmFacts,
    heartbeat::HeartbeatSummary,
    teller::{Read, Teller},
};
use crate::{
    metrics::{Beats, VmFigures},
    sampler::ThreadTimes,
};

impl Teller {
    /// What is published of these VMs as metrics.
    pub(in crate::daemon) fn figures(&self, vms: &mut [VmFacts]) -> Vec<VmFigures> {
        self.read_memory(vms);
        let threads = self.read_threads(vms);
        vms.iter().map(|facts| self.vm_figures(facts, threads.as_ref())).collect()
    }

    fn vm_figures(&self, facts: &VmFacts, threads: Option<&ThreadTimes>) -> VmFigures {
        let Read { network, storage, vcpus, said } = self.read(facts, threads);
        let beats = |summary: HeartbeatSummary<'_>| {
            let HeartbeatSummary { beats, failures, malformed, last } = summary;
            Beats { beats, failures, malformed, last_seconds: last.and_then(|(_, age)| age) }
        };
        let sight = &facts.sight;
        VmFigures {
            vm: facts.vm.clone(),
            mode: facts.mode,
            state: facts.state,
            cause: facts.cause,
            run_state: facts.run_state.clone(),
            flat: facts.flat,
            is_held: facts.hold.is_some(),
            is_counted: facts.is_counted,
            restarts: facts.restarts,
            guest_resets_in_window: facts.guest_resets_in_window,
            network,
            sees_to_guest: sight.slot.is_some() && sight.sees_to_guest,
            storage,
            oldest_in_flight: sight
                .in_flight
                .filter(|ages| ages.requests > 0)
                .map(|ages| ages.oldest),
            heartbeats: self.summary(&said).map(beats),
            memory: facts.memory.latest(),
            vcpus,
        }
    }
}
