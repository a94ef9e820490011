//! Hot-plug: takes in what looks at a VM's taps, files and vCPU threads bring, and where they are counted.

use std::{sync::Arc, time::Duration};

use tracing::{info, warn};

use super::{
    event_loop::EventLoop,
    host_sampler::HostSampler,
    message::Inboxes,
    qmp_events,
    upkeep::Upkeep,
    watchers::{self, Look, Looked},
};
use crate::{
    bpf::{AttachReport, Counted, TapProbe},
    vm::{PENDING, Sensors, WatchedVm},
};
use flatline_detector::verdict::Input;
use flatline_qemu::discover::{Tap, Vm, VmId};

impl EventLoop {
    /// VMs were looked at again.
    pub(super) fn refreshed(&mut self, looked: Vec<(VmId, Looked)>) {
        let now = self.now();
        for (vm, mut looked) in looked {
            let Some(watched) = self.registry.vms.get_mut(&vm) else { continue };
            let before = watched.vm.clone();
            let has_become = looked.origin.take().is_some_and(|it| watched.belongs_to(it));
            refreshed(watched, looked, &self.sampler, &self.inboxes, now);
            if !Arc::ptr_eq(&before, &watched.vm) {
                self.taking_over.has_changed(now);
            }
            if has_become {
                self.look_for_duplicates(vm);
            }
        }
    }
}

/// Takes in what a look brought, but for whose the VM is.
fn refreshed(
    watched: &mut WatchedVm,
    looked: Looked,
    sampler: &HostSampler,
    inboxes: &Inboxes,
    now: Duration,
) {
    let Looked { plugged, origin: _, seen, threads, attach } = looked;
    let sensors = &mut watched.sensors;
    sensors.looks.end(seen, threads.is_some());
    let mut is_to_be_counted = attach;
    if let Some(plugged) = plugged {
        sensors.looks.read_in_full(now);
        if plugged != watched.vm.plugged {
            is_to_be_counted = true;
            let as_known = |tap: &Tap| {
                let probe = sensors.taps.iter().find(|probe| probe.tap == *tap).cloned();
                probe.unwrap_or_else(|| TapProbe::not_on(tap, PENDING))
            };
            sensors.set_taps(plugged.taps.iter().map(as_known).collect());
            Arc::make_mut(&mut watched.vm).plugged = plugged;
        }
    }
    if is_to_be_counted {
        sampler.probes.attach(watched.vm.id, counted(&watched.vm));
    }
    let Some(threads) = threads else { return };
    let are_named = !threads.is_empty();
    if are_named && watched.sensors.threads == threads {
        return;
    }
    if are_named && !watched.sensors.threads_from_qmp {
        set_threads(watched, threads, false);
    }
    // vCPUs may have been plugged in or out.
    qmp_events::ask_cpus(watched, inboxes);
}

/// QEMU answers, for the first time perhaps. One that root started has given its rights up by then, where it was told to
/// (`-runas`), and is known by another user from then on.
pub(super) fn look_for_user(watched: &WatchedVm, inboxes: &Inboxes) {
    if watched.vm.origin.uid == 0 && watched.link.run_state.is_none() {
        let look = Look { names: false, attach: false, ..Look::in_full(watched.vm.id) };
        watchers::refresh(&[look], Vec::new(), &inboxes.messages);
    }
}

/// Takes these threads for the vCPUs, as (vCPU index, thread id). The process has them all, or had: what can't be read of one is
/// missing.
pub(super) fn set_threads(watched: &mut WatchedVm, threads: Vec<(u32, u32)>, from_qmp: bool) {
    let sensors = &mut watched.sensors;
    if sensors.threads == threads {
        sensors.threads_from_qmp = from_qmp;
        return;
    }
    sensors.threads_from_qmp = from_qmp;
    sensors.set_threads(threads);
}

/// Takes in where a VM is counted since just now.
pub(super) fn attached(
    watched: &mut WatchedVm,
    report: AttachReport,
    upkeep: &mut Upkeep,
    inboxes: &Inboxes,
    now: Duration,
) {
    let AttachReport { vm: id, slot, taps, lost, renamed, is_heard, look_in, is_assumed: _ } =
        report;
    upkeep.is_restless(id, !is_heard || slot.is_err() || !all_attached(&taps));
    let name = watched.vm.name.clone();
    watched.sensors.is_counted = true;
    log_new(&name, &taps, &watched.sensors);
    if let Some(why) = lost {
        warn!(vm = name, "{why}; attached again");
        // What passed meanwhile is not known: it must not look like nothing.
        watched.sensors.sample = None;
        watched.step(&Input::Unseen(why), now);
    }
    let sensors = &mut watched.sensors;
    if let Err(why) = &slot
        && sensors.slot != slot
    {
        warn!(vm = name, "not counted: {why}");
    }
    let is_worse = all_attached(&sensors.taps) && !all_attached(&taps);
    if sensors.slot != slot {
        watched.wake(now);
        // Counters of another row say nothing about what moved since.
        watched.sensors.sample = None;
    }
    let sensors = &mut watched.sensors;
    sensors.slot = slot;
    sensors.set_taps(taps);
    let look = Look { names: false, ..Look::in_full(id) };
    if let Some(delay) = look_in {
        watchers::refresh_after(delay, look, inboxes.messages.clone());
    }
    if (is_worse || renamed) && sensors.looks.begin(now).is_some() {
        watchers::refresh(&[look], Vec::new(), &inboxes.messages);
    }
}

/// Logs what isn't known of these taps.
fn log_new(vm: &str, taps: &[TapProbe], sensors: &Sensors) {
    for probe in taps.iter().filter(|probe| !sensors.taps.contains(probe)) {
        let tap = &probe.tap.name;
        match (&probe.hook, probe.unseen) {
            (Ok(hook), None) => info!(vm, tap, hook, "attached"),
            (Ok(hook), Some(unseen)) => warn!(vm, tap, hook, "attached; {unseen}"),
            (Err(why), _) => warn!(vm, tap, "not attached: {why}"),
        }
    }
}

fn all_attached(taps: &[TapProbe]) -> bool {
    taps.iter().all(|probe| probe.hook.is_ok())
}

/// What the programs are to count for a VM.
pub(super) fn counted(vm: &Vm) -> Counted {
    let Vm { name, plugged, origin, .. } = vm;
    let (taps, files) = (plugged.taps.clone(), plugged.files.keys.clone());
    Counted { name: name.clone(), uid: origin.uid, taps, files }
}
