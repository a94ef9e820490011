//! How long a daemon takes to start, from nothing and after one that was killed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use flatline_tests::interrupt;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::figures::Rounds;
use super::report::{Report, Target};
use super::stage::{Stage, StandIn, wait_for};
use crate::process::heading;

const ROUNDS: usize = 9;
const VMS: usize = 100;
/// For one start, and for a daemon to end.
const LIMIT: Duration = Duration::from_secs(20);
/// Between two questions to a daemon that starts.
const POLL: Duration = Duration::from_micros(500);

const COLD_TARGET: Target = Target::at_most(150.0);
const RESTART_TARGET: Target = Target::at_most(50.0);

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
    // Makes the directories, the configuration and the bpffs, and keeps them.
    let mut daemon = stage.daemon()?;
    let config = daemon.config_path().to_owned();
    daemon.terminate()?;
    let mut cold = Vec::new();
    for _ in 0..ROUNDS {
        interrupt::check()?;
        let mut started = Started::new(stage, &config)?;
        cold.push(started.until_watching()?.as_secs_f64() * 1e3);
        started.terminate()?;
    }
    let mut fleet =
        stage.start("vm", VMS, StandIn { load: Some("trickle"), ..StandIn::default() })?;
    daemon.start_again()?;
    wait_for(&daemon, "all of them counted", VMS, |vm| !vm["storage"].is_null())?;
    fleet.check()?;
    daemon.kill()?;
    let (mut watching, mut reading) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        interrupt::check()?;
        let mut started = Started::new(stage, &config)?;
        watching.push(started.until_watching()?.as_secs_f64() * 1e3);
        reading.push(until_read(stage, started.at)?.as_secs_f64() * 1e3);
        // Dropping it kills it: the next one finds what it left.
    }
    let section = report.section("Starting", "ms", STARTS);
    section.value("from nothing to watching", &Rounds::new(cold)?, Some(COLD_TARGET), COLD);
    section.value("after a kill, to watching", &Rounds::new(watching)?, None, "");
    let what = "after a kill, to the first reading of 100 VMs";
    section.value(what, &Rounds::new(reading)?, Some(RESTART_TARGET), RESTART);
    // The last one left pins behind, which only a daemon takes down.
    daemon.start_again()?;
    daemon.terminate()?;
    Ok(())
}

/// Time from the daemon's start until its answer has the counters of all VMs.
fn until_read(stage: &Stage<'_>, start: Instant) -> Result<Duration> {
    loop {
        interrupt::check()?;
        if let Ok(status) = ask(stage) {
            let vms = status["ok"]["vms"].as_array().map_or(&[][..], Vec::as_slice);
            if vms.len() == VMS && vms.iter().all(|vm| !vm["storage"].is_null()) {
                return Ok(start.elapsed());
            }
        }
        ensure!(start.elapsed() < LIMIT, "the daemon shows no counters within {LIMIT:?}");
        std::thread::sleep(POLL);
    }
}

fn ask(stage: &Stage<'_>) -> Result<Value> {
    let mut stream = UnixStream::connect(stage.control_socket())?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"{\"command\":\"status\"}\n")?;
    let mut reply = String::new();
    BufReader::new(stream).read_line(&mut reply)?;
    Ok(serde_json::from_str(&reply)?)
}

const STARTS: &str = "From `exec`. *Watching* is said before the first tap is attached. The first reading is when \
    `status` first shows counters of all VMs, asked every half a millisecond.";
const COLD: &str = "Where the time goes was not looked into.";
const RESTART: &str = "Where the time goes was not looked into.";
