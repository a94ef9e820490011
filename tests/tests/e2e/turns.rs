//! When a test may begin: as many as there are CPUs run at any time, and one more while the CPUs have nothing to do.
//!
//! A guest that spins takes a whole CPU, so that more tests would only starve each other's; but most tests wait most of
//! their time.

use std::{
    fs,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread::available_parallelism,
    time::Duration,
};

/// Tests beyond the number of CPUs.
const MORE: usize = 1;
/// Such a test begins if the CPUs were idle for this share of a look, ..
const IDLE_SHARE: f64 = 0.4;
/// .. which takes so long.
const LOOK: Duration = Duration::from_secs(1);

static RUNNING: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

/// How many tests the runner may start at a time.
pub(crate) fn most() -> usize {
    cpus() + MORE
}

/// A test's turn, which ends when this is dropped.
pub(crate) struct Turn(());

/// Waits until a test may begin.
pub(crate) fn wait() -> Turn {
    let mut before = cpu_times();
    let mut running = running();
    loop {
        if *running < cpus() || is_idle(&mut before) && *running < most() {
            *running += 1;
            return Turn(());
        }
        (running, _) = ENDED.wait_timeout(running, LOOK).unwrap_or_else(PoisonError::into_inner);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *running() -= 1;
        ENDED.notify_all();
    }
}

fn running() -> MutexGuard<'static, usize> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn cpus() -> usize {
    available_parallelism().map_or(2, usize::from)
}

/// Whether the CPUs had time since `before`, which becomes now. What can't be read is a busy host.
fn is_idle(before: &mut Option<(u64, u64)>) -> bool {
    let now = cpu_times();
    let Some(((idle, all), (idle_now, all_now))) = std::mem::replace(before, now).zip(now) else {
        return false;
    };
    let (idle, all) = (idle_now.saturating_sub(idle), all_now.saturating_sub(all));
    // A look that took next to no time says nothing.
    all > 50 && idle as f64 >= IDLE_SHARE * all as f64
}

/// Ticks that all CPUs were idle, and all their ticks: the first line of `/proc/stat` (proc_stat(5)).
fn cpu_times() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line.split_ascii_whitespace().map_while(|n| n.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; guests' time is in the first two.
    Some((ticks.get(3)? + ticks.get(4)?, ticks.iter().take(8).sum()))
}
