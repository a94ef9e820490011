//! A daemon that only observes, by its configuration or by `--observe`.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{console::Log, daemon::Daemon, interrupt};
use serde_json::Value;

use super::reset_events;
use crate::rig::{MARGIN, Rig, binary, boot_all, incidents_of, vm, wait_for_vm};

/// A daemon with arguments that [`Daemon`] does not give; ended when it is dropped.
struct ByHand(Child, Log);

impl ByHand {
    fn start(arguments: &[&str], config: &Path) -> Result<Self> {
        let mut command = Command::new(binary()?);
        command.args(arguments).arg("--config").arg(config).process_group(0);
        command.env_remove("JOURNAL_STREAM").env_remove("NOTIFY_SOCKET");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start the daemon")?;
        let log = Log::new();
        log.drain(child.stderr.take().context("the pipe was asked for")?);
        Ok(Self(child, log))
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.0),
            rustix::process::Signal::TERM,
        );
        let end = Instant::now() + MARGIN;
        while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        if matches!(self.0.try_wait(), Ok(None)) {
            eprintln!("killed, as it did not end:\n{}", self.1.text());
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

pub(super) fn observes() -> Result<()> {
    let rig = Rig::new()?;
    let guests = boot_all(&[rig.linux("only-watched", 1)?])?;
    let guest = &guests[0];
    let mut config = rig.daemon_config()?;
    let mut daemon = rig.daemon(&config)?;
    ensure!(daemon.terminate()?.success(), "{}", daemon.log().text());
    let observer = ByHand::start(&["run", "--observe"], daemon.config_path())?;
    let limit = Duration::from_secs(20);
    interrupt::wait_until("an answer of the observer", limit, || Ok(daemon.status().ok()))?;
    wait_for_vm(&daemon, "only-watched", "alive", limit, |row| row["state"] == "alive")?;
    interrupt::sleep(Duration::from_secs(3))?;
    guest.send("panic")?;
    let observed = |daemon: &Daemon| -> Result<()> {
        let crashed = |row: &Value| row["state"] == "crashed";
        wait_for_vm(daemon, "only-watched", "crashed", limit, crashed)?;
        interrupt::wait_until("the incident", limit, || {
            let incidents = incidents_of(daemon, "only-watched")?;
            Ok(incidents.iter().any(|incident| incident["outcome"] == "observed").then_some(()))
        })?;
        // Some time in which a restart would be seen.
        interrupt::sleep(Duration::from_secs(5))?;
        let incidents = incidents_of(daemon, "only-watched")?;
        // However many daemons watch it, it is dead of the same crash.
        ensure!(incidents.len() == 1, "{incidents:?}");
        for incident in &incidents {
            ensure!(
                incident["outcome"] == "observed" && incident["action"].is_null(),
                "{incident}"
            );
            ensure!(incident["cause"] == "spinning", "{incident}");
        }
        let row = vm(daemon, "only-watched")?;
        ensure!(row["state"] == "crashed" && row["restarts_in_window"] == 0, "{row}");
        ensure!(reset_events(guest)? == 0 && guest.banner_count() == 1, "it was reset");
        Ok(())
    };
    observed(&daemon).context("with --observe")?;
    drop(observer);
    drop(daemon);

    config.mode = "observe".to_owned();
    let daemon = rig.daemon(&config)?;
    observed(&daemon).context("with mode = \"observe\"")
}
