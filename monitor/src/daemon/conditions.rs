//! Notifications of what recovery doesn't say: conditions of VMs and sensors at a tick's end, and the host's events.

use std::{collections::BTreeMap, time::SystemTime};

use super::host_sampler::HostSampler;
use crate::{
    notify::{
        Notifier,
        event::{EventKind, Subject},
    },
    vm::{Context, Vms, WatchedVm},
};
use flatline_detector::{policy::Mode, verdict::State};
use flatline_qemu::discover::VmId;

/// A VM as notifications name it.
fn subject(WatchedVm { vm, key, .. }: &WatchedVm) -> Subject {
    Subject {
        vm: vm.name.clone(),
        uuid: vm.uuid.clone(),
        uid: key.uid,
        counted_for: key.process,
        pid: vm.id.pid,
    }
}

/// What keeps a VM from being watched or judged as usual, and why.
fn condition(watched: &WatchedVm) -> Option<(EventKind, String)> {
    match watched.detector.watch.state {
        // Before it is counted there is nothing to be read, and nothing was lost.
        State::Unobservable if watched.sensors.is_counted => {
            Some((EventKind::Unobservable, watched.detector.watch.reason.clone()))
        }
        State::Held if watched.detector.watch.is_held_by_host() => {
            Some((EventKind::HostFault, watched.detector.watch.reason.clone()))
        }
        _ => None,
    }
}

/// Publishes what changed with this tick.
pub(super) fn publish_changes(
    notifier: &Notifier,
    vms: &Vms,
    awake: &[VmId],
    sampler: &HostSampler,
    context: &Context<'_>,
) {
    // One that rests is alive and counted, and was so before it came to rest.
    let awake = || awake.iter().filter_map(|id| vms.get(id).map(|watched| (id, watched)));
    let lost = lost_sensors(awake().map(|(_, watched)| watched), sampler);
    notifier.publish(|events, wall_clock| {
        let mut news = events.of_sensors(lost, context.now, wall_clock);
        for (id, watched) in awake() {
            let who = || subject(watched);
            news.extend(events.of_vm(*id, who, condition(watched), (context.now, wall_clock)));
        }
        if events.any_is_down() {
            for (_, watched) in awake() {
                let heard = heard_unawaited(watched, context);
                news.extend(heard.and_then(|at| events.alive(&watched.key, at, wall_clock)));
            }
        }
        news
    });
}

/// When a VM that is alive, and has no open case, was heard last.
fn heard_unawaited(watched: &WatchedVm, context: &Context<'_>) -> Option<SystemTime> {
    let is_awaited = watched.recovery.case.as_ref().is_some_and(|case| case.stage.is_open());
    let heard = watched.detector.watch.liveness.heard.filter(|_| !is_awaited)?;
    (watched.detector.watch.state == State::Alive).then(|| context.wall_clock(heard))
}

/// The programs and counters that are out of order, and why.
fn lost_sensors<'a>(
    vms: impl Iterator<Item = &'a WatchedVm>,
    sampler: &HostSampler,
) -> BTreeMap<String, String> {
    let programs = sampler.health.iter().filter_map(|program| {
        Some((format!("program {}", program.program), program.failure.clone()?))
    });
    let counted = vms.filter(|watched| watched.sensors.is_counted);
    let uncounted = counted.filter_map(|watched| {
        let why = watched.sensors.slot.as_ref().err()?.clone();
        let (name, uid) = (&watched.vm.name, watched.vm.origin.uid);
        // Another user's VM may be called alike.
        Some((format!("counters of {name} of user {uid}"), why))
    });
    programs.chain(uncounted).collect()
}

/// Publishes an event of the whole host.
pub(super) fn publish_of_host(notifier: &Notifier, kind: EventKind, reason: String) {
    notifier.publish(|events, now| [events.of_host(kind, reason, now)]);
}

/// Publishes that the daemon watches from now on.
pub(super) fn publish_start(notifier: &Notifier, mode: Mode) {
    let what = format!("version {}, mode {}", env!("CARGO_PKG_VERSION"), mode.as_str());
    publish_of_host(notifier, EventKind::DaemonStarted, what);
}

/// Publishes that a QEMU has ended, or is to be managed no more.
pub(super) fn publish_end(notifier: &Notifier, vm: &WatchedVm, why: &str) {
    notifier.publish(|events, now| events.ended(subject(vm), why, now));
}

/// Publishes that other QEMUs claim to be this VM as well, and which.
pub(super) fn publish_duplicate(notifier: &Notifier, vm: &WatchedVm, why: String) {
    notifier.publish(|events, now| events.duplicate(subject(vm), why, now));
}

/// Publishes that after the end of this one there are no several any more.
pub(super) fn publish_duplicate_over(notifier: &Notifier, vm: &WatchedVm) {
    notifier.publish(|events, now| events.duplicate_over(subject(vm), now));
}

/// Publishes that a VM is no longer watched, which ends what was published of it.
pub(super) fn publish_no_longer_watched(notifier: &Notifier, watched: &WatchedVm) {
    let id = watched.vm.id;
    notifier.publish(|events, now| events.no_longer_watched(id, subject(watched), now));
}
