//! The daemon: starts every stage, and runs the one task that owns all transitions.
//!
//! What may wait (QMP, `/proc` of a hung process, attaching, disks) runs elsewhere and reports back
//! as a `Message`; the loop here never waits for any of it, so that one VM can't delay another.

mod clients;
mod clock;
mod conditions;
mod disk;
mod duplicates;
mod effects;
mod event_loop;
mod glances;
mod hold;
mod host_sampler;
mod hotplug;
mod kernel_clock;
mod kvm_turns;
mod memory;
mod message;
mod probe_rounds;
mod publisher;
mod qmp_events;
mod registry;
mod reload;
mod requests;
mod selection;
mod snapshot;
mod starts;
mod storm;
mod systemd;
mod taking_over;
mod transport;
mod trim;
mod upkeep;
mod views;
mod vm_lifecycle;
mod watchers;

use std::time::Duration;

use thiserror::Error;
use tokio::{
    net::UnixListener,
    runtime::Handle,
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, Interval, MissedTickBehavior, interval_at},
};
use tracing::{info, warn};

use crate::{
    api::{self, BindError},
    bpf::{DirectoryLock, ProbeError, ProbeReport, ProbeThread},
    check,
    config::{Config, Source},
    storage::{
        incidents::{IncidentStore, StoreError},
        remembered::Remembered,
    },
};
use clients::Clients;
use event_loop::EventLoop;
use flatline_qemu::{
    discover::{Vm, VmId},
    libvirt::Links,
    qmp::{QmpNotice, Room},
};
use host_sampler::HostSampler;
use message::{Inboxes, Message};
use starts::Starts;
use systemd::Systemd;
use taking_over::TakingOver;

/// Time between two turns of sweeps of `/proc`, for what events don't tell: one that was lost.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// Notices from all QMP sessions that may wait; a session that floods is cut off by its own limits.
const QMP_NOTICES: usize = 4096;

