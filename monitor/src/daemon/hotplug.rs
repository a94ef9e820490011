//! Hot-plug: looks again at each VM's taps, files and vCPU threads, and has them counted.

use std::{sync::Arc, time::Duration};

use tracing::{debug, info, warn};

use super::{
    host_sampler::HostSampler,
    message::Inboxes,
    qmp_events,
    watchers::{self, Look, Looked},
};
use crate::{
    bpf::{AttachReport, Counted, TapProbe},
    sampler::ThreadTimes,
    vm::{PENDING, Sensors, Vms, WatchedVm},
};
use flatline_detector::verdict::Input;
use flatline_qemu::discover::{self, OpenDevices, Tap};

/// Ticks between two looks at a VM's taps and threads, for hot-plug.
const REFRESH_TICKS: u64 = 10;

/// Of so many looks at what a VM has open, one is in full, though it has as many descriptors as before: one
/// may have been closed and another opened.
const LOOKS_IN_FULL: u32 = 6;

/// Has the VMs looked at again that are due in this tick.
pub(super) fn look_again(
    vms: &mut Vms,
    tick: u64,
    threads: Option<&ThreadTimes>,
    inboxes: &Inboxes,
) {
    // Not all in one tick: a thousand looks would delay the next.
    let is_due = |pid: u32| u64::from(pid) % REFRESH_TICKS == tick % REFRESH_TICKS;
    let mut due = Vec::new();
    for (id, watched) in vms.iter_mut().filter(|(id, _)| is_due(id.pid)) {
        let sensors = &mut watched.sensors;
        if sensors.looking {
            continue;
        }
        sensors.looking = true;
        sensors.looks += 1;
        let names = sensors.threads_to_tell_apart(threads.map(|threads| threads.of(id.pid)));
        // A tap that can't be attached may have been moved, renamed, or made again.
        let is_known = all_attached(&sensors.taps) && sensors.looks < LOOKS_IN_FULL;
        due.push(Look { vm: *id, names, unless: sensors.descriptors.filter(|_| is_known) });
    }
    watchers::refresh(&due, &inboxes.messages);
}

/// Takes in what a look brought.
pub(super) fn refreshed(
    watched: &mut WatchedVm,
    looked: Looked,
    sampler: &HostSampler,
    inboxes: &Inboxes,
) {
    let Looked { plugged, descriptors, threads } = looked;
    let sensors = &mut watched.sensors;
    sensors.looking = false;
    sensors.descriptors = descriptors;
    if let Some(plugged) = plugged {
        sensors.looks = 0;
        let as_known = |tap: &Tap| {
            let probe = sensors.taps.iter().find(|probe| probe.tap == *tap).cloned();
            probe.unwrap_or_else(|| TapProbe::not_on(tap, PENDING))
        };
        sensors.taps = plugged.taps.iter().map(as_known).collect();
        Arc::make_mut(&mut watched.vm).plugged = plugged;
    }
    // Also where nothing changed: a program may have been detached.
    sampler.probes.attach(watched.vm.id, counted(&watched.vm.plugged));
    let Some(threads) = threads else { return };
    if !threads.is_empty() && !watched.sensors.threads_from_qmp {
        set_threads(watched, threads, false);
    }
    // vCPUs may have been plugged in or out.
    qmp_events::ask_cpus(watched, inboxes);
}

/// Takes these threads for the vCPUs, as (vCPU index, thread id), if the process has them all.
pub(super) fn set_threads(watched: &mut WatchedVm, threads: Vec<(u32, u32)>, from_qmp: bool) {
    let (id, name) = (watched.vm.id, &watched.vm.name);
    let sensors = &mut watched.sensors;
    if sensors.threads == threads {
        sensors.threads_from_qmp = from_qmp;
        return;
    }
    let has = |tid| discover::has_thread(id.pid, tid);
    if let Some((_, tid)) = threads.iter().find(|(_, tid)| !has(*tid)) {
        return debug!(vm = name, "it has no thread {tid}, which it names");
    }
    sensors.threads_from_qmp = from_qmp;
    sensors.set_threads(threads);
}

/// Takes in where a VM is counted since just now.
pub(super) fn attached(
    watched: &mut WatchedVm,
    report: AttachReport,
    inboxes: &Inboxes,
    now: Duration,
) {
    let AttachReport { vm: id, slot, taps, lost, renamed, look_in } = report;
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
    sensors.slot = slot;
    sensors.taps = taps;
    let look = Look { vm: id, names: false, unless: None };
    if let Some(delay) = look_in {
        watchers::refresh_after(delay, look, inboxes.messages.clone());
    }
    if (is_worse || renamed) && !sensors.looking {
        sensors.looking = true;
        watchers::refresh(&[look], &inboxes.messages);
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
pub(super) fn counted(plugged: &OpenDevices) -> Counted {
    Counted { taps: plugged.taps.clone(), files: plugged.files.keys.clone() }
}
