//! A state directory that takes nothing, or has what can't be read in it: guests are restarted all the same, nothing
//! that was safe is lost, and an error says what and where.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, ensure};
use flatline_tests::{
    boot_sector::BootSector, daemon::Daemon, guest::Guest, interrupt::wait_until, store::Memory,
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::rig::{
    Rig, boot_all, incidents_of, outer_resets, trial, vm, wait_for_incident, wait_for_vm,
};

/// For a guest of a few bytes to be restarted, and to be seen so.
const WITHIN: Duration = Duration::from_secs(40);
const NAME: &str = "crashes";

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_full_disk_keeps_nobody_from_being_restarted", full),
        trial("a_read_only_state_directory_keeps_nobody_from_being_restarted", read_only),
        trial("what_cannot_be_read_in_the_state_directory_is_named_and_kept", unreadable),
    ]
}

/// A guest that panics when it is told to.
fn guest(rig: &Rig) -> Result<Vec<Guest>> {
    let mut config = rig.boot_sector_on_disk(NAME, BootSector::OnCommand)?;
    config.pvpanic = true;
    config.extra_args.extend(["-action".to_owned(), "panic=pause".to_owned()]);
    boot_all(&[config])
}

/// A daemon that restarts the same guest soon again.
fn daemon(rig: &Rig) -> Result<Daemon> {
    let mut config = rig.daemon_config()?;
    config.extra_toml = "[recovery]\npause = \"0s\"".to_owned();
    rig.daemon(&config)
}

/// The state directory, as a file system of its own.
fn state(rig: &Rig) -> Result<Memory> {
    let state = rig.dir().join("state");
    fs::create_dir_all(&state)?;
    Memory::on(&state, 1 << 20)
}

fn alive(row: &Value) -> bool {
    row["state"] == "alive"
}

fn recovered(incident: &Value) -> bool {
    incident["outcome"] == "recovered"
}

/// Has the guest panic, and waits for its reset and for the life after it.
fn is_reset(daemon: &Daemon, guest: &Guest) -> Result<()> {
    guest.events()?;
    guest.send("p")?;
    wait_until("a reset", WITHIN, || Ok((!outer_resets(guest)?.is_empty()).then_some(())))?;
    wait_for_vm(daemon, NAME, "alive again", WITHIN, alive)?;
    Ok(())
}

fn full() -> Result<()> {
    let rig = Rig::new()?;
    let guests = guest(&rig)?;
    let small = state(&rig)?;
    let daemon = daemon(&rig)?;
    wait_for_vm(&daemon, NAME, "alive", WITHIN, alive)?;
    // As much as there is room for.
    let _ = fs::write(small.path().join("filler"), vec![0; 2 << 20]);
    is_reset(&daemon, &guests[0])?;
    let row = vm(&daemon, NAME)?;
    ensure!(row["restarts_in_window"] == 1, "what can't be written counts all the same: {row}");
    daemon.log().wait_for(daemon.log().start(), "No space left on device", WITHIN)?;
    Ok(())
}

fn read_only() -> Result<()> {
    let rig = Rig::new()?;
    let guests = guest(&rig)?;
    let state = state(&rig)?;
    let mut daemon = daemon(&rig)?;
    wait_for_vm(&daemon, NAME, "alive", WITHIN, alive)?;
    is_reset(&daemon, &guests[0])?;
    wait_for_incident(&daemon, NAME, "recovered", WITHIN, recovered)?;

    state.set_read_only(true)?;
    let mark = daemon.log().mark();
    is_reset(&daemon, &guests[0])?;
    daemon.log().wait_for(mark, "Read-only file system", WITHIN)?;
    let row = vm(&daemon, NAME)?;
    ensure!(row["restarts_in_window"] == 2, "what can't be written counts all the same: {row}");
    // One that starts on it watches and restarts as well, and knows what was written.
    daemon.kill()?;
    daemon.start_again()?;
    wait_for_vm(&daemon, NAME, "alive", WITHIN, alive)?;
    ensure!(incidents_of(&daemon, NAME)?.iter().filter(|one| recovered(one)).count() == 1);
    is_reset(&daemon, &guests[0])?;

    state.set_read_only(false)?;
    daemon.kill()?;
    daemon.start_again()?;
    wait_for_vm(&daemon, NAME, "alive", WITHIN, alive)?;
    ensure!(incidents_of(&daemon, NAME)?.iter().filter(|one| recovered(one)).count() == 1);
    Ok(())
}

fn unreadable() -> Result<()> {
    let rig = Rig::new()?;
    let guests = guest(&rig)?;
    let mut daemon = daemon(&rig)?;
    wait_for_vm(&daemon, NAME, "alive", WITHIN, alive)?;
    is_reset(&daemon, &guests[0])?;
    let safe = wait_for_incident(&daemon, NAME, "recovered", WITHIN, recovered)?;
    daemon.kill()?;

    let state = rig.dir().join("state");
    let put = |path: &str, text: &str| -> Result<(PathBuf, String)> {
        let path = state.join(path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&path, text)?;
        Ok((path, text.to_owned()))
    };
    let files = [
        put("incidents/20260101T000000Z-torn/incident.json", "{\"format\": 1, \"id\": \"2026")?,
        put("incidents/20260101T000000Z-newer/incident.json", "{\"format\": 99, \"what\": []}")?,
        put("ledger.json", "{\"format\": 99, \"vms\": {}}")?,
    ];
    daemon.start_again()?;
    wait_for_vm(&daemon, NAME, "alive", WITHIN, alive)?;
    for (path, _) in &files {
        let path = path.display().to_string();
        daemon.log().wait_for(daemon.log().start(), &path, WITHIN)?;
    }
    let incidents = daemon.incidents()?;
    ensure!(incidents.iter().any(|one| one["id"] == safe["id"] && recovered(one)), "{incidents:?}");
    // Which VMs a newer one's ledger would leave alone is not known: so all are.
    guests[0].events()?;
    guests[0].send("p")?;
    let observed = |incident: &Value| incident["outcome"] == "observed";
    let incident = wait_for_incident(&daemon, NAME, "observed", WITHIN, observed)?;
    let reason = incident["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("ledger.json") && outer_resets(&guests[0])?.is_empty(), "{incident}");
    let output = daemon.client(&["release", "--all"])?;
    ensure!(output.status.success(), "{output:?}");
    wait_until("a reset", WITHIN, || Ok((!outer_resets(&guests[0])?.is_empty()).then_some(())))?;
    for (path, text) in &files {
        let kept = match path.file_name() {
            Some(name) if name == "ledger.json" => path.with_extension("json.unreadable"),
            _ => path.clone(),
        };
        ensure!(fs::read_to_string(&kept)? == *text, "{} was changed", kept.display());
    }
    ensure!(Path::new(&files[2].0).exists(), "no new ledger was begun");
    Ok(())
}
