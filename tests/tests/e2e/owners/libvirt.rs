//! A real libvirt, of a user's own and in a directory of its own, with a domain that panics and two that are left alone.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    boot_sector::BootSector,
    interrupt::{sleep, wait_until},
};
use serde_json::Value;

use super::{A_WHILE, MODULES, WITHIN, alive, script, text};
use crate::rig::{Rig, incidents_of, wait_for_incident, wait_for_vm};

/// The user that it runs as, which no distribution gives anything: libvirt of root's would be the host's own.
const NOBODY: u32 = 65534;
/// The domains, by their names and UUIDs: one that panics, and two that an operator lays hands on.
const PANICS: (&str, &str) = ("of libvirt", "5f0b9d3e-6f0a-4b7b-9c1f-0f1d3c5b7a90");
const SUSPENDED: (&str, &str) = ("suspended", "5f0b9d3e-6f0a-4b7b-9c1f-0f1d3c5b7a91");
const DESTROYED: (&str, &str) = ("destroyed", "5f0b9d3e-6f0a-4b7b-9c1f-0f1d3c5b7a92");

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
        for (_, uuid) in [PANICS, SUSPENDED, DESTROYED] {
            let _ = self.virsh(&["destroy", uuid]);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program of the test's user, which has nothing outside of `dir`.
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

fn domain((name, uuid): (&str, &str), qemu: &Path, image: &Path) -> String {
    format!(
        "<domain type='qemu'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
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

/// libvirt hands its emulators no environment, and this one, away from its place, finds nothing by itself.
fn emulator_lines(qemu: &Path) -> String {
    let modules = MODULES.into_iter().find(|folder| Path::new(folder).is_dir()).unwrap_or_default();
    format!(
        "export QEMU_MODULE_DIR={modules}\nexec {} -L /usr/share/seabios -L /usr/share/qemu \"$@\"",
        qemu.display()
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
    let emulator = dir.join("emulator");
    script(&emulator, &emulator_lines(&rig.qemu))?;
    let create = |which: (&str, &str), sector: BootSector| -> Result<()> {
        let image = dir.join("home").join(format!("{}.img", which.1));
        sector.write(&image)?;
        std::os::unix::fs::chown(&image, Some(NOBODY), Some(NOBODY))?;
        let xml = dir.join("domain.xml");
        std::fs::write(&xml, domain(which, &emulator, &image))?;
        let xml = xml.to_str().context("no UTF-8")?;
        libvirtd.virsh(&["create", xml]).with_context(|| text(&dir.join("libvirtd.log")))?;
        Ok(())
    };
    create(SUSPENDED, BootSector::OnCommand)?;
    create(DESTROYED, BootSector::OnCommand)?;
    create(PANICS, BootSector::Pvpanic)?;

    let mut config = rig.daemon_config()?;
    config.boot_grace = Duration::from_secs(2);
    config.extra_toml = format!(
        "[recovery]\nmax_restarts = 1\nstart_exited = true\nlibvirt_uri = \"{}\"",
        libvirtd.uri
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
    let action = incident["action"].as_str().unwrap_or_default();
    for part in [format!("reset --domain {uuid}"), format!("resume --domain {uuid}")] {
        ensure!(action.contains(&part), "{incident}\n{}", daemon.log().text());
    }
    // It crashes after each boot: the second time, its limit is reached.
    let failed = |row: &Value| row["state"] == "failed";
    wait_for_vm(&daemon, name, "failed", WITHIN, failed)?;

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
