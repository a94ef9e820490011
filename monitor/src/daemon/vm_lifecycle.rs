//! Lifecycle of VMs: QEMUs are found and taken up, and let go when they have ended.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tracing::{debug, info};

use super::{
    conditions,
    event_loop::EventLoop,
    hotplug::counted,
    transport::transport_to,
    trim::trim,
    watchers::{self, Look},
};
use crate::{
    identity::Key,
    insight::Insight,
    sampler::port::PortListener,
    vm::{Context, Detector, MemoryWatch, MonitorLink, Sensors, WatchedVm, detection_policy},
};
use flatline_detector::verdict::Watch;
use flatline_qemu::{
    discover::{self, Vm, VmId},
    qmp::{self, Limits, Transport},
};

/// After a QEMU was found, it is looked at again: at first it has neither taps nor vCPU threads.
const LOOK_AGAIN: [Duration; 3] =
    [Duration::from_millis(250), Duration::from_secs(1), Duration::from_secs(3)];

/// In so many turns of sweeps memory is given back, once VMs were found: all has been asked of them once by then.
const TRIMS: u32 = 6;

impl EventLoop {
    /// Has all of `/proc` looked through for QEMUs.
    pub(super) fn sweep(&mut self) {
        self.sweep_with(Vec::new());
    }

    /// The same, once the executables of these are told of, which run QEMUs that no sweep found.
    pub(super) fn sweep_with(&mut self, recalled: Vec<u32>) {
        self.inboxes.starts.sweeps();
        // Only VMs of which the end is waited for are sure to be there.
        let waits = |watched: &WatchedVm| {
            watched.sensors.end.as_ref().is_some_and(|end| !end.is_finished())
        };
        let known =
            self.registry.vms.iter().filter(|(_, watched)| waits(watched)).map(|(id, _)| *id);
        watchers::sweep(
            self.config.discovery.scope(),
            (known.collect(), recalled),
            self.sampler.probes.executables(),
            self.inboxes.starts.passed(),
            self.inboxes.messages.clone(),
        );
    }

    /// Sweeps if that is due in this turn, or else looks for executables alone; gives memory back where VMs were found.
    pub(super) fn sweep_in_turn(&mut self) {
        if let Some(fewer) = self.registry.trims.checked_sub(1) {
            self.registry.trims = fewer;
            trim();
        }
        if self.inboxes.starts.is_turn() {
            self.sweep();
        } else {
            let (scope, again) = (self.config.discovery.scope(), self.inboxes.starts.again());
            watchers::look_for_executables(scope, self.sampler.probes.executables(), again);
        }
    }

    /// Sweeps where more processes started than could be looked at.
    pub(super) fn sweep_if_overrun(&mut self) {
        if self.inboxes.starts.is_overrun() {
            debug!("more processes start than are looked at one by one");
            self.sweep();
        }
    }

    /// A process started.
    pub(super) fn started(&mut self, pid: u32) {
        if let Some(leave) = self.inboxes.starts.may_look() {
            let scope = self.config.discovery.scope();
            watchers::inspect(pid, scope, leave, self.inboxes.messages.clone());
        }
    }

    /// Takes a VM up, unless it is watched already.
    pub(super) fn found(&mut self, vm: Vm) {
        let id = vm.id;
        if self.registry.vms.contains_key(&id) {
            return;
        }
        let counted = counted(&vm);
        self.bury_predecessors(&vm);
        self.take_up(vm);
        self.look_for_duplicates(id);
        self.sampler.probes.attach(id, counted);
        let look = Look::in_full(id);
        // The first look is for a QEMU that has just started: those that were there before are to be read soon.
        let was_there = self.registry.awaits_first_sweep();
        for delay in LOOK_AGAIN.into_iter().skip(usize::from(was_there)) {
            watchers::refresh_after(delay, look, self.inboxes.messages.clone());
        }
    }

