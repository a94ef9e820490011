//! The loop's body: owns every VM, and carries what the stages say from one to the next.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use rustix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc::{Sender, UnboundedSender};
use tracing::error;

use super::{
    Message, metrics_publisher::MetricsPublisher, reload::Reloading, vm_lifecycle::FirstReading,
    watchers,
};
use crate::{
    bpf::{ProbeThread, ProgramHealth},
    config::{Config, Source},
    history::RateHistory,
    metrics::IncidentCounts,
    notify::Notifier,
    probes::ProbeSocket,
    recorder::archive::{Archive, Writing},
    recovery::{EventKind, EventSink, IncidentWriter, Supervisor},
    sampler::{CounterMaps, DeviceWatch, HeartbeatReader, KvmReader, ThreadReader},
    storage::{
        incidents::IncidentStore,
        ledger::Ledger,
        retention::{Keeper, RetentionPolicy},
    },
    vm::{Context, HostReadings, WatchedVm},
};
use flatline_detector::verdict::{Act, Input, Tick};
use flatline_qemu::{discover::VmId, qmp::QmpNotice};

/// Ticks between two readings of what all guests' agents said, whoever said something meanwhile.
const ALL_HEARTBEATS_EVERY: u64 = 10;

/// The daemon's state.
pub(super) struct Engine {
    pub(super) config: Config,
    pub(super) reloading: Reloading,
    pub(super) started: Instant,
    /// How long the host had been up by then.
    host_up: Duration,
    pub(super) vms: BTreeMap<VmId, WatchedVm>,
    pub(super) health: Vec<ProgramHealth>,
    pub(super) store: Arc<IncidentStore>,
    /// Removes evidence that was kept for long enough.
    pub(super) keeper: Keeper,
    writer_thread: Option<JoinHandle<()>>,
    pub(super) recovery: Supervisor,
    /// Writes recordings, on a thread of its own.
    pub(super) archive: Archive,
    archive_thread: Writing,
    pub(super) messages: UnboundedSender<Message>,
    pub(super) counters: Arc<CounterMaps>,
    /// What the vCPUs of suspects do; `None` where the map can't be read.
    pub(super) kvm: Option<Arc<KvmReader>>,
    /// What guests' agents say.
    pub(super) heartbeats: HeartbeatReader,
    /// Reads all threads' times at once; `None` where no program could be had for it.
    pub(super) threads: Option<ThreadReader>,
    /// It can't be read, or there is none: each VM's threads have clocks of their own.
    pub(super) has_clocks: bool,
    pub(super) probes: ProbeThread,
    pub(super) notices: Sender<(VmId, QmpNotice)>,
    pub(super) probe_sockets: HashMap<u32, Arc<ProbeSocket>>,
    /// Status of QEMUs whose main thread ended, until the process is gone.
    pub(super) statuses: HashMap<u32, i32>,
    pub(super) ticks: u64,
    /// VMs were found since memory was last given back.
    pub(super) has_grown: bool,
    /// When the last reading began, and the kernel's ticks then.
    pub(super) jiffies: Option<(Duration, u64)>,
    devices: DeviceWatch,
    /// Many VMs are silent together, in words.
    pub(super) storm: Option<String>,
    /// What is still awaited before the first reading of all.
    pub(super) first_reading: FirstReading,
    /// Their last ticks, for whoever looks on.
    pub(super) lines: RateHistory,
    /// What is told to Prometheus.
    pub(super) figures: MetricsPublisher,
    /// Tells what happens to whoever is configured.
    pub(super) notifier: Notifier,
}

/// All that reads maps.
pub(super) struct Readers {
    pub(super) counters: CounterMaps,
    pub(super) heartbeats: HeartbeatReader,
    /// `None` where the map can't be read.
    pub(super) kvm: Option<KvmReader>,
    /// `None` where no program could be had for it.
    pub(super) threads: Option<ThreadReader>,
}

/// By which others report to the loop.
pub(super) struct Inboxes {
    pub(super) messages: UnboundedSender<Message>,
    pub(super) notices: Sender<(VmId, QmpNotice)>,
}

