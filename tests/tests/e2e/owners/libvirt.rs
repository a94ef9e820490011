//! A real libvirt, of a user's own and in a directory of its own, with a domain that panics and two that are left alone.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use flatline_tests::{boot_sector::BootSector, interrupt::sleep, libvirt::Libvirtd};
use serde_json::Value;

use super::{A_WHILE, WITHIN, alive};
use crate::rig::{Rig, incidents_of, wait_for_incident, wait_for_vm};

/// The domains, by their names and UUIDs: one that panics, and two that an operator lays hands on.
const PANICS: (&str, &str) = ("of libvirt", "5f0b9d3e-6f0a-4b7b-9c1f-0f1d3c5b7a90");
const SUSPENDED: (&str, &str) = ("suspended", "5f0b9d3e-6f0a-4b7b-9c1f-0f1d3c5b7a91");
const DESTROYED: (&str, &str) = ("destroyed", "5f0b9d3e-6f0a-4b7b-9c1f-0f1d3c5b7a92");

pub(super) fn test() -> Result<Option<String>> {
    if let Some(program) = Libvirtd::missing() {
        return Ok(Some(format!("{program} is not installed")));
    }
    let rig = Rig::new()?;
    std::fs::set_permissions(rig.dir(), std::fs::Permissions::from_mode(0o755))?;
    let dir: PathBuf = rig.dir().join("v");
    std::fs::create_dir(&dir)?;
    let mut libvirtd = Libvirtd::start(&dir, &rig.qemu)?;
    libvirtd.create(SUSPENDED, BootSector::OnCommand)?;
    libvirtd.create(DESTROYED, BootSector::OnCommand)?;
    libvirtd.create(PANICS, BootSector::Pvpanic)?;

    let mut config = rig.daemon_config()?;
    config.boot_grace = Duration::from_secs(2);
    config.extra_toml = format!(
        "[recovery]\nmax_restarts = 1\nstart_exited = true\nlibvirt_uri = \"{}\"",
        libvirtd.uri()
    );
    let daemon = rig.daemon(&config)?;
    let of_libvirt = |row: &Value| row["owner"]["kind"] == "libvirt";
    let (name, uuid) = PANICS;
    let row = wait_for_vm(&daemon, name, "found", WITHIN, of_libvirt)?;
    ensure!(row["owner"]["name"] == name && row["uuid"] == uuid, "{row}");
    ensure!(row["owner"]["actuator"] == "libvirt", "{row}");
    let told = |incident: &Value| !incident["action_at"].is_null();
    let incident = wait_for_incident(&daemon, name, "reset", WITHIN, told)?;
    println!("{incident}");
    ensure!(incident["cause"] == "panicked", "{incident}");
    // Whether its guest has panicked again when its run state is asked for is a matter of milliseconds.
    let action = incident["attempts"][0]["steps"].to_string();
    for part in [format!("reset --domain {uuid}"), format!("resume --domain {uuid}")] {
        ensure!(action.contains(&part), "{incident}\n{}", daemon.log().text());
    }
    // It crashes after each boot: the second time, its limit is reached.
    let failed = |row: &Value| row["state"] == "failed";
    wait_for_vm(&daemon, name, "failed", WITHIN, failed)?;
    let incidents = incidents_of(&daemon, name)?;
    for kept in ["registers.txt", "screen.png"] {
        ensure!(incidents[0]["evidence"].to_string().contains(kept), "no {kept}: {incidents:?}");
    }

    // What was done on purpose stays done.
    for (name, _) in [SUSPENDED, DESTROYED] {
        wait_for_vm(&daemon, name, "alive", WITHIN, alive)?;
    }
    libvirtd.virsh(&["suspend", SUSPENDED.1])?;
    libvirtd.virsh(&["destroy", DESTROYED.1])?;
    let paused = |row: &Value| row["state"] == "held" && row["run_state"] == "paused";
    wait_for_vm(&daemon, SUSPENDED.0, "held", WITHIN, paused)?;
    sleep(config.flat_for + A_WHILE)?;
    let state = |uuid: &str| libvirtd.virsh(&["domstate", uuid]);
    ensure!(state(SUSPENDED.1)?.trim() == "paused", "{}", daemon.log().text());
    ensure!(state(DESTROYED.1).is_err(), "it was started again: {}", daemon.log().text());
    for (name, _) in [SUSPENDED, DESTROYED] {
        let incidents = incidents_of(&daemon, name)?;
        ensure!(incidents.is_empty(), "{incidents:?}\n{}", daemon.log().text());
    }
    libvirtd.virsh(&["resume", SUSPENDED.1])?;
    wait_for_vm(&daemon, SUSPENDED.0, "alive again", WITHIN, alive)?;
    Ok(None)
}
