//! Conditions of VMs and sensors at a tick's end, and other events that recovery doesn't say, for notifications.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use super::event_loop::EventLoop;
use crate::{
    notify::event::{EventKind, Subject},
    vm::WatchedVm,
};
use flatline_detector::verdict::State;
use flatline_qemu::discover::Vm;

/// A VM as it is told of.
pub(super) fn subject(vm: &Vm) -> Subject {
    Subject { vm: vm.name.clone(), uuid: vm.uuid.clone(), pid: vm.id.pid }
}

/// What is wrong with watching it, and why.
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

impl EventLoop {
    /// A tick ended: tells what changed with it.
    pub(super) fn tell_changes(&mut self, now: Duration) {
        self.registry.vms.values_mut().for_each(|watched| self.recovery.end_reports(watched));
        let lost = self.lost_sensors();
        self.publisher.notifier.publish(|events, wall_clock| {
            let mut news = events.of_sensors(lost, now, wall_clock);
            for (id, watched) in &self.registry.vms {
                let who = || subject(&watched.vm);
                news.extend(events.of_vm(*id, who, condition(watched), (now, wall_clock)));
            }
            if events.any_is_down() {
                for watched in self.registry.vms.values() {
                    let heard = self.heard_unawaited(watched);
                    news.extend(heard.and_then(|at| events.alive(watched.key(), at, wall_clock)));
                }
            }
            news
        });
    }

    /// When a VM that is alive, and has no open case, was heard last.
    fn heard_unawaited(&self, watched: &WatchedVm) -> Option<SystemTime> {
        let is_awaited = watched.recovery.case.as_ref().is_some_and(|case| case.stage.is_open());
        let heard = watched.detector.watch.liveness.heard.filter(|_| !is_awaited)?;
        (watched.detector.watch.state == State::Alive).then(|| self.clock.wall_clock(heard))
    }

    /// What flatline sees by, and that is out of order.
    fn lost_sensors(&self) -> BTreeMap<String, String> {
        let programs = self.sampler.health.iter().filter_map(|program| {
            let why = program.failure.clone()?;
            Some((format!("program {}", program.program), why))
        });
        let uncounted = self.registry.vms.values().filter(|watched| watched.sensors.is_counted);
        let uncounted = uncounted.filter_map(|watched| {
            let why = watched.sensors.slot.as_ref().err()?.clone();
            Some((format!("counters of {}", watched.vm.name), why))
        });
        programs.chain(uncounted).collect()
    }

    /// The daemon watches from now on.
    pub(super) fn tell_of_start(&self) {
        let what =
            format!("version {}, mode {}", env!("CARGO_PKG_VERSION"), self.config.mode.as_str());
        self.tell_of_host(EventKind::DaemonStarted, what);
    }

    /// Something of the whole host that is told as it is.
    pub(super) fn tell_of_host(&self, kind: EventKind, reason: String) {
        self.publisher.notifier.publish(|events, now| [events.of_host(kind, reason, now)]);
    }

    /// A VM is no longer watched.
    pub(super) fn tell_of_end(&self, watched: &WatchedVm) {
        let (id, who) = (watched.vm.id, subject(&watched.vm));
        self.publisher.notifier.publish(|events, now| events.no_longer_watched(id, who, now));
    }
}
