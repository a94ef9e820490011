//! The daemon's own comings and goings: what it leaves behind, when it refuses to start, what it still
//! knows after it was killed; and those of the VMs that it watches.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    boot_sector::BootSector,
    console::Log,
    daemon::Daemon,
    guest::{Accelerator, Guest, GuestConfig, was_killed},
    interrupt,
    netns::Tap,
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::programs::{self, Holdings};
use crate::rig::{
    Crash, FLAT_FOR, Load, MARGIN, Rig, binary, boot_all, check_restart, incidents_of, put, trial,
    trial_with, vm, wait_for_incident, wait_for_vm,
};

/// For a guest that shows no sign of life to leave `starting`: the boot grace, and what a busy machine needs.
const GRACE: Duration = Duration::from_secs(15);

/// How soon a VM that starts must be seen.
const FOUND_WITHIN: Duration = Duration::from_secs(1);

/// An ordinary user's id (Debian's `nobody`).
const NOBODY: &str = "65534";

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_terminated_daemon_leaves_nothing_attached_or_pinned_with_tcx", || {
            terminated("tcx")
        }),
        trial("a_terminated_daemon_leaves_the_clsact_discipline_of_others_alone", foreign_clsact),
        trial("a_terminated_daemon_leaves_nothing_attached_or_pinned_with_clsact", || {
            terminated("clsact")
        }),
        trial("a_second_daemon_is_refused_and_the_first_goes_on", second),
        trial("a_host_or_configuration_that_is_not_fit_is_refused_in_one_line", unfit),
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
        trial("vms_that_start_and_end_are_noticed_and_only_a_killed_one_is_an_incident", vms),
        trial_with(
            Load::Spins(1),
            "a_daemon_that_only_observes_records_a_crash_and_resets_nothing",
            observes,
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
    ensure!(has_clsact(&tap)?, "somebody else's clsact discipline was removed");
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

/// Runs a command that must fail with `code`, and say why in one line that has all of `words`.
fn refused(command: &mut Command, code: i32, words: &[&str]) -> Result<()> {
    command.env_remove("JOURNAL_STREAM").env_remove("NOTIFY_SOCKET");
    let output = command.stdin(Stdio::null()).output().context("cannot run it")?;
    let text = String::from_utf8_lossy(&output.stderr);
    println!("{}: {}", output.status, text.trim_end());
    ensure!(
        output.status.code() == Some(code),
        "{command:?}: {}, not {code}: {text}",
        output.status
    );
    let said: Vec<&str> = text.lines().filter(|line| line.starts_with("flatline: ")).collect();
    let [line] = said[..] else { anyhow::bail!("{command:?}: not one line: {text}") };
    for word in words {
        ensure!(line.contains(word), "no {word:?} in: {line}");
    }
    for noise in ["panicked at", "RUST_BACKTRACE", "stack backtrace"] {
        ensure!(!text.contains(noise), "{command:?}: {text}");
    }
    Ok(())
}

/// `arguments`, then `run` with that configuration; ended after a while, should it start after all.
fn run_through(arguments: &[&str], binary: &Path, config: &Path) -> Command {
    let mut command = Command::new("timeout");
    command.arg("20").args(arguments).arg(binary).arg("run").arg("--config").arg(config);
    command
}

fn second() -> Result<()> {
    let rig = Rig::new()?;
    let (config, tap) = idler(&rig, "watched-once")?;
    let _guests = boot_all(&[config])?;
    let daemon = rig.daemon(&rig.daemon_config()?)?;
    let ids = wait_until_attached(&tap)?;
    let again = &mut run_through(&[], &binary()?, daemon.config_path());
    refused(again, 1, &["another flatline runs on this host"])?;
    // Other directories for everything but the state are no way around.
    let text = std::fs::read_to_string(daemon.config_path())?;
    let elsewhere = text.replace("/run\"", "/run2\"").replace("/bpf/flatline\"", "/bpf/other\"");
    ensure!(elsewhere != text, "nothing was replaced in {text}");
    let config = rig.dir().join("elsewhere.toml");
    std::fs::write(&config, elsewhere)?;
    refused(&mut run_through(&[], &binary()?, &config), 1, &["another flatline runs"])?;

    vm(&daemon, "watched-once")?;
    ensure!(programs::on_tap(&tap)? == ids, "the programs on the tap were exchanged");
    Ok(())
}

fn unfit() -> Result<()> {
    let rig = Rig::new()?;
    // One that ran and ended: its configuration, directories and bpffs are as they should be.
    let mut daemon = rig.daemon(&rig.daemon_config()?)?;
    ensure!(daemon.terminate()?.success(), "{}", daemon.log().text());
    let good = daemon.config_path();
    let text = std::fs::read_to_string(good)?;

    // The test's own directory is closed to others.
    let public = tempfile::Builder::new().prefix("flatline-public-").tempdir()?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(public.path(), mode)?;
    let (copy, config) = (public.path().join("flatline"), public.path().join("flatline.toml"));
    put(&binary()?, &copy)?;
    std::fs::write(&config, &text)?;
    let nobody = ["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"];
    refused(&mut run_through(&nobody, &copy, &config), 1, &["CAP_BPF", "root"])?;

    let hide = "mount -t tmpfs none /sys/kernel/btf && exec \"$0\" \"$@\"";
    let hidden = ["unshare", "--mount", "--propagation", "private", "sh", "-c", hide];
    refused(&mut run_through(&hidden, &binary()?, good), 1, &["BTF", "CONFIG_DEBUG_INFO_BTF"])?;

    let plain = rig.dir().join("plain");
    std::fs::create_dir(&plain)?;
    let pins = rig.dir().join("bpf/flatline").display().to_string();
    let elsewhere = text.replace(&pins, &plain.display().to_string());
    ensure!(elsewhere != text, "no {pins} in {text}");
    let config = rig.dir().join("plain.toml");
    std::fs::write(&config, elsewhere)?;
    let where_it_is = plain.display().to_string();
    refused(&mut run_through(&[], &binary()?, &config), 1, &[&where_it_is, "bpf file system"])?;

    // Torn within a value, it is no TOML, in which nothing has a key; mistakes in a whole file have.
    let key = "flat_for = \"";
    let end = text.find(key).context("no flat_for")? + key.len();
    let line = format!("torn.toml:{}:", text[..end].lines().count());
    let torn = rig.dir().join("torn.toml");
    std::fs::write(&torn, &text[..=end])?;
    refused(&mut run_through(&[], &binary()?, &torn), 2, &[&line, "detection.flat_for"])?;
    std::fs::write(&torn, format!("{}\"\n", &text[..=end]))?;
    refused(&mut run_through(&[], &binary()?, &torn), 2, &[&line, "detection.flat_for"])?;
    std::fs::write(&torn, text.replace(key, "flat_fro = \""))?;
    refused(&mut run_through(&[], &binary()?, &torn), 2, &[&line, "detection.flat_fro"])?;
    Ok(())
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
    // Nobody watches, and all is counted.
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
    ensure!(writes == (Some(300), Some(300 * 4096)), "written while nobody watched: {writes:?}");

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

/// A daemon with arguments that [`Daemon`] does not give; ended when it is dropped.
struct ByHand(Child, Log);

impl ByHand {
    fn start(arguments: &[&str], config: &Path) -> Result<Self> {
        let mut command = Command::new(binary()?);
        command.args(arguments).arg("--config").arg(config).process_group(0);
        command.env_remove("JOURNAL_STREAM").env_remove("NOTIFY_SOCKET");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start the daemon")?;
        let log = Log::new();
        log.drain(child.stderr.take().context("the pipe was asked for")?);
        Ok(Self(child, log))
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.0),
            rustix::process::Signal::TERM,
        );
        let end = Instant::now() + MARGIN;
        while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        if matches!(self.0.try_wait(), Ok(None)) {
            eprintln!("killed, as it did not end:\n{}", self.1.text());
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

fn observes() -> Result<()> {
    let rig = Rig::new()?;
    let guests = boot_all(&[rig.linux("only-watched", 1)?])?;
    let guest = &guests[0];
    let mut config = rig.daemon_config()?;
    let mut daemon = rig.daemon(&config)?;
    ensure!(daemon.terminate()?.success(), "{}", daemon.log().text());
    let observer = ByHand::start(&["run", "--observe"], daemon.config_path())?;
    let limit = Duration::from_secs(20);
    interrupt::wait_until("an answer of the observer", limit, || Ok(daemon.status().ok()))?;
    wait_for_vm(&daemon, "only-watched", "alive", limit, |row| row["state"] == "alive")?;
    interrupt::sleep(Duration::from_secs(3))?;
    guest.send("panic")?;
    let observed = |daemon: &Daemon| -> Result<()> {
        let crashed = |row: &Value| row["state"] == "crashed";
        wait_for_vm(daemon, "only-watched", "crashed", limit, crashed)?;
        interrupt::wait_until("the incident", limit, || {
            let incidents = incidents_of(daemon, "only-watched")?;
            Ok(incidents.iter().any(|incident| incident["outcome"] == "observed").then_some(()))
        })?;
        // Some time in which a restart would be seen.
        interrupt::sleep(Duration::from_secs(5))?;
        let incidents = incidents_of(daemon, "only-watched")?;
        // However many daemons watch it, it is dead of the same crash.
        ensure!(incidents.len() == 1, "{incidents:?}");
        for incident in &incidents {
            ensure!(
                incident["outcome"] == "observed" && incident["action"].is_null(),
                "{incident}"
            );
            ensure!(incident["cause"] == "spinning", "{incident}");
        }
        let row = vm(daemon, "only-watched")?;
        ensure!(row["state"] == "crashed" && row["restarts_in_window"] == 0, "{row}");
        ensure!(reset_events(guest)? == 0 && guest.banner_count() == 1, "it was reset");
        Ok(())
    };
    observed(&daemon).context("with --observe")?;
    drop(observer);
    drop(daemon);

    config.mode = "observe".to_owned();
    let daemon = rig.daemon(&config)?;
    observed(&daemon).context("with mode = \"observe\"")
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
