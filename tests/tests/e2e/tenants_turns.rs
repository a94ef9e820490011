//! A tenant whose guests crash on purpose, all at once: no more are restarted than may be within a minute, and another
//! tenant's guest is restarted in its time.
//!
//! The crowd is made up: two dozen real QEMUs would say the same thing. The other tenant's VM is a real one.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{daemon::Daemon, interrupt::sleep};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    fake_tenants::{Tenant, Tenants, wait_until_heard},
    rig::{MARGIN, Rig, boot_all, trial, wait_for_incident, wait_for_vm},
};

const HOSTILE: u32 = 64_985;
const OTHER: u32 = 64_986;
const CROWD: usize = 24;
const MOST: usize = 4;
/// A guest that says itself that it panicked is restarted at once; times in incidents are whole seconds.
const AT_ONCE: Duration = Duration::from_secs(3);
/// For what must not happen to be seen.
const A_WHILE: Duration = Duration::from_secs(4);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_crowd_that_panics_at_once_takes_no_more_places_than_there_are", attack),
        trial("the_vms_of_one_tenant_alone_have_all_places_of_their_host", alone),
    ]
}

/// The moments at which restarts of these VMs were begun.
fn begun(daemon: &Daemon, name: &str) -> Result<Vec<SystemTime>> {
    let incidents = daemon.incidents()?;
    let of_them =
        incidents.iter().filter(|one| one["vm"].as_str().is_some_and(|vm| vm.starts_with(name)));
    let attempts = of_them.flat_map(|one| one["attempts"].as_array().cloned().unwrap_or_default());
    let at = |attempt: Value| {
        let at = attempt["begun_at"].as_str().context("no begun_at")?.to_owned();
        Ok(humantime::parse_rfc3339(&at)?)
    };
    attempts.map(at).collect()
}

fn panic_at_once(crowd: &[Tenant]) -> Result<()> {
    crowd.iter().try_for_each(|tenant| tenant.tell("panic"))
}

fn attack() -> Result<()> {
    let rig = Rig::new()?;
    let tenants = Tenants::new(&rig)?;
    let crowd = tenants.start(HOSTILE, "crowd", CROWD)?;
    let real = boot_all(&[tenants.real(OTHER, "victim")?])?;
    let mut config = tenants.daemon_config()?;
    config.extra_toml = format!("[recovery]\nmax_restarts_per_minute = {MOST}\n");
    let daemon = rig.daemon(&config)?;
    wait_until_heard(&daemon, &crowd)?;
    wait_for_vm(&daemon, "victim", "alive", MARGIN, |row| row["state"] == "alive")?;

    panic_at_once(&crowd)?;
    // All of them are to be before it.
    let waits =
        |row: &Value| row["reason"].as_str().is_some_and(|why| why.contains("waits for its turn"));
    wait_for_vm(&daemon, &crowd[CROWD - 1].name, "waiting", MARGIN, waits)?;
    let at = SystemTime::now();
    real[0].send("p")?;
    let was_reset = |incident: &Value| !incident["attempts"][0]["reset_at"].is_null();
    wait_for_incident(&daemon, "victim", "restarted", MARGIN, was_reset)?;
    let took = begun(&daemon, "victim")?[0].duration_since(at).unwrap_or_default();
    ensure!(took <= AT_ONCE, "it took {took:?}");
    sleep(A_WHILE)?;
    let (theirs, its) = (begun(&daemon, "crowd")?, begun(&daemon, "victim")?);
    println!(
        "of {CROWD}: {} restarts; of another's one: {}, after {took:?}",
        theirs.len(),
        its.len()
    );
    // All of this is within a minute.
    ensure!(theirs.len() == MOST / 2 && its.len() == 1, "{theirs:?}, {its:?}");
    let waiting = daemon.status()?["vms"]
        .as_array()
        .context("no vms")?
        .iter()
        .filter(|row| waits(row))
        .count();
    ensure!(waiting == CROWD - theirs.len(), "{waiting} wait: {}", daemon.status()?);
    Ok(())
}

fn alone() -> Result<()> {
    let rig = Rig::new()?;
    let tenants = Tenants::new(&rig)?;
    let crowd = tenants.start(HOSTILE, "crowd", CROWD)?;
    let mut config = tenants.daemon_config()?;
    config.extra_toml = format!("[recovery]\nmax_restarts_per_minute = {MOST}\n");
    let daemon = rig.daemon(&config)?;
    wait_until_heard(&daemon, &crowd)?;
    panic_at_once(&crowd)?;
    for tenant in &crowd {
        wait_for_incident(&daemon, &tenant.name, "detected", MARGIN, |_| true)?;
    }
    sleep(A_WHILE)?;
    let begun = begun(&daemon, "crowd")?;
    ensure!(begun.len() == MOST, "{begun:?}");
    Ok(())
}
