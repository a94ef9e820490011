//! A real libvirtd that is left alone, hangs, is killed and started again: its domains are watched all along.

use std::{os::unix::fs::PermissionsExt as _, time::Duration};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    boot_sector::BootSector, daemon::Daemon, interrupt::sleep, libvirt::Libvirtd, stopped::Stopped,
};
use rustix::process::Pid;
use serde_json::Value;

use super::{WITHIN, alive};
use crate::rig::{Rig, incidents_of, wait_for_incident, wait_for_vm};

const IDLE: [(&str, &str); 2] = [
    ("idle-1", "5f0b9d3e-6f0a-4b7b-9c1f-0f1d3c5b7b01"),
    ("idle-2", "5f0b9d3e-6f0a-4b7b-9c1f-0f1d3c5b7b02"),
];
const PANICS: (&str, &str) = ("panics", "5f0b9d3e-6f0a-4b7b-9c1f-0f1d3c5b7b03");
/// Longer than from one question for a run state to the next.
const WATCHED_FOR: Duration = Duration::from_secs(35);
/// Longer than any question may take.
const AWAY_FOR: Duration = Duration::from_secs(12);

/// A libvirtd with two healthy domains, and a daemon that knows both to be alive.
fn scene(rig: &Rig) -> Result<(Libvirtd, Daemon)> {
    std::fs::set_permissions(rig.dir(), std::fs::Permissions::from_mode(0o755))?;
    let dir = rig.dir().join("v");
    std::fs::create_dir(&dir)?;
    let mut libvirtd = Libvirtd::start(&dir, &rig.qemu)?;
    for domain in IDLE {
        libvirtd.create(domain, BootSector::OnCommand)?;
    }
    let mut config = rig.daemon_config()?;
    config.boot_grace = Duration::from_secs(2);
    config.extra_toml = format!("[recovery]\nlibvirt_uri = \"{}\"", libvirtd.uri());
    let daemon = rig.daemon(&config)?;
    for (name, _) in IDLE {
        let answers = |row: &Value| alive(row) && row["run_state"] == "running";
        wait_for_vm(&daemon, name, "alive", WITHIN, answers)?;
    }
    Ok((libvirtd, daemon))
}

/// CPU time of the programs that a process has started and waited for, in ticks of the clock.
fn ticks_of_children(pid: u32) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit(')').next().unwrap_or_default();
    // `cutime` and `cstime` of proc(5), the 16th and 17th; what is behind the name begins with the third.
    fields.split_whitespace().skip(13).take(2).map(|ticks| Ok(ticks.parse::<u64>()?)).sum()
}

pub(super) fn idle() -> Result<Option<String>> {
    if let Some(program) = Libvirtd::missing() {
        return Ok(Some(format!("{program} is not installed")));
    }
    let rig = Rig::new()?;
    let (libvirtd, daemon) = scene(&rig)?;
    let pid = daemon.pid().context("it runs")?;
    let before = ticks_of_children(pid)?;
    sleep(WATCHED_FOR)?;
    let ticks = ticks_of_children(pid)? - before;
    ensure!(ticks == 0, "programs were started, which took {ticks} ticks");
    let connections = libvirtd.connections()?;
    ensure!(connections == 1, "{connections} connections");
    Ok(None)
}

pub(super) fn away() -> Result<Option<String>> {
    if let Some(program) = Libvirtd::missing() {
        return Ok(Some(format!("{program} is not installed")));
    }
    let rig = Rig::new()?;
    let (mut libvirtd, daemon) = scene(&rig)?;
    // Its guest panics a second after its start.
    libvirtd.create(PANICS, BootSector::Pvpanic)?;
    let process = Pid::from_raw(libvirtd.pid().cast_signed()).context("it runs")?;
    let stopped = Stopped::new(process)?;
    sleep(AWAY_FOR)?;
    left_alone(&daemon, "hung")?;
    drop(stopped);
    let told = |incident: &Value| !incident["action_at"].is_null();
    let incident = wait_for_incident(&daemon, PANICS.0, "reset", WITHIN, told)?;
    ensure!(incident["cause"] == "panicked", "{incident}");
    libvirtd.virsh(&["destroy", PANICS.1])?;

    libvirtd.kill()?;
    for (name, _) in IDLE {
        let unheard = |row: &Value| row["run_state"] != "running";
        wait_for_vm(&daemon, name, "without a monitor", WITHIN, unheard)?;
    }
    sleep(AWAY_FOR)?;
    left_alone(&daemon, "away")?;
    libvirtd.start_again()?;
    for (name, _) in IDLE {
        let answers = |row: &Value| alive(row) && row["run_state"] == "running";
        wait_for_vm(&daemon, name, "heard again", WITHIN, answers)?;
    }
    left_alone(&daemon, "back")?;
    Ok(None)
}

fn left_alone(daemon: &Daemon, when: &str) -> Result<()> {
    for (name, _) in IDLE {
        let incidents = incidents_of(daemon, name)?;
        ensure!(incidents.is_empty(), "{when}: {incidents:?}\n{}", daemon.log().text());
    }
    Ok(())
}
