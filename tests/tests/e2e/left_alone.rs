//! Healthy guests that look dead to a plain rule, and stopped ones, are left alone.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use flatline_tests::{
    daemon::Daemon,
    guest::{Guest, GuestConfig},
    interrupt,
};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::rig::{Load, Rig, boot_watched, trial_with, vm, wait_for_vm};

/// How long they are watched: more than twice as long as a guest is left alone that no witness can be asked about.
const WATCHED_FOR: Duration = Duration::from_secs(20);
const UNCONFIRMED_FLAT_FOR: &str = "8s";
/// How long some of them compute: they take two cores, which other tests' guests need as well.
const COMPUTE_FOR: Duration = Duration::from_secs(12);

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial_with(
        Load::Spins(2),
        "healthy_and_stopped_guests_are_left_alone_for_all_times_that_count",
        left_alone,
    )]
}

fn left_alone() -> Result<()> {
    let rig = Rig::new()?;
    let mut config = rig.daemon_config()?;
    // They boot before its eyes.
    config.boot_grace = Duration::from_secs(10);
    config.extra_toml = format!("unconfirmed_flat_for = \"{UNCONFIRMED_FLAT_FOR}\"");
    let daemon = rig.daemon(&config)?;

    let guests = boot_watched(&daemon, &guests_of(&rig)?)?;
    let [_, _, computes, computes_two, stopped, powered_off, network_down] = &guests[..] else {
        unreachable!()
    };
    let mut target = rig.linux("migration-target", 8)?;
    target.extra_args.extend(["-incoming".into(), "defer".into()]);
    let target = target.start()?;

    // Its witness has to be one that answered before, or its silence would not count at all.
    wait_for_signal(&daemon, "network-down", "ARP probe", "lives")?;
    wait_for_signal(&daemon, "idle", "ARP probe", "lives")?;
    network_down.send("net-down")?;
    computes.run("compute 1", Duration::from_secs(20))?;
    computes_two.run("compute 1", Duration::from_secs(20))?;
    powered_off.send("poweroff")?;
    stopped.qmp("stop", &json!({}))?;
    let held = |row: &Value| row["state"] == "held";
    for name in ["stopped", "powered-off", "migration-target"] {
        wait_for_vm(&daemon, name, "held", Duration::from_secs(20), held)?;
    }

    let watch_until = |end: Instant| {
        while Instant::now() < end {
            interrupt::sleep(Duration::from_millis(500))?;
            for guest in guests.iter().chain([&target]) {
                check_untouched(&daemon, guest)?;
            }
        }
        anyhow::Ok(())
    };
    let begin = Instant::now();
    watch_until(begin + COMPUTE_FOR)?;
    for guest in &guests {
        check_vcpus(&daemon, guest)?;
    }
    for guest in [computes, computes_two] {
        guest.send("stop-load")?;
    }
    watch_until(begin + WATCHED_FOR)?;
    for name in ["stopped", "powered-off", "migration-target"] {
        let row = vm(&daemon, name)?;
        ensure!(held(&row) && row["reason"].as_str().is_some_and(|why| !why.is_empty()), "{row}");
    }
    for name in ["idle", "idle-2-vcpus", "computes", "computes-on-1-of-2", "network-down"] {
        let row = vm(&daemon, name)?;
        println!("{name}: {} ({})", row["state"], row["reason"]);
        ensure!(row["state"] == "alive" || row["state"] == "suspect", "{row}");
    }
    ensure!(daemon.incidents()?.is_empty(), "{:?}", daemon.incidents()?);
    for guest in guests.iter().chain([&target]) {
        let resets = guest.events()?.into_iter().filter(|event| event["event"] == "RESET").count();
        ensure!(resets == 0, "{} was reset", guest.name());
        ensure!(guest.banner_count() <= 1, "{} booted again", guest.name());
    }
    ensure!(network_down.is_running() && target.is_running());
    Ok(())
}

/// The guests that boot, each named for what it is about to do.
fn guests_of(rig: &Rig) -> Result<[GuestConfig; 7]> {
    let mut idle_two = rig.linux("idle-2-vcpus", 2)?;
    idle_two.vcpus = 2;
    // Its threads bear no names that tell which of them run vCPUs.
    idle_two.debug_threads = false;
    let mut compute_two = rig.linux("computes-on-1-of-2", 4)?;
    compute_two.vcpus = 2;
    compute_two.maxcpus = true;
    let mut powered_off = rig.linux("powered-off", 6)?;
    powered_off.no_shutdown = true;
    Ok([
        rig.linux("idle", 1)?,
        idle_two,
        rig.linux("computes", 3)?,
        compute_two,
        rig.linux("stopped", 5)?,
        powered_off,
        rig.linux("network-down", 7)?,
    ])
}

/// Waits until a witness was heard.
fn wait_for_signal(daemon: &Daemon, name: &str, signal: &str, verdict: &str) -> Result<()> {
    interrupt::wait_until(&format!("{name}: {signal} {verdict}"), Duration::from_secs(60), || {
        let shown = daemon.show(name)?;
        let signals = shown["signals"].as_array().cloned().unwrap_or_default();
        Ok(signals
            .iter()
            .any(|row| row["name"] == signal && row["verdict"] == verdict)
            .then_some(()))
    })
}

/// The vCPU threads whose time is read are those that QEMU names.
fn check_vcpus(daemon: &Daemon, guest: &Guest) -> Result<()> {
    let tids = |rows: &Value, field: &str| -> Vec<u64> {
        rows.as_array().into_iter().flatten().filter_map(|row| row[field].as_u64()).collect()
    };
    let row = vm(daemon, guest.name())?;
    let read = tids(&row["vcpus"], "tid");
    let named = tids(&guest.qmp("query-cpus-fast", &json!({}))?, "thread-id");
    ensure!(!named.is_empty() && read == named, "{}: {read:?}, not {named:?}", guest.name());
    let busy: f64 = row["vcpus"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|vcpu| vcpu["busy_ratio"].as_f64())
        .sum();
    let computes = guest.name().starts_with("computes");
    // Idle guests take 1 % of a core at most; those that compute share two with other tests' guests.
    ensure!(if computes { busy > 0.08 } else { busy < 0.08 }, "{}: busy {busy}", guest.name());
    Ok(())
}

/// Nothing was done to it so far, and nothing is going to be.
pub(crate) fn check_untouched(daemon: &Daemon, guest: &Guest) -> Result<()> {
    let row = vm(daemon, guest.name())?;
    ensure!(row["cause"].is_null(), "{} was convicted: {row}", guest.name());
    ensure!(row["restarts_in_window"] == 0, "{} was restarted: {row}", guest.name());
    let state = row["state"].as_str().unwrap_or_default();
    ensure!(
        matches!(state, "starting" | "alive" | "suspect" | "held"),
        "{} is {state}: {row}",
        guest.name()
    );
    Ok(())
}
