//! One sensor taken away: what is still found, and that no guest is restarted for want of it.
//!
//! A crash that can't be told for want of a sensor is *held*, *suspect* or *unobservable*: never *alive*, and
//! never a wrong reset.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};

use super::crashes::{after, at};
use super::run::{
    Look, WATCHED_FOR, is_convicted, look_until, resets_from_outside, since, with_incident,
};
use super::{Outcome, Place, Programs, Stage};
use crate::command;
use crate::guest::GuestConfig;
use crate::interrupt;
use crate::qmp::Qmp;

/// From the loss of a sensor to the fault.
const WITHOUT_FOR: Duration = Duration::from_secs(5);
/// How often tap programs are detached: the daemon attaches them again when it notices.
const DETACHED_EVERY: Duration = Duration::from_millis(300);
/// For a guest to be back: one that shows nothing which can be seen is asked after a minute, and not before.
const BACK_WITHIN: Duration = Duration::from_secs(120);
/// For a command in the guest.
const WITHIN: Duration = Duration::from_secs(60);

/// What is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sensor {
    /// Nothing: for comparison.
    Nothing,
    /// The guest has no network card.
    Tap,
    /// The guest has no disk.
    Disk,
    /// Its tap's programs.
    TapPrograms,
    /// The block layer's programs.
    BlockPrograms,
    /// QEMU's monitor.
    Qmp,
    /// The guest's address.
    Address,
    /// The names of the vCPU threads.
    ThreadNames,
    /// The iterator over threads.
    Iterator,
}

/// What becomes of the guest then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Linux halts every CPU.
    Halt,
    /// Linux panics and spins.
    Panic,
    /// Both vCPUs spin with interrupts off.
    HardLockup,
    /// Nothing: it idles.
    Idle,
    /// It computes.
    Computes,
}

/// One of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trial {
    /// What is taken away.
    pub sensor: Sensor,
    /// What becomes of the guest.
    pub fault: Fault,
}

/// All sensors, in the order in which they are shown.
pub const SENSORS: [Sensor; 9] = [
    Sensor::Nothing,
    Sensor::Tap,
    Sensor::Disk,
    Sensor::TapPrograms,
    Sensor::BlockPrograms,
    Sensor::Qmp,
    Sensor::Address,
    Sensor::ThreadNames,
    Sensor::Iterator,
];
/// All faults, in the order in which they are shown.
pub const FAULTS: [Fault; 5] =
    [Fault::Halt, Fault::Panic, Fault::HardLockup, Fault::Idle, Fault::Computes];

impl Sensor {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Tap => "tap",
            Self::Disk => "disk",
            Self::TapPrograms => "tap-programs",
            Self::BlockPrograms => "block-programs",
            Self::Qmp => "qmp",
            Self::Address => "address",
            Self::ThreadNames => "thread-names",
            Self::Iterator => "iterator",
        }
    }

    /// How it is taken away.
    pub fn how(self) -> &'static str {
        match self {
            Self::Nothing => "all sensors are there",
            Self::Tap => "the guest has no network card",
            Self::Disk => "the guest has no disk",
            Self::TapPrograms => {
                "`bpftool link detach` on the links of all taps, three times a second: the daemon attaches them \
                 again whenever it notices"
            }
            Self::BlockPrograms => {
                "the pins of the block programs' links are removed: the kernel detaches them, and the maps stay"
            }
            Self::Qmp => {
                "another client holds the daemon's QMP socket before the daemon comes; a verdict's restart is \
                 refused until that client leaves, after the verdict"
            }
            Self::Address => "the guest has a tap and no address: it never sends a packet",
            Self::ThreadNames => "QEMU runs with `debug-threads=off`",
            Self::Iterator => "the pin of the iterator over threads is removed",
        }
    }

    /// Takes it away from a guest that is to be.
    fn withhold(self, config: &mut GuestConfig) {
        match self {
            Self::Tap => (config.tap, config.ip) = (None, None),
            Self::Disk => config.disk = None,
            Self::Address => config.ip = None,
            Self::ThreadNames => config.debug_threads = false,
            Self::Nothing
            | Self::TapPrograms
            | Self::BlockPrograms
            | Self::Qmp
            | Self::Iterator => {}
        }
    }

    /// Takes it away from a daemon that runs, until the end; returns the client that holds the guest's QMP.
    fn take(self, stage: &mut Stage) -> Result<Option<Qmp>> {
        match self {
            Self::TapPrograms => stage.until_the_end(Detacher::start(links(stage))),
            Self::BlockPrograms => {
                let mut removed = 0;
                for link in fs::read_dir(links(stage))? {
                    let link = link?.path();
                    if link.to_string_lossy().contains("-block_") {
                        fs::remove_file(&link)?;
                        removed += 1;
                    }
                }
                ensure!(removed > 0, "no block program is pinned");
            }
            Self::Iterator => {
                fs::remove_file(stage.place().dir().join("bpf/flatline/threads"))
                    .context("no iterator is pinned")?;
            }
            Self::Qmp => {
                stage.daemon.terminate()?;
                let client = Qmp::new(UnixStream::connect(stage.guest().qmp_path())?)?;
                stage.daemon.start_again()?;
                // The new daemon is to know its address, and to have asked it once: what is sent before its tap
                // is watched is no use, and only ARP tells.
                interrupt::wait_until("the tap to be watched", WITHIN, || {
                    let row = stage.row(stage.guest().name())?;
                    Ok(row.filter(|row| row["network"].is_object()).map(drop))
                })?;
                ensure!(stage.answers()?, "the guest does not answer ARP");
                stage.settle()?;
                return Ok(Some(client));
            }
            Self::Nothing | Self::Tap | Self::Disk | Self::Address | Self::ThreadNames => {}
        }
        Ok(None)
    }
}

