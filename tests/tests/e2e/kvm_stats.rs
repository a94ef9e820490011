//! KVM's own figures stand in where its tracepoints are not to be used: guests of a few bytes under KVM, alive and dead.

use std::time::Duration;

use anyhow::{Result, ensure};
use flatline_tests::{boot_sector::BootSector, guest::Accelerator, interrupt::sleep};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    brought_back::kvm,
    rig::{Load, Rig, boot_all, incidents_of, skippable_trial_with, wait_for_incident},
};

/// For a guest to be asked, in its second round of questions and some more.
const ASKED_WITHIN: Duration = Duration::from_secs(40);
/// As long as dead ones take to be found, and longer.
const LEFT_FOR: Duration = Duration::from_secs(15);

pub(crate) fn trials() -> Vec<Trial> {
    vec![skippable_trial_with(
        Load::Spins(1),
        "without_kvms_tracepoints_its_own_figures_tell_guests_that_live_from_dead_ones",
        || match kvm()? {
            None => figures().map(|()| None),
            why => Ok(why),
        },
    )]
}

fn figures() -> Result<()> {
    let rig = Rig::new()?;
    let sector = |name, code| {
        let mut config = rig.boot_sector(name, code, Accelerator::Kvm);
        config.traces_commands = true;
        config
    };
    let guests = boot_all(&[
        sector("idle", BootSector::StiHlt),
        sector("halted", BootSector::CliHlt),
        sector("spins", BootSector::CliJmp),
    ])?;
    let mut config = rig.daemon_config()?;
    config.mode = "observe".to_owned();
    config.boot_grace = Duration::from_secs(1);
    config.extra_toml = "[probes]\nkvm_tracepoints = false".to_owned();
    let daemon = rig.daemon(&config)?;
    for guest in &guests[1..] {
        let observed = |incident: &Value| incident["outcome"] == "observed";
        wait_for_incident(&daemon, guest.name(), "found dead", ASKED_WITHIN, observed)?;
        let asked = guest.times_taken("query-stats")?;
        println!("{}: its figures were asked for {asked} times", guest.name());
        ensure!(asked > 0, "{}", daemon.log().text());
    }
    sleep(LEFT_FOR)?;
    let idle = incidents_of(&daemon, "idle")?;
    ensure!(idle.is_empty(), "{idle:?}");
    Ok(())
}