impl Engine {
    pub(super) fn new(
        config: Config,
        source: Source,
        store: IncidentStore,
        readers: Readers,
        probes: ProbeThread,
        health: Vec<ProgramHealth>,
        ways: Inboxes,
    ) -> Self {
        let Inboxes { messages, notices } = ways;
        let Readers { counters, heartbeats, kvm, threads } = readers;
        let store = Arc::new(store);
        let lines = RateHistory::new(config.sample_interval);
        let figures = MetricsPublisher::start(&config, &lines, &store);
        let notifier =
            Notifier::start(&config.notify, &config.paths.state_dir, figures.notifications.clone());
        let events = events(figures.incidents.clone(), notifier.clone());
        let (writer, writer_thread) = IncidentWriter::start(store.clone(), events);
        let ledger = Ledger::open(&config.paths.state_dir);
        if let Some(why) = ledger.complaint() {
            error!("{why}");
        }
        let (archive, archive_thread) =
            Archive::start(&config.paths.state_dir, config.recorder.max_mib);
        let retention = RetentionPolicy::from(&config.retention);
        let keeper = Keeper::start(&config.paths.state_dir, retention);
        Self {
            config,
            reloading: Reloading::new(source),
            started: Instant::now(),
            host_up: host_up(),
            vms: BTreeMap::new(),
            health,
            keeper,
            writer_thread,
            recovery: Supervisor::new(store.clone(), ledger, writer),
            archive,
            archive_thread,
            store,
            messages,
            counters: Arc::new(counters),
            kvm: kvm.map(Arc::new),
            heartbeats,
            has_clocks: threads.is_none(),
            threads,
            probes,
            notices,
            probe_sockets: HashMap::new(),
            statuses: HashMap::new(),
            ticks: 0,
            has_grown: false,
            jiffies: None,
            devices: DeviceWatch::default(),
            storm: None,
            first_reading: FirstReading::default(),
            lines,
            figures,
            notifier,
        }
    }

    /// Time since the host's start: the only clock of the verdict. Since the daemon's own start, no VM could be
    /// older than that.
    pub(super) fn now(&self) -> Duration {
        self.host_up + self.started.elapsed()
    }

    /// The wall-clock time of a moment.
    pub(super) fn wall_clock(&self, moment: Duration) -> SystemTime {
        SystemTime::now() - self.now().saturating_sub(moment)
    }

    /// Hands the programs back to be taken down.
    pub(super) fn stop(self) -> ProbeThread {
        for mut watched in self.vms.into_values() {
            watched.detector.recorder.end();
            if let Some(qmp) = watched.link.qmp {
                qmp.close();
            }
            if let Some(end) = watched.sensors.end {
                end.abort();
            }
        }
        self.recovery.end();
        if let Some(thread) = self.writer_thread {
            let _ = thread.join();
        }
        self.keeper.finish();
        drop(self.archive);
        self.archive_thread.finish();
        self.probes
    }

    pub(super) fn on_message(&mut self, message: Message) {
        let now = self.now();
        match message {
            Message::Found(vm) => self.found(*vm),
            Message::Swept(all) => self.swept(&all),
            Message::Started(pid) => {
                watchers::inspect(pid, self.config.discovery.scope(), self.messages.clone())
            }
            Message::Status(pid, status) => drop(self.statuses.insert(pid, status)),
            Message::Gone(vm) => self.gone(vm),
            Message::Refreshed(vm, looked) => self.refreshed(vm, looked),
            Message::Cpus(vm, threads) => self.set_threads(vm, threads, true),
            Message::RunState(vm, number, run_state) => {
                let Some(watched) = self.vms.get_mut(&vm) else { return };
                if number > watched.link.run_state_answered {
                    watched.link.run_state_answered = number;
                    self.learn_run_state(vm, run_state);
                }
            }
            Message::Round { id, boot_began, testimony, notes } => {
                self.answered(id, boot_began, testimony, notes);
            }
            Message::Memory(vm, read) => {
                if let Some(watched) = self.vms.get_mut(&vm) {
                    watched.memory_read(*read, now);
                }
            }
            Message::Restarted(id, attempts, result) => {
                let context = Context::at(&self.config, now);
                match self.vms.get_mut(&id) {
                    Some(vm) => self.recovery.restarted(vm, attempts, result, &context),
                    None => self.recovery.started(&mut self.vms, id, attempts, result, &context),
                }
            }
            Message::PutBack(id, number, configured) => {
                if let Some(watched) = self.vms.get(&id) {
                    self.recovery.put_back(watched, number, configured);
                }
            }
            Message::Configured(read) => self.configured(read),
            Message::Finished(id, attempts, result) => {
                let context = Context::at(&self.config, now);
                if let Some(watched) = self.vms.get_mut(&id) {
                    self.recovery.rest_is_done(watched, attempts, result, &context);
                }
            }
        }
        self.carry_out();
    }

