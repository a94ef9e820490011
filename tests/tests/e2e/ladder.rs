//! Restart after restart, and when that ends; and which guest is left alone on a person's word.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    boot_sector::BootSector,
    daemon::Daemon,
    interrupt::{sleep, wait_until},
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::rig::{
    Rig, boot_all, incidents_of, outer_resets, trial, vm, wait_for_incident, wait_for_vm,
};

/// For a guest of a few bytes to be restarted, and to be seen so.
const WITHIN: Duration = Duration::from_secs(40);
/// Some time in which a reset would be seen.
const A_WHILE: Duration = Duration::from_secs(3);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial(
            "a_guest_that_crashes_after_each_boot_is_restarted_with_growing_pauses_then_given_up",
            ladder,
        ),
        trial("a_guest_on_hold_is_watched_and_not_touched_until_it_is_released", hold),
    ]
}

fn failed(row: &Value) -> bool {
    row["state"] == "failed"
}

fn said(daemon: &Daemon, arguments: &[&str]) -> Result<String> {
    let output = daemon.client(arguments)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{arguments:?}: {text}{output:?}");
    Ok(text)
}

fn ladder() -> Result<()> {
    let rig = Rig::new()?;
    let name = "crashes-always";
    let mut config = rig.boot_sector_on_disk(name, BootSector::Pvpanic)?;
    config.pvpanic = true;
    config.extra_args.extend(["-action".to_owned(), "panic=pause".to_owned()]);
    let mut config_of_daemon = rig.daemon_config()?;
    config_of_daemon.extra_toml = "[recovery]\nmax_restarts = 3\npause = \"2s\"".to_owned();
    let mut daemon = rig.daemon(&config_of_daemon)?;
    let guests = boot_all(&[config])?;
    let guest = &guests[0];
    let row = wait_for_vm(&daemon, name, "failed", WITHIN, failed)?;
    ensure!(row["restarts_in_window"] == 3 && row["cause"] == "panicked", "{row}");
    let times = outer_resets(guest)?;
    let pauses: Vec<Duration> =
        times.windows(2).filter_map(|pair| pair[1].duration_since(pair[0]).ok()).collect();
    println!("resets {pauses:.1?} apart");
    ensure!(times.len() == 3, "{times:?}\n{}", daemon.log().text());
    // Restarts are counted by the second.
    let about = |pause: Duration, seconds: u64| {
        pause + Duration::from_millis(1100) >= Duration::from_secs(seconds)
    };
    ensure!(about(pauses[0], 2) && about(pauses[1], 4), "{pauses:?}");
    ensure!(pauses[1] > pauses[0], "{pauses:?}");
    let incidents = incidents_of(&daemon, name)?;
    let last = incidents.last().context("no incident")?;
    ensure!(last["outcome"] == "limit-reached", "{incidents:?}");
    let attempts = incidents.iter().filter_map(|incident| incident["attempts"].as_array());
    ensure!(attempts.map(Vec::len).sum::<usize>() == 3, "{incidents:?}");

    daemon.kill()?;
    daemon.start_again()?;
    wait_for_vm(&daemon, name, "failed still", WITHIN, failed)?;
    sleep(A_WHILE)?;
    ensure!(
        failed(&vm(&daemon, name)?) && outer_resets(guest)?.is_empty(),
        "{}",
        daemon.log().text()
    );
    ensure!(incidents_of(&daemon, name)?.len() == incidents.len(), "a crash more");

    let text = said(&daemon, &["release", name])?;
    ensure!(text.contains(name), "{text}");
    wait_until("a reset after the release", WITHIN, || {
        Ok((!outer_resets(guest)?.is_empty()).then_some(()))
    })?;
    wait_for_vm(&daemon, name, "failed once more", WITHIN, failed)?;
    ensure!(
        outer_resets(guest)?.len() == 2,
        "a new start has all restarts: {}",
        daemon.log().text()
    );
    Ok(())
}

fn hold() -> Result<()> {
    let rig = Rig::new()?;
    let name = "held";
    let mut config = rig.boot_sector_on_disk(name, BootSector::OnCommand)?;
    config.pvpanic = true;
    config.extra_args.extend(["-action".to_owned(), "panic=pause".to_owned()]);
    let guests = boot_all(&[config])?;
    let guest = &guests[0];
    let mut config = rig.daemon_config()?;
    config.extra_toml = "[recovery]\npause = \"1s\"".to_owned();
    let mut daemon = rig.daemon(&config)?;
    let alive = |row: &Value| row["state"] == "alive";
    wait_for_vm(&daemon, name, "alive", WITHIN, alive)?;

    let text = said(&daemon, &["hold", name])?;
    ensure!(text.contains("on hold until `flatline release`"), "{text}");
    guest.events()?;
    guest.send("p")?;
    let observed = |incident: &Value| incident["outcome"] == "observed";
    let incident = wait_for_incident(&daemon, name, "observed", WITHIN, observed)?;
    ensure!(
        incident["reason"].as_str().is_some_and(|why| why.contains("held since")),
        "{incident}"
    );
    // A hold outlives the daemon.
    daemon.kill()?;
    daemon.start_again()?;
    sleep(A_WHILE)?;
    ensure!(outer_resets(guest)?.is_empty(), "it was touched: {}", daemon.log().text());
    let row = vm(&daemon, name)?;
    ensure!(row["state"] == "crashed" && row["hold"].is_string(), "{row}");
    ensure!(guest.run_state()? == "guest-panicked");

    said(&daemon, &["release", name])?;
    let recovered = |incident: &Value| incident["outcome"] == "recovered";
    wait_for_incident(&daemon, name, "recovered", WITHIN, recovered)?;
    ensure!(outer_resets(guest)?.len() == 1, "{}", daemon.log().text());
    let incidents = incidents_of(&daemon, name)?;
    ensure!(incidents.len() == 1, "one crash is one incident: {incidents:?}");

    // Of all, for a time, which ends by itself.
    wait_for_vm(&daemon, name, "alive", WITHIN, alive)?;
    let text = said(&daemon, &["hold", "--all", "--for", "4s"])?;
    ensure!(text.contains("all VMs"), "{text}");
    guest.send("p")?;
    wait_for_incident(&daemon, name, "observed", WITHIN, observed)?;
    ensure!(vm(&daemon, name)?["hold"].as_str().is_some_and(|why| why.starts_with("all VMs")));
    ensure!(outer_resets(guest)?.is_empty(), "it was touched: {}", daemon.log().text());
    wait_until("a reset once the hold is over", WITHIN, || {
        Ok((!outer_resets(guest)?.is_empty()).then_some(()))
    })?;
    ensure!(vm(&daemon, name)?["hold"].is_null());
    wait_for_vm(&daemon, name, "alive again", WITHIN, alive)?;
    ensure!(outer_resets(guest)?.is_empty(), "{}", daemon.log().text());
    let text = said(&daemon, &["release", "--all"])?;
    ensure!(text.contains("all VMs"), "{text}");
    Ok(())
}
