//! A soak: one daemon and many guests of all kinds for a long time, in which random faults come to random guests.
//!
//! Crashes are due one restart each, and disturbances none; a guest that nothing happened to is to be left alone. Which
//! was reset is told by each guest's own QEMU, and not by the daemon.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::daemon::{Daemon, DaemonConfig};
use crate::interrupt;
use crate::scenario::{BOOT_GRACE, FLAT_FOR, Place, Programs, kvm_runs};
pub use fleet::LEAST_GUESTS;
pub use summary::{Summary, Verdict};

use faults::Schedule;
use fleet::Fleet;
use judge::Judge;
use random::Random;

mod faults;
mod fleet;
mod judge;
mod member;
mod ongoing;
mod random;
mod summary;

/// A verdict that takes longer than `flat_for` by more than this is late; the host's load may be why.
pub const LATE_AFTER: Duration = Duration::from_secs(3);
/// One that takes longer by more than this, or never comes, is missed.
pub const MISSED_AFTER: Duration = Duration::from_secs(10);
/// How often faults are looked after.
const TICK: Duration = Duration::from_millis(250);

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How long faults are made, once all guests run.
    pub lasts: Duration,
    /// How many guests there are; a few at least have a kind of their own.
    pub guests: usize,
    /// The mean time from one fault to the next.
    pub gap: Duration,
    /// The same seed makes the same choices, as long as the guests answer alike.
    pub seed: u64,
}

/// Plays `plan` and tells what came of it; `say` hears of each step.
///
/// # Errors
///
/// If something does not work that has nothing to do with the daemon's verdicts, or on a signal.
pub fn run(plan: Plan, programs: &Programs, say: impl Fn(&str)) -> Result<Summary> {
    let kvm = kvm_runs(programs)?;
    let mut place = Place::new(programs)?;
    let mut config = DaemonConfig::new(&programs.daemon, place.qemu());
    config.flat_for = FLAT_FOR;
    config.boot_grace = BOOT_GRACE;
    let mut daemon = Daemon::start(&config, place.dir())?;
    let mut random = Random::new(plan.seed);
    let mut judge = Judge::new();
    let mut fleet = Fleet::start(&mut place, plan.guests, kvm, |fleet, line| {
        say(line);
        // What is convicted while it boots is convicted wrongly, too.
        judge.look(&daemon, fleet, &say)
    })?;
    let begin = Instant::now();
    let mut schedule = Schedule::new(plan.seed, plan.gap);
    while begin.elapsed() < plan.lasts || schedule.is_busy() {
        interrupt::sleep(TICK)?;
        if begin.elapsed() < plan.lasts {
            schedule.begin(&mut daemon, &mut fleet, &mut judge, &mut random, &say)?;
        }
        schedule.advance(&mut fleet, &mut judge, &say)?;
        fleet.stir(schedule.wants_quiet())?;
        judge.look(&daemon, &mut fleet, &say)?;
    }
    judge.end(&daemon, &mut fleet, &say)?;
    // Before the guests: it would take their end for a crash.
    daemon.terminate()?;
    Ok(judge.into_summary(&fleet, plan.seed))
}
