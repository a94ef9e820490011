//! Evidence: memory dumps and files of incidents.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    boot_sector::BootSector, daemon::Daemon, guest::Guest, interrupt::wait_until,
};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use super::{CONTROL, HOSTILE, Tenants, VICTIM, WITHIN};
use crate::rig::{Load, trial, trial_with, wait_for_incident};

/// For a guest that panicked and said so to be reset, its memory's dump included.
const AT_ONCE: Duration = Duration::from_secs(8);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial_with(Load::Spins(1), "a_users_memory_dumps_neither_delay_nor_remove_anothers", dumps),
        trial("a_users_evidence_removes_its_own_and_not_anothers", evidence),
    ]
}

/// A user's guest that panics as soon as it runs, and is paused then.
fn panics(tenants: &Tenants, user: u32, name: &str) -> Result<Guest> {
    let mut config = tenants.guest(user, name, BootSector::Pvpanic)?;
    config.pvpanic = true;
    config.extra_args = ["-action", "panic=pause"].map(str::to_owned).into();
    config.start()
}

/// Waits until the VM is reset: the list of its evidence.
fn list_of(tenants: &Tenants, daemon: &Daemon, name: &str) -> Result<String> {
    let acted = |incident: &Value| !incident["action_at"].is_null();
    let incident = wait_for_incident(daemon, name, "reset", WITHIN, acted)?;
    let id = incident["id"].as_str().context("no id")?;
    let list = tenants.rig.dir().join("state/incidents").join(id).join("evidence.txt");
    wait_until("the list of its evidence", WITHIN, || Ok(fs::read_to_string(&list).ok()))
}

/// How many memory dumps there are of VMs whose names begin so.
fn dumps_of(tenants: &Tenants, name: &str) -> Result<usize> {
    let entries = fs::read_dir(tenants.rig.dir().join("state/memory"))?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names: Vec<String> = names.collect::<Result<_>>()?;
    let is_its = |one: &&String| one.contains(&format!("Z-{name}")) && !one.starts_with('.');
    Ok(names.iter().filter(is_its).count())
}

fn dumps() -> Result<()> {
    let tenants = Tenants::new()?;
    // Places for restarts are enough for all: nothing waits for one.
    let daemon = tenants.daemon(
        "[recovery]\nmemory_dump = \"on\"\nmemory_dump_quota_mib = 8\nmemory_dump_limit = \"60s\"\nmax_restarts = 1\n\
         max_restarts_per_minute = 60",
    )?; // Before there is anything hostile.
    let _control = panics(&tenants, CONTROL, "control")?;
    let begun = Instant::now();
    let list = list_of(&tenants, &daemon, "control")?;
    ensure!(list.contains("the guest's memory ("), "{list}");
    let usual = begun.elapsed();

    let slow = tenants.fake(HOSTILE, "slow", "dumps-slowly")?;
    wait_until("a dump that takes its time", WITHIN, || {
        Ok(daemon.show("slow").is_ok_and(|shown| shown["memory_dump"].is_object()).then_some(()))
    })?;
    let _victim = panics(&tenants, VICTIM, "victim")?;
    let begun = Instant::now();
    let list = list_of(&tenants, &daemon, "victim")?;
    let took = begun.elapsed();
    println!("reset {took:.1?} after its start, and {usual:.1?} without the attack");
    ensure!(took <= usual.max(AT_ONCE), "{took:?}, and {usual:?} without the attack");
    ensure!(list.contains("the guest's memory ("), "{list}");
    ensure!(daemon.show("slow")?["memory_dump"].is_object(), "it was over by then");
    // Nor does one wait for it that is its user's.
    let _next = tenants.fake(HOSTILE, "next", "dumps")?;
    let list = list_of(&tenants, &daemon, "next")?;
    ensure!(list.contains("skipped, since that of another VM of its user"), "{list}");
    drop(slow);

    // More than the quota, of which the others have little.
    let fakes: Vec<_> = (0..4)
        .map(|n| {
            let name = format!("many-{n}");
            let fake = tenants.fake(HOSTILE, &name, "dumps")?;
            let list = list_of(&tenants, &daemon, &name)?;
            ensure!(list.contains("the guest's memory (elf), 3145728 bytes"), "{list}");
            Ok(fake)
        })
        .collect::<Result<_>>()?;
    ensure!(dumps_of(&tenants, "many")? < fakes.len(), "none made room");
    for name in ["control", "victim"] {
        ensure!(
            dumps_of(&tenants, name)? == 1,
            "the dump of {name} is gone\n{}",
            daemon.log().text()
        );
    }
    Ok(())
}

/// An incident of this user, with so much of evidence.
fn incident(incidents: &Path, id: &str, user: Option<u32>, kib: usize) -> Result<()> {
    let mut record = json!({"format": 1, "id": id, "vm": "a", "uuid": null, "pid": 1, "cause": "halted", "reason": "r",
        "detected_at": "2026-01-01T00:00:00Z", "action": null, "outcome": "observed", "detect_seconds": null,
        "recover_seconds": null, "evidence": ["block.json"]});
    if let Some(user) = user {
        record["uid"] = json!(user);
    }
    let directory = incidents.join(id);
    fs::create_dir_all(&directory)?;
    fs::write(directory.join("incident.json"), record.to_string())?;
    fs::write(directory.join("block.json"), vec![b' '; kib << 10])?;
    // Files' times may be as coarse as the kernel's ticks.
    std::thread::sleep(Duration::from_millis(10));
    Ok(())
}

fn evidence() -> Result<()> {
    let tenants = Tenants::new()?;
    let incidents = tenants.rig.dir().join("state/incidents");
    incident(&incidents, "20260101T000000Z-oldest", Some(VICTIM), 300)?;
    incident(&incidents, "20260101T000000Z-of-before", None, 300)?;
    for n in 0..4 {
        incident(&incidents, &format!("20260102T00000{n}Z-hostile"), Some(HOSTILE), 400)?;
    }
    let daemon = tenants.daemon("[recovery]\nevidence_max_mib = 1")?;
    let has = |id: &str| incidents.join(id).join("block.json").exists();
    wait_until("too much to go", WITHIN, || Ok((!has("20260102T000002Z-hostile")).then_some(())))
        .with_context(|| daemon.log().text())?;
    let left: Vec<bool> = (0..4).map(|n| has(&format!("20260102T00000{n}Z-hostile"))).collect();
    ensure!(left == [false, false, false, true], "{left:?}");
    ensure!(has("20260101T000000Z-oldest") && has("20260101T000000Z-of-before"));
    ensure!(daemon.incidents()?.len() == 6, "records went, too");
    Ok(())
}
