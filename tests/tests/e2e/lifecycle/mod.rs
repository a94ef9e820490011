//! The daemon's own comings and goings: what it leaves behind, when it refuses to start, what it still
//! knows after it was killed; and those of the VMs that it watches.

mod observing;
mod refused;
mod taken_over;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    boot_sector::BootSector,
    daemon::Daemon,
    guest::{Accelerator, Guest, GuestConfig, was_killed},
    interrupt,
    netns::Tap,
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::programs::{self, Holdings};
use crate::rig::{
    Crash, FLAT_FOR, Load, MARGIN, Rig, boot_all, check_restart, incidents_of, trial, trial_with,
    vm, wait_for_incident, wait_for_vm,
};

/// For a guest that shows no sign of life to leave `starting`: the boot grace, and what a busy machine needs.
const GRACE: Duration = Duration::from_secs(15);

/// How soon a VM that starts must be seen.
const FOUND_WITHIN: Duration = Duration::from_secs(1);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_terminated_daemon_leaves_nothing_attached_or_pinned_with_tcx", || {
            terminated("tcx")
        }),
        trial("a_terminated_daemon_leaves_the_clsact_discipline_of_others_alone", foreign_clsact),
        trial("a_terminated_daemon_leaves_nothing_attached_or_pinned_with_clsact", || {
            terminated("clsact")
        }),
        trial("a_second_daemon_is_refused_and_the_first_goes_on", refused::second),
        trial("a_host_or_configuration_that_is_not_fit_is_refused_in_one_line", refused::unfit),
        trial_with(
            Load::Spins(1),
            "a_killed_daemon_starts_again_and_finds_the_next_crash_with_tcx",
            || killed("tcx"),
        ),
        trial_with(
            Load::Spins(1),
            "a_killed_daemon_starts_again_and_finds_the_next_crash_with_clsact",
            || killed("clsact"),
        ),
        trial(
            "a_vm_that_lost_its_programs_while_no_daemon_ran_is_counted_again_before_it_is_judged",
            taken_over::detached_meanwhile,
        ),
        trial("vms_that_start_and_end_are_noticed_and_only_a_killed_one_is_an_incident", vms),
        trial_with(
            Load::Spins(1),
            "a_daemon_that_only_observes_records_a_crash_and_resets_nothing",
            observing::observes,
        ),
        trial_with(
            Load::Spins(1),
            "a_guest_that_crashes_again_is_given_up_at_its_limit_for_good",
            limit,
        ),
        trial("a_vcpu_that_is_plugged_in_is_read", vcpu_plugged),
    ]
}

/// A healthy guest without an operating system, on a tap.
fn idler(rig: &Rig, name: &str) -> Result<(GuestConfig, Tap)> {
    let mut config = rig.boot_sector(name, BootSector::StiHlt, Accelerator::Tcg);
    let tap = rig.netns.tap("tap1", None)?;
    config.tap = Some(tap.clone());
    Ok((config, tap))
}

fn through(hook: &str) -> String {
    format!("[probes]\ntap_hook = \"{hook}\"")
}

/// Waits until the daemon has attached both programs to the tap; returns their ids.
fn wait_until_attached(tap: &Tap) -> Result<Vec<u64>> {
    interrupt::wait_until("the programs on the tap", Duration::from_secs(10), || {
        let ids = programs::on_tap(tap)?;
        Ok((ids.len() >= 2).then_some(ids))
    })
}

fn reset_events(guest: &Guest) -> Result<usize> {
    Ok(guest.events()?.iter().filter(|event| event["event"] == "RESET").count())
}

