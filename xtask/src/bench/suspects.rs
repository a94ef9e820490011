//! Five hundred VMs that are all silent, and suspected in the same tick: what a suspicion costs, and whether
//! asking so many at once delays any of them.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flatline_tests::daemon::Daemon;
use flatline_tests::{cpu, interrupt};

use super::clients;
use super::figures::Rounds;
use super::report::{Report, Target};
use super::stage::{FLAT_FOR, Settings, Stage, StandIn, wait_for};
use crate::process::heading;

const SUSPECTS: usize = 500;
/// So that suspicion begins while it is measured.
const GRACE: Duration = Duration::from_secs(5);
/// Several suspicions of each.
const WATCHED: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A tick late, and a round of questions long.
const ACQUITTED_WITHIN: Duration = Duration::from_millis(2_000);

/// In ms.
const STATUS_TARGET: Target = Target::at_most(50.0);

/// Measures, beside the same number of stand-ins that are never suspected.
pub(crate) fn measure(stage: &Stage<'_>, dir: &Path, report: &mut Report) -> Result<()> {
    heading(&format!("{SUSPECTS} suspects at once"));
    let busy = StandIn { qmp: true, load: Some("trickle"), ..StandIn::default() };
    let (quiet, commands_beside) = run(stage, dir, busy)?;
    let (loud, commands) = run(stage, dir, StandIn { load: None, ..busy })?;
    let suspicions = loud.suspicions.max(1.0);
    let section = report.section("Five hundred suspects at once", "us", HOW);
    let cost = (loud.cpu - quiet.cpu).as_secs_f64() * 1e6 / (suspicions * SUSPECTS as f64);
    section.value("CPU time of the daemon, a suspicion", &Rounds::new(vec![cost])?, None, "");
    let calls = Rounds::new(vec![(commands - commands_beside) / suspicions])?;
    section.in_unit("QMP commands, a suspicion", &calls, "", None, "");
    let target = Target::at_most((FLAT_FOR + ACQUITTED_WITHIN).as_secs_f64());
    let longest = Rounds::new(vec![loud.longest_silence])?;
    section.in_unit("longest silence that any of them reached", &longest, "s", Some(target), LATE);
    let slowest = Rounds::new(vec![loud.slowest_answer.as_secs_f64() * 1e3])?;
    section.in_unit(
        "slowest answer to `status` meanwhile",
        &slowest,
        "ms",
        Some(STATUS_TARGET),
        STATUS_LATE,
    );
    report.note(format!(
        "Five hundred suspects: {suspicions:.1} suspicions of each in {} s; {} were judged alive at the end, and none \
         was convicted or held.",
        WATCHED.as_secs(),
        loud.alive
    ));
    ensure!(loud.worst.is_empty(), "healthy suspects came to {:?}", loud.worst);
    Ok(())
}

/// What was seen of a fleet for a while.
struct Seen {
    cpu: Duration,
    longest_silence: f64,
    /// Of each VM, on average.
    suspicions: f64,
    slowest_answer: Duration,
    alive: usize,
    /// States that no healthy VM may come to.
    worst: Vec<String>,
}

/// Watches a fleet of such stand-ins. One of them tells at its end how many commands it was given.
fn run(stage: &Stage<'_>, dir: &Path, what: StandIn<'_>) -> Result<(Seen, f64)> {
    let count = dir.join("commands");
    let counted = stage.start("counted", 1, StandIn { count: Some(&count), ..what })?;
    let fleet = stage.start("vm", SUSPECTS - 1, what)?;
    let daemon = stage.daemon(Settings { boot_grace: GRACE, ..Settings::default() })?;
    wait_for(&daemon, "all of them answer", SUSPECTS, |vm| vm["run_state"] == "running")?;
    interrupt::sleep(GRACE + Duration::from_secs(5))?;
    let seen = watch(stage, &daemon)?;
    drop((daemon, fleet));
    counted.finish()?;
    let commands = std::fs::read_to_string(&count)?.parse().context("commands")?;
    Ok((seen, commands))
}

fn watch(stage: &Stage<'_>, daemon: &Daemon) -> Result<Seen> {
    let pid = daemon.pid().context("the daemon has ended")?;
    let before = cpu::process_time(pid)?;
    let begin = Instant::now();
    let (mut longest_silence, mut slowest_answer) = (0_f64, Duration::ZERO);
    let (mut acquittals, mut alive, mut worst) = (0_u32, 0, Vec::new());
    let mut silences: Vec<f64> = Vec::new();
    while begin.elapsed() < WATCHED {
        let (status, took) = clients::status(stage)?;
        slowest_answer = slowest_answer.max(took);
        let vms = status["vms"].as_array().context("status has no vms")?;
        alive = vms.iter().filter(|vm| vm["state"] == "alive").count();
        for vm in vms {
            let state = vm["state"].as_str().unwrap_or_default();
            if !matches!(state, "alive" | "suspect" | "starting") {
                worst.push(format!("{}: {state}: {}", vm["name"], vm["reason"]));
            }
        }
        let now: Vec<f64> =
            vms.iter().map(|vm| vm["flat_seconds"].as_f64().unwrap_or_default()).collect();
        longest_silence = now.iter().copied().fold(longest_silence, f64::max);
        // A silence that ends near `flat_for` was a suspicion.
        let ended =
            |(before, now): &(&f64, &f64)| **before > FLAT_FOR.as_secs_f64() - 1.0 && now < before;
        let count = silences.iter().zip(&now).filter(ended).count();
        acquittals += u32::try_from(count)?;
        silences = now;
        interrupt::sleep(LOOK_EVERY)?;
    }
    worst.sort();
    worst.dedup();
    Ok(Seen {
        cpu: cpu::process_time(pid)? - before,
        longest_silence,
        suspicions: f64::from(acquittals) / SUSPECTS as f64,
        slowest_answer,
        alive,
        worst,
    })
}

const HOW: &str = "Stand-ins for QEMUs that answer on QMP, and whose registers are those of an idle Linux: nothing is \
    seen of them, so that all are suspected in the same tick, asked, and acquitted, every ten seconds. CPU time is that \
    of the daemon over a minute, less that beside as many that read a block every four seconds and are never \
    suspected. An answer is there when all of it is.";
const LATE: &str =
    "The first look at the registers acquits; what is above a tick is waiting for the CPU.";
const STATUS_LATE: &str = "A client has its turn between two VMs that are judged, and not while all are sampled: all threads of the \
    host are read in one go. The rest is waiting for the CPU beside five hundred suspects' questions.";