    /// Watches a VM from now on, as soon as it is counted.
    pub(super) fn take_up(&mut self, vm: Vm) {
        self.registry.trims = TRIMS;
        let now = self.now();
        let id = vm.id;
        // A status that was not waited for belongs to an earlier process with this pid.
        self.registry.statuses.remove(&id.pid);
        let owner = vm.ownership.owner.kind();
        info!(vm = vm.name, pid = id.pid, accelerator = %vm.accelerator, owner, "found");
        let unused = vm.unused_monitors.iter().filter(|_| vm.qmp_sockets.is_empty());
        for note in vm.notes.iter().chain(unused) {
            info!(vm = vm.name, "{note}");
        }
        let insight = Insight::begin(&vm);
        if let Some(why) = insight.lacks() {
            info!(vm = vm.name, "not asked for: {why}");
        }
        let age = watchers::age(id).unwrap_or_default();
        let transport = transport_to(&vm, &self.config, &self.inboxes.links);
        let hears_late = matches!(transport, Some(Transport::Brief(_) | Transport::Libvirt(_)));
        let every = self.config.memory_every_for(&vm.name, vm.origin.uid);
        let memory = MemoryWatch::new(every, transport.as_ref(), now);
        let qmp = transport.map(|transport| {
            let (notices, room) = (self.inboxes.notices.clone(), self.inboxes.room.clone());
            qmp::spawn(transport, notices, Limits::default(), room)
        });
        self.registry.pending.insert(id);
        let detection = detection_policy(&self.config, &vm);
        let context = Context::at(&self.config, now);
        let (state, recovery) = self.recovery.begin(&vm, age, &detection, &context);
        let watch = match state {
            Some((state, reason)) => Watch::resume(now, age, state, reason),
            None => Watch::begin(now, age, detection.policy.boot_grace),
        };
        let end = watchers::watch_end(&vm, self.inboxes.messages.clone());
        let recorder = self.disk.recorder(&vm, &detection, &context);
        let process = recovery.case.as_ref().and_then(|case| case.incident.counted_for);
        let watched = WatchedVm {
            key: Key::of(&vm).of_process(process),
            link: MonitorLink::new(&vm, qmp, hears_late),
            sensors: Sensors::new(PortListener::start(&vm), insight, end),
            detector: Detector::new(detection, watch, recorder),
            recovery,
            memory,
            resting: None,
            vm: Arc::new(vm),
        };
        self.registry.vms.insert(id, watched);
        self.recovery.share_among(self.registry.vms.by_owner().len());
        self.registry.readings.plan(id, now);
        self.taking_over.has_changed(now);
    }

    /// A QEMU that takes another's place may be found before the end of that one was reported.
    fn bury_predecessors(&mut self, vm: &Vm) {
        let claim = Key::of(vm).claim;
        let same = self.registry.vms.iter().filter(|(_, watched)| watched.key.claim == claim);
        self.bury(same.map(|(id, _)| *id).collect());
    }

    /// A VM that the sweep didn't see has ended, should its pidfd not have told.
    /// One is to follow after `again`.
    pub(super) fn swept(&mut self, all: &HashSet<VmId>, again: Option<Duration>) {
        self.bury(self.registry.vms.keys().filter(|id| !all.contains(id)).copied().collect());
        self.sampler.probes.found(self.registry.vms.keys().copied().collect());
        self.inboxes.starts.swept(again);
        self.registry.swept();
        self.recovery.give_up_the_gone(all);
    }

    /// Takes note of the end of those that have ended.
    fn bury(&mut self, vms: Vec<VmId>) {
        let is_gone = |id: &VmId| discover::start_ticks(id.pid).ok() != Some(id.start_ticks);
        vms.into_iter().filter(is_gone).for_each(|id| self.gone(id));
    }

    /// A QEMU has ended.
    pub(super) fn gone(&mut self, id: VmId) {
        let Some(mut watched) = self.no_longer_watched(id) else { return };
        let status = self.registry.statuses.remove(&id.pid);
        debug!(vm = watched.vm.name, pid = id.pid, ?status, "the process has ended");
        let context = Context::at(&self.config, self.now());
        let ended = self.recovery.qemu_ended(&mut watched, status, &self.registry.vms, &context);
        if let Some(words) = ended {
            info!(vm = watched.vm.name, "QEMU has ended: {words}");
            conditions::publish_end(&self.publisher.notifier, &watched, &words);
        }
        self.carry_out();
    }

    /// Lets go of a VM, whether it has ended or is to be managed no more.
    pub(super) fn no_longer_watched(&mut self, id: VmId) -> Option<WatchedVm> {
        let mut watched = self.registry.vms.remove(&id)?;
        self.registry.pending.remove(&id);
        self.taking_over.unseen.remove(&id);
        let now = self.now();
        self.taking_over.has_changed(now);
        self.registry.upkeep.forget(id);
        self.publisher.history.forget(id);
        conditions::publish_no_longer_watched(&self.publisher.notifier, &watched);
        self.end_duplicates(&watched);
        let_go(&mut watched);
        self.sampler.probes.forget(id);
        if self.registry.vms.values().all(|other| other.vm.netns != watched.vm.netns) {
            self.probe_runner.sockets.remove(&watched.vm.netns);
        }
        Some(watched)
    }
}

/// Ends what is held of a VM beside the loop: its recording, its session, and the wait for its end.
pub(super) fn let_go(watched: &mut WatchedVm) {
    watched.detector.recorder.end();
    if let Some(end) = watched.sensors.end.take() {
        end.abort();
    }
    if let Some(qmp) = watched.link.qmp.take() {
        qmp.close();
    }
}
