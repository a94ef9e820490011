//! How long a daemon takes to start, from nothing and after one that was killed.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use flatline_tests::interrupt;
use flatline_tests::netns::Netns;
use rustix::process::{Pid, Signal, kill_process};

use super::clients;
use super::figures::Rounds;
use super::fleet::{BUSY, VMS};
use super::report::{Report, Target};
use super::stage::{Settings, Stage, StandIn, wait_for};
use crate::process::heading;

const ROUNDS: usize = 9;
const FEW_VMS: usize = 100;
/// For one start, and for a daemon to end.
const LIMIT: Duration = Duration::from_secs(20);
/// Between two questions to a daemon that starts, beside a few microseconds for each VM that an answer has.
const POLL: Duration = Duration::from_micros(500);
const POLL_FOR_EACH: Duration = Duration::from_micros(5);

const COLD_TARGET: Target = Target::at_most(150.0);
const RESTART_TARGET: Target = Target::at_most(50.0);
const MANY_TARGET: Target = Target::at_most(100.0);

/// A daemon of which every moment is watched; dropping it kills it.
struct Started {
    child: Child,
    at: Instant,
}

impl Started {
    fn new(stage: &Stage<'_>, config: &std::path::Path) -> Result<Self> {
        let mut command = Command::new(&stage.programs.daemon);
        command.args(["run", "--config"]).arg(config);
        command.env_remove("JOURNAL_STREAM").env_remove("NOTIFY_SOCKET").env_remove("RUST_LOG");
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let at = Instant::now();
        let child = command.spawn().context("cannot start the daemon")?;
        Ok(Self { child, at })
    }

    /// Time from its start to the line of its log that says that it watches.
    fn until_watching(&mut self) -> Result<Duration> {
        let log = self.child.stderr.take().context("the pipe was asked for")?;
        let mut log = BufReader::new(log);
        let mut line = String::new();
        while log.read_line(&mut line)? != 0 {
            if line.trim_end().ends_with("watching") {
                let took = self.at.elapsed();
                // Whatever else it says must not fill the pipe.
                std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
                return Ok(took);
            }
            line.clear();
        }
        bail!("the daemon ended without watching");
    }

    /// Ends it in order: nothing stays pinned.
    fn terminate(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let end = Instant::now() + LIMIT;
        while self.child.try_wait()?.is_none() {
            ensure!(Instant::now() < end, "the daemon does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Measures both.
pub(crate) fn measure(stage: &Stage<'_>, report: &mut Report) -> Result<()> {
    heading("starts");
    cold(stage, report)?;
    let few = StandIn { load: Some("trickle"), ..StandIn::default() };
    let (watching, reading) = after_kills(stage, FEW_VMS, few)?;
    let section = report.section(TITLE, "ms", STARTS);
    section.value("after a kill, to watching 100 VMs", &watching, None, "");
    let what = "after a kill, to the first reading of 100 VMs";
    section.value(what, &reading, Some(RESTART_TARGET), RESTART);
    let netns = Netns::new()?;
    let pace = stage.pace("starts", BUSY)?;
    let many = StandIn { netns: Some(&netns), pace: Some(&pace), ..StandIn::default() };
    let (watching, reading) = after_kills(stage, VMS, many)?;
    let section = report.section(TITLE, "ms", STARTS);
    section.value("after a kill, to watching 1,000 VMs", &watching, None, "");
    let what = "after a kill, to the first reading of 1,000 VMs with taps";
    section.value(what, &reading, Some(MANY_TARGET), RESTART);
    Ok(())
}

fn cold(stage: &Stage<'_>, report: &mut Report) -> Result<()> {
    // Makes the directories, the configuration and the bpffs, and keeps them.
    let mut daemon = stage.daemon(Settings::default())?;
    let config = daemon.config_path().to_owned();
    daemon.terminate()?;
    let mut cold = Vec::new();
    for _ in 0..ROUNDS {
        interrupt::check()?;
        let mut started = Started::new(stage, &config)?;
        cold.push(started.until_watching()?.as_secs_f64() * 1e3);
        started.terminate()?;
    }
    let section = report.section(TITLE, "ms", STARTS);
    section.value("from nothing to watching", &Rounds::new(cold)?, Some(COLD_TARGET), COLD);
    Ok(())
}

/// Kills a daemon that counts `count` stand-ins, again and again. Returns the times from a start until it watches, and
/// until it has counters of all of them, in ms.
fn after_kills(stage: &Stage<'_>, count: usize, what: StandIn<'_>) -> Result<(Rounds, Rounds)> {
    let mut fleet = stage.start("vm", count, what)?;
    let mut daemon = stage.daemon(Settings::default())?;
    let config = daemon.config_path().to_owned();
    let counters = if what.netns.is_some() { "network" } else { "storage" };
    wait_for(&daemon, "all of them counted", count, |vm| !vm[counters].is_null())?;
    fleet.check()?;
    daemon.kill()?;
    let (mut watching, mut reading) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        interrupt::check()?;
        let mut started = Started::new(stage, &config)?;
        watching.push(started.until_watching()?.as_secs_f64() * 1e3);
        reading.push(until_read(stage, started.at, count, counters)?.as_secs_f64() * 1e3);
        // Dropping it kills it: the next one finds what it left.
    }
    // Their taps go with them: to detach from each takes long. The last daemon left pins, which only another takes down.
    drop(fleet);
    daemon.start_again()?;
    daemon.terminate()?;
    Ok((Rounds::new(watching)?, Rounds::new(reading)?))
}

/// Time from the daemon's start until its answer has the counters of all VMs.
fn until_read(stage: &Stage<'_>, start: Instant, count: usize, counters: &str) -> Result<Duration> {
    let pause = POLL + POLL_FOR_EACH * u32::try_from(count)?;
    loop {
        interrupt::check()?;
        let asked = start.elapsed();
        if let Ok((status, answered)) = clients::status(stage) {
            let took = asked + answered;
            let vms = status["vms"].as_array().map_or(&[][..], Vec::as_slice);
            if vms.len() == count && vms.iter().all(|vm| !vm[counters].is_null()) {
                return Ok(took);
            }
        }
        ensure!(start.elapsed() < LIMIT, "the daemon shows no counters within {LIMIT:?}");
        std::thread::sleep(pause);
    }
}

const TITLE: &str = "Starting";
const STARTS: &str = "From `exec`. *Watching* is said before the first tap is attached. The first reading is when \
    `status` first shows counters of all VMs, asked every half a millisecond, and every 5.5 ms of 1,000 VMs.";
const COLD: &str = "Most of it is the kernel's verifier, on the loop over the bios of one request; then the kernel's types, which are \
    parsed twice, since aya's loader does so in any case.";
const RESTART: &str = "Most of it is what is remembered of each VM, which is read and compared with its process, some tens of \
    microseconds; the rest is taking it up, its first sample, and what `status` answers to the questions of this measurement.";
