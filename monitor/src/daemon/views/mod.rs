//! Views of VMs and the host, for clients: what is known of each VM, and why its verdict is what it is.
//!
//! They are put together from what the loop's parts hold, and change nothing.

mod degraded;
mod facts;
mod figures;
mod heartbeat;
mod kept_clocks;
mod list;
mod signals;
mod teller;
mod vm;

use std::time::Duration;

use super::{host_sampler::HostSampler, registry::Registry};
use crate::{
    api::view::{
        DumpView, HistoryView, HostView, PeerView, ProbeState, ProbeView, ShowView, TapView,
    },
    recovery::{Supervisor, evidence::dump},
    vm::{Context, WatchedVm},
};
use flatline_detector::verdict::Monitor;
use flatline_qemu::discover::{Vm, VmId, peers};

pub(super) use facts::VmFacts;
pub(super) use kept_clocks::KeptClocks;
pub(super) use teller::Teller;

/// Everything that a view is made from.
pub(super) struct Views<'a> {
    pub(super) registry: &'a Registry,
    pub(super) sampler: &'a HostSampler,
    pub(super) recovery: &'a Supervisor,
    pub(super) context: Context<'a>,
    pub(super) teller: Teller,
}

impl Views<'_> {
    /// The host, which lacks what `degraded` says, and the daemon, which has been running for `uptime`.
    pub(in crate::daemon) fn host(&self, degraded: &[String], uptime: Duration) -> HostView {
        let probes = self.sampler.health.iter().map(|program| ProbeView {
            name: program.program.to_owned(),
            required: program.required,
            state: program.failure.as_ref().map_or(ProbeState::Attached, |_| ProbeState::Failed),
            detail: program.failure.clone().unwrap_or_else(|| program.hook.to_owned()),
        });
        let host = rustix::system::uname();
        HostView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            hostname: host.nodename().to_str().ok().map(ToOwned::to_owned),
            kernel: host.release().to_string_lossy().into_owned(),
            uptime_seconds: uptime.as_secs(),
            mode: self.context.config.mode,
            vms: self.registry.vms.len(),
            probes: probes.collect(),
            degraded: (!degraded.is_empty()).then(|| degraded.join("; ")),
        }
    }

    /// All that is known of a VM; its last minutes are the caller's to give, since they take a while to put together.
    pub(in crate::daemon) fn show(
        &self,
        watched: &WatchedVm,
        history: Option<HistoryView>,
    ) -> ShowView {
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
        let duplicates = self.registry.duplicates_of(watched);
        let qmp = match watched.link.monitor() {
            Monitor::Answers(run_state) => format!("answers; run state {run_state}"),
            Monitor::Unknown(why) | Monitor::Unresponsive(why) | Monitor::NotStarted(why) => why,
        };
        let mut facts = self.facts(watched);
        self.teller.read_memory(std::slice::from_mut(&mut facts));
        ShowView {
            vm: self.teller.view(&facts, None),
            executable: watched.vm.executable.display().to_string(),
            start_ticks: watched.vm.id.start_ticks,
            owner_evidence: watched.vm.ownership.evidence.clone(),
            also_restarted_by: peers(&watched.vm).into_iter().map(PeerView::from).collect(),
            qmp,
            taps: taps.collect(),
            disks: watched.vm.disks.iter().map(|disk| disk.path.clone()).collect(),
            unseen_networks: (!networks.is_empty()).then(|| networks.join(", ")),
            unseen_storage: (!storage.is_empty()).then(|| storage.join(", ")),
            signals: self.signals(watched),
            policy: watched.detector.detection.policy.clone(),
            history,
            memory_dump: self.dump(watched.vm.id),
            notes: watched.vm.notes.iter().cloned().chain(lacks).chain(duplicates).collect(),
        }
    }

    /// All that is known of a VM as JSON, but for the last minutes, which are in the recording.
    pub(in crate::daemon) fn figures(&self, id: VmId) -> String {
        let shown = self.registry.vms.get(&id).map(|watched| self.show(watched, None));
        // It is made of values, strings and words, which always have a JSON form.
        serde_json::to_string_pretty(&shown).unwrap_or_default() + "\n"
    }

    /// How far the memory dump of a VM is; `None` while none is taken.
    fn dump(&self, id: VmId) -> Option<DumpView> {
        let dump::State { since, completed_bytes, total_bytes, written_bytes } =
            self.recovery.dump_of(id)?;
        Some(DumpView { since, completed_bytes, total_bytes, written_bytes })
    }
}
