//! A real libvirt of a user's own, in a directory of its own: the host's is never touched.

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::boot_sector::BootSector;
use crate::interrupt::wait_until;

/// The user that it runs as, which no distribution gives anything: libvirt of root's would be the host's own.
const NOBODY: u32 = 65534;
/// Where QEMU finds its modules, which it looks for beside its executable otherwise.
pub const MODULES: [&str; 2] = ["/usr/lib/x86_64-linux-gnu/qemu", "/usr/lib64/qemu"];
/// For its socket.
const WITHIN: Duration = Duration::from_secs(20);

/// A libvirtd; dropping it ends its domains and it.
#[derive(Debug)]
pub struct Libvirtd {
    child: Child,
    dir: PathBuf,
    uri: String,
    socket: PathBuf,
    domains: Vec<String>,
}

impl Libvirtd {
    /// Which of the programs that it needs is not installed, if any.
    pub fn missing() -> Option<&'static str> {
        let is_installed = |program: &str| {
            ["/usr/sbin", "/usr/bin"].iter().any(|folder| Path::new(folder).join(program).exists())
        };
        ["libvirtd", "virsh"].into_iter().find(|program| !is_installed(program))
    }

    /// Starts it in `dir`, which all users must be able to reach, for domains that run `qemu`. Needs root.
    ///
    /// # Errors
    ///
    /// If the directories can't be made, or it doesn't answer: with its log.
    pub fn start(dir: &Path, qemu: &Path) -> Result<Self> {
        for name in ["run", "config", "cache", "home"] {
            std::fs::create_dir_all(dir.join(name))?;
            chown(dir.join(name), Some(NOBODY), Some(NOBODY))?;
        }
        let emulator = dir.join("emulator");
        std::fs::write(&emulator, emulator_script(qemu))?;
        std::fs::set_permissions(&emulator, std::fs::Permissions::from_mode(0o755))?;
        let child = spawn(dir)?;
        let socket = dir.join("run/libvirt/libvirt-sock");
        let uri = format!("qemu+unix:///session?socket={}", socket.display());
        let libvirtd = Self { child, dir: dir.to_owned(), uri, socket, domains: Vec::new() };
        libvirtd.wait_until_it_answers()?;
        Ok(libvirtd)
    }

    fn wait_until_it_answers(&self) -> Result<()> {
        wait_until("libvirtd's socket", WITHIN, || {
            Ok(self.virsh(&["version"]).is_ok().then_some(()))
        })
        .with_context(|| self.log())
    }

    /// Kills it; its domains go on without it.
    ///
    /// # Errors
    ///
    /// If it can't be killed.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Starts it again after it was killed.
    ///
    /// # Errors
    ///
    /// If it doesn't answer: with its log.
    pub fn start_again(&mut self) -> Result<()> {
        self.child = spawn(&self.dir)?;
        self.wait_until_it_answers()
    }

    /// How many connections to its socket there are.
    ///
    /// # Errors
    ///
    /// If the kernel's list can't be read.
    pub fn connections(&self) -> Result<usize> {
        let path = self.socket.display().to_string();
        let sockets = std::fs::read_to_string("/proc/net/unix")?;
        // The sixth word is the state, of which 03 is connected; only the end that took the connection has the path.
        let is_one = |line: &&str| {
            let mut words = line.split_whitespace();
            words.nth(5) == Some("03") && line.ends_with(&path)
        };
        Ok(sockets.lines().filter(is_one).count())
    }

    /// Starts a domain with this name and UUID, which boots a sector and is left as it is when it panics. It is gone once it
    /// ends.
    ///
    /// # Errors
    ///
    /// If libvirt refuses: with its log.
    pub fn create(&mut self, id: (&str, &str), sector: BootSector) -> Result<()> {
        let xml = self.describe(id, sector, "preserve")?;
        self.virsh(&["create", &xml]).with_context(|| self.log())?;
        self.domains.push(id.1.to_owned());
        Ok(())
    }

    /// Starts a domain likewise, with which libvirt does `on_crash` when it panics, and which can be started again.
    ///
    /// # Errors
    ///
    /// As above.
    pub fn define(&mut self, id: (&str, &str), sector: BootSector, on_crash: &str) -> Result<()> {
        let xml = self.describe(id, sector, on_crash)?;
        self.virsh(&["define", &xml]).with_context(|| self.log())?;
        self.virsh(&["start", id.1]).with_context(|| self.log())?;
        self.domains.push(id.1.to_owned());
        Ok(())
    }

    /// Writes a domain's disk and XML; returns the path of the latter.
    fn describe(&self, id: (&str, &str), sector: BootSector, on_crash: &str) -> Result<String> {
        let image = self.dir.join("home").join(format!("{}.img", id.1));
        sector.write(&image)?;
        chown(&image, Some(NOBODY), Some(NOBODY))?;
        let xml = self.dir.join("domain.xml");
        let (emulator, serial) = (self.dir.join("emulator"), self.serial(id.1));
        std::fs::write(&xml, domain(id, &emulator, &image, (&serial, on_crash)))?;
        Ok(xml.to_str().context("no UTF-8")?.to_owned())
    }

    /// What `virsh` prints.
    ///
    /// # Errors
    ///
    /// If it fails: with its words.
    pub fn virsh(&self, arguments: &[&str]) -> Result<String> {
        let output =
            Command::new("virsh").args(["-q", "-c", &self.uri]).args(arguments).output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{arguments:?}: {said}{output:?}");
        Ok(said)
    }

    /// The socket of a domain's serial line.
    pub fn serial(&self, uuid: &str) -> PathBuf {
        self.dir.join("home").join(format!("{uuid}.tty"))
    }

    /// How clients reach it.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("libvirtd.log")).unwrap_or_default()
    }
}

