//! Views of VMs and the host, for clients: what is known of each VM, and why its verdict is what it is.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use monitor_ebpf::StorageCounters;

use super::event_loop::EventLoop;
use crate::{
    api::view::{
        HistoryView, HostView, NetworkView, OwnerView, PolicyView, ProbeState, ProbeView, ShowView,
        SignalView, StatusView, StorageView, TapView, VcpuView, VmView,
    },
    probes::{WITNESSES, kvm},
    recovery::actuator::chosen,
    sampler::ticks,
    vm::{PENDING, WatchedVm},
};
use flatline_detector::verdict::{
    Monitor, PINNED_RATIO, STILL_BUSY_RATIO, State, Statement, Watch,
};
use flatline_qemu::discover::{OpenDevices, Vm, VmId};
use flatline_samples::{InFlightAges, Missing};

/// The most VMs that are named with one reason.
const MOST_NAMED: usize = 4;

impl EventLoop {
    pub(super) fn status(&self) -> StatusView {
        let probes = self.sampler.health.iter().map(|program| ProbeView {
            name: program.program.to_owned(),
            required: program.required,
            state: if program.failure.is_none() {
                ProbeState::Attached
            } else {
                ProbeState::Failed
            },
            detail: program.failure.clone().unwrap_or_else(|| program.hook.to_owned()),
        });
        let degraded = self.degraded();
        let host = rustix::system::uname();
        StatusView {
            host: HostView {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                hostname: host.nodename().to_str().ok().map(ToOwned::to_owned),
                kernel: host.release().to_string_lossy().into_owned(),
                uptime_seconds: self.clock.uptime().as_secs(),
                mode: self.config.mode,
                vms: self.registry.vms.len(),
                probes: probes.collect(),
                degraded: (!degraded.is_empty()).then(|| degraded.join("; ")),
            },
            vms: self.registry.vms.values().map(|watched| self.view(watched)).collect(),
        }
    }

    /// What of the host or of its VMs can't be seen as it should.
    pub(super) fn degraded(&self) -> Vec<String> {
        let lost = self.sampler.health.iter().filter(|program| program.failure.is_some());
        let lost: Vec<&str> = lost.map(|program| program.program).collect();
        let mut degraded: Vec<String> = self.registry.storm.iter().cloned().collect();
        degraded.extend(self.reloading.complaint().map(ToOwned::to_owned));
        degraded.extend(self.publisher.metrics.complaint());
        degraded.extend(self.publisher.notifier.complaints());
        if !lost.is_empty() {
            degraded.push(format!("not attached: {}", lost.join(", ")));
        }
        degraded.extend(self.unread_registers());
        degraded.extend(kvm::lacks_signs(&self.sampler.probes.kvm_hooks()).map(ToOwned::to_owned));
        degraded.extend(self.unused_monitors());
        for watched in self.registry.vms.values() {
            let name = &watched.vm.name;
            match &watched.sensors.slot {
                Err(why) => degraded.push(format!("{name} is not counted: {why}")),
                Ok(_) => degraded.extend(unseen_taps(watched)),
            }
            let storage = watched
                .sensors
                .sample
                .as_ref()
                .and_then(|(_, sample)| sample.storage.as_ref().ok());
            if let Some(storage) = storage.filter(|storage| storage.untracked_ops > 0) {
                degraded.push(format!(
                    "{} requests of {name} were not followed: probes.max_in_flight is too small",
                    storage.untracked_ops
                ));
            }
        }
        degraded
    }

    /// The VMs whose registers say nothing, by the reason: there may be many of them.
    fn unread_registers(&self) -> impl Iterator<Item = String> {
        let mut unread: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for watched in self.registry.vms.values() {
            if let Some(why) = watched.sensors.insight.lacks_registers() {
                unread.entry(why).or_default().push(&watched.vm.name);
            }
        }
        unread.into_iter().map(|(why, vms)| {
            let more = vms.len().saturating_sub(MOST_NAMED);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let named = &vms[..vms.len().min(MOST_NAMED)];
            format!("no registers of {}{more}: {why}", named.join(", "))
        })
    }

