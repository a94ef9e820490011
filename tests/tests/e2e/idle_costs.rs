//! Idle guests whose witnesses all answer at once, or can't be asked, cost next to nothing: rounds have a shortest time.
//!
//! What rounds cost shows in the daemon's CPU time, in the QMP commands that QEMUs take, and in what is recorded: a VM's
//! recording has room for so many bytes, and goes back its minutes only where a minute takes few.

use std::{
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    boot_sector::BootSector,
    cpu::process_time,
    daemon::Daemon,
    guest::{Accelerator, Board, Guest},
    interrupt::{sleep, wait_until},
    qmp::Qmp,
    tools::QEMU_AARCH64,
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    rig::{BOOT_LIMIT, Load, Rig, boot_all, skippable_trial_with},
    unreadable::{ARM_WAITS, bare, own},
};

/// How long twenty guests of each kind are watched, such as the `5m` that recordings go back at least.
const TWENTY: &str = "FLATLINE_TWENTY_IDLE";
/// What twenty guests may cost together, of one CPU; and what a few may cost a daemon that was not optimized.
const MOST_CPU: f64 = 0.05;
const MOST_CPU_OF_FEW: f64 = 0.5;
/// QMP commands a second and guest that are too many.
const MOST_COMMANDS: f64 = 10.0;
/// For a VM to be found, and for what is asked for to be written down.
const SLACK: Duration = Duration::from_secs(10);

/// What can be asked of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Its QEMU has no QMP.
    NoMonitor,
    /// Another client has each of its QMP sockets.
    Held,
    /// Its QMP answers.
    Monitor,
    /// Its QMP answers, and the registers say nothing: an Arm guest that waits.
    Arm,
}

/// How many are watched, and how long.
struct Plan {
    kinds: Vec<Kind>,
    /// How long CPU time and commands are counted.
    counted_for: Duration,
    /// How long the daemon has run when recordings are asked for.
    recorded_for: Duration,
    most_cpu: f64,
}

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        skippable_trial_with(Load::Alone, "idle_guests_are_asked_and_recorded_at_leisure", || {
            watch(&Plan {
                kinds: vec![Kind::NoMonitor, Kind::Held, Kind::Monitor, Kind::Arm],
                counted_for: Duration::from_secs(10),
                recorded_for: Duration::ZERO,
                most_cpu: MOST_CPU_OF_FEW,
            })
        }),
        skippable_trial_with(
            Load::Alone,
            "twenty_idle_guests_without_a_monitor_cost_next_to_nothing",
            || twenty(Kind::NoMonitor),
        ),
        skippable_trial_with(
            Load::Alone,
            "twenty_idle_guests_whose_monitor_is_held_cost_next_to_nothing",
            || twenty(Kind::Held),
        ),
        skippable_trial_with(
            Load::Alone,
            "twenty_idle_guests_with_a_monitor_cost_next_to_nothing",
            || twenty(Kind::Monitor),
        ),
        skippable_trial_with(
            Load::Alone,
            "twenty_idle_arm_guests_with_a_monitor_cost_next_to_nothing",
            || twenty(Kind::Arm),
        ),
    ]
}

fn twenty(kind: Kind) -> Result<Option<String>> {
    let Ok(watched_for) = std::env::var(TWENTY) else {
        return Ok(Some(format!(
            "it takes minutes, and a machine that does nothing else: set {TWENTY} to how long, such as 5m"
        )));
    };
    watch(&Plan {
        kinds: vec![kind; 20],
        counted_for: Duration::from_secs(30),
        recorded_for: humantime::parse_duration(&watched_for).context(TWENTY)?,
        most_cpu: MOST_CPU,
    })
}

