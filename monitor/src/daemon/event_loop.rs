//! The loop's body: owns every VM, and carries what the stages say from one to the next.

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc::{Sender, UnboundedSender};
use tracing::error;

use super::{
    Message,
    clock::Clock,
    disk::Disk,
    probe_rounds::ProbeRunner,
    publisher::Publisher,
    registry::Registry,
    reload::Reloading,
    sampler::{Readers, Sampler},
    watchers,
};
use crate::{
    bpf::{ProbeThread, ProgramHealth},
    config::{Config, Source},
    metrics::IncidentCounts,
    notify::Notifier,
    probes::Notes,
    recovery::{EventKind, EventSink, IncidentWriter, Supervisor},
    storage::{incidents::IncidentStore, ledger::Ledger},
    vm::Context,
};
use flatline_detector::verdict::{Act, Input, Questions, Testimony, Tick};
use flatline_qemu::{discover::VmId, qmp::QmpNotice};

/// The daemon's state: what each part of it owns.
pub(super) struct EventLoop {
    pub(super) clock: Clock,
    pub(super) config: Config,
    pub(super) reloading: Reloading,
    pub(super) inboxes: Inboxes,
    pub(super) registry: Registry,
    pub(super) sampler: Sampler,
    pub(super) probe_runner: ProbeRunner,
    pub(super) recovery: Supervisor,
    pub(super) publisher: Publisher,
    pub(super) disk: Disk,
}

/// By which others report to the loop.
pub(super) struct Inboxes {
    pub(super) messages: UnboundedSender<Message>,
    pub(super) notices: Sender<(VmId, QmpNotice)>,
}

impl EventLoop {
    pub(super) fn new(
        config: Config,
        source: Source,
        store: IncidentStore,
        readers: Readers,
        probes: ProbeThread,
        health: Vec<ProgramHealth>,
        inboxes: Inboxes,
    ) -> Self {
        let Readers { counters, heartbeats, kvm, threads } = readers;
        let store = Arc::new(store);
        let publisher = Publisher::start(&config, store.clone());
        let events = events(publisher.metrics.incidents.clone(), publisher.notifier.clone());
        let (writer, writer_thread) = IncidentWriter::start(store.clone(), events);
        let ledger = Ledger::open(&config.paths.state_dir);
        if let Some(why) = ledger.complaint() {
            error!("{why}");
        }
        Self {
            clock: Clock::start(),
            reloading: Reloading::new(source),
            inboxes,
            registry: Registry::default(),
            sampler: Sampler::new(counters, heartbeats, threads, probes, health),
            probe_runner: ProbeRunner::new(kvm),
            recovery: Supervisor::new(store, ledger, writer),
            publisher,
            disk: Disk::start(&config, writer_thread),
            config,
        }
    }

    pub(super) fn now(&self) -> Duration {
        self.clock.now()
    }

    /// Hands the programs back to be taken down.
    pub(super) fn stop(self) -> ProbeThread {
        for mut watched in self.registry.vms.into_values() {
            watched.detector.recorder.end();
            if let Some(qmp) = watched.link.qmp {
                qmp.close();
            }
            if let Some(end) = watched.sensors.end {
                end.abort();
            }
        }
        self.recovery.end();
        self.disk.finish();
        self.sampler.probes
    }

    pub(super) fn on_message(&mut self, message: Message) {
        let now = self.now();
        match message {
            Message::Found(vm) => self.found(*vm),
            Message::Swept(all) => self.swept(&all),
            Message::Started(pid) => {
                watchers::inspect(pid, self.config.discovery.scope(), self.inboxes.messages.clone())
            }
            Message::Status(pid, status) => drop(self.registry.statuses.insert(pid, status)),
            Message::Gone(vm) => self.gone(vm),
            Message::Refreshed(vm, looked) => self.refreshed(vm, looked),
            Message::Cpus(vm, threads) => self.set_threads(vm, threads, true),
            Message::RunState(vm, number, run_state) => {
                let Some(watched) = self.registry.vms.get_mut(&vm) else { return };
                if number > watched.link.run_state_answered {
                    watched.link.run_state_answered = number;
                    self.learn_run_state(vm, run_state);
                }
            }
            Message::Round { id, boot_began, testimony, notes } => {
                self.answered(id, boot_began, testimony, notes);
            }
            Message::Memory(vm, read) => {
                if let Some(watched) = self.registry.vms.get_mut(&vm) {
                    watched.memory_read(*read, now);
                }
            }
            Message::Restarted(id, attempts, result) => {
                let context = Context::at(&self.config, now);
                match self.registry.vms.get_mut(&id) {
                    Some(vm) => self.recovery.restarted(vm, attempts, result, &context),
                    None => self.recovery.started(
                        &mut self.registry.vms,
                        id,
                        attempts,
                        result,
                        &context,
                    ),
                }
            }
            Message::PutBack(id, number, configured) => {
                if let Some(watched) = self.registry.vms.get(&id) {
                    self.recovery.put_back(watched, number, configured);
                }
            }
            Message::Configured(read) => self.configured(read),
            Message::Finished(id, attempts, result) => {
                let context = Context::at(&self.config, now);
                if let Some(watched) = self.registry.vms.get_mut(&id) {
                    self.recovery.rest_is_done(watched, attempts, result, &context);
                }
            }
        }
        self.carry_out();
    }

