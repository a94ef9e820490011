//! What a VM has: its taps, files and vCPU threads, and where they are counted.

use std::sync::Arc;

use tracing::{debug, info, warn};

use super::{
    engine::Engine,
    watchers::{self, Look, Looked},
};
use crate::{
    discover::{self, Plugged, Tap, VmId},
    probe::{AttachReport, Counted, TapProbe},
    sample::VcpuClocks,
    verdict::Input,
};

impl Engine {
    pub(super) fn refreshed(&mut self, id: VmId, looked: Looked) {
        let Some(watched) = self.vms.get_mut(&id) else { return };
        let Looked { plugged, descriptors, threads } = looked;
        watched.looking = false;
        watched.descriptors = descriptors;
        if let Some(plugged) = plugged {
            watched.looks = 0;
            let as_known = |tap: &Tap| {
                let probe = watched.taps.iter().find(|probe| probe.tap == *tap).cloned();
                let pending = || Err("its programs are being attached".to_owned());
                probe.unwrap_or_else(|| TapProbe { tap: tap.clone(), hook: pending() })
            };
            watched.taps = plugged.taps.iter().map(as_known).collect();
            Arc::make_mut(&mut watched.vm).plugged = plugged;
        }
        // Also where nothing changed: somebody may have detached a program.
        self.probes.attach(id, counted(&watched.vm.plugged));
        let Some(threads) = threads else { return };
        let by_name = self.vms.get(&id).is_some_and(|watched| !watched.threads_from_qmp);
        if !threads.is_empty() && by_name {
            self.set_threads(id, threads, false);
        }
        // vCPUs may have been plugged in or out.
        self.ask_cpus(id);
    }

    pub(super) fn set_threads(&mut self, id: VmId, threads: Vec<(u32, u32)>, from_qmp: bool) {
        let Some(watched) = self.vms.get_mut(&id) else { return };
        if watched.threads == threads {
            watched.threads_from_qmp = from_qmp;
            return;
        }
        // A QEMU in a container names its threads as they are called there.
        if let Some((_, tid)) = threads.iter().find(|(_, tid)| !discover::has_thread(id.pid, *tid))
        {
            return debug!(vm = watched.vm.name, "it has no thread {tid}, which it names");
        }
        watched.threads_from_qmp = from_qmp;
        if self.threads.is_none() {
            match VcpuClocks::open(id.pid, &threads) {
                Ok(clocks) => watched.clocks = clocks,
                Err(error) => {
                    return debug!(
                        vm = watched.vm.name,
                        "its vCPU threads can't be opened: {error}"
                    );
                }
            }
        }
        watched.threads = threads;
    }

    pub(super) fn on_attached(&mut self, report: AttachReport) {
        let now = self.now();
        self.no_longer_awaited(report.vm);
        let Some(watched) = self.vms.get_mut(&report.vm) else { return };
        let AttachReport { vm: _, slot, taps, lost } = report;
        for probe in taps.iter().filter(|probe| !watched.taps.contains(probe)) {
            match &probe.hook {
                Ok(hook) => info!(vm = watched.vm.name, tap = probe.tap.name, hook, "attached"),
                Err(why) => {
                    warn!(vm = watched.vm.name, tap = probe.tap.name, "not attached: {why}")
                }
            }
        }
        if let Some(why) = lost {
            warn!(vm = watched.vm.name, "{why}; attached again");
            // What passed meanwhile is not known: it must not look like nothing.
            watched.sample = None;
            watched.feed(&Input::Unseen(why), now);
        }
        if let Err(why) = &slot
            && watched.slot != slot
        {
            warn!(vm = watched.vm.name, "not counted: {why}");
        }
        let could = watched.taps.iter().all(|probe| probe.hook.is_ok());
        let can = taps.iter().all(|probe| probe.hook.is_ok());
        watched.slot = slot;
        watched.taps = taps;
        if could && !can && !watched.looking {
            // It may have been renamed, or made again.
            watched.looking = true;
            let look = Look { vm: report.vm, names: false, unless: None };
            watchers::refresh(&[look], &self.messages);
        }
    }
}

/// What the programs are to count for a VM.
pub(super) fn counted(plugged: &Plugged) -> Counted {
    Counted { taps: plugged.taps.clone(), files: plugged.files.keys.clone() }
}
