//! Answers that evidence asked for, and that QEMU gives at a length which is not taken, or not at all: the restart goes
//! on, and nothing says that a guest was restarted which was not.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    boot_sector::BootSector, command, daemon::Daemon, guest::GuestConfig, interrupt::sleep,
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    hostile::Fake,
    rig::{Rig, boot_all, incidents_of, put, trial, vm, wait_for_incident, wait_for_vm},
};

/// Overlays from which on `query-block` nests deeper than serde_json follows.
const OVERLAYS: usize = 124;
/// For a restart, which takes a second or two, on a busy machine.
const SOON: Duration = Duration::from_secs(40);
/// An announced crash is answered within this, evidence included.
const AT_ONCE: Duration = Duration::from_secs(2);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_guest_on_a_hundred_overlays_is_reset_with_its_evidence", overlays),
        trial("an_answer_that_is_too_large_costs_that_answer_alone", too_large),
        trial("a_connection_that_ends_over_evidence_is_waited_for", hangs_up),
        trial("a_guest_that_could_not_be_reset_is_not_said_to_be", not_reset),
        trial("a_qemu_that_fell_silent_over_evidence_is_told_once_it_answers", late),
        trial("a_reset_that_was_answered_late_is_in_its_incident", late_reset),
    ]
}

/// The last of a chain of disks, each an overlay of the one before.
fn chain(dir: &Path) -> Result<PathBuf> {
    let overlay = |number: usize| dir.join(format!("overlay-{number}.qcow2"));
    for number in 0..=OVERLAYS {
        let (path, below) = (overlay(number), overlay(number.saturating_sub(1)));
        let mut words = vec!["create", "-q", "-f", "qcow2"];
        let below = below.to_str().context("no text")?;
        if number > 0 {
            // Without a look at all that is below it.
            words.extend(["-u", "-F", "qcow2", "-b", below]);
        }
        words.extend([path.to_str().context("no text")?, "1M"]);
        command::run("qemu-img", words)?;
    }
    Ok(overlay(OVERLAYS))
}

/// A guest that reads its disk, and that QEMU pauses when it reports its panic.
fn guest(rig: &Rig, name: &str) -> Result<GuestConfig> {
    let mut config = rig.boot_sector_on_disk(name, BootSector::OnCommand)?;
    (config.pvpanic, config.traces_commands) = (true, true);
    config.extra_args.extend(["-action", "panic=pause"].map(str::to_owned));
    Ok(config)
}

