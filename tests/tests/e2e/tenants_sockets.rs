//! What a QEMU of another user names as its sockets may lead to root's: no program of root's that listens there sees a
//! connection, whether the QEMU's descriptors can be asked or not, and a VM beside it is restarted in its time.

use std::{
    fs::{self, Permissions},
    io::ErrorKind,
    os::unix::{
        fs::{PermissionsExt as _, chown, symlink},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use flatline_tests::{
    boot_sector::BootSector,
    daemon::Daemon,
    guest::{Accelerator, GuestConfig, private_copy},
    interrupt::{sleep, wait_until},
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::rig::{Rig, trial, wait_for_incident, wait_for_vm};

/// Whose the QEMU is that names what is root's, and whose the victim's is: no others have these ids.
const HOSTILE: u32 = 64_989;
const VICTIM: u32 = 64_990;
/// For a guest of a few bytes to panic and be restarted, on a busy machine.
const WITHIN: Duration = Duration::from_secs(40);
/// Longer than an agent's port is left alone after a failed attempt (5 s), and than some rounds of questions.
const A_WHILE: Duration = Duration::from_secs(6);
/// What a QEMU names, each by the end of its path.
const NAMED: [&str; 6] = ["qmp", "qga", "heart", "serial", "human", "incoming"];

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("no_socket_of_roots_that_a_qemu_names_is_connected_to", || named(None)),
        trial("nor_is_one_where_no_descriptor_can_be_asked", || named(Some(libc::SYS_pidfd_getfd))),
    ]
}

/// Programs of root's, which listen where no other user comes, and take note of each connection.
struct Vault {
    directory: PathBuf,
    listeners: Vec<(&'static str, UnixListener)>,
}

impl Vault {
    fn new(directory: PathBuf) -> Result<Self> {
        fs::create_dir(&directory)?;
        fs::set_permissions(&directory, Permissions::from_mode(0o700))?;
        let mut listeners = Vec::new();
        for name in NAMED {
            let listener = UnixListener::bind(directory.join(name))?;
            listener.set_nonblocking(true)?;
            listeners.push((name, listener));
        }
        Ok(Self { directory, listeners })
    }

    /// No connection came.
    fn check(&self) -> Result<()> {
        for (name, listener) in &self.listeners {
            match listener.accept() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Ok(_) => bail!("root's {name} was connected to"),
                Err(error) => return Err(error).context(*name),
            }
        }
        Ok(())
    }
}

/// A program that only says that it has such sockets.
struct Claimant(Child);

impl Claimant {
    /// Any program will do: a shell that was put where a QEMU may be.
    fn start(shell: &Path, vault: &Vault) -> Result<Self> {
        let at = |name: &str| vault.directory.join(name).display().to_string();
        let server = |name: &str| format!("unix:{},server=on,wait=off", at(name));
        let chardev = |id: &str| format!("socket,id={id},path={},server=on,wait=off", at(id));
        let mut command = Command::new("setpriv");
        let user = HOSTILE.to_string();
        command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]).arg(shell);
        command.args(["-c", "while :; do sleep 1; done", "-name", "claimant"]);
        command.args(["-qmp", &server("qmp"), "-monitor", &server("human")]);
        command.args(["-incoming", &format!("unix:{}", at("incoming"))]);
        command.args(["-chardev", &chardev("qga"), "-chardev", &chardev("heart")]);
        command.args(["-device", "virtio-serial-pci"]);
        command.args(["-device", "virtserialport,chardev=qga,name=org.qemu.guest_agent.0"]);
        command.args(["-device", "virtserialport,chardev=heart,name=org.flatline.heartbeat.0"]);
        command.args(["-chardev", &chardev("serial"), "-serial", "chardev:serial"]);
        command.stdin(Stdio::null());
        Ok(Self(command.spawn().context("cannot run setpriv")?))
    }
}

