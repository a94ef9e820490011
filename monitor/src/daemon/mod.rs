//! The daemon: starts every stage, and runs the one task that owns all transitions.
//!
//! Whatever may wait (QMP, `/proc` of a hung process, attaching, disks) runs elsewhere and reports back
//! as a `Message`; the loop here never waits for any of it, so that one VM can't delay another.

mod clock;
mod disk;
mod effects;
mod event_loop;
mod evidence;
mod heartbeat_view;
mod hold;
mod hotplug;
mod memory;
mod metrics_publisher;
mod probe_rounds;
mod publisher;
mod qmp_events;
mod reconfigure;
mod recordings;
mod registry;
mod reload;
mod requests;
mod sampler;
mod show;
mod snapshot;
mod storm;
mod systemd;
mod telling;
mod transport;
mod vm_lifecycle;
mod watchers;

use std::{collections::HashSet, time::Duration};

use thiserror::Error;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{Instant, Interval, MissedTickBehavior, interval_at},
};
use tracing::{info, warn};

use crate::{
    api::{self, BindError},
    bpf::{AttachReport, DirectoryLock, ProbeError, ProbeThread, THREADS},
    check,
    config::{Config, ConfigError, Source},
    probes::Notes,
    recovery::{Restart, RestartError},
    sampler::{CounterMaps, HeartbeatReader, KvmReader, ThreadReader},
    storage::{
        incident::Attempt,
        incidents::{IncidentStore, StoreError},
    },
    vm::MemoryRead,
};
use event_loop::{EventLoop, Inboxes};
use flatline_detector::verdict::Testimony;
use flatline_qemu::discover::{ResetAction, Vm, VmId};
use flatline_samples::RunState;
use sampler::Readers;
use systemd::Systemd;

/// Time between two sweeps of `/proc`, for what events don't tell: a QEMU that daemonized, a lost event.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// Notices from all QMP sessions that may wait; a session that floods is cut off by its own limits.
const QMP_NOTICES: usize = 4096;
/// Requests from clients that may wait.
const CONTROL_REQUESTS: usize = 64;

