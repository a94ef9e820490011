//! Guests with an agent that is stopped, or that stop themselves, on purpose: nothing is wrong with any of them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    guest::{Guest, GuestConfig},
    interrupt::{sleep, wait_until},
};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use super::{COMMAND_LIMIT, LOST_AFTER, start_agent, wait_for_beats};
use crate::rig::{
    BOOT_LIMIT, MARGIN, Rig, boot_all, incidents_of, outer_resets, trial, vm, wait_for_vm,
};

/// Long enough for beats to be missed, and for that to be told.
const A_WHILE: Duration = Duration::from_secs(LOST_AFTER.as_secs() + 5);
/// They boot before the daemon's eyes, one of them twice.
const BOOT_GRACE: Duration = Duration::from_secs(10);

pub(super) fn trials() -> Vec<Trial> {
    vec![
        trial("guests_whose_agent_goes_down_in_good_order_are_given_their_time", leaving),
        trial("stopped_suspended_and_migrated_guests_miss_no_beats", stopped),
    ]
}

fn leaving() -> Result<()> {
    let rig = Rig::new()?;
    let configs = [rig.linux("powers-off", 1)?, rig.linux("reboots", 2)?];
    let mut config = rig.daemon_config()?;
    config.boot_grace = BOOT_GRACE;
    config.extra_toml = "[recovery]\nrestart_without_heartbeat = true\n".to_owned();
    let daemon = rig.daemon(&config)?;
    let guests = boot_all(&configs)?;
    for guest in &guests {
        start_agent(guest, "")?;
        wait_for_beats(&daemon, guest)?;
        // As an init system does on its way down.
        guest.run("heartbeat-kill TERM", COMMAND_LIMIT)?;
    }
    for guest in &guests {
        let limit = BOOT_GRACE + MARGIN;
        let row =
            wait_for_vm(&daemon, guest.name(), "going down", limit, |row| row["state"] == "held")?;
        let said = row["reason"].as_str().is_some_and(|why| why.contains("goes down"));
        ensure!(said && row["heartbeat"]["leaving"] == true, "{row}");
    }
    // It takes its time.
    sleep(A_WHILE)?;
    let [powers_off, reboots] = &guests[..] else { unreachable!() };
    let boot = vm(&daemon, "reboots")?["heartbeat"]["boot"].clone();
    powers_off.send("poweroff")?;
    reboots.send("reboot")?;
    wait_until("the one to end", BOOT_LIMIT, || Ok((!powers_off.is_running()).then_some(())))?;
    wait_until("the other to come back", BOOT_LIMIT, || {
        Ok((reboots.banner_count() == 2).then_some(()))
    })?;
    start_agent(reboots, "")?;
    wait_for_vm(&daemon, "reboots", "another boot", MARGIN, |row| {
        row["heartbeat"]["boot"] != boot && row["state"] == "alive"
    })?;
    for guest in &guests {
        let incidents = incidents_of(&daemon, guest.name())?;
        ensure!(incidents.is_empty(), "{incidents:?}\n{}", daemon.log().text());
    }
    ensure!(outer_resets(reboots)?.is_empty(), "it was reset");
    Ok(())
}

fn stopped() -> Result<()> {
    let rig = Rig::new()?;
    let moves = |name: &str, number: u8| -> Result<GuestConfig> {
        let mut config = rig.linux(name, number)?;
        // Both see the same machine, and a disk would be locked by the first.
        (config.disk, config.ip) = (None, Some("10.7.3.2/24".to_owned()));
        Ok(config)
    };
    let mut arrives = moves("arrives", 4)?;
    let way = format!("unix:{}", rig.dir().join("moves").display());
    arrives.extra_args.extend(["-incoming".to_owned(), way.clone()]);
    let configs = [rig.linux("paused", 1)?, rig.linux("suspended", 2)?, moves("leaves", 3)?];
    let mut config = rig.daemon_config()?;
    config.boot_grace = BOOT_GRACE;
    config.extra_toml = "[recovery]\nrestart_without_heartbeat = true\n".to_owned();
    let daemon = rig.daemon(&config)?;
    let guests = boot_all(&configs)?;
    let arrives = arrives.start()?;
    let [paused, suspended, leaves] = &guests[..] else { unreachable!() };
    for guest in &guests {
        start_agent(guest, "")?;
        wait_for_beats(&daemon, guest)?;
    }
    paused.qmp("stop", &Value::Null)?;
    suspended.send("suspend")?;
    leaves.qmp("migrate", &json!({ "uri": way }))?;
    reaches(suspended, "suspended")?;
    reaches(leaves, "postmigrate")?;
    reaches(&arrives, "running")?;
    sleep(A_WHILE)?;
    for (name, state) in [("paused", "held"), ("suspended", "held"), ("leaves", "held")] {
        let row = vm(&daemon, name)?;
        ensure!(row["state"] == state && row["cause"].is_null(), "{row}");
    }
    paused.qmp("cont", &Value::Null)?;
    // A kernel that QEMU loads itself is not resumed by a wake-up, but boots anew: this one sleeps on.
    sleep(A_WHILE)?;
    for name in ["paused", "arrives"] {
        let row = wait_for_vm(&daemon, name, "it beats on", LOST_AFTER, |row| {
            row["heartbeat"]["last_seconds"].as_f64().is_some_and(|seconds| seconds < 3.0)
        })?;
        ensure!(row["state"] == "alive" && row["cause"].is_null(), "{row}");
    }
    for guest in guests.iter().chain([&arrives]) {
        let incidents = incidents_of(&daemon, guest.name())?;
        ensure!(incidents.is_empty(), "{incidents:?}\n{}", daemon.log().text());
        ensure!(outer_resets(guest)?.is_empty(), "{} was reset", guest.name());
    }
    Ok(())
}

fn reaches(guest: &Guest, run_state: &str) -> Result<()> {
    let what = format!("{} to be {run_state}", guest.name());
    wait_until(&what, BOOT_LIMIT, || Ok((guest.run_state()? == run_state).then_some(())))
        .with_context(|| format!("it is {:?}", guest.run_state()))
}
