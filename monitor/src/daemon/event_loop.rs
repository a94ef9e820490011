//! Event loop: owns every VM, and carries what the stages say from one to the next.

use std::{sync::Arc, time::Duration};

use tokio::runtime::Handle;
use tracing::error;

use super::{
    clients::Clients,
    clock::Clock,
    conditions,
    disk::Disk,
    effects,
    host_sampler::HostSampler,
    hotplug,
    message::{Inboxes, Message},
    probe_rounds::ProbeRunner,
    publisher::Publisher,
    qmp_events,
    registry::Registry,
    reload::Reloading,
    storm,
    taking_over::TakingOver,
    upkeep::Means,
    views::{Teller, Views},
    vm_lifecycle::let_go,
};
use crate::{
    bpf::{AttachReport, ProbeReport, ProbeThread},
    config::{Config, Source},
    probes::Notes,
    recovery::{Effect, IncidentWriter, Supervisor},
    storage::{incidents::IncidentStore, ledger::Ledger},
    vm::{Context, Vms},
};
use flatline_detector::verdict::{Act, Input, Questions, Testimony, Tick};
use flatline_qemu::{
    discover::VmId,
    qmp::{QmpNotice, QmpState},
};

/// The daemon's state: what each part of it owns.
pub(super) struct EventLoop {
    pub(super) clock: Clock,
    pub(super) config: Arc<Config>,
    pub(super) reloading: Reloading,
    pub(super) inboxes: Inboxes,
    pub(super) registry: Registry,
    pub(super) sampler: HostSampler,
    pub(super) probe_runner: ProbeRunner,
    pub(super) recovery: Supervisor,
    pub(super) publisher: Publisher,
    pub(super) disk: Disk,
    pub(super) taking_over: TakingOver,
}