/// Why the daemon did not start.
#[derive(Debug, Error)]
pub(crate) enum StartError {
    /// The host lacks something that it needs.
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

impl StartError {
    /// The exit code that stands for it.
    pub(crate) fn exit_code(&self) -> u8 {
        1
    }
}

/// What the parts that may wait report to the loop.
#[derive(Debug)]
enum Message {
    /// A QEMU, found by a sweep or because it started.
    Found(Box<Vm>),
    /// A sweep ended; these are all the QEMUs there are.
    Swept(HashSet<VmId>),
    /// A process started.
    Started(u32),
    /// A watched QEMU's main thread ended with this status of `wait(2)`.
    Status(u32, i32),
    /// A watched QEMU is gone.
    Gone(VmId),
    /// What may have changed of it was looked at again.
    Refreshed(VmId, watchers::Looked),
    /// Its vCPU threads, by QEMU's own account.
    Cpus(VmId, Vec<(u32, u32)>),
    /// Its run state, asked for after an event; the number orders the questions.
    RunState(VmId, u64, RunState),
    /// Its witnesses answered, of the boot that began then.
    Round { id: VmId, boot_began: Duration, testimony: Testimony, notes: Notes },
    /// Its memory was read.
    Memory(VmId, Box<MemoryRead>),
    /// Its restart ended; these are all restarts of its incident so far.
    Restarted(VmId, Vec<Attempt>, Result<Restart, RestartError>),
    /// QEMU is to be told again what to do at a reset, after the restart with this number.
    PutBack(VmId, u64, ResetAction),
    /// The configuration was read again.
    Configured(Result<Box<Config>, ConfigError>),
    /// What was left of an earlier daemon's restart is done, in QEMU's words.
    Finished(VmId, Vec<Attempt>, Result<String, RestartError>),
}

/// Runs on the terms of `config` until SIGTERM or SIGINT, and leaves nothing attached or pinned, unless that is
/// configured. On SIGHUP, `source` is read again.
///
/// # Errors
/// Whatever keeps it from starting; once it runs, it goes on.
pub(crate) async fn run(config: Config, source: Source) -> Result<(), StartError> {
    config.warnings.iter().for_each(|warning| warn!("{warning}"));
    let signals = Signals::listen()
        .map_err(|source| StartError::Host { what: "listen for signals", source })?;
    if let Some(gap) = check::first_gap(&check::check(&config)) {
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
    let store = IncidentStore::open(&config.paths.state_dir)?;
    let listener = api::bind(&config.paths.runtime_dir)?;
    let (attach_reports, mut attached) = mpsc::unbounded_channel();
    let (probes, process_events, health) = ProbeThread::start(&config, attach_reports)?;
    for program in &health {
        match &program.failure {
            None => info!(program = program.program, hook = program.hook, "attached"),
            Some(why) => {
                warn!(program = program.program, hook = program.hook, "not attached: {why}")
            }
        }
    }
    let keep = config.probes.keep;
    let prepared = Prepared { config, source, signals, store, listener };
    let started = start(prepared, probes, process_events, health, &mut attached).await;
    let (result, probes) = started;
    if let Err(error) = probes.stop(keep && result.is_ok()).await {
        warn!("something is left pinned: {error}");
    }
    result
}

/// What a daemon has before its programs are in place.
struct Prepared {
    config: Config,
    source: Source,
    signals: Signals,
    store: IncidentStore,
    listener: tokio::net::UnixListener,
}

/// Everything after the programs are in place, which are handed back to be taken down.
async fn start(
    prepared: Prepared,
    probes: ProbeThread,
    process_events: crate::bpf::ProcessEvents,
    health: Vec<crate::bpf::ProgramHealth>,
    attached: &mut mpsc::UnboundedReceiver<AttachReport>,
) -> (Result<(), StartError>, ProbeThread) {
    let Prepared { config, source, mut signals, store, listener } = prepared;
    let bpffs_dir = &config.paths.bpffs_dir;
    let maps = CounterMaps::open(bpffs_dir)
        .and_then(|counters| Ok((counters, HeartbeatReader::open(bpffs_dir)?)));
    let (counters, heartbeats) = match maps {
        Ok(maps) => maps,
        Err(error) => return (Err(error.into()), probes),
    };
    let (control_sender, mut requests) = mpsc::channel(CONTROL_REQUESTS);
    let (messages, mut inbox) = mpsc::unbounded_channel();
    let (notices, mut qmp) = mpsc::channel(QMP_NOTICES);
    let processes = watchers::watch_processes(process_events, messages.clone());
    let runtime_dir = config.paths.runtime_dir.clone();
    let mut notifier = Systemd::from_environment(config.sample_interval);
    let reads_threads =
        health.iter().any(|program| program.program == THREADS && program.failure.is_none());
    let threads = reads_threads.then(|| ThreadReader::new(config.paths.bpffs_dir.join(THREADS)));
    let kvm = KvmReader::open(&config.paths.bpffs_dir)
        .inspect_err(|error| warn!("KVM's counters can't be read: {error}"))
        .ok();
    let ways = Inboxes { messages, notices };
    let readers = Readers { counters, heartbeats, kvm, threads };
    let mut event_loop = EventLoop::new(config, source, store, readers, probes, health, ways);
    let others = event_loop.publisher.metrics.socket_routes();
    let control = tokio::spawn(api::serve(listener, control_sender, others));
    event_loop.sweep();
    info!("watching");
    event_loop.tell_of_start();

    let mut tick = ticks(Instant::now(), event_loop.config.sample_interval);
    let mut sweep = interval_at(Instant::now() + SWEEP_EVERY, SWEEP_EVERY);
    loop {
        tokio::select! {
            biased;
            _ = signals.terminated.recv() => break,
            _ = signals.interrupted.recv() => break,
            _ = signals.hangup.recv() => {
                notifier.reloading();
                event_loop.reload();
            }
            due = tick.tick() => {
                event_loop.timed_tick(due);
                notifier.ticked(&event_loop);
            }
            Some((vm, notice)) = qmp.recv() => event_loop.on_qmp(vm, notice),
            Some(message) = inbox.recv() => event_loop.on_message(message),
            Some(report) = attached.recv() => event_loop.on_attached(report),
            Some(request) = requests.recv() => event_loop.on_request(request),
            _ = sweep.tick() => event_loop.sweep(),
        }
        if event_loop.registry.first_reading_is_due() {
            tick.reset_immediately();
        }
        let interval = event_loop.config.sample_interval;
        if tick.period() != interval {
            tick = ticks(Instant::now() + interval, interval);
            notifier.outlast(interval);
        }
        notifier.reloaded(&event_loop);
    }
    info!("stopping");
    notifier.stopping();
    control.abort();
    if let Some(processes) = processes {
        processes.abort();
    }
    event_loop.publisher.notifier.finish().await;
    let probes = event_loop.stop();
    let _ = std::fs::remove_file(api::socket_path(&runtime_dir));
    (Ok(()), probes)
}

/// What the daemon is told by signals.
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

/// Ticks, the first of them at `first`.
fn ticks(first: Instant, interval: Duration) -> Interval {
    let mut ticks = interval_at(first, interval);
    // After a delay the next tick is a whole interval away: two at once would measure nothing.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