impl Fault {
    /// In words, for a table.
    pub fn words(self) -> &'static str {
        match self {
            Self::Halt => "halt",
            Self::Panic => "panic",
            Self::HardLockup => "hard lockup, 2 vCPUs",
            Self::Idle => "idle, healthy",
            Self::Computes => "computing, healthy",
        }
    }

    /// Whether a verdict is due, where one can be had.
    pub fn is_crash(self) -> bool {
        matches!(self, Self::Halt | Self::Panic | Self::HardLockup)
    }

    fn make(self, stage: &Stage) -> Result<SystemTime> {
        match self {
            Self::Halt => at(stage, "halt"),
            Self::Panic => after(stage, "panic", "Kernel panic - not syncing"),
            Self::HardLockup => after(stage, "lockup hard all", "lockup: "),
            Self::Idle => Ok(SystemTime::now()),
            Self::Computes => at(stage, "compute 1"),
        }
    }
}

impl Trial {
    /// Every sensor with every fault.
    pub fn all() -> Vec<Self> {
        let of = |sensor| FAULTS.map(|fault| Self { sensor, fault });
        SENSORS.into_iter().flat_map(of).collect()
    }

    /// How many of the host's CPUs it keeps busy.
    pub fn pins(self) -> usize {
        match self.fault {
            Fault::Halt | Fault::Idle => 0,
            Fault::Panic | Fault::Computes => 1,
            Fault::HardLockup => 2,
        }
    }

    /// Plays it on a stage of its own. `take` is asked for its CPUs before the fault, which may keep them busy; they
    /// are given back when what it returns is dropped.
    ///
    /// # Errors
    ///
    /// If something does not work that has nothing to do with the verdict, or on a signal.
    pub fn play<T>(self, programs: &Programs, take: impl FnOnce() -> T) -> Result<Outcome> {
        let guests = |place: &mut Place| {
            let mut config = place.linux("guest")?;
            config.vcpus = if self.fault == Fault::HardLockup { 2 } else { 1 };
            self.sensor.withhold(&mut config);
            Ok(vec![config])
        };
        let mut stage = Stage::with(guests, true, programs)?;
        stage.settle()?;
        let client = self.sensor.take(&mut stage)?;
        for guest in stage.others().chain([stage.guest()]) {
            guest.events()?;
        }
        interrupt::sleep(WITHOUT_FOR)?;
        let _taken = take();
        let fault = self.fault.make(&stage).context("the fault could not be made")?;
        self.watch(&stage, fault, client)
    }

    fn watch(self, stage: &Stage, fault: SystemTime, client: Option<Qmp>) -> Result<Outcome> {
        let (convicted, last) = look_until(stage, WATCHED_FOR, |now| Ok(is_convicted(now)))?;
        let detect = since(fault);
        let mut outcome;
        if convicted {
            outcome = with_incident(stage, last)?.outcome("crashed");
            outcome.detect = Some(detect);
            // QEMU can't have been told while its monitor was another's.
            let early = if client.is_some() { resets_from_outside(stage.guest()) } else { 0 };
            let verdict = Instant::now();
            drop(client);
            let recovered = |now: &Look| {
                now.incidents.iter().any(|incident| incident["outcome"] == "recovered")
            };
            let (back, _) = look_until(stage, BACK_WITHIN, |now| Ok(recovered(now)))?;
            outcome.recover = back.then(|| verdict.elapsed());
            let resets = early + resets_from_outside(stage.guest());
            outcome.wrong_resets =
                early + (resets - early).saturating_sub(u32::from(self.fault.is_crash()));
            outcome.as_expected = self.fault.is_crash() && back;
        } else {
            let state = last.state.clone().unwrap_or_else(|| "gone".to_owned());
            outcome = last.outcome(&state);
            outcome.wrong_resets = resets_from_outside(stage.guest());
            let fitting: &[&str] = if !self.fault.is_crash() {
                &["alive", "suspect", "held", "unobservable"]
            } else if self.sensor == Sensor::Nothing {
                &[]
            } else {
                &["suspect", "held", "unobservable"]
            };
            outcome.as_expected = fitting.contains(&state.as_str());
        }
        outcome.wrong_resets += stage.others().map(resets_from_outside).sum::<u32>();
        for incident in stage.daemon.incidents()? {
            if incident["vm"] != stage.guest().name() {
                outcome.as_expected = false;
                outcome.reason.push_str(&format!("; a bystander was convicted: {incident}"));
            }
        }
        outcome.keep_log(stage);
        Ok(outcome)
    }
}

/// Where the daemon pins its links.
fn links(stage: &Stage) -> PathBuf {
    stage.place().dir().join("bpf/flatline/links")
}

/// Detaches tap programs again and again, until it is dropped.
#[derive(Debug)]
struct Detacher {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Detacher {
    fn start(links: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for link in fs::read_dir(&links).into_iter().flatten().flatten() {
                    if link.file_name().to_string_lossy().starts_with("tap-") {
                        let path = link.path();
                        let arguments = [
                            "link".as_ref(),
                            "detach".as_ref(),
                            "pinned".as_ref(),
                            path.as_os_str(),
                        ];
                        // It may be detached already, or be attached just now.
                        let _ = command::run("bpftool", arguments);
                    }
                }
                std::thread::sleep(DETACHED_EVERY);
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Detacher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It panics nowhere, and there is nothing to tell if it did.
            let _ = thread.join();
        }
    }
}
