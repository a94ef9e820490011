//! SIGHUP while there is much to do: what was counted and what was found out go on, whatever the file says.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    boot_sector::BootSector,
    broadcast::Broadcast,
    daemon::{Daemon, free_address},
    guest::{Accelerator, Guest},
    interrupt::wait_until,
};
use libtest_mimic::Trial;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    counts::{Traffic, quiet},
    metrics::{figure, scrape},
    rig::{
        OFTEN, Rig, binary, boot_all, incidents_of, outer_resets, trial, vm, wait_for_incident,
        wait_for_vm,
    },
};

/// Until a daemon on a busy machine has read a file.
const SOON: Duration = Duration::from_secs(20);
/// Reloads while packets are counted, every other one of a bad file.
const RELOADS: usize = 20;

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("reloads_lose_no_count_and_no_verdict_and_bad_files_change_nothing", reloads)]
}

/// Has the daemon read `text` as its configuration, and waits until it says that it did, or why not.
fn reload(daemon: &Daemon, text: &str) -> Result<()> {
    let heard = || {
        let log = daemon.log().text();
        log.lines().filter(|line| line.contains(" reloaded ") || line.contains("stays:")).count()
    };
    let before = heard();
    fs::write(daemon.config_path(), text)?;
    let pid = daemon.pid().and_then(|pid| Pid::from_raw(pid.cast_signed())).context("no daemon")?;
    kill_process(pid, Signal::HUP)?;
    wait_until("an answer to SIGHUP", SOON, || Ok((heard() > before).then_some(())))
        .with_context(|| daemon.log().text())
}

fn degraded(daemon: &Daemon) -> Result<Value> {
    Ok(daemon.status()?["host"]["degraded"].clone())
}

fn reloads() -> Result<()> {
    let rig = Rig::new()?;
    let busy = rig.linux("busy", 1)?;
    let tap = busy.tap.clone().context("it has a tap")?;
    let halted = rig.boot_sector("halted", BootSector::CliHlt, Accelerator::Tcg);
    let guests = boot_all(&[busy, halted])?;
    let [busy, halted] = &guests[..] else { unreachable!("two were started") };
    let mut config = rig.daemon_config()?;
    config.flat_for = Duration::from_secs(100);
    config.boot_grace = Duration::from_secs(1);
    config.mode = "observe".to_owned();
    config.sample_interval = OFTEN;
    let daemon = rig.daemon(&config)?;
    for guest in &guests {
        wait_for_vm(&daemon, guest.name(), "it is judged", SOON, |row| row["state"] == "alive")?;
    }
    let good = fs::read_to_string(daemon.config_path())?;
    let traffic =
        || quiet("busy", || Traffic::of_kernel(&tap), || Traffic::of_daemon(&daemon, "busy"));
    let (shown, true_ones) = traffic()?;
    let began = vm(&daemon, halted.name())?;

    let storm = Broadcast::start(&tap, 200)?;
    busy.send("net 200")?;
    for number in 0..RELOADS {
        let text = if number % 2 == 0 { good.replace("1m 40s", "1m 30s") } else { torn(&good) };
        reload(&daemon, &text)?;
    }
    ensure!(storm.sent() > 0);
    drop(storm);
    fs::write(daemon.config_path(), &good)?;
    let complaint = degraded(&daemon)?;
    let says = |word: &str| complaint.as_str().is_some_and(|text| text.contains(word));
    ensure!(says("flatline.toml:1: mode: "), "the bad file is to be named: {complaint}");
    let policy = &daemon.show(halted.name())?["policy"];
    ensure!(policy["flat_for"] == "1m 30s", "that of the last good file: {policy}");

    let (daemons, kernels) = traffic()?;
    let (daemons, kernels) = (daemons.since(shown), kernels.since(true_ones));
    println!("over {RELOADS} reloads: {daemons:?}; kernel: {kernels:?}");
    ensure!(daemons == kernels, "shown {daemons:?}, kernel {kernels:?}");
    ensure!(daemons.figures()[2] > 200, "too little for a load: {daemons:?}");
    let now = vm(&daemon, halted.name())?;
    ensure!(now["since"] == began["since"], "it began anew: {began}, then {now}");
    let silent = |row: &Value| row["flat_seconds"].as_f64().context("no flat_seconds");
    ensure!(silent(&now)? > silent(&began)?, "it began anew: {began}, then {now}");
    convicted_on_new_terms(&rig, &daemon, halted, &good)?;
    // It idles, on terms that became ten times as hasty.
    let wrong = incidents_of(&daemon, busy.name())?;
    ensure!(wrong.is_empty() && outer_resets(busy)?.is_empty(), "healthy: {wrong:?}");

    let nobody = good.replace(&config.executables[0], "/nobody");
    reload(&daemon, &nobody)?;
    ensure!(daemon.status()?["vms"] == Value::Array(Vec::new()), "they are out of scope");
    reload(&daemon, &good)?;
    wait_for_vm(&daemon, busy.name(), "it is found again", SOON, |row| row["network"].is_object())?;
    Ok(())
}

