//! A thousand VMs: what a tick costs, what a reading does, and how much memory it takes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use flatline_tests::daemon::Daemon;
use flatline_tests::{cpu, interrupt};
use serde_json::Value;

use super::figures::Rounds;
use super::report::{Report, Target};
use super::stage::{Fleet, Stage, StandIn, VCPUS, wait_for};
use crate::process::heading;

pub(crate) const VMS: usize = 1000;
/// Of other processes, for one of the figures.
const STRANGERS: usize = 5000;
const READING_ROUNDS: &str = "21";
/// The daemon's default `sample_interval`.
const TICK: Duration = Duration::from_secs(1);
/// Three times the ticks in which it looks into `/proc` for every VM.
const TICKS: u32 = 30;
/// After a QEMU was found, it is looked at again after a quarter of a second, one and three.
const SETTLE: Duration = Duration::from_secs(8);

const ROWS_TARGET: Target = Target::at_most(100.0);
const TICK_TARGET: Target = Target::at_most(2.0);
const MEMORY_TARGET: Target = Target::at_most(20.0);

/// CPU time a VM and tick or poll, in us.
#[derive(Debug)]
pub(crate) struct PerVm {
    /// flatline's own, of the whole process.
    pub(crate) flatline: Rounds,
    /// Polling `/proc`.
    pub(crate) proc: Rounds,
}

/// Measures with and without monitors.
pub(crate) fn measure(stage: &Stage<'_>, report: &mut Report) -> Result<PerVm> {
    let (fleet, daemon) = start(stage, false)?;
    let proc = readings(stage, report)?;
    let flatline = ticks(&daemon, report, "A tick of 1,000 VMs without QMP", true)?;
    drop((daemon, fleet));
    let (fleet, daemon) = start(stage, true)?;
    ticks(&daemon, report, "A tick of 1,000 VMs that answer on QMP", true)?;
    drop((daemon, fleet));
    let per_vm = |rounds: &Rounds, unit: f64| rounds.times(unit / VMS as f64);
    Ok(PerVm { flatline: per_vm(&flatline, 1e3), proc: per_vm(&proc, 1e-3) })
}

fn start(stage: &Stage<'_>, qmp: bool) -> Result<(Fleet, Daemon)> {
    heading(&format!("starting {VMS} stand-ins{}", if qmp { " with QMP" } else { "" }));
    let what = StandIn { load: Some("trickle"), qmp, ..StandIn::default() };
    let mut fleet = stage.start("vm", VMS, what)?;
    let daemon = stage.daemon()?;
    wait_for(&daemon, "all of them alive", VMS, |vm| {
        let answers = !qmp || vm["run_state"] == "running";
        vm["state"] == "alive" && answers && vm["vcpus"].as_array().map(Vec::len) == Some(VCPUS)
    })?;
    fleet.check()?;
    interrupt::sleep(SETTLE)?;
    Ok((fleet, daemon))
}

/// Returns what polling `/proc` takes for all, in ns.
fn readings(stage: &Stage<'_>, report: &mut Report) -> Result<Rounds> {
    heading("readings");
    let (vms, vcpus, strangers) = (VMS.to_string(), VCPUS.to_string(), STRANGERS.to_string());
    let executable = stage.executable();
    let object = stage.programs.empty.display().to_string();
    let figures =
        stage.measure(
            "reading",
            &[
                &[
                    "--object",
                    &object,
                    "--executable",
                    &executable,
                    "--vms",
                    &vms,
                    "--vcpus",
                    &vcpus,
                ][..],
                &["--strangers", &strangers, "--rounds", READING_ROUNDS],
            ]
            .concat(),
        )?;
    let microseconds = |name: &str| Ok::<_, anyhow::Error>(figures.rounds(name)?.times(1e-3));
    let section =
        report.section("One reading of 1,000 VMs with 4,000 vCPU threads", "us", READINGS);
    section.value(
        "all counters, `CounterMaps`",
        &microseconds("reading/rows")?,
        Some(ROWS_TARGET),
        ROWS,
    );
    let empty = microseconds("reading/threads/empty")?;
    section.floor("empty iterator over all threads of the host", &empty);
    let iterator = microseconds("reading/threads/iterator")?;
    let what = "threads' times, pinned iterator (the daemon's way)";
    section.over(what, &iterator, &empty, None, "")?;
    for (name, what) in [
        ("kept_open", "threads' times, `schedstat` kept open (where there is no iterator)"),
        ("reopened", "threads' times, `schedstat` opened each time"),
    ] {
        section.value(what, &microseconds(&format!("reading/threads/{name}"))?, None, "");
    }
    let crowded = microseconds("reading/threads/iterator_crowded")?;
    section.value("pinned iterator, with 5,000 threads of other processes", &crowded, None, "");
    let proc = figures.rounds("reading/proc")?;
    section.value("`/proc` polled: `stat`, `io` and each `schedstat`", &proc.times(1e-3), None, "");
    Ok(proc)
}