impl Drop for Libvirtd {
    fn drop(&mut self) {
        for uuid in &self.domains {
            let _ = self.virsh(&["destroy", uuid]);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(dir: &Path) -> Result<Child> {
    let log = std::fs::File::options().create(true).append(true).open(dir.join("libvirtd.log"))?;
    let mut command = as_nobody(dir, "libvirtd");
    command.args(["--timeout", "300"]).stdout(Stdio::null()).stderr(log);
    command.spawn().context("cannot start libvirtd")
}

/// A program of that user, which has nothing outside of `dir`.
fn as_nobody(dir: &Path, program: &str) -> Command {
    let mut command = Command::new(program);
    command
        .uid(NOBODY)
        .gid(NOBODY)
        .env("HOME", dir.join("home"))
        .env("XDG_RUNTIME_DIR", dir.join("run"))
        .env("XDG_CONFIG_HOME", dir.join("config"))
        .env("XDG_CACHE_HOME", dir.join("cache"))
        .current_dir("/")
        .process_group(0);
    command
}

fn domain(
    (name, uuid): (&str, &str),
    qemu: &Path,
    image: &Path,
    (serial, on_crash): (&Path, &str),
) -> String {
    format!(
        "<domain type='qemu'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>32</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <on_crash>{on_crash}</on_crash>
  <devices>
    <emulator>{}</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <source file='{}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <serial type='unix'><source mode='bind' path='{}'/></serial>
    <video><model type='vga'/></video>
    <panic model='isa'/>
  </devices>
</domain>
",
        qemu.display(),
        image.display(),
        serial.display()
    )
}

/// libvirt hands its emulators no environment, and this one, away from its place, finds nothing by itself.
fn emulator_script(qemu: &Path) -> String {
    let modules = MODULES.into_iter().find(|folder| Path::new(folder).is_dir()).unwrap_or_default();
    format!(
        "#!/bin/sh\nexport QEMU_MODULE_DIR={modules}\n\
         exec {} -L /usr/share/seabios -L /usr/share/qemu \"$@\"\n",
        qemu.display()
    )
}
