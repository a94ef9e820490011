//! One hostile user that does all that it can at once, beside healthy and crashing guests of others.
//!
//! The guests of others are real QEMUs, and those of the hostile user made-up ones, of which the daemon knows nothing else than of
//! real ones. First nothing hostile is there, for comparison. Which guest was reset, and when, is told by its own QEMU.

mod attacks;
mod ground;
mod meter;
mod summary;
mod victims;

use std::{
    path::PathBuf,
    sync::atomic::AtomicBool,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};

use crate::{
    daemon::{Daemon, DaemonConfig, free_address},
    guest::private_qemu,
    interrupt,
    tenants::{Fakes, Homes},
};
use ground::{Ground, Until};
pub use meter::Cost;
use meter::Meter;
pub use summary::{Answer, Attacked, Phase, Summary};
use victims::Victims;

/// The attacker, and the users of the other guests, beginning with this one: no host has any of them.
const HOSTILE: u32 = 64_970;
const FIRST_OTHER: u32 = 64_971;
/// For what the victims need before they are judged.
const BOOT_GRACE: Duration = Duration::from_secs(3);
/// What a restart may take beyond `flat_for`.
pub const MARGIN: Duration = Duration::from_secs(5);
/// What the daemon may take of memory, and of one CPU.
pub const MOST_BYTES: u64 = 64 << 20;
/// See [`MOST_BYTES`].
pub const MOST_CPU: f64 = 0.10;
/// What the daemon may keep of evidence, of memory dumps and of recordings, in MiB; and beside them: records, ledgers.
const EVIDENCE_MIB: u64 = 16;
const DUMPS_MIB: u64 = 96;
const RECORDINGS_MIB: u64 = 16;
const RECORDS_MIB: u64 = 32;
/// The bound on the state directory that comes of these, in bytes.
pub const MOST_STATE_BYTES: u64 = (EVIDENCE_MIB + DUMPS_MIB + RECORDINGS_MIB + RECORDS_MIB) << 20;
/// How often victims are looked after.
const TICK: Duration = Duration::from_millis(250);

/// How much of each attack there is.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Processes that look like QEMUs, and nothing else.
    pub processes: usize,
    /// Open files of one process.
    pub files: usize,
    /// Threads of one process.
    pub threads: usize,
    /// Taps of one process.
    pub taps: usize,
    /// VMs that fall silent together.
    pub storm: usize,
    /// QEMUs that abort, and as many that panic, every few seconds.
    pub crashes: usize,
    /// Monitors of each manner.
    pub monitors: usize,
}

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The daemon, and programs that pose as QEMUs.
    pub daemon: PathBuf,
    /// See [`Plan::daemon`].
    pub fakes: Fakes,
    /// Silence before a VM is suspected.
    pub flat_for: Duration,
    /// How long there is no attack, and then how long there is.
    pub control: Duration,
    /// See [`Plan::control`].
    pub attack: Duration,
    /// Guests that nothing happens to, and those that crash again and again.
    pub healthy: usize,
    /// See [`Plan::healthy`].
    pub crashing: usize,
    /// How many users these are of.
    pub users: u32,
    /// How much there is of each attack.
    pub scale: Scale,
}

/// Plays `plan` and tells what came of it; `say` hears of each step.
///
/// # Errors
///
/// If something does not work that is not the daemon's doing, or on a signal.
pub fn run(plan: &Plan, say: impl Fn(&str)) -> Result<Summary> {
    let dir = tempfile::Builder::new().prefix("flatline-hostile-").tempdir()?;
    let qemu = private_qemu(dir.path())?;
    let homes = Homes::new(dir.path(), &plan.fakes)?;
    let http = free_address()?;
    let mut config = DaemonConfig::new(&plan.daemon, &qemu);
    config.executables.extend(homes.executables());
    (config.flat_for, config.boot_grace) = (plan.flat_for, BOOT_GRACE);
    config.metrics = http.to_string();
    config.extra_toml = format!(
        "[recovery]\nmax_restarts = 1000\npause = \"0s\"\nmax_restarts_per_minute = 60\nmemory_dump = \"on\"\n\
         memory_dump_quota_mib = {DUMPS_MIB}\nevidence_max_mib = {EVIDENCE_MIB}\n\
         [recorder]\ndisk = true\nmax_mib = {RECORDINGS_MIB}\n"
    );
    let mut victims = Victims::start(plan, &homes, &qemu, FIRST_OTHER)?;
    say(&format!("{} healthy and {} crashing guests run", plan.healthy, plan.crashing));
    let mut daemon = Daemon::start(&config, dir.path())?;
    let ground = Ground {
        homes: &homes,
        user: HOSTILE,
        victims: victims.known(&homes)?,
        binary: plan.daemon.clone(),
        config: daemon.config_path().to_owned(),
        http,
        scale: plan.scale,
        is_over: AtomicBool::new(false),
    };
    let control = phase(&mut victims, &daemon, dir.path(), plan.control, &say)?;
    say(&format!("without an attack: {}", control.cost));
    let (attack, attacks) = thread::scope(|scope| {
        let until = Until(&ground.is_over);
        let running: Vec<_> = attacks::ALL
            .iter()
            .map(|attack| (attack.name, scope.spawn(|| (attack.run)(&ground))))
            .collect();
        let attack = phase(&mut victims, &daemon, dir.path(), plan.attack, &say)?;
        drop(until);
        let ended = running.into_iter().map(|(name, thread)| {
            let rounds = thread.join().map_err(|_| anyhow!("it panicked")).and_then(|end| end);
            Ok(Attacked { name, rounds: rounds.with_context(|| format!("attack: {name}"))? })
        });
        anyhow::Ok((attack, ended.collect::<Result<Vec<_>>>()?))
    })
    .with_context(|| daemon.log_tail(40))?;
    say(&format!("with it: {}", attack.cost));
    let mut summary = Summary {
        flat_for: plan.flat_for,
        healthy: plan.healthy,
        crashing: plan.crashing,
        wrong_resets: victims.wrong_resets()?,
        incidents: daemon.incidents().map_or(0, |incidents| incidents.len()),
        control,
        attack,
        attacks,
        log: daemon.log_tail(40),
    };
    // Before the guests: it would take their end for a crash.
    if let Err(error) = daemon.terminate() {
        summary.attack.missed.push(format!("{error:#}"));
    }
    Ok(summary)
}

/// Has victims crash for so long, and waits for the restarts that are due then.
fn phase(
    victims: &mut Victims,
    daemon: &Daemon,
    dir: &std::path::Path,
    lasts: Duration,
    say: impl Fn(&str),
) -> Result<Phase> {
    let pid = daemon.pid().context("the daemon does not run")?;
    let mut meter = Meter::start(pid, &dir.join("state"))?;
    let begun = Instant::now();
    while begun.elapsed() < lasts || victims.are_awaited() {
        interrupt::sleep(TICK)?;
        for missed in victims.tend(pid, begun.elapsed() < lasts, &say)? {
            let shown = daemon.show(&missed).unwrap_or_default();
            say(&format!("{missed} is {}: {}", shown["state"], shown["reason"]));
        }
        meter.look(daemon)?;
    }
    Ok(Phase { cost: meter.end()?, answers: victims.take_answers(), missed: victims.take_missed() })
}