/// Watches them; or why that can't be done here.
fn watch(plan: &Plan) -> Result<Option<String>> {
    let rig = Rig::new()?;
    let arm = match own(&rig, QEMU_AARCH64, "qemu-system-aarch64")? {
        Ok(qemu) => qemu,
        Err(why) if plan.kinds.contains(&Kind::Arm) => return Ok(Some(why)),
        Err(_) => rig.qemu.clone(),
    };
    let named = |(n, kind): (usize, &Kind)| {
        let name = format!("idles-{n}");
        if *kind == Kind::Arm {
            return bare(&rig, &name, &arm, Board::ArmVirt, ARM_WAITS);
        }
        let mut config = rig.boot_sector(&name, BootSector::StiHlt, Accelerator::Tcg);
        config.no_monitor = *kind == Kind::NoMonitor;
        config.traces_commands = *kind != Kind::NoMonitor;
        config
    };
    let configs: Vec<_> = plan.kinds.iter().enumerate().map(named).collect();
    let guests = boot_all(&configs)?;
    let both = || guests.iter().zip(&plan.kinds);
    let held = both().filter(|(_, kind)| **kind == Kind::Held);
    let _held = held.map(|(guest, _)| hold(guest)).collect::<Result<Vec<_>>>()?;
    // The firmware is none of what is measured.
    sleep(Duration::from_secs(3))?;
    let mut config = rig.daemon_config()?;
    config.executables.push(arm.display().to_string());
    config.boot_grace = Duration::from_secs(2);
    config.extra_toml = "unconfirmed_flat_for = \"10m\"".to_owned();
    let begin = Instant::now();
    let daemon = rig.daemon(&config)?;
    sleep(config.boot_grace + config.flat_for)?;
    wait_until("all are judged", BOOT_LIMIT, || {
        Ok(unsettled(&daemon, &guests)?.is_empty().then_some(()))
    })
    .with_context(|| format!("{:?}\n{}", unsettled(&daemon, &guests), daemon.log_tail(20)))?;

    let pid = daemon.pid().context("the daemon runs")?;
    let before = (Instant::now(), process_time(pid)?, commands(&guests)?);
    sleep(plan.counted_for)?;
    let seconds = before.0.elapsed().as_secs_f64();
    let cpu = (process_time(pid)? - before.1).as_secs_f64() / seconds;
    let taken: Vec<f64> = commands(&guests)?
        .iter()
        .zip(&before.2)
        .map(|(now, before)| (now - before) as f64 / seconds)
        .collect();
    let most = taken.iter().copied().fold(0.0, f64::max);
    println!("{:.1} % of a CPU, at most {most:.1} QMP commands a second", cpu * 100.0);
    sleep((plan.recorded_for + SLACK / 2).saturating_sub(begin.elapsed()))?;
    let others = unsettled(&daemon, &guests)?;
    ensure!(others.is_empty(), "{others:?}");
    for (guest, kind) in both() {
        let (span, bytes) = recorded(&daemon, guest, rig.dir())?;
        let due = begin.elapsed().saturating_sub(SLACK);
        println!("{kind:?}: {span:.0?} recorded in {bytes} bytes");
        ensure!(span >= due, "{kind:?}: only {span:?} of {due:?} recorded, in {bytes} bytes");
    }
    ensure!(daemon.incidents()?.is_empty(), "{:?}", daemon.incidents()?);
    ensure!(most < MOST_COMMANDS, "QMP commands a second: {taken:?}");
    ensure!(cpu < plan.most_cpu, "{:.1} % of a CPU", cpu * 100.0);
    Ok(None)
}

/// Rows of those that are neither alive, nor suspect, nor held because their QEMU can't tell whether they run.
fn unsettled(daemon: &Daemon, guests: &[Guest]) -> Result<Vec<Value>> {
    let status = daemon.status()?;
    let rows = status["vms"].as_array().context("status has no vms")?;
    let row = |guest: &Guest| rows.iter().find(|row| row["name"] == guest.name()).cloned();
    let settled =
        |row: &Value| ["alive", "suspect", "held"].iter().any(|state| row["state"] == *state);
    let rows = guests.iter().map(|guest| row(guest).unwrap_or(Value::Null));
    Ok(rows.filter(|row| !settled(row)).collect())
}

/// Takes the QMP socket that the test itself has not.
fn hold(guest: &Guest) -> Result<Qmp> {
    Qmp::new(UnixStream::connect(guest.qmp_path())?)
}

/// QMP commands that each has taken so far.
fn commands(guests: &[Guest]) -> Result<Vec<usize>> {
    guests.iter().map(|guest| guest.commands_taken().or(Ok(0))).collect()
}

/// How far the VM's recording goes back, and its size on disk.
fn recorded(daemon: &Daemon, guest: &Guest, dir: &Path) -> Result<(Duration, u64)> {
    let output = daemon.client(&["record", guest.name()])?;
    ensure!(output.status.success(), "{output:?}\n{}", daemon.log().text());
    let path = dir.join(String::from_utf8(output.stdout)?.trim());
    let text = path.to_str().context("a path is UTF-8")?;
    let output = daemon.client(&["replay", text, "--json"])?;
    let replay: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let time = |field: &str| -> Result<SystemTime> {
        let text = replay[field].as_str().with_context(|| format!("no {field}"))?;
        Ok(humantime::parse_rfc3339(text)?)
    };
    Ok((time("ends")?.duration_since(time("begins")?)?, path.metadata()?.len()))
}
