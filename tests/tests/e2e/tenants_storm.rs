//! VMs of one tenant that fall silent together: they keep no other tenant's from being restarted. Those of several do,
//! for a while, but for a guest that is deaf by its registers.
//!
//! Most VMs are made up, since a storm takes many of them and only the daemon is looked at; the ones that have to be
//! restarted in time are real.

use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use flatline_tests::{daemon::Daemon, interrupt::sleep};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    fake_tenants::{Tenant, Tenants, wait_until_heard},
    rig::{
        Crash, FLAT_FOR, MARGIN, Rig, boot_all, check_restart, incidents_of, trial, vm,
        wait_for_incident, wait_for_vm,
    },
};

const HOSTILE: u32 = 64_981;
const OTHERS: [u32; 3] = [64_982, 64_983, 64_984];
/// What every VM is told that a storm holds.
const STORM: &str = "fell silent at the same moment";

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("dead_vms_of_one_tenant_keep_no_other_tenants_from_being_restarted", attack),
        trial("a_storm_over_three_tenants_holds_all_but_the_deaf", storm),
    ]
}

fn tell_all<'a>(tenants: impl IntoIterator<Item = &'a Tenant>, word: &str) -> Result<()> {
    tenants.into_iter().try_for_each(|tenant| tenant.tell(word))
}

fn storms(daemon: &Daemon) -> Result<usize> {
    Ok(daemon.incidents()?.iter().filter(|incident| incident["cause"] == "storm").count())
}

fn attack() -> Result<()> {
    let rig = Rig::new()?;
    let tenants = Tenants::new(&rig)?;
    let crowd = tenants.start(HOSTILE, "crowd", 6)?;
    // With the real one five, of which two are dead together: that is no storm of theirs, either.
    let theirs = tenants.start(OTHERS[0], "theirs", 4)?;
    let real = boot_all(&[tenants.real(OTHERS[0], "victim")?])?;
    let daemon = rig.daemon(&tenants.daemon_config()?)?;
    wait_until_heard(&daemon, &crowd)?;
    wait_until_heard(&daemon, &theirs)?;
    wait_for_vm(&daemon, "victim", "alive", MARGIN, |row| row["state"] == "alive")?;

    let crash = Crash::now(&daemon, &real[0])?;
    let at = SystemTime::now();
    tell_all(&crowd, "silent")?;
    tell_all(&theirs[..1], "silent")?;
    real[0].send("x")?;
    check_restart(&daemon, &real[0], &crash)?;
    let was_reset = |incident: &Value| !incident["action_at"].is_null();
    let wait = FLAT_FOR + MARGIN;
    let incident = wait_for_incident(&daemon, "theirs-0", "restarted", wait, was_reset)?;
    println!("theirs-0: reset within {:.1?} of its silence", at.elapsed()?);
    ensure!(incident["cause"] == "silent", "{incident}");
    ensure!(storms(&daemon)? == 0, "{:?}", daemon.incidents()?);
    for tenant in &theirs[1..] {
        ensure!(incidents_of(&daemon, &tenant.name)?.is_empty(), "{} was convicted", tenant.name);
    }
    Ok(())
}

fn storm() -> Result<()> {
    let rig = Rig::new()?;
    let tenants = Tenants::new(&rig)?;
    let mut all = Vec::new();
    for (user, name) in OTHERS.into_iter().zip(["one", "two", "three"]) {
        all.extend(tenants.start(user, name, 2)?);
    }
    let deaf = boot_all(&[tenants.real(HOSTILE, "deaf")?])?;
    let daemon = rig.daemon(&tenants.daemon_config()?)?;
    wait_until_heard(&daemon, &all)?;
    wait_for_vm(&daemon, "deaf", "alive", MARGIN, |row| row["state"] == "alive")?;

    // All show life in one tick, so that their silences begin together, as those of a host's VMs do.
    tell_all(&all, "busy")?;
    sleep(Duration::from_secs(2))?;
    tell_all(&all, "silent")?;
    let is_held = |row: &Value| {
        row["state"] == "held"
            && row["reason"].as_str().is_some_and(|reason| reason.contains(STORM))
    };
    for tenant in &all {
        wait_for_vm(&daemon, &tenant.name, "held", MARGIN, is_held)?;
    }
    ensure!(storms(&daemon)? == 1, "{:?}", daemon.incidents()?);
    let crash = Crash::now(&daemon, &deaf[0])?;
    deaf[0].send("x")?;
    check_restart(&daemon, &deaf[0], &crash)?;
    for tenant in &all {
        ensure!(is_held(&vm(&daemon, &tenant.name)?), "{}", daemon.show(&tenant.name)?);
    }
    tell_all(&all, "live")?;
    for tenant in &all {
        wait_for_vm(&daemon, &tenant.name, "alive", MARGIN, |row| row["state"] == "alive")?;
        ensure!(incidents_of(&daemon, &tenant.name)?.is_empty(), "{} was convicted", tenant.name);
    }
    Ok(())
}
