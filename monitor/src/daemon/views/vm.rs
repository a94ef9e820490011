//! View of one VM, as `status` has it.

use std::time::Duration;

use monitor_ebpf::StorageCounters;

use super::{Views, last_sample};
use crate::{
    api::view::{NetworkView, OwnerView, StorageView, VcpuView, VmView},
    recovery::actuator::chosen,
    sampler::ticks,
    vm::WatchedVm,
};
use flatline_detector::verdict::State;
use flatline_qemu::discover::Vm;
use flatline_samples::InFlightAges;

impl Views<'_> {
    /// What `status` says of a VM.
    pub(super) fn vm(&self, watched: &WatchedVm) -> VmView {
        let sample = last_sample(watched);
        let activity = watched.sensors.newest_activity();
        let clocks = sample.and_then(|sample| sample.vcpus.as_ref().ok());
        let vcpus = clocks.into_iter().flatten().map(|clock| VcpuView {
            id: clock.index,
            tid: clock.tid,
            busy_ratio: activity
                .and_then(|activity| activity.vcpus.as_ref().ok())
                .and_then(|vcpus| vcpus.iter().find(|vcpu| vcpu.tid == clock.tid))
                .map(|vcpu| vcpu.busy),
        });
        let network = sample.and_then(|sample| sample.network.as_ref().ok().copied().flatten());
        let sees_to_guest = sample.is_some_and(|sample| sample.sees_to_guest);
        let storage = sample.and_then(|sample| sample.storage.as_ref().ok());
        let in_flight = sample.and_then(|sample| sample.in_flight);
        let restarts = self.recovery.restarts_in_window(watched, self.context.wall);
        let (state, cause, reason) = watched.detector.watch.shown_state();
        VmView {
            name: watched.vm.name.clone(),
            uuid: watched.vm.uuid.clone(),
            pid: watched.vm.id.pid,
            accelerator: watched.vm.accelerator.to_string(),
            owner: self.owner_view(&watched.vm),
            run_state: watched.link.run_state.as_ref().map(ToString::to_string),
            state: state.to_owned(),
            cause: cause.map(|cause| cause.to_string()),
            reason: said(watched, state, reason),
            since: self.context.wall_clock(watched.detector.watch.since),
            flat_seconds: self.flat(watched).map(|flat| flat.as_secs_f64()),
            restarts_in_window: u32::try_from(restarts.len()).unwrap_or(u32::MAX),
            hold: self.recovery.held(watched.key(), self.context.wall),
            guest_resets_in_window: self.guest_resets_in_window(watched),
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
            storage: storage.map(|storage| storage_view(storage, in_flight)),
            heartbeat: self.heartbeat_view(watched),
            memory: watched.memory.view(),
        }
    }

    /// Time since the last sign of life; `None` where that can't be told.
    pub(super) fn flat(&self, watched: &WatchedVm) -> Option<Duration> {
        let is_seen = watched.detector.watch.state != State::Unobservable;
        is_seen.then(|| watched.silence(self.context.now))
    }

    /// How often the guest was reset by itself within `boot_loop_window`; a burst counts once.
    pub(super) fn guest_resets_in_window(&self, watched: &WatchedVm) -> usize {
        let (now, window) = (self.context.now, watched.detector.detection.policy.boot_loop_window);
        watched.detector.watch.resets.iter().filter(|at| now.saturating_sub(**at) < window).count()
    }

    /// What started the QEMU, and what would restart it.
    fn owner_view(&self, vm: &Vm) -> OwnerView {
        let actuation = self.context.config.actuation_for(&vm.name);
        let by = chosen(&vm.ownership, &actuation);
        OwnerView {
            kind: vm.ownership.owner.kind().to_owned(),
            name: vm.ownership.owner.name(),
            certain: vm.ownership.is_certain,
            actuator: by.as_ref().ok().map(|actuator| actuator.as_str().to_owned()),
            refusal: by.err().map(|refusal| refusal.to_string()),
        }
    }
}

/// Why a VM stands where it does. That its guest thrashes is no verdict, but worth to know of one that is neither well
/// nor dead.
fn said(watched: &WatchedVm, state: &str, reason: &str) -> String {
    match (state, watched.memory.thrashing()) {
        ("alive" | "suspect" | "unobservable", Some(thrashing)) => format!("{reason}; {thrashing}"),
        _ => reason.to_owned(),
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
        in_flight: storage.tracked_ops.saturating_sub(storage.completed_ops),
        oldest_in_flight_seconds: ages.map(|ages| ages.oldest.as_secs_f64()),
        mean_in_flight_seconds: ages.map(|ages| (ages.total / requests(ages)).as_secs_f64()),
    }
}
