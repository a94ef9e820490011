//! Slots: what the programs count VMs in.

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{daemon::Daemon, interrupt::wait_until, tenants::Fake};
use libtest_mimic::Trial;
use serde_json::Value;

use super::{CONTROL, HOSTILE, MARGIN, Tenants, VICTIM, WITHIN};
use crate::rig::{Load, incidents_of, trial_with};

/// The least that `probes.max_vms` may be, and more processes than that.
const SLOTS: usize = 16;
const PROCESSES: usize = 24;
/// Three users share.
const SHARE: usize = SLOTS / 3;

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial_with(Load::Spins(1), "a_user_that_fills_all_slots_leaves_others_their_share", slots)]
}

/// Names of the VMs of which the daemon counts something, among those of the hostile user.
fn counted(daemon: &Daemon) -> Result<Vec<String>> {
    let status = daemon.status()?;
    let vms = status["vms"].as_array().context("no vms")?;
    let is_counted = |vm: &&Value| vm["storage"].is_object();
    let names = vms.iter().filter(is_counted).filter_map(|vm| vm["name"].as_str());
    Ok(names.filter(|name| name.starts_with("hostile-")).map(str::to_owned).collect())
}

fn counts_nothing(daemon: &Daemon, name: &str) -> Result<bool> {
    Ok(!daemon.show(name)?["storage"].is_object())
}

fn slots() -> Result<()> {
    let tenants = Tenants::new()?;
    let daemon =
        tenants.daemon(&format!("[probes]\nmax_vms = {SLOTS}\n[recovery]\nmax_restarts = 1"))?;
    // Before there is anything hostile.
    let (_control, usual) = tenants.is_found_dead(&daemon, CONTROL, "control")?;

    let fakes: Vec<Fake> = (0..PROCESSES)
        .map(|n| tenants.fake(HOSTILE, &format!("hostile-{n}"), "silent"))
        .collect::<Result<_>>()?;
    wait_until("all slots to be taken", WITHIN, || {
        Ok((counted(&daemon)?.len() >= SLOTS - 1).then_some(()))
    })?;

    let (_victim, took) = tenants.is_found_dead(&daemon, VICTIM, "victim")?;
    ensure!(took <= usual + MARGIN, "{took:?}, and {usual:?} without the attack");
    // The user that has most gave way, and no more than was asked for.
    let left = counted(&daemon)?;
    ensure!((SHARE..SLOTS).contains(&left.len()), "{left:?} are counted still");
    for n in (0..PROCESSES).map(|n| format!("hostile-{n}")) {
        ensure!(incidents_of(&daemon, &n)?.is_empty(), "{n} was convicted");
        if !left.contains(&n) {
            let shown = daemon.show(&n)?;
            ensure!(shown["state"] != "suspect" && shown["state"] != "crashed", "{shown}");
        }
    }
    let log = daemon.log().text();
    ensure!(log.contains("not counted: its user has more than an equal share"), "{log}");
    println!("{} of {PROCESSES} hostile ones are counted", left.len());
    ensure!(!counts_nothing(&daemon, "control")? && !counts_nothing(&daemon, "victim")?);
    drop(fakes);
    Ok(())
}
