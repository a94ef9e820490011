//! What a VM has: its taps, files and vCPU threads, and where they are counted.

use std::sync::Arc;

use tracing::{debug, info, warn};

use super::{
    event_loop::EventLoop,
    watchers::{self, Look, Looked},
};
use crate::{
    bpf::{AttachReport, Counted, TapProbe},
    sampler::{ThreadTimes, VcpuClocks},
    vm::PENDING,
};
use flatline_detector::verdict::Input;
use flatline_qemu::discover::{self, OpenDevices, Tap, VmId};

/// Ticks between two looks at a VM's taps and threads, for hot-plug.
const REFRESH_TICKS: u64 = 10;

/// Of so many looks at what a VM has open, one is in full, though it has as many descriptors as before: one
/// may have been closed and another opened.
const LOOKS_IN_FULL: u32 = 6;

impl EventLoop {
    /// Has those looked at again whose turn it is in this tick.
    pub(super) fn look_again(&mut self, threads: Option<&ThreadTimes>) {
        // Not all in one tick: a thousand looks would delay the next.
        let mut due = Vec::new();
        for (id, watched) in &mut self.registry.vms {
            if u64::from(id.pid) % REFRESH_TICKS == self.sampler.ticks % REFRESH_TICKS
                && !watched.sensors.looking
            {
                let its = threads.map(|threads| threads.of(id.pid));
                watched.sensors.looking = true;
                watched.sensors.looks += 1;
                let names = watched.sensors.threads_to_tell_apart(its);
                // A tap that can't be attached may have been moved, renamed, or made again.
                let is_well = watched.sensors.taps.iter().all(|probe| probe.hook.is_ok());
                let unless = watched
                    .sensors
                    .descriptors
                    .filter(|_| is_well && watched.sensors.looks < LOOKS_IN_FULL);
                due.push(Look { vm: *id, names, unless });
            }
        }
        watchers::refresh(&due, &self.inboxes.messages);
    }

    pub(super) fn refreshed(&mut self, id: VmId, looked: Looked) {
        let Some(watched) = self.registry.vms.get_mut(&id) else { return };
        let Looked { plugged, descriptors, threads } = looked;
        watched.sensors.looking = false;
        watched.sensors.descriptors = descriptors;
        if let Some(plugged) = plugged {
            watched.sensors.looks = 0;
            let as_known = |tap: &Tap| {
                let probe = watched.sensors.taps.iter().find(|probe| probe.tap == *tap).cloned();
                probe.unwrap_or_else(|| TapProbe::not_on(tap, PENDING))
            };
            watched.sensors.taps = plugged.taps.iter().map(as_known).collect();
            Arc::make_mut(&mut watched.vm).plugged = plugged;
        }
        // Also where nothing changed: a program may have been detached.
        self.sampler.probes.attach(id, counted(&watched.vm.plugged));
        let Some(threads) = threads else { return };
        let by_name =
            self.registry.vms.get(&id).is_some_and(|watched| !watched.sensors.threads_from_qmp);
        if !threads.is_empty() && by_name {
            self.set_threads(id, threads, false);
        }
        // vCPUs may have been plugged in or out.
        self.ask_cpus(id);
    }

    pub(super) fn set_threads(&mut self, id: VmId, threads: Vec<(u32, u32)>, from_qmp: bool) {
        let Some(watched) = self.registry.vms.get_mut(&id) else { return };
        if watched.sensors.threads == threads {
            watched.sensors.threads_from_qmp = from_qmp;
            return;
        }
        let has = |tid| discover::has_thread(id.pid, tid);
        if let Some((_, tid)) = threads.iter().find(|(_, tid)| !has(*tid)) {
            return debug!(vm = watched.vm.name, "it has no thread {tid}, which it names");
        }
        watched.sensors.threads_from_qmp = from_qmp;
        if self.sampler.has_clocks {
            match VcpuClocks::open(id.pid, &threads) {
                Ok(clocks) => watched.sensors.clocks = clocks,
                Err(error) => {
                    return debug!(
                        vm = watched.vm.name,
                        "its vCPU threads can't be opened: {error}"
                    );
                }
            }
        }
        watched.sensors.threads = threads;
    }

    pub(super) fn on_attached(&mut self, report: AttachReport) {
        let now = self.now();
        self.registry.no_longer_awaited(report.vm);
        let Some(watched) = self.registry.vms.get_mut(&report.vm) else { return };
        let AttachReport { vm: _, slot, taps, lost, renamed, look_in } = report;
        watched.sensors.is_counted = true;
        for probe in taps.iter().filter(|probe| !watched.sensors.taps.contains(probe)) {
            match &probe.hook {
                Ok(hook) => match probe.unseen {
                    None => info!(vm = watched.vm.name, tap = probe.tap.name, hook, "attached"),
                    Some(unseen) => {
                        warn!(
                            vm = watched.vm.name,
                            tap = probe.tap.name,
                            hook,
                            "attached; {unseen}"
                        )
                    }
                },
                Err(why) => {
                    warn!(vm = watched.vm.name, tap = probe.tap.name, "not attached: {why}")
                }
            }
        }
        if let Some(why) = lost {
            warn!(vm = watched.vm.name, "{why}; attached again");
            // What passed meanwhile is not known: it must not look like nothing.
            watched.sensors.sample = None;
            watched.step(&Input::Unseen(why), now);
        }
        if let Err(why) = &slot
            && watched.sensors.slot != slot
        {
            warn!(vm = watched.vm.name, "not counted: {why}");
        }
        let could = watched.sensors.taps.iter().all(|probe| probe.hook.is_ok());
        let can = taps.iter().all(|probe| probe.hook.is_ok());
        watched.sensors.slot = slot;
        watched.sensors.taps = taps;
        if let Some(delay) = look_in {
            let (id, messages) = (report.vm, self.inboxes.messages.clone());
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                watchers::refresh(&[Look { vm: id, names: false, unless: None }], &messages);
            });
        }
        if (could && !can || renamed) && !watched.sensors.looking {
            watched.sensors.looking = true;
            let look = Look { vm: report.vm, names: false, unless: None };
            watchers::refresh(&[look], &self.inboxes.messages);
        }
    }
}

/// What the programs are to count for a VM.
pub(super) fn counted(plugged: &OpenDevices) -> Counted {
    Counted { taps: plugged.taps.clone(), files: plugged.files.keys.clone() }
}