fn terminated(hook: &str) -> Result<()> {
    let rig = Rig::new()?;
    let (config, tap) = idler(&rig, "survives")?;
    let guests = boot_all(&[config])?;
    ensure!(programs::on_tap(&tap)?.is_empty(), "a fresh tap has programs");
    let mut config = rig.daemon_config()?;
    config.extra_toml = through(hook);
    let mut daemon = rig.daemon(&config)?;
    let ids = wait_until_attached(&tap)?;
    ensure!(ids.len() == 2, "programs on the tap: {ids:?}");
    wait_for_vm(&daemon, "survives", "its taps", MARGIN, |row| row["network"].is_object())?;
    let shown = daemon.show("survives")?;
    ensure!(shown["taps"][0]["hook"] == hook, "taps of {shown}");
    let bpffs = rig.dir().join("bpf/flatline");
    let holdings = Holdings::of(&bpffs, &[&tap])?;

    let status = daemon.terminate()?;
    ensure!(status.code() == Some(0), "{status}: {}", daemon.log().text());
    ensure!(programs::on_tap(&tap)?.is_empty(), "left on the tap: {:?}", programs::on_tap(&tap)?);
    ensure!(!has_clsact(&tap)?, "its clsact discipline is left on the tap");
    holdings.wait_until_gone()?;
    let left: Vec<PathBuf> = match std::fs::read_dir(&bpffs) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).context("cannot list bpffs_dir"),
    };
    ensure!(left.is_empty(), "left pinned: {left:?}");
    let sockets: Vec<PathBuf> = std::fs::read_dir(rig.dir().join("run"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    ensure!(sockets.is_empty(), "left in the runtime directory: {sockets:?}");
    let client = daemon.client(&["status"])?;
    ensure!(client.status.code() == Some(3), "status without a daemon: {client:?}");
    ensure!(guests[0].is_running() && guests[0].run_state()? == "running", "the guest was touched");
    ensure!(reset_events(&guests[0])? == 0, "the guest was reset");
    Ok(())
}

fn foreign_clsact() -> Result<()> {
    let rig = Rig::new()?;
    let (config, tap) = idler(&rig, "shares-its-tap")?;
    tc(&tap, &["qdisc", "add", "dev", tap.name(), "clsact"])?;
    let guests = boot_all(&[config])?;
    let mut config = rig.daemon_config()?;
    config.extra_toml = through("clsact");
    let mut daemon = rig.daemon(&config)?;
    wait_until_attached(&tap)?;
    daemon.terminate()?;
    ensure!(programs::on_tap(&tap)?.is_empty(), "left on the tap: {:?}", programs::on_tap(&tap)?);
    ensure!(has_clsact(&tap)?, "the administrator's clsact discipline was removed");
    ensure!(guests[0].is_running());
    Ok(())
}

/// Runs `tc` with these arguments in the tap's namespace.
pub(crate) fn tc(tap: &Tap, arguments: &[&str]) -> Result<String> {
    let [program, namespace] = tap.enter_prefix();
    let mut command = Command::new(program);
    command.arg(namespace).arg("tc").args(arguments);
    let output = flatline_tests::command::run_command(&mut command)?;
    Ok(String::from_utf8_lossy(&output).into_owned())
}

fn has_clsact(tap: &Tap) -> Result<bool> {
    Ok(tc(tap, &["qdisc", "show", "dev", tap.name()])?.contains("clsact"))
}

fn killed(hook: &str) -> Result<()> {
    let rig = Rig::new()?;
    let config = rig.linux("watched-on", 1)?;
    let tap = config.tap.clone().context("it has a tap")?;
    let guests = boot_all(&[config])?;
    let mut config = rig.daemon_config()?;
    config.extra_toml = through(hook);
    let mut daemon = rig.daemon(&config)?;
    let before = wait_until_attached(&tap)?;
    wait_for_vm(&daemon, "watched-on", "alive", GRACE, |row| row["state"] == "alive")?;
    guests[0].run("net 7", Duration::from_secs(20))?;

    ensure!(was_killed(daemon.kill()?), "it ended by itself: {}", daemon.log().text());
    // Without a daemon, all is counted.
    let load = [("net 40", Duration::from_secs(20)), ("disk-write 300 4", Duration::from_secs(20))];
    for (command, limit) in load {
        guests[0].run(command, limit)?;
    }
    daemon.start_again()?;
    let row = wait_for_vm(&daemon, "watched-on", "its figures again", GRACE, |row| {
        row["network"].is_object() && row["storage"].is_object()
    })?;
    let after = programs::on_tap(&tap)?;
    ensure!(after == before, "the programs were exchanged: {before:?}, {after:?}");
    Holdings::of(&rig.dir().join("bpf/flatline"), &[&tap])?;
    let figure = |group: &str, name: &str| row[group][name].as_u64();
    let kernel = tap.counters()?;
    let [sent, received] =
        [figure("network", "guest_tx_packets"), figure("network", "guest_rx_packets")];
    // The tap was there before the daemon, and the guest's first frames with it.
    let early = kernel.rx_packets.saturating_sub(sent.unwrap_or_default());
    ensure!(sent >= Some(47) && early <= 3, "sent {sent:?}, the kernel says {kernel:?}");
    ensure!(received >= Some(47), "received {received:?}, the kernel says {kernel:?}");
    let writes = (figure("storage", "write_ops"), figure("storage", "write_bytes"));
    ensure!(writes == (Some(300), Some(300 * 4096)), "written without a daemon: {writes:?}");

    // Long enough for its address to be probed once while all is well.
    interrupt::sleep(FLAT_FOR)?;
    ensure!(guests[0].banner_count() == 1 && incidents_of(&daemon, "watched-on")?.is_empty());
    let crash = Crash::now(&daemon, &guests[0])?;
    guests[0].send("panic")?;
    check_restart(&daemon, &guests[0], &crash)?;
    drop(guests);
    // What an earlier daemon attached goes with this one.
    let holdings = Holdings::of(&rig.dir().join("bpf/flatline"), &[])?;
    ensure!(daemon.terminate()?.success(), "{}", daemon.log().text());
    ensure!(programs::on_tap(&tap)?.is_empty() && !has_clsact(&tap)?, "left on the tap");
    holdings.wait_until_gone()
}

fn is_gone(daemon: &Daemon, name: &str) -> Result<()> {
    interrupt::wait_until(&format!("{name} to disappear"), Duration::from_secs(3), || {
        let status = daemon.status()?;
        let vms = status["vms"].as_array().context("status has no vms")?;
        Ok(vms.iter().all(|vm| vm["name"] != name).then_some(()))
    })
}

fn vms() -> Result<()> {
    let rig = Rig::new()?;
    let daemon = rig.daemon(&rig.daemon_config()?)?;
    ensure!(daemon.status()?["vms"].as_array().is_some_and(Vec::is_empty), "VMs from nowhere");
    let sector = rig.boot_sector("is-killed", BootSector::StiHlt, Accelerator::Tcg);
    let killed = sector.start()?;
    let begin = Instant::now();
    wait_for_vm(&daemon, "is-killed", "found", FOUND_WITHIN, |_| true)?;
    println!("found {:?} after its QMP answered", begin.elapsed());

    let guests = boot_all(&[rig.linux("powers-off", 1)?])?;
    vm(&daemon, "powers-off")?;
    guests[0].send("poweroff")?;
    let status = guests[0].wait_for_exit(Duration::from_secs(20))?;
    ensure!(status.success(), "powered off, QEMU says {status}");
    is_gone(&daemon, "powers-off")?;

    ensure!(was_killed(killed.kill()?), "it ended before");
    is_gone(&daemon, "is-killed")?;
    let incident = wait_for_incident(&daemon, "is-killed", "recorded", MARGIN, |incident| {
        incident["cause"] == "qemu-exited"
    })?;
    ensure!(incident["outcome"] == "refused" && incident["action"].is_null(), "{incident}");
    let reason = incident["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("signal 9") && reason.contains("owner"), "{incident}");
    ensure!(incidents_of(&daemon, "is-killed")?.len() == 1, "more than one incident");
    ensure!(incidents_of(&daemon, "powers-off")?.is_empty(), "powering off is no crash");
    Ok(())
}

fn limit() -> Result<()> {
    let rig = Rig::new()?;
    // The firmware loading it is the sign of life after each reset.
    let config = rig.boot_sector_on_disk("crashes-again", BootSector::CliJmp)?;
    let guests = boot_all(&[config])?;
    let guest = &guests[0];
    let mut config = rig.daemon_config()?;
    config.boot_grace = Duration::from_secs(2);
    config.extra_toml = "[recovery]\nmax_restarts = 1\npause = \"1s\"".to_owned();
    let mut daemon = rig.daemon(&config)?;
    // Should the sign of life be missed, the daemon's patience of a minute ends first.
    let patience = Duration::from_secs(90);
    let failed = |row: &Value| row["state"] == "failed";
    let row = wait_for_vm(&daemon, "crashes-again", "failed", patience, failed)?;
    ensure!(row["restarts_in_window"] == 1, "{row}");
    // It is written down a moment after it is shown.
    wait_for_incident(&daemon, "crashes-again", "its limit", MARGIN, |incident| {
        incident["outcome"] == "limit-reached"
    })?;
    let incidents = incidents_of(&daemon, "crashes-again")?;
    let outcomes: Vec<&str> =
        incidents.iter().filter_map(|incident| incident["outcome"].as_str()).collect();
    println!("outcomes: {outcomes:?}");
    ensure!(incidents.len() == 2 && outcomes.contains(&"limit-reached"), "{incidents:?}");
    let restarts = incidents.iter().filter(|incident| !incident["action_at"].is_null()).count();
    ensure!(restarts == 1, "{incidents:?}");
    ensure!(reset_events(guest)? > 0, "the first crash was answered with no reset");

    ensure!(daemon.terminate()?.success(), "{}", daemon.log().text());
    daemon.start_again()?;
    let row = wait_for_vm(&daemon, "crashes-again", "failed again", MARGIN * 4, failed)?;
    ensure!(row["restarts_in_window"] == 1, "{row}");
    // Longer than a guest that does nothing lives where it may be restarted.
    interrupt::sleep(FLAT_FOR + Duration::from_secs(2))?;
    ensure!(failed(&vm(&daemon, "crashes-again")?), "it did not stay failed");
    ensure!(
        reset_events(guest)? == 0,
        "it was reset again, by a daemon that forgot the first time"
    );
    Ok(())
}

fn vcpu_plugged() -> Result<()> {
    let rig = Rig::new()?;
    let mut config = rig.boot_sector("grows", BootSector::StiHlt, Accelerator::Tcg);
    config.extra_args = ["-smp", "1,maxcpus=2"].map(str::to_owned).to_vec();
    // Its threads' names tell nothing, so that QEMU has to be asked.
    config.debug_threads = false;
    let guest = config.start()?;
    let daemon = rig.daemon(&rig.daemon_config()?)?;
    let vcpus = |row: &Value| row["vcpus"].as_array().map_or(0, Vec::len);
    wait_for_vm(&daemon, "grows", "one vCPU", GRACE, |row| vcpus(row) == 1)?;
    let slots = guest.qmp("query-hotpluggable-cpus", &Value::Null)?;
    let slots = slots.as_array().context("no list of vCPUs")?;
    let free = slots.iter().find(|slot| slot.get("qom-path").is_none()).context("none is free")?;
    let mut device = free["props"].clone();
    device["driver"] = free["type"].clone();
    device["id"] = "plugged".into();
    guest.qmp("device_add", &device)?;
    wait_for_vm(&daemon, "grows", "two vCPUs", GRACE, |row| {
        let is_read = |vcpu: &Value| vcpu["busy_ratio"].is_f64();
        vcpus(row) == 2 && row["vcpus"].as_array().into_iter().flatten().all(is_read)
    })?;
    Ok(())
}
