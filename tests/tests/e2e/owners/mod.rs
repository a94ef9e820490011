//! The owner that started a QEMU is told to restart it, or to start it again.
//!
//! Proxmox VE and systemd have stand-ins here, which record what they are told and say what they are; libvirt is a
//! real one, where it is installed.

mod ended;
mod hangs;
mod libvirt;
mod libvirt_away;
mod on_crash;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    boot_sector::BootSector,
    guest::{Accelerator, Guest, GuestConfig},
    interrupt::{sleep, wait_until},
    libvirt::MODULES,
    owners::{Entry, StandIn, UnitGroup},
};
use libtest_mimic::Trial;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::rig::{
    Load, Rig, boot_all, incidents_of, skippable_trial_with, trial, trial_that_may_skip, vm,
    wait_for_incident, wait_for_vm,
};

/// For a guest of a few bytes to be restarted, and to be seen so.
const WITHIN: Duration = Duration::from_secs(40);
/// Some time in which what must not happen would be seen.
const A_WHILE: Duration = Duration::from_secs(3);
const FAKE_OWNER: &str = env!("CARGO_BIN_EXE_fake-owner");

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial_that_may_skip("proxmox_ve_is_told_by_qm_and_its_socket_stays_free", proxmox),
        skippable_trial_with(
            Load::Spins(1),
            "a_unit_is_restarted_only_if_it_is_about_this_qemu",
            systemd,
        ),
        trial("a_command_is_told_of_the_incident_and_nothing_in_a_name_is_run", command),
        trial(
            "a_qemu_that_was_killed_is_started_again_and_one_that_was_stopped_is_not",
            start_exited,
        ),
        trial_that_may_skip(
            "qemus_that_end_unasked_are_started_as_they_were_and_only_where_that_is_wanted",
            ended::test,
        ),
        trial(
            "a_hung_qemu_and_one_that_no_reset_helps_are_replaced_only_where_wanted",
            hangs::test,
        ),
        trial_that_may_skip("a_libvirt_domain_that_panics_is_reset_through_virsh", libvirt::test),
        trial_that_may_skip("what_libvirt_does_itself_at_a_panic_is_left_to_it", on_crash::test),
        trial_that_may_skip(
            "idle_domains_of_libvirt_share_one_connection_and_start_no_program",
            libvirt_away::idle,
        ),
        trial_that_may_skip(
            "a_libvirtd_that_hangs_or_is_killed_costs_its_domains_their_monitor_and_no_more",
            libvirt_away::away,
        ),
    ]
}

fn alive(row: &Value) -> bool {
    row["state"] == "alive"
}