impl EventLoop {
    pub(super) fn new(
        (config, source): (Config, Source),
        store: IncidentStore,
        sampler: HostSampler,
        inboxes: Inboxes,
        clients: &Handle,
    ) -> Self {
        let store = Arc::new(store);
        let (publisher, events) = Publisher::start(&config, store.clone(), clients);
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
            sampler,
            probe_runner: ProbeRunner::open(&config.paths.bpffs_dir),
            recovery: Supervisor::new(store, ledger, writer),
            publisher,
            disk: Disk::start(&config, writer_thread),
            taking_over: TakingOver::default(),
            config: Arc::new(config),
        }
    }

    pub(super) fn now(&self) -> Duration {
        self.clock.now()
    }

    /// What clients are shown, as it is now.
    pub(super) fn views(&self) -> Views<'_> {
        Views {
            registry: &self.registry,
            sampler: &self.sampler,
            recovery: &self.recovery,
            context: Context::at(&self.config, self.now()),
            teller: self.teller(),
        }
    }

    /// What tells of VMs beside the loop, as of now.
    pub(super) fn teller(&self) -> Teller {
        Teller {
            config: self.config.clone(),
            counters: self.sampler.counters.clone(),
            signs: self.sampler.signs.clone(),
            threads: self.sampler.threads.clone(),
            clock: self.sampler.clock,
            messages: self.inboxes.messages.clone(),
            now: self.now(),
        }
    }

    /// Hands the programs back to be taken down.
    pub(super) fn stop(mut self) -> ProbeThread {
        self.wake_chosen(None);
        self.registry.vms.into_values().for_each(|mut watched| let_go(&mut watched));
        self.recovery.end();
        self.disk.finish();
        self.sampler.probes
    }

    pub(super) fn on_message(&mut self, message: Message) {
        if let Message::RunState(id, ..) | Message::Gone(id) = message {
            self.wake(id);
        }
        let now = self.now();
        let vms = &mut self.registry.vms;
        let context = Context::at(&self.config, now);
        match message {
            Message::Found(vm) => self.found(*vm),
            Message::Swept { all, again } => self.swept(&all, again),
            Message::Status(pid, status) => drop(self.registry.statuses.insert(pid, status)),
            Message::Gone(vm) => self.gone(vm),
            Message::Refreshed(looked) => self.refreshed(looked),
            Message::Cpus(vm, threads) => {
                if let Some(watched) = vms.get_mut(&vm) {
                    hotplug::set_threads(watched, threads, true);
                }
            }
            Message::RunState(vm, number, run_state) => {
                let Some(watched) = vms.get_mut(&vm) else { return };
                if number > watched.link.run_state_answered {
                    watched.link.run_state_answered = number;
                    let act = qmp_events::learn_run_state(watched, run_state, now);
                    self.act(vm, act);
                }
            }
            Message::Round { id, boot_began, testimony, notes } => {
                self.answered(id, boot_began, testimony, notes);
            }
            Message::Memory(read) => {
                for (vm, read) in read {
                    let Some(watched) = vms.get_mut(&vm) else { continue };
                    watched.memory_read(read, now);
                    if !watched.is_read_when_asked() {
                        self.registry.readings.plan(vm, watched.memory.due().unwrap_or(now));
                    }
                }
            }
            Message::Restarted(id, attempts, result) => match vms.get_mut(&id) {
                Some(vm) => self.recovery.restarted(vm, attempts, result, &context),
                None => self.recovery.started(vms, id, attempts, result, &context),
            },
            Message::PutBack(id, number, configured) => {
                if let Some(watched) = vms.get(&id) {
                    self.recovery.put_back(watched, number, configured);
                }
            }
            Message::Configured(read) => self.configured(read),
            Message::Finished(id, attempts, result) => {
                if let Some(watched) = vms.get_mut(&id) {
                    self.recovery.rest_is_done(watched, attempts, result, &context);
                }
            }
        }
        self.carry_out();
    }

    /// QEMU said something on its monitor, or the session to it changed.
    pub(super) fn on_qmp(&mut self, id: VmId, notice: QmpNotice) {
        self.wake(id);
        let now = self.now();
        let Some(watched) = self.registry.vms.get_mut(&id) else { return };
        let act = match notice {
            QmpNotice::State(state) => {
                if state == QmpState::Ready {
                    self.recovery.monitor_ready(watched);
                    qmp_events::ask_cpus(watched, &self.inboxes);
                    hotplug::look_for_user(watched, &self.inboxes);
                }
                qmp_events::monitor_is(watched, state);
                Act::Nothing
            }
            QmpNotice::RunState(run_state) => qmp_events::learn_run_state(watched, run_state, now),
            QmpNotice::Event(event) => {
                if qmp_events::tells_of_devices(&event) {
                    self.registry.upkeep.look_soon(watched, self.config.sample_interval, now);
                }
                qmp_events::on_event(watched, event, &self.sampler, &self.inboxes, now)
            }
        };
        self.act(id, act);
    }

    /// The probe thread did something, or found something.
    pub(super) fn on_probed(&mut self, report: ProbeReport) {
        match report {
            ProbeReport::Attached(report) => self.attached(report),
            ProbeReport::Tended(tended) => {
                let now = self.now();
                let Self {
                    registry: Registry { upkeep, vms, .. }, sampler, inboxes, config, ..
                } = self;
                upkeep.tended(&tended, &mut means(vms, sampler, inboxes, config, now));
            }
        }
    }

    /// A VM is counted, or can't be.
    fn attached(&mut self, report: AttachReport) {
        let now = self.now();
        self.registry.pending.remove(&report.vm);
        self.taking_over.attached(&report);
        if report.lost.is_some() {
            self.wake(report.vm);
        }
        if let Some(watched) = self.registry.vms.get_mut(&report.vm) {
            hotplug::attached(watched, report, &mut self.registry.upkeep, &self.inboxes, now);
        }
    }

    /// One tick: samples all VMs but those that rest, then judges each of these on what moved.
    pub(super) fn tick(&mut self, clients: &mut Clients) {
        let now = self.now();
        let awake = self.sampler.observe(&mut self.registry.vms, now);
        self.registry.begin_tick(awake.clone());
        self.append_to_history(now);
        self.recovery.share_among(self.registry.vms.by_owner().len());
        let context = Context::at(&self.config, now);
        let notifier = &self.publisher.notifier;
        let undecided = storm::assess(&mut self.registry, &self.recovery, notifier, &context);
        for id in &awake {
            self.answer_in_turn(clients);
            self.judge(*id, undecided, now);
        }
        self.sampler.leave_kvm(&self.registry.vms, now);
        let (vms, context) = (&mut self.registry.vms, Context::at(&self.config, now));
        self.recovery.start_due(vms, &context);
        self.recovery.take_turns(vms, &context);
        self.recovery.write_counted(&context);
        self.carry_out();
        let vms = &mut self.registry.vms;
        let readings = self.registry.readings.begin(vms, &awake, &self.inboxes, now);
        let Self { registry: Registry { upkeep, vms, .. }, sampler, inboxes, config, .. } = self;
        upkeep.tick(&awake, readings, &mut means(vms, sampler, inboxes, config, now));
        let vms = &mut self.registry.vms;
        for id in &awake {
            vms.get_mut(id).into_iter().for_each(|watched| self.recovery.end_reports(watched));
        }
        let context = Context::at(&self.config, now);
        conditions::publish_changes(&self.publisher.notifier, vms, &awake, &self.sampler, &context);
        self.taking_over.write_in_turn(&self.registry.vms, now);
    }

    fn judge(&mut self, id: VmId, undecided: bool, now: Duration) {
        if let Some(watched) = self.registry.vms.get_mut(&id) {
            self.recovery.tick(watched, &Context::at(&self.config, now));
        }
        self.carry_out();
        if self.taking_over.unseen.contains(&id) {
            return;
        }
        let rests = self.registry.vms.rests().clone();
        let Some(watched) = self.registry.vms.get_mut(&id) else { return };
        // A look into the map for each VM and tick would be half of what a tick costs.
        let calibratable = watched.detector.watch.wants_calibration(now)
            && ProbeRunner::is_calibratable(watched, &self.sampler);
        if watched.is_resting() {
            let rests_on = watched.has_rested_out() && !calibratable;
            let act = watched.wake(now);
            if rests_on && act == Act::Nothing {
                watched.lie_down(&rests, &self.sampler.signs, now);
            }
            return self.act(id, act);
        }
        let Some(activity) = watched.sensors.activity.clone() else { return };
        if watched.recovery.is_restarting() {
            return;
        }
        let monitor = watched.link.monitor();
        let tick = Tick { activity, monitor, calibratable, undecided };
        let act = watched.step(&Input::Tick(Arc::new(tick)), now);
        if act == Act::Nothing {
            watched.lie_down(&rests, &self.sampler.signs, now);
        }
        self.act(id, act);
    }

    /// Ends a VM's rest, with a sample of what moved meanwhile: something else is to be told of it.
    pub(super) fn wake(&mut self, id: VmId) {
        let now = self.now();
        if let Some(watched) = self.registry.vms.get_mut(&id).filter(|vm| vm.is_resting()) {
            self.sampler.observe_one(watched, now);
            let act = watched.wake(now);
            self.act(id, act);
        }
    }

    /// Ends the rest of this VM; `None`: of all.
    pub(super) fn wake_chosen(&mut self, only: Option<VmId>) {
        self.registry.chosen(only).into_iter().for_each(|id| self.wake(id));
    }

    /// Starts a round of questions, unless one is under way or began just now: a later tick asks again.
    fn ask(&mut self, id: VmId, questions: Questions) {
        let now = self.now();
        let Some(watched) = self.registry.vms.get_mut(&id) else { return };
        if !ProbeRunner::may_begin(watched, questions, now) {
            return;
        }
        if !matches!(questions, Questions::Calibrate) && watched.link.hears_late {
            qmp_events::ask_run_state(watched, &self.inboxes);
        }
        let unseen_storage = self.registry.has_unseen_storage(id);
        let Some(watched) = self.registry.vms.get_mut(&id) else { return };
        let asked = (questions, unseen_storage);
        if let Some(round) = self.probe_runner.begin(watched, asked, &self.sampler, now) {
            self.inboxes.report(round);
        }
    }

    /// A round of questions ended.
    fn answered(&mut self, id: VmId, boot_began: Duration, testimony: Testimony, notes: Notes) {
        let now = self.now();
        let Some(watched) = self.registry.vms.get_mut(&id) else { return };
        watched.detector.notes = Some(notes);
        // An answer about another boot says nothing.
        if boot_began != watched.detector.watch.boot.began || watched.recovery.is_restarting() {
            return;
        }
        let testimony = Arc::new(testimony);
        watched.detector.testimony = Some(testimony.clone());
        let act = watched.step(&Input::Testimony(testimony), now);
        // The next round may begin at once.
        self.sampler.suspect_of_kvm(watched, now);
        self.act(id, act);
    }

    /// Does what a VM's verdict says.
    fn act(&mut self, id: VmId, act: Act) {
        if let Act::Ask(questions) = act {
            return self.ask(id, questions);
        }
        let context = Context::at(&self.config, self.now());
        if let Some(watched) = self.registry.vms.get_mut(&id) {
            self.recovery.act(watched, &act, &context);
        }
        self.carry_out();
    }

    /// Carries out what recovery wants done.
    pub(super) fn carry_out(&mut self) {
        for mut effect in self.recovery.take_effects() {
            if let Effect::Restart { vm, context, .. } = &mut effect {
                context.evidence.figures = self.views().figures(*vm);
            }
            let vms = &mut self.registry.vms;
            effects::carry_out(effect, vms, &self.sampler, &self.inboxes);
        }
    }
}

/// What upkeep works with at `now`.
fn means<'a>(
    vms: &'a mut Vms,
    sampler: &'a HostSampler,
    inboxes: &'a Inboxes,
    config: &Config,
    now: Duration,
) -> Means<'a> {
    let HostSampler { probes, counters, .. } = sampler;
    Means { vms, probes, counters, inboxes, tick: config.sample_interval, now }
}
