//! What the daemon takes of the host while it is watched: CPU, memory, its state directory, and time for an answer.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{cpu, daemon::Daemon};

/// How often an answer is timed, and the directory measured.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What it took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// CPU time as a share of one CPU.
    pub cpu: f64,
    /// The most memory that was resident, in bytes.
    pub resident_bytes: u64,
    /// The most that its state directory held, in bytes.
    pub state_bytes: u64,
    /// The slowest answer to `status`, the client's start included.
    pub slowest: Duration,
    /// How often there was none within five seconds.
    pub unanswered: u32,
    /// The most VMs that it knew at once.
    pub vms: usize,
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes >> 20;
        write!(
            f,
            "{:.1} % of a CPU, {} MiB of memory at most, {} MiB in its state directory, `status` within {:.0?}, {} VMs",
            self.cpu * 100.0,
            mib(self.resident_bytes),
            mib(self.state_bytes),
            self.slowest,
            self.vms
        )
    }
}

/// Measures from its start to its end.
#[derive(Debug)]
pub(super) struct Meter {
    pid: u32,
    state: PathBuf,
    begun: Instant,
    time: Duration,
    looked: Instant,
    cost: Cost,
}

impl Meter {
    pub(super) fn start(pid: u32, state: &Path) -> Result<Self> {
        let (now, time) = (Instant::now(), cpu::process_time(pid)?);
        let state = state.to_owned();
        Ok(Self { pid, state, begun: now, time, looked: now, cost: Cost::default() })
    }

    pub(super) fn look(&mut self, daemon: &Daemon) -> Result<()> {
        self.cost.resident_bytes = self.cost.resident_bytes.max(cpu::resident_bytes(self.pid)?);
        if self.looked.elapsed() < LOOK_EVERY {
            return Ok(());
        }
        self.looked = Instant::now();
        match daemon.status() {
            Ok(status) => {
                let vms = status["vms"].as_array().map_or(0, Vec::len);
                self.cost.vms = self.cost.vms.max(vms);
            }
            Err(_) => self.cost.unanswered += 1,
        }
        self.cost.slowest = self.cost.slowest.max(self.looked.elapsed());
        self.cost.state_bytes = self.cost.state_bytes.max(bytes_in(&self.state));
        Ok(())
    }

    pub(super) fn end(mut self) -> Result<Cost> {
        let time = cpu::process_time(self.pid)?.saturating_sub(self.time);
        self.cost.cpu = time.as_secs_f64() / self.begun.elapsed().as_secs_f64();
        self.cost.state_bytes = self.cost.state_bytes.max(bytes_in(&self.state));
        Ok(self.cost)
    }
}

/// What is in a directory; what is gone meanwhile is not.
fn bytes_in(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    let bytes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_in(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    bytes.sum()
}
