//! When a test may begin, and what it took.

use std::{
    fs,
    sync::{
        Condvar, LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::available_parallelism,
    time::{Duration, Instant},
};

use anyhow::Result;
use flatline_tests::schedule::{Load, Schedule};
use libtest_mimic::{Completion, Failed, Trial};

/// The CPUs have time for one test more if they were idle by so much of a CPU during a look, ..
const IDLE_CPUS: f64 = 0.6;
/// .. which takes so long, and begins anew with each test that begins: it has guests to boot.
const LOOK: Duration = Duration::from_secs(1);
/// What the runner takes to queue its tests: the first that begins is to be the first of all.
const QUEUEING: Duration = Duration::from_millis(100);
/// How many of the slowest tests are named at the end.
const SLOWEST: usize = 10;

static STATE: LazyLock<Mutex<State>> = LazyLock::new(|| {
    let cpus = available_parallelism().map_or(2, usize::from);
    Mutex::new(State { schedule: Schedule::new(cpus), cpus, before: None, took: Vec::new() })
});
static ENDED: Condvar = Condvar::new();
static NEXT_NUMBER: AtomicUsize = AtomicUsize::new(0);

struct State {
    schedule: Schedule,
    cpus: usize,
    /// When the look began, with the CPUs' ticks then.
    before: Option<(Instant, Ticks)>,
    took: Vec<(Duration, String)>,
}

/// Ticks that all CPUs were idle, and all their ticks.
type Ticks = (u64, u64);

/// A test that waits most of its time; its error is its failure.
pub(crate) fn trial(name: &str, test: fn() -> Result<()>) -> Trial {
    trial_with(Load::Waits, name, test)
}

/// The same of a test that may find that it can't run here: then it says why.
pub(crate) fn trial_that_may_skip(name: &str, test: fn() -> Result<Option<String>>) -> Trial {
    skippable_trial_with(Load::Waits, name, test)
}

/// A test with this load.
pub(crate) fn trial_with(load: Load, name: &str, test: fn() -> Result<()>) -> Trial {
    let run = timed(load, name, move || test().map(|()| None));
    Trial::test(name, move || run().map(|_| ()))
}

/// The same of a test that may find that it can't run here: then it says why.
pub(crate) fn skippable_trial_with(
    load: Load,
    name: &str,
    test: fn() -> Result<Option<String>>,
) -> Trial {
    let run = timed(load, name, test);
    Trial::ignorable_test(name, move || {
        Ok(match run()? {
            None => Completion::Completed,
            Some(why) => Completion::ignored_with(format!("skipped: {why}")),
        })
    })
}

/// Runs `test` at its turn, and says what it took; what it answers is why it was skipped.
fn timed<T: FnOnce() -> Result<Option<String>>>(
    load: Load,
    name: &str,
    test: T,
) -> impl FnOnce() -> Result<Option<String>, Failed> + use<T> {
    let (name, number) = (name.to_owned(), NEXT_NUMBER.fetch_add(1, Ordering::Relaxed));
    move || {
        let _turn = Turn::wait(load, number);
        let begun = Instant::now();
        let result = test();
        let took = begun.elapsed();
        println!("{:>6.1} s  {name}", took.as_secs_f64());
        if !matches!(result, Ok(Some(_))) {
            state().took.push((took, name));
        }
        result.map_err(|error| Failed::from(format!("{error:#}")))
    }
}

/// A test's turn, which ends when this is dropped.
struct Turn(Load);

impl Turn {
    fn wait(load: Load, number: usize) -> Self {
        let mut state = state();
        state.schedule.queue(load, number);
        (state, _) = ENDED.wait_timeout(state, QUEUEING).unwrap_or_else(PoisonError::into_inner);
        loop {
            let has_time = state.has_time();
            if state.schedule.begin(load, number, has_time) {
                state.before = None;
                // What was queued behind it may be due at once.
                ENDED.notify_all();
                return Self(load);
            }
            (state, _) = ENDED.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        state().schedule.end(self.0);
        ENDED.notify_all();
    }
}

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// Whether the CPUs have time for one test more. What can't be read is a busy host.
    fn has_time(&mut self) -> bool {
        let (now, Some(ticks)) = (Instant::now(), cpu_ticks()) else { return false };
        let Some((begun, (idle, all))) = self.before else {
            self.before = Some((now, ticks));
            return false;
        };
        if now - begun < LOOK {
            return false;
        }
        let (idle, all) = (ticks.0.saturating_sub(idle), ticks.1.saturating_sub(all));
        let has_time = all > 0 && idle as f64 * self.cpus as f64 >= IDLE_CPUS * all as f64;
        if !has_time {
            self.before = Some((now, ticks));
        }
        has_time
    }
}

/// The first line of `/proc/stat` (proc_stat(5)).
fn cpu_ticks() -> Option<Ticks> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line.split_ascii_whitespace().map_while(|n| n.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; guests' time is in the first two.
    Some((ticks.get(3)? + ticks.get(4)?, ticks.iter().take(8).sum()))
}

/// Says what all tests took together, and which took longest.
pub(crate) fn summarize() {
    let mut took = std::mem::take(&mut state().took);
    took.sort_by(|one, other| other.cmp(one));
    let Some((median, _)) = took.get(took.len() / 2) else { return };
    let sum: Duration = took.iter().map(|(took, _)| *took).sum();
    println!(
        "\n{} tests: {:.0} s one after the other, median {median:.1?}",
        took.len(),
        sum.as_secs_f64()
    );
    for (took, name) in took.iter().take(SLOWEST) {
        println!("{:>6.1} s  {name}", took.as_secs_f64());
    }
}