/// Why the daemon did not start.
#[derive(Debug, Error)]
pub(crate) enum StartError {
    /// The host lacks something that the daemon needs.
    #[error("this host is not fit: {0}")]
    Unfit(String),
    /// The programs, maps or locks.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The maps that were just pinned can't be opened.
    #[error("cannot open the pinned maps")]
    Maps(#[from] aya::maps::MapError),
    /// The state directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] BindError),
    /// The kernel refuses something ordinary.
    #[error("cannot {what}")]
    Host {
        /// What.
        what: &'static str,
        /// What it said.
        #[source]
        source: std::io::Error,
    },
}

/// Watches as `config` has it until SIGTERM or SIGINT, and leaves nothing attached or pinned, unless that is
/// configured. On SIGHUP, `source` is read again. Clients are served by the runtime of `clients`, and `ticks` is that of the thread which
/// waits for this: a tick wakes no other one.
///
/// # Errors
/// What keeps it from starting; once it runs, it goes on.
pub(crate) async fn run(
    config: Config,
    source: Source,
    clients: &Handle,
    ticks: &Handle,
) -> Result<(), StartError> {
    config.warnings.iter().for_each(|warning| warn!("{warning}"));
    let signals = Signals::listen()
        .map_err(|source| StartError::Host { what: "listen for signals", source })?;
    if let Some(gap) = check::check(&config).first_gap() {
        return Err(StartError::Unfit(gap));
    }
    if let Some(lack) = check::lack_of_room(&config) {
        warn!("{lack}");
    }
    // The state directory first: it is the one that two differently configured daemons would share.
    let _state = DirectoryLock::take(&config.paths.state_dir)?;
    let _runtime = DirectoryLock::take(&config.paths.runtime_dir)?;
    let _bpffs = DirectoryLock::take(&config.paths.bpffs_dir)?;
    watchers::raise_file_limit();
    let remembered = Remembered::new(&config.paths.state_dir);
    let recalled = taking_over::begin(remembered, config.discovery.scope());
    let store = IncidentStore::open(&config.paths.state_dir)?;
    let listener = bind(&config, clients)?;
    let (probe_reports, probed) = mpsc::unbounded_channel();
    let (probes, process_events, health) = ProbeThread::start(&config, probe_reports)?;
    for program in &health {
        match &program.failure {
            None => info!(program = program.program, hook = program.hook, "attached"),
            Some(why) => {
                warn!(program = program.program, hook = program.hook, "not attached: {why}")
            }
        }
    }
    let keep = config.probes.keep;
    let (result, probes) = match HostSampler::open(&config.paths.bpffs_dir, probes, health) {
        Ok(sampler) => {
            let (messages, inbox) = mpsc::unbounded_channel();
            let (notices, qmp) = mpsc::channel(QMP_NOTICES);
            let (mut starts, outlets, started) = Starts::new(messages.clone());
            let processes = watchers::watch_processes(process_events, outlets);
            if processes.is_some() && sampler.hears_of_starts() {
                starts.are_told();
            }
            let (room, links) = (Room::default(), Links::default());
            let inboxes = Inboxes { messages, notices, room, links, starts };
            let mut event_loop = EventLoop::new((config, source), store, sampler, inboxes, clients);
            let (remembered, recalled) = recalled;
            event_loop.taking_over = TakingOver::new(remembered);
            let reports = (inbox, qmp, probed, started);
            let probes = watch(event_loop, ticks, signals, listener, (recalled, reports)).await;
            processes.iter().for_each(JoinHandle::abort);
            (Ok(()), probes)
        }
        Err(failed) => {
            let (error, probes) = *failed;
            (Err(error.into()), probes)
        }
    };
    if let Err(error) = probes.stop(keep && result.is_ok()).await {
        warn!("something is left pinned: {error}");
    }
    result
}

/// Opens the control socket, in the runtime that serves it.
fn bind(config: &Config, clients: &Handle) -> Result<UnixListener, BindError> {
    let _within = clients.enter();
    api::bind(&config.paths.runtime_dir)
}

/// The receivers' ends of what reports to the loop: messages, QMP notices, what the probe thread did and found, and processes that
/// started.
type Reports = (
    mpsc::UnboundedReceiver<Message>,
    mpsc::Receiver<(VmId, QmpNotice)>,
    mpsc::UnboundedReceiver<ProbeReport>,
    mpsc::Receiver<u32>,
);

/// Runs the loop until it is told to end, with ticks of this runtime; hands the programs back to be taken down.
async fn watch(
    mut event_loop: EventLoop,
    runtime: &Handle,
    mut signals: Signals,
    listener: UnixListener,
    (recalled, (mut inbox, mut qmp, mut probed, mut started)): (JoinHandle<Vec<Vm>>, Reports),
) -> ProbeThread {
    let runtime_dir = event_loop.config.paths.runtime_dir.clone();
    let mut systemd = Systemd::from_environment(event_loop.config.sample_interval);
    let (control_sender, mut clients) = Clients::new();
    let others = event_loop.publisher.socket_routes();
    let control = event_loop.publisher.clients.spawn(api::serve(listener, control_sender, others));
    let recalled = event_loop.take_over(taking_over::within(recalled).await);
    info!("watching");
    conditions::publish_start(&event_loop.publisher.notifier, event_loop.config.mode);

    let interval = event_loop.config.sample_interval;
    // Where VMs are known already, the first tick is their first reading.
    let wait = if recalled { interval } else { Duration::ZERO };
    let mut tick = ticks(runtime, Instant::now() + wait, interval);
    let wanted = event_loop.publisher.wanted.clone();
    let mut sweep = ticks(runtime, Instant::now() + SWEEP_EVERY, SWEEP_EVERY);
    loop {
        if let Some(request) = clients.in_turn() {
            event_loop.on_request(request);
        }
        tokio::select! {
            biased;
            _ = signals.terminated.recv() => break,
            _ = signals.interrupted.recv() => break,
            _ = signals.hangup.recv() => {
                systemd.reloading();
                event_loop.reload();
            }
            due = tick.tick() => {
                event_loop.timed_tick(due, &mut clients);
                event_loop.look_after_first_reading();
                event_loop.sweep_if_overrun();
                systemd.ticked(&event_loop);
            }
            Some((vm, notice)) = qmp.recv() => event_loop.on_qmp(vm, notice),
            Some(message) = inbox.recv() => event_loop.on_message(message),
            Some(report) = probed.recv() => event_loop.on_probed(report),
            Some(pid) = started.recv() => event_loop.started(pid),
            Some(request) = clients.next() => event_loop.on_request(request),
            () = wanted.notified() => event_loop.publish_snapshot(),
            _ = sweep.tick() => event_loop.sweep_in_turn(),
        }
        if event_loop.registry.first_reading_is_due() {
            tick.reset_immediately();
        }
        let interval = event_loop.config.sample_interval;
        if tick.period() != interval {
            tick = ticks(runtime, Instant::now() + interval, interval);
            systemd.outlast(interval);
        }
        systemd.reloaded(&event_loop);
    }
    info!("stopping");
    systemd.stopping();
    control.abort();
    event_loop.publisher.notifier.finish().await;
    let probes = event_loop.stop();
    let _ = std::fs::remove_file(api::socket_path(&runtime_dir));
    probes
}

/// Signals that the daemon listens to.
struct Signals {
    terminated: Signal,
    interrupted: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminated: signal(SignalKind::terminate())?,
            interrupted: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// Ticks of this runtime, the first of them at `first`.
fn ticks(runtime: &Handle, first: Instant, interval: Duration) -> Interval {
    let _within = runtime.enter();
    let mut ticks = interval_at(first, interval);
    // After a delay the next tick is a whole interval away: two at once would measure nothing.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
