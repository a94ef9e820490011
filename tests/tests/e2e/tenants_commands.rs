//! A command that the configuration has for a VM's name runs for the VM that is meant, and for no process of another user
//! that calls itself so.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    boot_sector::BootSector,
    daemon::Daemon,
    guest::{Accelerator, Guest},
    interrupt::{sleep, wait_until},
};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::rig::{Rig, boot_all, trial, wait_for_incident};

/// Whose `web` the operator means, and another user.
const OWNER: u32 = 64_981;
const STRANGER: u32 = 64_982;
/// For a guest of a few bytes to panic, and to be answered.
const WITHIN: Duration = Duration::from_secs(30);
/// Some ticks, in which what must not happen would be seen.
const A_WHILE: Duration = Duration::from_secs(2);
/// The name of all.
const NAME: &str = "web";

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("a_strangers_process_called_as_a_users_vm_has_no_command_run_for_it", commands)]
}

/// A place with a program that says for which QEMU it was run.
struct Scene {
    rig: Rig,
    program: PathBuf,
    calls: PathBuf,
}

impl Scene {
    fn new() -> Result<Self> {
        let rig = Rig::new()?;
        fs::set_permissions(rig.dir(), Permissions::from_mode(0o755))?;
        let (program, calls) = (rig.dir().join("again"), rig.dir().join("calls"));
        let line = "$FLATLINE_PID uid $FLATLINE_UID certain $FLATLINE_OWNER_CERTAIN as $(id -u) mask $(umask)";
        fs::write(&program, format!("#!/bin/sh\necho \"{line}\" >> {}\n", calls.display()))?;
        fs::set_permissions(&program, Permissions::from_mode(0o755))?;
        Ok(Self { rig, program, calls })
    }

    /// A guest of this user that announces its crash as soon as it runs; its QEMU stays.
    fn crashed(&self, uid: u32) -> Result<Guest> {
        let mut config = self.rig.boot_sector(NAME, BootSector::Pvpanic, Accelerator::Tcg);
        config.dir = self.rig.dir().join(uid.to_string());
        fs::create_dir(&config.dir)?;
        chown(&config.dir, Some(uid), Some(uid))?;
        config.pvpanic = true;
        config.user = (uid != 0).then_some(uid);
        config.extra_args.extend(["-action", "panic=pause"].map(str::to_owned));
        boot_all(&[config])?.pop().context("no guest")
    }

    fn calls(&self) -> String {
        fs::read_to_string(&self.calls).unwrap_or_default()
    }

    /// The incident of this QEMU, once it is as wanted.
    fn incident(
        &self,
        daemon: &Daemon,
        guest: &Guest,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let is_its = |incident: &Value| incident["pid"] == guest.pid() && wanted(incident);
        wait_for_incident(daemon, NAME, what, WITHIN, is_its)
    }

    fn wait_for_call(&self, daemon: &Daemon, guest: &Guest, uid: u32) -> Result<()> {
        let line = format!("{} uid {uid} certain false as 0 mask 0022\n", guest.pid());
        wait_until(&format!("the command for {line}"), WITHIN, || {
            Ok(self.calls().contains(&line).then_some(()))
        })
        .with_context(|| format!("{}\n{}", self.calls(), daemon.log().text()))
    }
}

/// As the operator has it: one rule names a user, and one, as before there were users in rules, does not.
fn rules(program: &Path) -> String {
    let keys = format!("actuator = \"command\"\ncommand = {}\n", json!([program]));
    format!("[[vm]]\nmatch = \"{NAME}\"\nuser = {OWNER}\n{keys}[[vm]]\nmatch = \"w*\"\n{keys}")
}

fn commands() -> Result<()> {
    let scene = Scene::new()?;
    let mut config = scene.rig.daemon_config()?;
    // All have one name.
    config.extra_toml = format!("[recovery]\nmax_restarts = 20\n{}", rules(&scene.program));
    let daemon = scene.rig.daemon(&config)?;
    let (stranger, owner, root) =
        (scene.crashed(STRANGER)?, scene.crashed(OWNER)?, scene.crashed(0)?);
    let refused = |incident: &Value| incident["outcome"] == "refused";
    let incident = scene.incident(&daemon, &stranger, "refused", refused)?;
    let reason = incident["reason"].as_str().unwrap_or_default();
    let advice = format!("set user = {STRANGER} in a [[vm]]");
    println!("{reason}");
    ensure!(reason.contains(&advice) && incident["action"].is_null(), "{incident}");
    let row = daemon.show(&stranger.pid().to_string())?;
    let refusal = row["owner"]["refusal"].as_str().unwrap_or_default();
    ensure!(refusal.contains(&advice), "{row}");
    // Beside it: the user that is meant, and root, whose name no user can take.
    for (guest, uid) in [(&owner, OWNER), (&root, 0)] {
        scene.wait_for_call(&daemon, guest, uid)?;
        scene.incident(&daemon, guest, "told", |incident| !incident["action_at"].is_null())?;
    }
    sleep(A_WHILE)?;
    let pid = stranger.pid().to_string();
    ensure!(!scene.calls().contains(&pid), "it was run for {pid}: {}", scene.calls());
    Ok(())
}