fn evidence(rig: &Rig, incident: &Value, name: &str) -> Result<String> {
    let id = incident["id"].as_str().context("an incident without an id")?;
    let path = rig.dir().join("state/incidents").join(id).join(name);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

fn overlays() -> Result<()> {
    let rig = Rig::new()?;
    let mut config = guest(&rig, "overlaid")?;
    let drive = format!("file={},if=none,id=chain", chain(rig.dir())?.display());
    config
        .extra_args
        .extend(["-drive", &drive, "-device", "virtio-blk-pci,drive=chain"].map(str::to_owned));
    let guests = boot_all(&[config])?;
    let daemon = rig.daemon(&rig.daemon_config()?)?;
    wait_for_vm(&daemon, "overlaid", "alive", SOON, |row| row["state"] == "alive")?;
    sleep(Duration::from_secs(1))?;
    guests[0].send("p")?;
    let incident = wait_for_incident(&daemon, "overlaid", "recovered", SOON, |incident| {
        incident["outcome"] == "recovered"
    })?;
    let took = guests[0].reset_after("GUEST_PANICKED", &guests[0].events()?)?;
    let took = took.context("QEMU tells no announcement, or no reset after it")?;
    println!("told to reset {took:.3?} after the announcement: {incident}");
    ensure!(took < AT_ONCE, "told to reset only {took:?} after the announcement");
    ensure!(incident["action"] == "system_reset, cont", "{incident}");
    let list = evidence(&rig, &incident, "evidence.txt")?;
    println!("{list}");
    for (file, instead, nested) in [
        ("block.json", "query-named-block-nodes", "query-block"),
        ("blockstats.json", "info blockstats", "query-blockstats"),
    ] {
        let part =
            format!("({instead}: QEMU's answer to {nested} is not taken: it is nested deeper");
        let line = list.lines().find(|line| line.starts_with(&format!("kept     {file:<16}")));
        ensure!(line.is_some_and(|line| line.contains(&part)), "no {part:?} for {file}");
    }
    ensure!(evidence(&rig, &incident, "block.json")?.contains("overlay-124.qcow2"), "no overlay");
    let counted: Value = serde_json::from_str(&evidence(&rig, &incident, "blockstats.json")?)?;
    ensure!(counted["direct"]["rd_operations"].as_u64().is_some_and(|read| read > 0), "{counted}");
    ensure!(evidence(&rig, &incident, "registers.txt")?.contains("CPU#0"), "no registers");
    let log = daemon.log().text();
    ensure!(!log.contains("QMP can't be used"), "the connection was lost:\n{log}");
    Ok(())
}

/// A daemon, and a fake QEMU that says that its guest panicked, and does as a QEMU does, but for its `manner`.
fn fake(rig: &Rig, manner: &str) -> Result<(Daemon, Fake)> {
    let executable = rig.dir().join("qemu-system-x86_64-fake");
    put(Path::new(env!("CARGO_BIN_EXE_fake-qemu")), &executable)?;
    let mut config = rig.daemon_config()?;
    config.executables.push(executable.display().to_string());
    let daemon = rig.daemon(&config)?;
    let fake = Fake::start(&executable, rig.dir(), manner, manner)?;
    Ok((daemon, fake))
}

/// The incident once QEMU was told, and the VM's state as it is then.
fn restarted(daemon: &Daemon, name: &str) -> Result<(Value, Value)> {
    let told = |incident: &Value| !incident["action_at"].is_null();
    let incident = wait_for_incident(daemon, name, "told", SOON, told)?;
    let row = wait_for_vm(daemon, name, "recovering", SOON, |row| row["state"] == "recovering")?;
    println!("{incident}\n{row}");
    Ok((incident, row))
}

fn check_restarted(incident: &Value, row: &Value) -> Result<()> {
    ensure!(incident["action"] == "system_reset, cont", "{incident}");
    ensure!(!incident["attempts"][0]["reset_at"].is_null(), "{incident}");
    ensure!(incident["attempts"].as_array().is_some_and(|all| all.len() == 1), "{incident}");
    ensure!(
        row["reason"] == "restarted because it was panicked; waiting for a sign of life",
        "{row}"
    );
    Ok(())
}

fn too_large() -> Result<()> {
    let rig = Rig::new()?;
    let (daemon, _fake) = fake(&rig, "verbose")?;
    let (incident, row) = restarted(&daemon, "verbose")?;
    check_restarted(&incident, &row)?;
    let list = evidence(&rig, &incident, "evidence.txt")?;
    println!("{list}");
    for line in [
        "missing  registers.txt    the vCPUs' registers: QEMU's answer to human-monitor-command is not taken: \
         it is longer than",
        "missing  block.json       QEMU's account of the disks: QEMU's answer to query-block is not taken: it is \
         of more than",
        "nor is there query-named-block-nodes: QEMU's answer to query-named-block-nodes is not taken: it is nested \
         deeper than",
        "kept     network.json ",
    ] {
        ensure!(list.contains(line), "no {line:?}");
    }
    ensure!(!daemon.log().text().contains("QMP can't be used"), "{}", daemon.log().text());
    Ok(())
}

fn hangs_up() -> Result<()> {
    let rig = Rig::new()?;
    let (daemon, _fake) = fake(&rig, "hangs-up")?;
    let (incident, row) = restarted(&daemon, "hangs-up")?;
    check_restarted(&incident, &row)?;
    let list = evidence(&rig, &incident, "evidence.txt")?;
    println!("{list}");
    let line =
        "QEMU's account of the disks: the QMP connection ended before query-block was answered";
    ensure!(list.contains(line), "no {line:?}");
    Ok(())
}

fn not_reset() -> Result<()> {
    let rig = Rig::new()?;
    let (daemon, _fake) = fake(&rig, "turns")?;
    let refused = |incident: &Value| incident["outcome"] == "refused";
    let incident = wait_for_incident(&daemon, "turns", "refused", SOON, refused)?;
    let row = vm(&daemon, "turns")?;
    println!("{incident}\n{row}");
    let reason = row["reason"].as_str().context("no reason")?;
    ensure!(row["state"] == "crashed", "{row}");
    ensure!(reason.contains("the guest panicked; not restarted: "), "{row}");
    ensure!(reason.contains("byte 0xff where a QMP message should start"), "{row}");
    ensure!(incident["action"].is_null() && incident["action_at"].is_null(), "{incident}");
    ensure!(incident["attempts"].as_array().is_none_or(Vec::is_empty), "{incident}");
    ensure!(incident["reason"] == row["reason"], "{incident}");
    ensure!(
        evidence(&rig, &incident, "evidence.txt")?.contains("missing  block.json "),
        "{incident}"
    );
    // Nor does anything else say so, as long as the connection is refused.
    sleep(Duration::from_secs(3))?;
    let (log, shown) = (daemon.log().text(), daemon.show("turns")?.to_string());
    for text in [&log, &shown] {
        ensure!(!text.contains("restarted because"), "{text}");
    }
    ensure!(incidents_of(&daemon, "turns")?.len() == 1, "{shown}");
    Ok(())
}

fn late() -> Result<()> {
    let rig = Rig::new()?;
    let (daemon, _fake) = fake(&rig, "late")?;
    let refused = |incident: &Value| incident["outcome"] == "refused";
    let incident = wait_for_incident(&daemon, "late", "refused", SOON, refused)?;
    let row = vm(&daemon, "late")?;
    println!("{incident}\n{row}");
    ensure!(row["state"] == "crashed" && incident["action_at"].is_null(), "{incident}: {row}");
    // It is not asked for its disks once more, which would take as long again.
    let (incident, row) = restarted(&daemon, "late")?;
    check_restarted(&incident, &row)?;
    ensure!(incident["outcome"].is_null(), "{incident}");
    ensure!(incident["reason"] == "QEMU says that the guest panicked", "{incident}");
    let list = evidence(&rig, &incident, "evidence.txt")?;
    println!("{list}");
    ensure!(list.contains("QEMU's account of the disks: not there within 1s"), "of another try");
    ensure!(list.contains("not asked for: QEMU is too slow"), "of another try");
    Ok(())
}

fn late_reset() -> Result<()> {
    let rig = Rig::new()?;
    let (daemon, _fake) = fake(&rig, "slow-reset")?;
    let (incident, row) = restarted(&daemon, "slow-reset")?;
    check_restarted(&incident, &row)
}
