//! View of one VM, as `status` has it.

use std::borrow::Cow;

use monitor_ebpf::StorageCounters;

use super::{
    VmFacts,
    teller::{Read, Teller},
};
use crate::{
    api::view::{NetworkView, OwnerView, StorageView, VcpuView, VmView},
    recovery::actuator::{chosen, command_refusal},
    sampler::{ThreadTimes, ticks},
    vm::MemoryTold,
};
use flatline_qemu::discover::Vm;
use flatline_samples::InFlightAges;

impl Teller {
    /// What `status` says of these VMs.
    pub(in crate::daemon) fn views(&self, vms: &mut [VmFacts]) -> Vec<VmView> {
        self.read_memory(vms);
        let threads = self.read_threads(vms);
        vms.iter().map(|facts| self.view(facts, threads.as_ref())).collect()
    }

    /// What `status` says of a VM, with the times of its threads, or as its own clocks have them.
    pub(super) fn view(&self, facts: &VmFacts, threads: Option<&ThreadTimes>) -> VmView {
        let VmFacts { vm, sight, .. } = facts;
        let Read { network, storage, vcpus, said } = self.read(facts, threads);
        let vcpus = vcpus.into_iter().flatten().map(|clock| VcpuView {
            id: clock.index,
            tid: clock.tid,
            busy_ratio: self.busy(&sight.level, &clock),
        });
        let sees_to_guest = sight.sees_to_guest;
        VmView {
            name: vm.name.clone(),
            uuid: vm.uuid.clone(),
            pid: vm.id.pid,
            uid: Some(vm.origin.uid),
            accelerator: vm.accelerator.to_string(),
            owner: self.owner_view(vm),
            run_state: facts.run_state.as_ref().map(ToString::to_string),
            state: facts.state.to_owned(),
            cause: facts.cause.map(|cause| cause.to_string()),
            reason: whole_reason(facts.state, &facts.reason, &facts.memory).into_owned(),
            since: facts.since,
            flat_seconds: facts.flat.map(|flat| flat.as_secs_f64()),
            restarts_in_window: u32::try_from(facts.restarts_in_window).unwrap_or(u32::MAX),
            hold: facts.hold.clone(),
            guest_resets_in_window: facts.guest_resets_in_window,
            vcpus: vcpus.collect(),
            network: network.map(|network| NetworkView {
                guest_tx_packets: network.guest_tx_packets,
                guest_tx_bytes: network.guest_tx_bytes,
                guest_rx_packets: sees_to_guest.then_some(network.guest_rx_packets),
                guest_rx_bytes: sees_to_guest.then_some(network.guest_rx_bytes),
                guest_last_sent_seconds: self.since_jiffies(network.guest_tx_last_jiffies),
                probe_answers: network.probe_answers,
                arp_answers: network.arp_answers,
                ndp_answers: network.ndp_answers,
            }),
            storage: storage.map(|storage| storage_view(&storage, sight.in_flight)),
            heartbeat: self.heartbeat_view(&said),
            memory: facts.memory.view(),
        }
    }

    /// What started the QEMU, and what would restart it.
    fn owner_view(&self, vm: &Vm) -> OwnerView {
        let actuation = self.config.actuation_for(&vm.name, vm.origin.uid);
        let by = chosen(vm, &actuation);
        let command = by.as_ref().ok().and_then(|_| command_refusal(vm, &actuation));
        OwnerView {
            kind: vm.ownership.owner.kind().to_owned(),
            name: vm.ownership.owner.name(),
            certain: vm.ownership.is_certain,
            actuator: by.as_ref().ok().map(|actuator| actuator.as_str().to_owned()),
            refusal: by.err().map(|refusal| refusal.to_string()),
            command_refusal: command.map(|refusal| refusal.to_string()),
        }
    }
}

/// Why a VM stands where it does. That its guest thrashes is no verdict, but worth to know of one that is neither well
/// nor dead.
pub(super) fn whole_reason<'a>(state: &str, reason: &'a str, memory: &MemoryTold) -> Cow<'a, str> {
    match (state, memory.thrashing()) {
        ("alive" | "suspect" | "unobservable", Some(thrashing)) => {
            format!("{reason}; {thrashing}").into()
        }
        _ => reason.into(),
    }
}

fn storage_view(storage: &StorageCounters, ages: Option<InFlightAges>) -> StorageView {
    // What is looked at only when it matters has no value else.
    let ages = ages.filter(|ages| ages.requests > 0);
    let requests = |ages: InFlightAges| u32::try_from(ages.requests).unwrap_or(u32::MAX);
    StorageView {
        read_ops: storage.read_ops,
        read_bytes: storage.read_bytes,
        write_ops: storage.write_ops,
        write_bytes: storage.write_bytes,
        writeback_ops: storage.writeback_ops,
        writeback_bytes: storage.writeback_bytes,
        flush_ops: storage.flush_ops,
        discard_ops: storage.discard_ops,
        discard_bytes: storage.discard_bytes,
        completed_ops: storage.completed_ops,
        failed_ops: storage.failed_ops,
        completion_seconds: ticks(storage.completion_jiffies).as_secs_f64(),
        in_flight: storage.in_flight(),
        oldest_in_flight_seconds: ages.map(|ages| ages.oldest.as_secs_f64()),
        mean_in_flight_seconds: ages.map(|ages| (ages.total / requests(ages)).as_secs_f64()),
    }
}