/// Returns CPU time a tick, in ms, of the whole daemon: means of as many ticks as it takes to look into
/// `/proc` for every VM.
fn ticks(daemon: &Daemon, report: &mut Report, title: &str, judged: bool) -> Result<Rounds> {
    heading(title);
    let pid = daemon.pid().context("the daemon has ended")?;
    let (mut all, mut own) = (Vec::new(), Vec::new());
    let mut before = (cpu::process_time(pid)?, cpu::main_thread_time(pid)?);
    let begin = Instant::now();
    for tick in 1..=TICKS {
        interrupt::sleep((begin + TICK * tick).saturating_duration_since(Instant::now()))?;
        let now = (cpu::process_time(pid)?, cpu::main_thread_time(pid)?);
        all.push((now.0 - before.0).as_secs_f64() * 1e3);
        own.push((now.1 - before.1).as_secs_f64() * 1e3);
        before = now;
    }
    let status = daemon.status()?;
    let alive = status["vms"].as_array().map_or(0, |vms| vms.iter().filter(is_alive).count());
    let resident = cpu::resident_bytes(pid)?;
    let windows: Vec<f64> =
        all.chunks(10).map(|window| window.iter().sum::<f64>() / 10.0).collect();
    let (all, own, windows) = (Rounds::new(all)?, Rounds::new(own)?, Rounds::new(windows)?);
    let section = report.section(title, "ms", TICK_DOC);
    section.value("the loop's thread, a tick", &own, None, "");
    section.value("the whole process, a tick", &all, None, "");
    let target = judged.then_some(TICK_TARGET);
    section.value("the whole process, means of ten ticks", &windows, target, TICK_REMEDY);
    let mib = Rounds::new(vec![resident as f64 / f64::from(1 << 20)])?;
    section.in_unit("resident memory", &mib, "MiB", judged.then_some(MEMORY_TARGET), MEMORY_REMEDY);
    report.note(format!(
        "{title}: {alive} of {VMS} were judged alive at its end; the dearest tick took {:.1} ms.",
        all.most()
    ));
    Ok(windows)
}

fn is_alive(vm: &&Value) -> bool {
    vm["state"] == "alive"
}

const READINGS: &str = "CPU time of the thread that reads, by flatline's own code. The VMs are stand-ins: a \
    process with four idle threads and QEMU's command line, since a thousand QEMUs don't fit here.";
const TICK_DOC: &str = "CPU time of a running daemon, second by second; each stand-in reads a block every four \
    seconds, so that each is judged alive. In each tick, the daemon also looks through \
    `/proc/PID` of a tenth of the VMs, for what was plugged in. The stand-ins have no taps: attaching a thousand \
    takes half a minute, and a tick reads the same maps with and without; what isn't in here is to see, every tenth \
    tick, whether the programs are still on them.";
const ROWS: &str = "The kernel copies each row by itself, one CPU's copy after the other \
    (`generic_map_lookup_batch`). Memory that both sides share needs no call at all, but a per-CPU array can't be \
    mapped: it would take a plain array with a row for each VM and CPU.";
const TICK_REMEDY: &str = "The kernel's own way through all threads of the host, see the empty iterator above, is a \
    good part of it, and no program can shorten that; going through the vCPUs' threads alone takes iterators inside \
    of programs (Linux 6.7), which aya doesn't have yet. The other large part is the look into `/proc/PID/fd` for \
    what was plugged in: it would shrink with looking less often than every tenth tick.";
const MEMORY_REMEDY: &str = "The largest part is the heap, then the program itself; which of it could go was not looked into.";
