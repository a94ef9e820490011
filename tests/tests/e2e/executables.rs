//! QEMUs that lie where products of the field have theirs, and are found by the daemon's own list.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{boot_sector::BootSector, interrupt::sleep, libvirt::MODULES};
use libtest_mimic::Trial;

use crate::{
    owners::small_machine,
    rig::{Rig, trial, wait_for_vm},
};

/// The only user whose QEMUs this daemon may look at: its list is good for those of the whole machine.
const USER: u32 = 64_997;
/// For a QEMU to start, and to be found.
const WITHIN: Duration = Duration::from_secs(30);
/// Looks for files are ten seconds apart, and sweeps that no event brings, a minute.
const FOUND_SOON: Duration = Duration::from_secs(20);
/// Some ticks.
const A_WHILE: Duration = Duration::from_secs(3);
/// Of each VM: its name, what its QEMU is in its own mount namespace, and whose it is.
const TAKEN: [(&str, &str, &str); 4] = [
    ("sandbox-4ab1", "/opt/kata/bin/qemu-system-x86_64", "kata"),
    ("v1", "/opt/incus/bin/qemu-system-x86_64", "incus"),
    ("of-a-snap", "/snap/lxd/24918/bin/qemu-system-x86_64", "bare"),
    ("of-nix", "/nix/store/391smsk8-qemu-10.2.2/bin/.qemu-system-x86_64-wrapped", "bare"),
];
const NOT_TAKEN: (&str, &str) = ("elsewhere", "/opt/elsewhere/bin/qemu-system-x86_64");
/// Starts `$1` as the user `$3` from where it is called `$2`, in a root that has that and what a QEMU needs, and in
/// which the products keep their files.
const IN_A_ROOT_OF_ITS_OWN: &str = r#"
set -e
from=$1 to=$2 user=$3
shift 3
root=/mnt
mount -t tmpfs none "$root"
for name in bin lib lib64 sbin usr etc dev proc sys tmp; do
    if [ -h "/$name" ]; then
        cp -P "/$name" "$root/"
    elif [ -d "/$name" ]; then
        mkdir "$root/$name"
        mount --rbind "/$name" "$root/$name"
    fi
done
mkdir -p "$root/run/vc/vm/4ab1" "$root/run/incus/v1" "$root$(dirname "$to")" "$root/old"
touch "$root/run/incus/v1/qemu.conf"
chown -R "$user" "$root/run"
touch "$root$to"
mount --bind "$from" "$root$to"
cd "$root"
pivot_root . old
umount -l /old
exec setpriv --reuid "$user" --regid "$user" --clear-groups "$to" "$@"
"#;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("qemus_of_products_of_the_field_are_found_without_configuration", found),
        trial("a_qemu_of_a_file_that_was_not_there_before_is_found_soon", installed_later),
    ]
}

/// Ends with the test.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A QEMU that is not where it was installed looks elsewhere for its modules.
fn bring_modules(command: &mut Command) {
    if let Some(modules) = MODULES.into_iter().find(|folder| Path::new(folder).is_dir()) {
        command.env("QEMU_MODULE_DIR", modules);
    }
}

/// Starts one that waits to be told to go on.
fn start(rig: &Rig, name: &str, executable: &str, more: &[&str]) -> Result<Qemu> {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", IN_A_ROOT_OF_ITS_OWN, "sh"]);
    command.arg(&rig.qemu).args([executable, &USER.to_string()]);
    command.args(small_machine(rig.dir(), name, BootSector::StiHlt)?).args(["-S"]).args(more);
    chown(rig.dir().join(format!("{name}.img")), Some(USER), Some(USER))?;
    bring_modules(&mut command);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    Ok(Qemu(child.context("cannot run unshare")?))
}

fn found() -> Result<()> {
    let rig = Rig::new()?;
    // Its QEMUs make their sockets here.
    fs::set_permissions(rig.dir(), Permissions::from_mode(0o777))?;
    let mut qemus = Vec::new();
    for (name, executable, owner) in TAKEN {
        let files: &[&str] = match owner {
            "kata" => &["-pidfile", "/run/vc/vm/4ab1/pid"],
            "incus" => {
                &["-readconfig", "/run/incus/v1/qemu.conf", "-pidfile", "/run/incus/v1/qemu.pid"]
            }
            _ => &[],
        };
        qemus.push(start(&rig, name, executable, files)?);
    }
    let (stranger, executable) = NOT_TAKEN;
    qemus.push(start(&rig, stranger, executable, &[])?);

    let mut config = rig.daemon_config()?;
    config.executables.clear();
    "observe".clone_into(&mut config.mode);
    config.users = vec![USER];
    let daemon = rig.daemon(&config)?;
    for ((name, executable, owner), qemu) in TAKEN.iter().zip(&qemus) {
        let row =
            wait_for_vm(&daemon, name, "found", WITHIN, |row| row["run_state"] == "prelaunch")?;
        let exe = fs::read_link(format!("/proc/{}/exe", qemu.0.id()))?;
        ensure!(exe == Path::new(executable), "{name} is {}", exe.display());
        ensure!(row["owner"]["kind"] == *owner, "{name}: {row}");
        // What is built in for no owner is said, with what to set.
        let refusal = row["owner"]["refusal"].as_str().unwrap_or_default();
        println!("{name}: {owner}, {refusal:?}");
        ensure!(refusal.contains("set recovery.command") == (*owner != "bare"), "{name}: {row}");
    }
    sleep(A_WHILE)?;
    let exe = fs::read_link(format!("/proc/{}/exe", qemus[TAKEN.len()].0.id()))?;
    ensure!(exe == Path::new(executable), "it is {}", exe.display());
    let status = daemon.status()?;
    let vms = status["vms"].as_array().context("no vms")?;
    ensure!(vms.len() == TAKEN.len() && vms.iter().all(|vm| vm["name"] != stranger), "{status}");
    let check = daemon.client(&["check", "--json"])?;
    let report: serde_json::Value = serde_json::from_slice(&check.stdout)?;
    let items = report["items"].as_array().context("no items")?;
    let item = items.iter().find(|item| item["name"] == "QEMU elsewhere").context("no item")?;
    ensure!(item["detail"] == format!("{executable} runs, and is not looked at"), "{item}");
    Ok(())
}

/// As after an upgrade: the file is another one, of which the kernel was not to tell when it was executed first.
fn installed_later() -> Result<()> {
    let rig = Rig::new()?;
    let directory = rig.dir().join("later");
    fs::create_dir(&directory)?;
    let mut config = rig.daemon_config()?;
    "observe".clone_into(&mut config.mode);
    config.executables = vec![directory.join("qemu-system-*").display().to_string()];
    let daemon = rig.daemon(&config)?;
    // Its first look for files is over.
    sleep(A_WHILE)?;
    let qemu = directory.join("qemu-system-x86_64");
    fs::copy(&rig.qemu, &qemu)?;
    let mut command = Command::new(&qemu);
    command.args(small_machine(rig.dir(), "upgraded", BootSector::StiHlt)?).arg("-S");
    bring_modules(&mut command);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    let _qemu = Qemu(child.context("cannot run it")?);
    let is_there = |row: &serde_json::Value| row["run_state"] == "prelaunch";
    wait_for_vm(&daemon, "upgraded", "found", FOUND_SOON, is_there)?;
    Ok(())
}
