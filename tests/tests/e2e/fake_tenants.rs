//! VMs of several users of the host that do what a test tells them: made-up QEMUs, each run by its user.

use std::{
    fs::{self, Permissions},
    io::Write as _,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use flatline_tests::{
    boot_sector::BootSector,
    daemon::{Daemon, DaemonConfig},
    guest::GuestConfig,
};
use serde_json::Value;

use crate::rig::{Rig, put, wait_for_vm};

/// For VMs to be found, and heard once.
const WITHIN: Duration = Duration::from_secs(30);

/// The place of these VMs in a test's own.
pub(crate) struct Tenants<'a> {
    rig: &'a Rig,
    program: PathBuf,
}

impl<'a> Tenants<'a> {
    /// Lets every user of the host into the test's directory, and puts the program there.
    pub(crate) fn new(rig: &'a Rig) -> Result<Self> {
        fs::set_permissions(rig.dir(), Permissions::from_mode(0o755))?;
        let program = rig.dir().join("qemu-system-x86_64-tenant");
        put(Path::new(env!("CARGO_BIN_EXE_fake-tenant")), &program)?;
        Ok(Self { rig, program })
    }

    /// The configuration of a daemon for these VMs and the test's other ones.
    pub(crate) fn daemon_config(&self) -> Result<DaemonConfig> {
        let mut config = self.rig.daemon_config()?;
        config.executables.push(self.program.display().to_string());
        Ok(config)
    }

    /// The directory of one user.
    fn home(&self, user: u32) -> Result<PathBuf> {
        let home = self.rig.dir().join(user.to_string());
        fs::create_dir_all(&home)?;
        chown(&home, Some(user), Some(user))?;
        Ok(home)
    }

    /// Starts so many VMs of one user, called `name-0` and so on.
    pub(crate) fn start(&self, user: u32, name: &str, vms: usize) -> Result<Vec<Tenant>> {
        let home = self.home(user)?;
        (0..vms)
            .map(|n| Tenant::start(&self.program, &home, user, &format!("{name}-{n}")))
            .collect()
    }

    /// A real QEMU of a user, whose guest reads its disk all the time and obeys its serial line.
    pub(crate) fn real(&self, user: u32, name: &str) -> Result<GuestConfig> {
        let mut config = self.rig.boot_sector_on_disk(name, BootSector::OnCommand)?;
        chown(self.rig.dir().join(format!("{name}.direct.img")), Some(user), Some(user))?;
        config.dir = self.home(user)?;
        config.user = Some(user);
        config.pvpanic = true;
        config.extra_args.extend(["-action", "panic=pause"].map(str::to_owned));
        Ok(config)
    }
}

/// One VM; killed when dropped.
pub(crate) struct Tenant {
    pub(crate) name: String,
    child: Child,
}

impl Tenant {
    fn start(program: &Path, home: &Path, user: u32, name: &str) -> Result<Self> {
        let at = |kind: &str| home.join(format!("{name}.{kind}")).display().to_string();
        let id = user.to_string();
        let child = Command::new("setpriv")
            .args(["--reuid", &id, "--regid", &id, "--clear-groups"])
            .arg(program)
            .args(["-name", name, "-qmp", &format!("unix:{},server=on,wait=off", at("qmp"))])
            .args(["-chardev", &format!("socket,path={},server=on,wait=off,id=qga0", at("qga"))])
            .args(["-device", "virtserialport,chardev=qga0,name=org.qemu.guest_agent.0"])
            .stdin(Stdio::piped())
            .spawn()
            .context("cannot start setpriv")?;
        Ok(Self { name: name.to_owned(), child })
    }

    /// Tells its guest what to do: `silent`, `panic` or `live`.
    pub(crate) fn tell(&self, word: &str) -> Result<()> {
        let mut stdin = self.child.stdin.as_ref().context("it has a pipe")?;
        stdin.write_all(format!("{word}\n").as_bytes()).with_context(|| self.name.clone())
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until each of them was heard by its agent: only then does its silence say something.
pub(crate) fn wait_until_heard(daemon: &Daemon, tenants: &[Tenant]) -> Result<()> {
    for tenant in tenants {
        let is_heard = |row: &Value| {
            row["state"] == "alive"
                && row["reason"].as_str().is_some_and(|reason| reason.contains("guest agent"))
        };
        wait_for_vm(daemon, &tenant.name, "heard", WITHIN, is_heard)?;
    }
    Ok(())
}