    /// One tick: samples all VMs, then judges each on what moved.
    pub(super) fn tick(&mut self) {
        self.ticks += 1;
        let now = self.now();
        let slots = self.vms.values().filter_map(|watched| watched.sensors.slot.as_ref().ok());
        let slots = slots.max().map_or(0, |highest| highest + 1);
        let rows = self.counters.rows(slots);
        let threads = self.read_threads();
        self.jiffies = threads.as_ref().map(|threads| (now, threads.jiffies()));
        // For the first guest whose agent said anything, for all.
        let beats = std::cell::OnceCell::new();
        let heartbeats = || beats.get_or_init(|| self.heartbeats.rows(slots)).as_ref();
        // For the first VM that seems to be stalled, for all.
        let ages = std::cell::OnceCell::new();
        let in_flight = |slot: u32| {
            let ages = ages.get_or_init(|| match &threads {
                Some(threads) => self.counters.in_flight(threads.jiffies()).unwrap_or_default(),
                // Nothing else tells the kernel's ticks.
                None => HashMap::new(),
            });
            ages.get(&slot).copied()
        };
        let standing = std::cell::OnceCell::new();
        let devices = || *standing.get_or_init(|| self.devices.look(now));
        let host = HostReadings {
            rows: &rows,
            threads: threads.as_ref(),
            heartbeats: &heartbeats,
            reads_all_heartbeats: self.ticks.is_multiple_of(ALL_HEARTBEATS_EVERY),
            in_flight: &in_flight,
            devices: &devices,
        };
        for watched in self.vms.values_mut() {
            watched.observe(&host, now);
        }
        self.lines.append(self.vms.values().map(|watched| {
            (&watched.vm, watched.sensors.activity.as_ref().filter(|_| watched.sensors.is_counted))
        }));
        let undecided = self.storm(now);
        for id in self.vms.keys().copied().collect::<Vec<_>>() {
            self.judge(id, undecided, now);
        }
        self.watch_kvm();
        self.recovery.start_due(&self.vms, &Context::at(&self.config, now));
        self.carry_out();
        self.read_memory(now);
        self.look_again(threads.as_ref());
        self.tell_changes(now);
    }

    fn judge(&mut self, id: VmId, undecided: bool, now: Duration) {
        if let Some(watched) = self.vms.get_mut(&id) {
            self.recovery.tick(watched, &Context::at(&self.config, now));
        }
        self.carry_out();
        // A look into the map for each VM and tick would be half of what a tick costs.
        let may_be_asked =
            self.vms.get(&id).is_some_and(|watched| watched.detector.watch.wants_calibration(now));
        let calibratable = may_be_asked && self.somebody_answers(id);
        let Some(watched) = self.vms.get_mut(&id) else { return };
        let Some(activity) = watched.sensors.activity.clone() else { return };
        if watched.recovery.is_restarting() {
            return;
        }
        let monitor = watched.link.monitor();
        let tick = Tick { activity, monitor, calibratable, undecided };
        let act = watched.step(&Input::Tick(Arc::new(tick)), now);
        self.act(id, act);
    }

    pub(super) fn act(&mut self, id: VmId, act: Act) {
        if let Act::Ask(questions) = act {
            return self.ask(id, questions);
        }
        let context = Context::at(&self.config, self.now());
        if let Some(watched) = self.vms.get_mut(&id) {
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

fn host_up() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}