    fn view(&self, watched: &WatchedVm) -> VmView {
        let VmId { pid, .. } = watched.vm.id;
        let sample = watched.sensors.sample.as_ref().map(|(_, sample)| sample);
        let activity = watched.sensors.activity.as_ref();
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
        let (state, cause, reason) = watched.detector.watch.shown_state();
        VmView {
            name: watched.vm.name.clone(),
            uuid: watched.vm.uuid.clone(),
            pid,
            accelerator: watched.vm.accelerator.to_string(),
            owner: self.owner_view(&watched.vm),
            run_state: watched.link.run_state.as_ref().map(ToString::to_string),
            state: state.to_owned(),
            cause: cause.map(|cause| cause.to_string()),
            reason: said(watched, state, reason),
            since: self.clock.wall_clock(watched.detector.watch.since),
            flat_seconds: match watched.detector.watch.state {
                State::Unobservable => None,
                _ => Some(watched.detector.watch.silence.length(self.now()).as_secs_f64()),
            },
            restarts_in_window: u32::try_from(
                self.recovery.restarts_in_window(watched, SystemTime::now()).len(),
            )
            .unwrap_or(u32::MAX),
            hold: self.recovery.held(watched.key(), SystemTime::now()),
            guest_resets_in_window: self.guest_resets_in_window(watched),
            vcpus: vcpus.collect(),
            network: network.map(|network| NetworkView {
                guest_tx_packets: network.guest_tx_packets,
                guest_tx_bytes: network.guest_tx_bytes,
                guest_rx_packets: sees_to_guest.then_some(network.guest_rx_packets),
                guest_rx_bytes: sees_to_guest.then_some(network.guest_rx_bytes),
                guest_last_sent_seconds: self
                    .sampler
                    .since_jiffies(network.guest_tx_last_jiffies, self.clock.now()),
                probe_answers: network.probe_answers,
                arp_answers: network.arp_answers,
                ndp_answers: network.ndp_answers,
            }),
            storage: storage.map(|storage| storage_view(storage, in_flight)),
            heartbeat: self.heartbeat_view(watched),
            memory: watched.memory.view(),
        }
    }

    pub(super) fn guest_resets_in_window(&self, watched: &WatchedVm) -> usize {
        let (now, window) = (self.now(), watched.detector.detection.policy.boot_loop_window);
        watched.detector.watch.resets.iter().filter(|at| now.saturating_sub(**at) < window).count()
    }

    /// All that is known of a VM; its last minutes are the caller's to give, since they take a while to put together.
    pub(super) fn show(&self, watched: &WatchedVm, history: Option<HistoryView>) -> ShowView {
        let taps = watched.sensors.taps.iter().map(|probe| TapView {
            name: probe.tap.name.clone(),
            netns: probe.tap.netns.to_string(),
            ifindex: probe.tap.ifindex,
            attached: probe.hook.is_ok(),
            hook: probe.hook.as_ref().copied().unwrap_or_default().to_owned(),
            detail: match &probe.hook {
                Ok(_) => probe.unseen.unwrap_or_default().to_owned(),
                Err(why) => why.clone(),
            },
        });
        let Vm { unseen_networks, plugged, .. } = &*watched.vm;
        let networks: Vec<&str> =
            unseen_networks.iter().chain(&plugged.unseen_taps).map(String::as_str).collect();
        let storage = self.registry.unseen_storage(watched);
        let lacks = watched.sensors.insight.lacks().map(|why| format!("not asked for: {why}"));
        let qmp = match watched.link.monitor() {
            Monitor::Answers(run_state) => format!("answers; run state {run_state}"),
            Monitor::Unknown(why) | Monitor::Unresponsive(why) | Monitor::NotStarted(why) => why,
        };
        ShowView {
            vm: self.view(watched),
            executable: watched.vm.executable.display().to_string(),
            uid: watched.vm.origin.uid,
            start_ticks: watched.vm.id.start_ticks,
            owner_evidence: watched.vm.ownership.evidence.clone(),
            qmp,
            taps: taps.collect(),
            disks: watched.vm.disks.iter().map(|disk| disk.path.clone()).collect(),
            unseen_networks: (!networks.is_empty()).then(|| networks.join(", ")),
            unseen_storage: (!storage.is_empty()).then(|| storage.join(", ")),
            signals: self.signals(watched),
            policy: PolicyView::from(&watched.detector.detection.policy),
            history,
            memory_dump: self.dump_view(watched.vm.id),
            notes: watched.vm.notes.iter().cloned().chain(lacks).collect(),
        }
    }