/// A guest that lives until it is told to report its panic, upon which QEMU pauses it.
fn on_command(rig: &Rig, name: &str) -> Result<GuestConfig> {
    let mut config = rig.boot_sector_on_disk(name, BootSector::OnCommand)?;
    config.pvpanic = true;
    config.extra_args.extend(["-action".to_owned(), "panic=pause".to_owned()]);
    Ok(config)
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn proxmox() -> Result<Option<String>> {
    let Some(_qm) = StandIn::put(Path::new(FAKE_OWNER), "qm", true)? else {
        return Ok(Some("this host has a qm of its own".to_owned()));
    };
    let rig = Rig::new()?;
    let guests = boot_all(&[on_command(&rig, "of-proxmox")?])?;
    let guest = &guests[0];
    // Pids are below any number that Proxmox VE would give by itself here.
    let vmid = (900_000_000 + guest.pid()).to_string();
    let Some(_group) = UnitGroup::new(&format!("qemu.slice/{vmid}.scope"), guest.pid())? else {
        return Ok(Some("no hierarchy of control groups that systemd would use".to_owned()));
    };
    let record = rig.dir().join("qm.record");
    let _entry = Entry::new(&vmid, &json!({"record": record, "socket": guest.qmp_path()}))?;
    let daemon = rig.daemon(&rig.daemon_config()?)?;
    let row = wait_for_vm(&daemon, guest.name(), "alive", WITHIN, alive)?;
    ensure!(row["owner"]["kind"] == "proxmox" && row["owner"]["certain"] == true, "{row}");
    ensure!(
        row["owner"]["name"] == vmid.as_str() && row["owner"]["actuator"] == "proxmox",
        "{row}"
    );
    ensure!(row["run_state"] == "running", "{row}");

    guest.send("p")?;
    let incident = wait_for_incident(&daemon, guest.name(), "recovered", WITHIN, |incident| {
        incident["outcome"] == "recovered"
    })?;
    let calls = text(&record);
    println!("stand-in qm was called:\n{calls}");
    ensure!(calls == format!("qm reset {vmid}\nqm resume {vmid}\n"), "{calls}\n{incident}");
    ensure!(incident["action"] == format!("qm reset {vmid}, qm resume {vmid}"), "{incident}");
    Ok(None)
}

/// A QEMU that process 1 has adopted, as systemd's own are from the start.
fn orphan(rig: &Rig, name: &str, sector: BootSector) -> Result<u32> {
    let mut command = Command::new(&rig.qemu);
    command.args(small_machine(rig.dir(), name, sector)?).args(["-serial", "null", "-daemonize"]);
    if let Some(modules) = MODULES.into_iter().find(|folder| Path::new(folder).is_dir()) {
        command.env("QEMU_MODULE_DIR", modules);
    }
    let status = command.status()?;
    ensure!(status.success(), "QEMU can't go into the background: {status}");
    text(&rig.dir().join(format!("{name}.pid"))).trim().parse().context("no pid in its pid file")
}

/// The arguments of a machine with this on its disk, whose files are all in `dir`: `NAME.img`, `NAME.qmp` and `NAME.pid`.
pub(crate) fn small_machine(dir: &Path, name: &str, sector: BootSector) -> Result<Vec<String>> {
    let file = |end: &str| dir.join(format!("{name}.{end}")).display().to_string();
    sector.write(Path::new(&file("img")))?;
    let name = format!("{name},debug-threads=on");
    let drive = format!("file={},format=raw,if=none,id=d,cache=none", file("img"));
    let socket = format!("unix:{},server=on,wait=off", file("qmp"));
    let words = ["-name", &name, "-display", "none", "-nodefaults", "-machine", "pc"];
    let more = ["-accel", "tcg", "-m", "16", "-L", "/usr/share/seabios", "-L", "/usr/share/qemu"];
    let files = ["-drive", &drive, "-device", "virtio-blk-pci,drive=d,bootindex=0"];
    let pidfile = file("pid");
    let last = ["-qmp", &socket, "-pidfile", &pidfile];
    Ok([&words[..], &more, &files, &last].concat().into_iter().map(str::to_owned).collect())
}

/// Ends a process that is no child of ours, when it is dropped.
pub(crate) struct Ends(pub(crate) u32);

impl Drop for Ends {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.0).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

fn systemd() -> Result<Option<String>> {
    if Path::new("/run/systemd/system").exists() {
        return Ok(Some("a systemd runs here, whose systemctl is not to be shadowed".to_owned()));
    }
    let Some(_systemctl) = StandIn::put(Path::new(FAKE_OWNER), "systemctl", false)? else {
        return Ok(Some("/usr/local/sbin has a systemctl of its own".to_owned()));
    };
    let rig = Rig::new()?;
    let pid = orphan(&rig, "of-systemd", BootSector::CliJmp)?;
    let _ends = Ends(pid);
    let stat = text(Path::new(&format!("/proc/{pid}/stat")));
    let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1));
    if parent != Some("1") {
        return Ok(Some(format!("orphans go to process {parent:?} here, and not to 1")));
    }
    let unit = format!("fl-test-{pid}.service");
    let Some(_group) = UnitGroup::new(&format!("system.slice/{unit}"), pid)? else {
        return Ok(Some("no hierarchy of control groups that systemd would use".to_owned()));
    };
    let record = rig.dir().join("systemctl.record");
    // At first the unit is about another process.
    let other = json!({"record": record, "pid": 1});
    let entry = Entry::new(&unit, &other)?;
    let mut config = rig.daemon_config()?;
    config.boot_grace = Duration::from_secs(2);
    config.extra_toml = "[recovery]\nactuator = \"systemd\"\nmax_restarts = 1".to_owned();
    let daemon = rig.daemon(&config)?;
    let row = wait_for_vm(&daemon, "of-systemd", "found", WITHIN, |row| row["pid"] == pid)?;
    ensure!(row["owner"]["kind"] == "systemd" && row["owner"]["name"] == unit.as_str(), "{row}");
    let refused = |incident: &Value| incident["outcome"] == "refused";
    let incident = wait_for_incident(&daemon, "of-systemd", "refused", WITHIN, refused)?;
    let reason = incident["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("not about this QEMU"), "{incident}");
    ensure!(!text(&record).contains("restart"), "{}", text(&record));

    drop(entry);
    let _entry = Entry::new(&unit, &json!({"record": record, "pid": pid}))?;
    wait_until("the unit's restart", Duration::from_secs(90), || {
        Ok(text(&record).contains(&format!("systemctl restart -- {unit}")).then_some(()))
    })
    .with_context(|| daemon.log().text())?;
    // What systemd would do next. It is found by a sweep, when its firmware has read all that it reads.
    let successor = orphan(&rig, "of-systemd", BootSector::OnCommand)?;
    let _ends = Ends(successor);
    wait_for_vm(&daemon, "of-systemd", "its successor", WITHIN, |row| row["pid"] == successor)?;
    let incident = wait_for_incident(&daemon, "of-systemd", "an end", WITHIN, |incident| {
        incident["outcome"] == "recovered"
    })?;
    println!("stand-in systemctl was called:\n{}", text(&record));
    ensure!(incident["action"] == format!("systemctl restart -- {unit}"), "{incident}");
    Ok(None)
}