impl Drop for Claimant {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory of a user's own.
fn home(rig: &Rig, name: &str, user: u32) -> Result<PathBuf> {
    let home = rig.dir().join(name);
    fs::create_dir(&home)?;
    chown(&home, Some(user), Some(user))?;
    Ok(home)
}

/// A QEMU of the hostile user with all of these sockets, in its own directory.
fn hostile(rig: &Rig, home: &Path) -> GuestConfig {
    let mut config = rig.boot_sector("hostile", BootSector::StiHlt, Accelerator::Tcg);
    home.clone_into(&mut config.dir);
    (config.user, config.agent) = (Some(HOSTILE), true);
    let at = |end: &str| home.join(format!("hostile.{end}")).display().to_string();
    let heart = format!("socket,id=heart,path={},server=on,wait=off", at("heart"));
    let serial = format!("socket,id=extra,path={},server=on,wait=off", at("serial"));
    let port = "virtserialport,chardev=heart,name=org.flatline.heartbeat.0";
    let human = format!("unix:{},server=on,wait=off", at("human"));
    let words = ["-chardev", &heart, "-device", port, "-chardev", &serial, "-serial"];
    let more = ["chardev:extra", "-monitor", &human];
    config.extra_args = [&words[..], &more].concat().into_iter().map(str::to_owned).collect();
    config
}

/// Where its sockets were, links lead to root's.
fn replace_sockets(home: &Path, vault: &Vault) -> Result<()> {
    for name in NAMED.into_iter().filter(|name| *name != "incoming") {
        let path = home.join(format!("hostile.{name}"));
        fs::rename(&path, home.join(format!("{name}.elsewhere"))).context(name)?;
        symlink(vault.directory.join(name), path)?;
    }
    Ok(())
}

fn wait_for_monitor(daemon: &Daemon, name: &str, wanted: &str) -> Result<()> {
    let mut said = Value::Null;
    wait_until(&format!("the monitor of {name}"), WITHIN, || {
        said = daemon.show(name)?["qmp"].clone();
        Ok(said.as_str().is_some_and(|said| said.contains(wanted)).then_some(()))
    })
    .with_context(|| format!("{name}: {said}\n{}", daemon.log().text()))?;
    println!("{name}: {said}");
    Ok(())
}

fn named(refused_call: Option<libc::c_long>) -> Result<()> {
    let rig = Rig::new()?;
    fs::set_permissions(rig.dir(), Permissions::from_mode(0o755))?;
    let vault = Vault::new(rig.dir().join("vault"))?;
    let own = home(&rig, "own", HOSTILE)?;
    let _hostile = hostile(&rig, &own).start()?;
    replace_sockets(&own, &vault)?;
    let shell = private_copy(Path::new("/bin/sh"), "qemu-system-claimant", rig.dir())?;
    let _claimant = Claimant::start(&shell, &vault)?;

    let mut config = rig.daemon_config()?;
    config.executables.push(shell.display().to_string());
    config.refused_call = refused_call;
    config.boot_grace = Duration::from_secs(1);
    config.extra_toml = "[recovery]\nmax_restarts = 1".to_owned();
    let daemon = rig.daemon(&config)?;
    for name in ["hostile", "claimant"] {
        wait_for_vm(&daemon, name, "found", WITHIN, |_| true)?;
    }
    sleep(A_WHILE)?;
    vault.check()?;

    // The honest use of a socket of one's own goes on, in either way, and a crash is answered.
    let mut config = rig.boot_sector("victim", BootSector::Pvpanic, Accelerator::Tcg);
    config.dir = home(&rig, "victims", VICTIM)?;
    (config.user, config.pvpanic) = (Some(VICTIM), true);
    config.extra_args = ["-action", "panic=pause"].map(str::to_owned).into();
    let _victim = config.start()?;
    let acted = |incident: &Value| !incident["action_at"].is_null();
    wait_for_incident(&daemon, "victim", "restarted", WITHIN, acted)?;
    vault.check()?;
    // Where its path has to do, the first of its monitors is none, and of the second this test is the client.
    let its = if refused_call.is_none() { "answers" } else { "another client holds" };
    wait_for_monitor(&daemon, "hostile", its)?;
    wait_for_monitor(&daemon, "claimant", "listens on no socket")?;
    ensure!(daemon.show("hostile")?["uid"] == HOSTILE, "{:?}", daemon.show("hostile"));
    Ok(())
}
