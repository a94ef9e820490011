//! A real libvirt that resets a guest by itself, or ends its QEMU, when that panics: one crash, one restart.

use std::{
    fs::{Permissions, create_dir},
    io::Write as _,
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    time::Duration,
};

use anyhow::{Result, ensure};
use flatline_tests::{boot_sector::BootSector, interrupt::sleep, libvirt::Libvirtd};
use serde_json::{Value, json};

use super::{A_WHILE, WITHIN, alive};
use crate::rig::{Rig, incidents_of, wait_for_incident, wait_for_vm};

/// The domains, by their names and UUIDs: what libvirt does at their panics.
const RESTART: (&str, &str) = ("restart", "5f0b9d3e-6f0a-4b7b-9c1f-0f1d3c5b7aa0");
const DESTROY: (&str, &str) = ("destroy", "5f0b9d3e-6f0a-4b7b-9c1f-0f1d3c5b7aa1");
/// Panics until one is heard.
const PANICS: usize = 5;

pub(super) fn test() -> Result<Option<String>> {
    if let Some(program) = Libvirtd::missing() {
        return Ok(Some(format!("{program} is not installed")));
    }
    let rig = Rig::new()?;
    std::fs::set_permissions(rig.dir(), Permissions::from_mode(0o755))?;
    let dir = rig.dir().join("v");
    create_dir(&dir)?;
    let mut libvirtd = Libvirtd::start(&dir, &rig.qemu)?;
    for domain in [RESTART, DESTROY] {
        libvirtd.define(domain, BootSector::OnCommand, domain.0)?;
    }
    let mut config = rig.daemon_config()?;
    config.boot_grace = Duration::from_secs(2);
    // Nothing but its own word says that a user's libvirt started it, so that the configuration has to.
    config.extra_toml = format!(
        "[recovery]\nmax_restarts = 9\npause = \"0s\"\nlibvirt_uri = \"{}\"\n\n[[vm]]\nmatch = \"{}\"\nuser = 65534\nactuator = \"libvirt\"\n\
         start_exited = true\n",
        libvirtd.uri(),
        DESTROY.0
    );
    let daemon = rig.daemon(&config)?;
    let panics = |(name, uuid): (&str, &str)| -> Result<Value> {
        let row = wait_for_vm(&daemon, name, "alive", WITHIN, alive)?;
        UnixStream::connect(libvirtd.serial(uuid))?.write_all(b"p")?;
        Ok(row)
    };

    // libvirt's events are heard once a `virsh` has connected for them, which nothing tells; a panic before that is libvirt's alone.
    let mut before = panics(RESTART)?;
    for _ in 0..PANICS {
        sleep(A_WHILE)?;
        if !incidents_of(&daemon, RESTART.0)?.is_empty() {
            break;
        }
        before = panics(RESTART)?;
    }
    let over = |incident: &Value| incident["outcome"] == "recovered";
    let incident = wait_for_incident(&daemon, RESTART.0, "recovered", WITHIN, over)?;
    println!("{incident}");
    ensure!(incident["cause"] == "panicked", "{incident}");
    let untouched = incident["action"].is_null() && incident["attempts"] == json!([]);
    ensure!(untouched, "it was reset twice: {incident}\n{}", daemon.log().text());
    let reason = incident["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("another reset it"), "{incident}");
    sleep(A_WHILE)?;
    let after = wait_for_vm(&daemon, RESTART.0, "alive", WITHIN, alive)?;
    ensure!(after["pid"] == before["pid"], "{after}");
    for incident in incidents_of(&daemon, RESTART.0)? {
        ensure!(incident["attempts"] == json!([]), "it was reset twice: {incident}");
    }
    let shown = daemon.show(RESTART.0)?;
    ensure!(shown["also_restarted_by"][0]["peer"] == "libvirt", "{shown}");

    // It is started once, by flatline, since libvirt doesn't.
    let before = panics(DESTROY)?;
    let is_started = |incident: &Value| incident["attempts"] != json!([]);
    let incident = wait_for_incident(&daemon, DESTROY.0, "started", WITHIN, is_started)?;
    println!("{incident}");
    ensure!(incident["attempts"].as_array().is_some_and(|made| made.len() == 1), "{incident}");
    ensure!(incident["attempts"].to_string().contains("start --domain"), "{incident}");
    let is_new = |row: &Value| alive(row) && row["pid"] != before["pid"];
    wait_for_vm(&daemon, DESTROY.0, "alive again", WITHIN, is_new)?;
    Ok(None)
}
