//! A guest that is known to be dead stays suspected, whatever looks at it next: another daemon, or the same one on other terms.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    boot_sector::BootSector,
    daemon::Daemon,
    guest::{Accelerator, Guest},
    interrupt,
};
use libtest_mimic::Trial;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::rig::{Rig, boot_all, incidents_of, trial, vm, wait_for_incident};

/// Until it is convicted again, and restarted where it may be, on a busy machine.
const LIMIT: Duration = Duration::from_secs(40);
/// From one look at its state to the next.
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("a_guest_that_was_found_dead_is_never_alive_for_another_daemon_or_mode", stays_dead)]
}

fn stays_dead() -> Result<()> {
    let rig = Rig::new()?;
    let mut config = rig.daemon_config()?;
    config.boot_grace = Duration::from_secs(1);
    config.mode = "observe".to_owned();
    let guests = boot_all(&[rig.boot_sector("dead", BootSector::CliHlt, Accelerator::Tcg)])?;
    let guest = &guests[0];
    let mut daemon = rig.daemon(&config)?;
    let observed = |daemon: &Daemon| {
        let is_over = |incident: &Value| incident["outcome"] == "observed";
        wait_for_incident(daemon, guest.name(), "observed", LIMIT, is_over)
    };
    let incident = observed(&daemon)?;

    daemon.terminate()?;
    daemon.start_again()?;
    let states = states_until(&daemon, guest, |row| row["state"] == "crashed")?;
    ensure!(states.iter().all(|(state, _)| state != "alive"), "{states:?}");
    let told = states.iter().any(|(_, reason)| reason.contains("an earlier daemon found"));
    ensure!(told, "taken up for no reason: {states:?}");
    ensure!(observed(&daemon)?["id"] == incident["id"], "one crash, two incidents");

    let text = fs::read_to_string(daemon.config_path())?;
    fs::write(daemon.config_path(), text.replace("mode = \"observe\"", "mode = \"recover\""))?;
    let pid = daemon.pid().and_then(|pid| Pid::from_raw(pid.cast_signed())).context("no daemon")?;
    kill_process(pid, Signal::HUP)?;
    let states = states_until(&daemon, guest, |row| row["state"] == "recovering")?;
    ensure!(states.iter().all(|(state, _)| state != "alive"), "{states:?}");
    let log = daemon.log().text();
    ensure!(
        log.contains("crashed -> suspect: it may be restarted now, and is judged anew"),
        "{log}"
    );
    ensure!(!log.contains("released"), "it was not released: {log}");
    let incidents = incidents_of(&daemon, guest.name())?;
    ensure!(incidents.len() == 1, "one crash, and not {incidents:?}");
    Ok(())
}

/// The states that it is shown in, with their reasons, until `wanted`.
fn states_until(
    daemon: &Daemon,
    guest: &Guest,
    wanted: impl Fn(&Value) -> bool,
) -> Result<Vec<(String, String)>> {
    let mut states = Vec::new();
    let began = std::time::Instant::now();
    while began.elapsed() < LIMIT {
        interrupt::sleep(LOOK_EVERY)?;
        // It may not have been found yet.
        let Ok(row) = vm(daemon, guest.name()) else { continue };
        let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
        states.push((text("state"), text("reason")));
        states.dedup();
        if wanted(&row) {
            println!("{states:?}");
            return Ok(states);
        }
    }
    anyhow::bail!("{states:?}: {}", daemon.log().text())
}
