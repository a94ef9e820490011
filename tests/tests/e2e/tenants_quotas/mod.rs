//! What there is a fixed number or amount of is shared out by user: none takes another's.

mod evidence;
mod incidents;
mod monitors;
mod slots;

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use flatline_tests::{
    boot_sector::BootSector,
    daemon::{Daemon, DaemonConfig},
    guest::{Accelerator, Guest, GuestConfig},
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::rig::{Rig, put, wait_for_incident};

/// Users that no machine has: the one that takes what it can get, and two that have a VM each.
const HOSTILE: u32 = 64_980;
const VICTIM: u32 = 64_981;
const CONTROL: u32 = 64_982;
/// For a guest of a few bytes to boot, to be found dead, and to be reset.
const WITHIN: Duration = Duration::from_secs(60);
/// What the attack may add to that.
const MARGIN: Duration = Duration::from_secs(5);

pub(crate) fn trials() -> Vec<Trial> {
    [slots::trials(), evidence::trials(), incidents::trials(), monitors::trials()]
        .into_iter()
        .flatten()
        .collect()
}

/// A place in which each user has a directory, and programs that pose as QEMUs.
struct Tenants {
    rig: Rig,
    fake: PathBuf,
}

impl Tenants {
    fn new() -> Result<Self> {
        let rig = Rig::new()?;
        fs::set_permissions(rig.dir(), Permissions::from_mode(0o755))?;
        let fake = rig.dir().join("qemu-system-x86_64-fake");
        put(Path::new(env!("CARGO_BIN_EXE_fake-qemu")), &fake)?;
        for user in [HOSTILE, VICTIM, CONTROL] {
            let home = rig.dir().join(user.to_string());
            fs::create_dir(&home)?;
            chown(&home, Some(user), Some(user))?;
        }
        Ok(Self { rig, fake })
    }

    fn home(&self, user: u32) -> PathBuf {
        self.rig.dir().join(user.to_string())
    }

    /// A daemon that watches both kinds, with these lines in its configuration.
    fn daemon(&self, lines: &str) -> Result<Daemon> {
        let mut config: DaemonConfig = self.rig.daemon_config()?;
        config.executables.push(self.fake.display().to_string());
        config.boot_grace = Duration::from_secs(2);
        lines.clone_into(&mut config.extra_toml);
        self.rig.daemon(&config)
    }

    /// A user's real QEMU, whose guest does this.
    fn guest(&self, user: u32, name: &str, sector: BootSector) -> GuestConfig {
        let mut config = self.rig.boot_sector(name, sector, Accelerator::Tcg);
        config.dir = self.home(user);
        config.user = Some(user);
        config
    }

    /// A user's program that poses as a QEMU in this manner.
    fn fake(&self, user: u32, name: &str, manner: &str) -> Result<Fake> {
        let socket = self.home(user).join(format!("{name}.qmp")).display().to_string();
        let id = user.to_string();
        let child = Command::new("setpriv")
            .args(["--reuid", &id, "--regid", &id, "--clear-groups"])
            .arg(&self.fake)
            .args(["-name", name, "-qmp", &format!("unix:{socket},server=on,wait=off")])
            .args(["-fake", manner])
            .stdin(Stdio::piped())
            .spawn()
            .context("cannot start the fake QEMU")?;
        Ok(Fake(child))
    }

    /// Starts a user's guest that halts for good, and waits until it is reset: with the time that took.
    fn is_found_dead(&self, daemon: &Daemon, user: u32, name: &str) -> Result<(Guest, Duration)> {
        let guest = self.guest(user, name, BootSector::CliHlt).start()?;
        let begun = Instant::now();
        let acted = |incident: &Value| !incident["action_at"].is_null();
        wait_for_incident(daemon, name, "reset", WITHIN, acted)?;
        let took = begun.elapsed();
        println!("{name} of user {user}: reset {took:.1?} after its start");
        Ok((guest, took))
    }
}

/// A process that poses as a QEMU; killed when dropped.
struct Fake(Child);

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
