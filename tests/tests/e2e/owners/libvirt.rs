//! A real libvirt, of a user's own and in a directory of its own, with a domain that panics.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{boot_sector::BootSector, interrupt::wait_until};
use serde_json::Value;

use super::{WITHIN, text};
use crate::rig::{Rig, wait_for_incident, wait_for_vm};

/// The user that it runs as, whom no distribution gives anything: libvirt of root's would be the host's own.
const NOBODY: u32 = 65534;
const UUID: &str = "5f0b9d3e-6f0a-4b7b-9c1f-0f1d3c5b7a90";

/// A libvirtd; dropping it ends its domains and it.
struct Libvirtd {
    child: Child,
    uri: String,
}

impl Libvirtd {
    fn start(dir: &Path) -> Result<Self> {
        for name in ["run", "config", "cache", "home"] {
            std::fs::create_dir_all(dir.join(name))?;
            std::os::unix::fs::chown(dir.join(name), Some(NOBODY), Some(NOBODY))?;
        }
        let child = as_nobody(dir, "libvirtd")
            .args(["--timeout", "300"])
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.join("libvirtd.log"))?)
            .spawn()
            .context("cannot start libvirtd")?;
        let socket = dir.join("run/libvirt/libvirt-sock");
        let uri = format!("qemu+unix:///session?socket={}", socket.display());
        let libvirtd = Self { child, uri };
        wait_until("libvirtd's socket", Duration::from_secs(20), || {
            Ok(libvirtd.virsh(&["version"]).is_ok().then_some(()))
        })
        .with_context(|| text(&dir.join("libvirtd.log")))?;
        Ok(libvirtd)
    }

    fn virsh(&self, arguments: &[&str]) -> Result<String> {
        let output =
            Command::new("virsh").args(["-q", "-c", &self.uri]).args(arguments).output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{arguments:?}: {said}{output:?}");
        Ok(said)
    }
}

impl Drop for Libvirtd {
    fn drop(&mut self) {
        let _ = self.virsh(&["destroy", UUID]);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program of the test's user, who has nothing outside of `dir`.
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

fn domain(qemu: &Path, image: &Path) -> String {
    format!(
        "<domain type='qemu'>
  <name>of libvirt</name>
  <uuid>{UUID}</uuid>
  <memory unit='MiB'>32</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <on_crash>preserve</on_crash>
  <devices>
    <emulator>{}</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <source file='{}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <panic model='isa'/>
  </devices>
</domain>
",
        qemu.display(),
        image.display()
    )
}

fn is_installed(program: &str) -> bool {
    ["/usr/sbin", "/usr/bin"].iter().any(|folder| Path::new(folder).join(program).exists())
}

pub(super) fn test() -> Result<Option<String>> {
    for program in ["libvirtd", "virsh"] {
        if !is_installed(program) {
            return Ok(Some(format!("{program} is not installed")));
        }
    }
    let rig = Rig::new()?;
    std::fs::set_permissions(rig.dir(), std::fs::Permissions::from_mode(0o755))?;
    let dir: PathBuf = rig.dir().join("v");
    std::fs::create_dir(&dir)?;
    let libvirtd = Libvirtd::start(&dir)?;
    let image = dir.join("home/panics.img");
    BootSector::Pvpanic.write(&image)?;
    std::os::unix::fs::chown(&image, Some(NOBODY), Some(NOBODY))?;
    let xml = dir.join("domain.xml");
    std::fs::write(&xml, domain(&rig.qemu, &image))?;
    let xml = xml.to_str().context("no UTF-8")?;
    libvirtd.virsh(&["create", xml]).with_context(|| text(&dir.join("libvirtd.log")))?;

    let mut config = rig.daemon_config()?;
    config.boot_grace = Duration::from_secs(2);
    config.extra_toml = format!("[recovery]\nmax_restarts = 1\nlibvirt_uri = \"{}\"", libvirtd.uri);
    let daemon = rig.daemon(&config)?;
    let of_libvirt = |row: &Value| row["owner"]["kind"] == "libvirt";
    let row = wait_for_vm(&daemon, "of libvirt", "found", WITHIN, of_libvirt)?;
    ensure!(row["owner"]["name"] == "of libvirt" && row["uuid"] == UUID, "{row}");
    ensure!(row["owner"]["actuator"] == "libvirt", "{row}");
    let told = |incident: &Value| !incident["action_at"].is_null();
    let incident = wait_for_incident(&daemon, "of libvirt", "reset", WITHIN, told)?;
    println!("{incident}");
    ensure!(incident["cause"] == "panicked", "{incident}");
    let action = incident["action"].as_str().unwrap_or_default();
    for part in [format!("reset --domain {UUID}"), format!("resume --domain {UUID}")] {
        ensure!(action.contains(&part), "{incident}\n{}", daemon.log().text());
    }
    // It crashes after each boot: the second time, its limit is reached.
    let failed = |row: &Value| row["state"] == "failed";
    wait_for_vm(&daemon, "of libvirt", "failed", WITHIN, failed)?;
    Ok(None)
}