/// Makes a script at `path`.
fn script(path: &Path, lines: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, format!("#!/bin/sh\n{lines}\n"))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn command() -> Result<()> {
    let rig = Rig::new()?;
    let name = "odd;$(touch ran)`touch ran`' \"|";
    let mut config = rig.boot_sector("plain", BootSector::CliHlt, Accelerator::Tcg);
    config.extra_args.extend(["-name".to_owned(), name.to_owned()]);
    let guests = boot_all(&[config])?;
    let (program, env) = (rig.dir().join("again"), rig.dir().join("env"));
    script(
        &program,
        &format!(
            "env > {0}.part && mv {0}.part {0}; echo said; cd {1}",
            env.display(),
            rig.dir().display()
        ),
    )?;
    let mut config = rig.daemon_config()?;
    config.boot_grace = Duration::from_secs(2);
    let command = json!([program, "an argument"]);
    config.extra_toml = format!("[recovery]\nactuator = \"command\"\ncommand = {command}");
    let daemon = rig.daemon(&config)?;
    wait_until("the command's run", WITHIN, || Ok(env.exists().then_some(())))
        .with_context(|| daemon.log().text())?;
    let env = text(&env);
    println!("{env}");
    for line in [
        format!("FLATLINE_VM={name}"),
        format!("FLATLINE_PID={}", guests[0].pid()),
        "FLATLINE_CAUSE=halted".to_owned(),
        "FLATLINE_ACTION=restart".to_owned(),
        "FLATLINE_OWNER=bare".to_owned(),
    ] {
        ensure!(env.lines().any(|other| other == line), "{line} is not there: {env}");
    }
    ensure!(!rig.dir().join("ran").exists() && !Path::new("/ran").exists(), "the name was run");
    let acted = |incident: &Value| !incident["action"].is_null();
    let incident = wait_for_incident(&daemon, name, "told", WITHIN, acted)?;
    let action = incident["action"].as_str().unwrap_or_default();
    ensure!(action.ends_with("again \"an argument\""), "{incident}");
    Ok(())
}

fn start_exited() -> Result<()> {
    let rig = Rig::new()?;
    let name = "goes";
    let machine = on_command(&rig, name)?;
    let guest: Guest = machine.start()?;
    let (program, calls) = (rig.dir().join("again"), rig.dir().join("calls"));
    script(&program, &format!("echo \"$FLATLINE_ACTION $FLATLINE_CAUSE\" >> {}", calls.display()))?;
    let mut config = rig.daemon_config()?;
    let command = json!([program]);
    config.extra_toml = format!("[recovery]\nstart_exited = true\ncommand = {command}");
    let daemon = rig.daemon(&config)?;
    wait_for_vm(&daemon, name, "alive", WITHIN, alive)?;
    guest.kill()?;
    wait_until("the command's run", WITHIN, || {
        Ok((text(&calls) == "start qemu-exited\n").then_some(()))
    })
    .with_context(|| daemon.log().text())?;
    drop(guest);
    let guest = machine.start()?;
    let incident = wait_for_incident(&daemon, name, "recovered", WITHIN, |incident| {
        incident["outcome"] == "recovered"
    })?;
    ensure!(incident["cause"] == "qemu-exited" && !incident["action_at"].is_null(), "{incident}");
    ensure!(incidents_of(&daemon, name)?.len() == 1, "{incident}");
    let row = vm(&daemon, name)?;
    ensure!(row["pid"] == guest.pid() && row["restarts_in_window"] == 1, "{row}");

    // A signal that QEMU obeys means that it is to end.
    guest.signal(Signal::TERM)?;
    guest.wait_for_exit(WITHIN)?;
    sleep(A_WHILE)?;
    ensure!(text(&calls).lines().count() == 1, "{}\n{}", text(&calls), daemon.log().text());
    ensure!(incidents_of(&daemon, name)?.len() == 1, "a stop is no crash: {}", daemon.log().text());
    Ok(())
}