    /// One tick: samples all VMs, then judges each on what moved.
    pub(super) fn tick(&mut self) {
        let now = self.now();
        let threads = self.sampler.observe(&mut self.registry.vms, now);
        self.publisher.history.append(self.registry.vms.values().map(|watched| {
            (&watched.vm, watched.sensors.activity.as_ref().filter(|_| watched.sensors.is_counted))
        }));
        let undecided = self.assess_storm(now);
        for id in self.registry.vms.keys().copied().collect::<Vec<_>>() {
            self.judge(id, undecided, now);
        }
        self.sampler.watch_kvm(&self.registry.vms);
        self.recovery.start_due(&self.registry.vms, &Context::at(&self.config, now));
        self.carry_out();
        self.read_memory(now);
        self.look_again(threads.as_ref());
        self.tell_changes(now);
    }

    fn judge(&mut self, id: VmId, undecided: bool, now: Duration) {
        if let Some(watched) = self.registry.vms.get_mut(&id) {
            self.recovery.tick(watched, &Context::at(&self.config, now));
        }
        self.carry_out();
        let Some(watched) = self.registry.vms.get_mut(&id) else { return };
        // A look into the map for each VM and tick would be half of what a tick costs.
        let calibratable = watched.detector.watch.wants_calibration(now)
            && ProbeRunner::is_calibratable(watched, &self.sampler);
        let Some(activity) = watched.sensors.activity.clone() else { return };
        if watched.recovery.is_restarting() {
            return;
        }
        let monitor = watched.link.monitor();
        let tick = Tick { activity, monitor, calibratable, undecided };
        let act = watched.step(&Input::Tick(Arc::new(tick)), now);
        self.act(id, act);
    }

    /// Starts a round of questions, unless one is under way or began just now: a later tick asks again.
    fn ask(&mut self, id: VmId, questions: Questions) {
        let now = self.now();
        let Some(watched) = self.registry.vms.get_mut(&id) else { return };
        if !ProbeRunner::may_begin(watched, questions, now) {
            return;
        }
        if !matches!(questions, Questions::Calibrate) && watched.link.hears_late {
            self.ask_run_state(id);
        }
        let Some(watched) = self.registry.vms.get(&id) else { return };
        let unseen_storage = !self.registry.unseen_storage(watched).is_empty();
        let Some(watched) = self.registry.vms.get_mut(&id) else { return };
        // An answer about another boot says nothing.
        let boot_began = watched.detector.watch.boot.began;
        let asked = (questions, unseen_storage);
        let round = self.probe_runner.begin(watched, asked, &self.sampler, now);
        let (Some(round), messages) = (round, self.inboxes.messages.clone()) else { return };
        tokio::spawn(async move {
            let (testimony, notes) = round.await;
            let _ = messages.send(Message::Round { id, boot_began, testimony, notes });
        });
    }

    /// A round of questions ended.
    fn answered(&mut self, id: VmId, boot_began: Duration, testimony: Testimony, notes: Notes) {
        let now = self.now();
        let Some(watched) = self.registry.vms.get_mut(&id) else { return };
        watched.detector.notes = Some(notes);
        if boot_began != watched.detector.watch.boot.began || watched.recovery.is_restarting() {
            return;
        }
        let testimony = Arc::new(testimony);
        watched.detector.testimony = Some(testimony.clone());
        let act = watched.step(&Input::Testimony(testimony), now);
        self.act(id, act);
    }

    /// The guest boots anew.
    pub(super) fn forget_boot(&mut self, id: VmId) {
        if let Some(watched) = self.registry.vms.get_mut(&id) {
            self.sampler.forget_boot(watched);
        }
    }

    pub(super) fn act(&mut self, id: VmId, act: Act) {
        if let Act::Ask(questions) = act {
            return self.ask(id, questions);
        }
        let context = Context::at(&self.config, self.now());
        if let Some(watched) = self.registry.vms.get_mut(&id) {
            self.recovery.act(watched, &act, &context);
        }
        self.carry_out();
    }
}

/// Hands what recovery says to those that count it and notify of it.
fn events(counts: IncidentCounts, notifier: Notifier) -> EventSink {
    EventSink::new(move |event| match event.kind {
        EventKind::Recorded => counts.note(event.incident),
        _ => notifier.publish_recovery(event),
    })
}