    fn signals(&self, watched: &WatchedVm) -> Vec<SignalView> {
        let Watch { liveness, silence, .. } = &watched.detector.watch;
        let policy = &watched.detector.detection.policy;
        let since = |moment: Option<Duration>| {
            moment.map(|moment| crate::rfc3339::format(self.clock.wall_clock(moment)))
        };
        let ago = silence.since_life(self.now()).as_secs_f64();
        // What the window began anew for is no sign of life.
        let mark = if liveness.last_life == silence.life { ":" } else { ";" };
        let is_silent = silence.suspected || silence.length(self.now()) >= policy.flat_for;
        let mut signals = vec![SignalView {
            name: "sign of life".to_owned(),
            value: format!("{ago:.1} s ago{mark} {}", liveness.last_sign),
            threshold: format!("suspect after {}", humantime::format_duration(policy.flat_for)),
            since: since(Some(silence.life)),
            verdict: if is_silent { "silent" } else { "lives" }.to_owned(),
        }];
        if let Some(activity) = &watched.sensors.activity {
            signals.push(moved(
                "network",
                activity.network.as_ref().map(|network| match network {
                    None => "has no tap".to_owned(),
                    Some(network) => format!(
                        "{} packets from the guest, {} to it, {} answers to probes",
                        network.guest_packets,
                        network.packets_to_guest.map_or("uncounted".to_owned(), |n| n.to_string()),
                        network.probe_answers
                    ),
                }),
            ));
            signals.push(moved(
                "storage",
                activity.storage.as_ref().map(|storage| {
                    let unseen = self.registry.unseen_storage(watched);
                    format!(
                        "{} submitted, {} completed, {} in flight{}{}",
                        storage.submitted,
                        storage.completed,
                        storage.in_flight,
                        if unseen.is_empty() { "" } else { "; unseen: " },
                        unseen.join(", ")
                    )
                }),
            ));
        }
        signals.extend(self.heartbeat_signal(watched));
        signals.push(self.level(watched, since(liveness.still_since.or(liveness.pinned_since))));
        signals.extend(witnesses(watched));
        signals
    }

    fn level(&self, watched: &WatchedVm, since: Option<String>) -> SignalView {
        let liveness = &watched.detector.watch.liveness;
        let vcpus = watched.sensors.activity.as_ref().map(|activity| activity.vcpus.as_ref());
        let value = match vcpus {
            None => "not read yet".to_owned(),
            Some(Err(missing)) => missing.to_string(),
            Some(Ok(vcpus)) => vcpus
                .iter()
                .map(|vcpu| {
                    format!(
                        "vCPU {} runs {:.1} %, waits {:.1} %",
                        vcpu.index,
                        vcpu.busy * 100.0,
                        vcpu.waiting * 100.0
                    )
                })
                .collect::<Vec<_>>()
                .join("; "),
        };
        let verdict = match (liveness.still_since, liveness.pinned_since) {
            (Some(_), _) => "stands still",
            (None, Some(_)) => "pinned",
            (None, None) => "moves",
        };
        SignalView {
            name: "vCPU time".to_owned(),
            value,
            threshold: format!(
                "still below {:.0} %, pinned above {:.0} %",
                STILL_BUSY_RATIO * 100.0,
                PINNED_RATIO * 100.0
            ),
            since,
            verdict: verdict.to_owned(),
        }
    }

    /// Who started it, for people.
    fn owner_view(&self, vm: &Vm) -> OwnerView {
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

fn moved(name: &str, figure: Result<String, &Missing>) -> SignalView {
    let verdict = if figure.is_ok() { "read" } else { "unreadable" };
    SignalView {
        name: name.to_owned(),
        value: figure.unwrap_or_else(|missing| missing.why.clone()),
        threshold: "any packet or completion is life".to_owned(),
        since: None,
        verdict: verdict.to_owned(),
    }
}

/// What the witnesses said last, where they were asked.
fn witnesses(watched: &WatchedVm) -> Vec<SignalView> {
    let Some(testimony) = &watched.detector.testimony else { return Vec::new() };
    let view = |said: &Statement| {
        let calibrated = if watched.detector.watch.boot.answered.contains(&said.witness) {
            "; answered before in this boot"
        } else {
            ""
        };
        let row = WITNESSES.iter().find(|witness| witness.name == said.witness);
        SignalView {
            name: said.witness.to_string(),
            value: said.answer.text().to_owned(),
            threshold: format!("{}{calibrated}", row.map_or("", |witness| witness.looks_for)),
            since: None,
            verdict: said.answer.word().to_owned(),
        }
    };
    testimony.statements.iter().map(view).collect()
}

/// What of a VM's taps can't be seen, or not be told for sure.
fn unseen_taps(watched: &WatchedVm) -> Vec<String> {
    let name = &watched.vm.name;
    let OpenDevices { unseen_taps, taps_by_name, .. } = &watched.vm.plugged;
    let unseen = unseen_taps.iter().map(|note| format!("{name}: not watched: {note}"));
    let by_name = taps_by_name.iter().map(|why| {
        format!(
            "{name}: its taps are told by their names, which others may have in other network namespaces: their \
             descriptors can't be asked: {why}"
        )
    });
    let taps = watched.sensors.taps.iter().filter_map(|probe| {
        let tap = &probe.tap.name;
        match &probe.hook {
            Ok(_) => probe.unseen.map(|unseen| format!("{name}: tap {tap}: {unseen}")),
            Err(why) if why == PENDING => None,
            Err(why) => Some(format!("{name}: tap {tap} is not counted: {why}")),
        }
    });
    unseen.chain(by_name).chain(taps).collect()
}
