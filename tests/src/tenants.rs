//! Users of the host that have VMs of their own: their directories, and programs that pose as their QEMUs.

use std::{
    fs::{self, Permissions},
    io::Write as _,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};

use crate::boot_sector::BootSector;
use crate::guest::{GuestConfig, GuestKind, private_copy};

/// What the programs are called where they run.
const FAKE: &str = "qemu-system-x86_64-fake";
const TENANT: &str = "qemu-system-x86_64-tenant";

/// Programs that pose as QEMUs, as they were built.
#[derive(Clone, Debug)]
pub struct Fakes {
    /// One that misbehaves at its monitor: `fake-qemu`.
    pub qemu: PathBuf,
    /// One whose guest does what it is told: `fake-tenant`.
    pub tenant: PathBuf,
}

/// A place in which each user has a directory.
#[derive(Debug)]
pub struct Homes {
    dir: PathBuf,
    fake: PathBuf,
    tenant: PathBuf,
}

/// What a process that poses as a QEMU claims, and how it behaves.
#[derive(Clone, Debug, Default)]
pub struct Claim {
    /// Its `-name`.
    pub name: String,
    /// Its `-uuid`, if it claims one.
    pub uuid: Option<String>,
    /// How its monitor behaves: a manner of `fake-qemu`.
    pub manner: String,
    /// More words for its command line.
    pub more: Vec<String>,
}

/// A process that poses as a QEMU; killed when dropped.
#[derive(Debug)]
pub struct Fake {
    child: Child,
    socket: PathBuf,
}

impl Homes {
    /// Lets every user into `dir`, and puts the programs there.
    ///
    /// # Errors
    ///
    /// If the directory can't be changed.
    pub fn new(dir: &Path, fakes: &Fakes) -> Result<Self> {
        fs::set_permissions(dir, Permissions::from_mode(0o755))?;
        let fake = private_copy(&fakes.qemu, FAKE, dir)?;
        let tenant = private_copy(&fakes.tenant, TENANT, dir)?;
        Ok(Self { dir: dir.to_owned(), fake, tenant })
    }

    /// The programs that pose as QEMUs, as a daemon has to know them.
    pub fn executables(&self) -> [String; 2] {
        [&self.fake, &self.tenant].map(|path| path.display().to_string())
    }

    /// The directory of one user, which is made if it is not there.
    ///
    /// # Errors
    ///
    /// If it can't be made.
    pub fn of(&self, user: u32) -> Result<PathBuf> {
        let home = self.dir.join(user.to_string());
        fs::create_dir_all(&home)?;
        chown(&home, Some(user), Some(user))?;
        Ok(home)
    }

    /// Starts a user's program that poses as a QEMU.
    ///
    /// # Errors
    ///
    /// If it can't be started.
    pub fn fake(&self, user: u32, claim: &Claim) -> Result<Fake> {
        self.fake_behind(&as_user(user), user, claim)
    }

    /// The same by way of a command of root's that becomes the user's in the end.
    ///
    /// # Errors
    ///
    /// As above.
    pub fn fake_behind(&self, prefix: &[String], user: u32, claim: &Claim) -> Result<Fake> {
        // Claims may be alike, and more than a path takes.
        let number = next_number();
        let socket = self.of(user)?.join(format!("{number}.qmp"));
        let mut command = Command::new(&prefix[0]);
        command.args(&prefix[1..]).arg(&self.fake).args(["-name", &claim.name]);
        command.args(claim.uuid.iter().flat_map(|uuid| ["-uuid", uuid]));
        command.args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())]);
        command.args(["-fake", &claim.manner]).args(&claim.more).stdin(Stdio::piped());
        let child = command.spawn().with_context(|| format!("cannot run {}", prefix[0]))?;
        Ok(Fake { child, socket })
    }

    /// Starts a user's VM whose guest does what it is told.
    ///
    /// # Errors
    ///
    /// If it can't be started.
    pub fn tenant(&self, user: u32, name: &str) -> Result<Tenant> {
        let home = self.of(user)?;
        let at = |kind: &str| home.join(format!("{name}.{kind}")).display().to_string();
        let prefix = as_user(user);
        let child = Command::new(&prefix[0])
            .args(&prefix[1..])
            .arg(&self.tenant)
            .args(["-name", name, "-qmp", &format!("unix:{},server=on,wait=off", at("qmp"))])
            .args(["-chardev", &format!("socket,path={},server=on,wait=off,id=qga0", at("qga"))])
            .args(["-device", "virtserialport,chardev=qga0,name=org.qemu.guest_agent.0"])
            .stdin(Stdio::piped())
            .spawn()
            .context("cannot start setpriv")?;
        Ok(Tenant { name: name.to_owned(), child })
    }

    /// A real QEMU of a user, whose guest lives by its disk and obeys its serial line: see [`BootSector::OnCommand`]. It
    /// is paused at a panic.
    ///
    /// # Errors
    ///
    /// If its disk can't be made.
    pub fn obeys(&self, qemu: &Path, user: u32, name: &str) -> Result<GuestConfig> {
        let kind = GuestKind::BootSector(BootSector::OnCommand);
        let mut config = GuestConfig::new(name, kind, qemu, &self.of(user)?);
        let disk = config.dir.join(format!("{name}.direct.img"));
        BootSector::OnCommand.write(&disk)?;
        chown(&disk, Some(user), Some(user))?;
        let drive = format!("file={},format=raw,if=none,id=direct,cache=none", disk.display());
        let device = "virtio-blk-pci,drive=direct,bootindex=0";
        let more = ["-drive", &drive, "-device", device, "-action", "panic=pause"];
        config.extra_args.extend(more.map(str::to_owned));
        (config.user, config.pvpanic) = (Some(user), true);
        Ok(config)
    }
}

impl Claim {
    /// A name, and a manner.
    pub fn new(name: impl Into<String>, manner: &str) -> Self {
        Self { name: name.into(), manner: manner.to_owned(), ..Self::default() }
    }

    /// The same with more words.
    #[must_use]
    pub fn with(mut self, more: &[&str]) -> Self {
        self.more.extend(more.iter().map(|&word| word.to_owned()));
        self
    }
}

impl Fake {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its monitor listens, once it does.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

/// A VM whose guest does what it is told; killed when dropped.
#[derive(Debug)]
pub struct Tenant {
    /// Its `-name`.
    pub name: String,
    child: Child,
}

impl Tenant {
    /// Tells its guest what to do: `silent`, `panic`, `busy` or `live`.
    ///
    /// # Errors
    ///
    /// If it is gone.
    pub fn tell(&self, word: &str) -> Result<()> {
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

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.socket);
    }
}

/// What to put before a command so that it is a user's, without any right.
pub fn as_user(user: u32) -> Vec<String> {
    let id = user.to_string();
    ["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"].map(str::to_owned).into()
}

/// Numbers of fakes' sockets.
fn next_number() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Relaxed)
}