/// A file that is about to be written.
fn torn(good: &str) -> String {
    good.replace("mode = \"observe\"", "mode = \"obs")
}

/// It was silent for longer than the new terms ask for: it is found at once, and not after as long once more.
fn convicted_on_new_terms(rig: &Rig, daemon: &Daemon, halted: &Guest, good: &str) -> Result<()> {
    let flat_for = 8.0;
    wait_for_vm(daemon, halted.name(), "silent for long", SOON, |row| {
        row["flat_seconds"].as_f64() > Some(flat_for)
    })?;
    let address = free_address()?;
    let hasty = good
        .replace("flat_for = \"1m 40s\"", "flat_for = \"8s\"")
        .replace("sample_interval = \"250ms\"", "sample_interval = \"500ms\"")
        .replace("listen = \"off\"", &format!("listen = \"{address}\""));
    let begun = Instant::now();
    reload(daemon, &hasty)?;
    let observed = wait_for_incident(daemon, halted.name(), "observed", SOON, |incident| {
        incident["outcome"] == "observed"
    })?;
    let took = begun.elapsed().as_secs_f64();
    println!("convicted {took:.1} s after the reload");
    ensure!(took < flat_for, "as if its silence had begun anew: {took} s");
    ensure!(degraded(daemon)?.is_null(), "a good file ends the complaint");
    ensure!(observed["action_at"].is_null(), "it was to be observed only: {observed}");
    // What is dead still when it may be restarted is restarted, and is the same crash.
    reload(daemon, &hasty.replace("mode = \"observe\"", "mode = \"recover\""))?;
    let incident = wait_for_incident(daemon, halted.name(), "restarted", SOON, |incident| {
        incident["action_at"].is_string()
    })?;
    ensure!(incident["id"] == observed["id"], "one crash, two incidents: {observed} {incident}");
    let text = scrape(address)?;
    ensure!(figure(&text, "flatline_config_last_reload_successful", &[])? == Some(1.0), "{text}");

    // The line that is drawn begins before; what is judged again began with the new terms.
    let history = &daemon.show(halted.name())?["history"];
    ensure!(history["seconds"].as_f64() > Some(flat_for), "what was seen is forgotten: {history}");
    let id = incident["id"].as_str().context("no id")?;
    let recording = rig.dir().join(format!("state/incidents/{id}/recording.flr"));
    let written = || Ok(recording.exists().then_some(()));
    wait_until("the recording", SOON, written)?;
    let replay = Command::new(binary()?).arg("replay").arg(&recording).output()?;
    let said = String::from_utf8_lossy(&replay.stdout).into_owned();
    ensure!(replay.status.success(), "{said}{}", String::from_utf8_lossy(&replay.stderr));
    Ok(())
}
