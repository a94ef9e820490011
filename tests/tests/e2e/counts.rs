//! Counts are true: what the daemon shows of taps and disks is what the kernel and QEMU counted.
//!
//! Only differences between two quiet moments are compared. The daemon begins to count when it finds a VM,
//! the kernel when the tap is made; and a reading of the daemon is up to a tick old, so that it means
//! something only where nothing moved in the meantime.

use std::{
    fs::File,
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use flatline_tests::{
    broadcast::Broadcast,
    daemon::{Daemon, DaemonConfig},
    guest::{Guest, GuestConfig},
    interrupt,
    netns::{Netns, Tap, TapCounters},
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::programs;
use crate::rig::{OFTEN, Rig, binary, boot_all, trial, trial_that_may_skip, vm, wait_for_vm};

/// Longer than [`OFTEN`] by what a busy machine needs.
pub(crate) const SAMPLE_AGE: Duration = Duration::from_millis(750);
/// Long enough for the daemon's rounds of probes, which disturb the quiet, to be over.
pub(crate) const QUIET_LIMIT: Duration = Duration::from_secs(40);
/// Until the daemon is sure that a completion was lost, while other tests use the disk.
pub(crate) const SETTLE_LIMIT: Duration = Duration::from_secs(60);
/// What a guest's command may take on a busy machine.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial_that_may_skip("a_taps_packets_and_bytes_equal_the_kernels_through_tcx", || {
            let why = programs::why_no_tcx()?;
            if why.is_none() {
                taps("tcx")?;
            }
            Ok(why)
        }),
        trial("a_taps_packets_and_bytes_equal_the_kernels_through_clsact", || taps("clsact")),
        trial_that_may_skip("a_disks_requests_equal_qemus_with_aio_native", || disk("native")),
        trial_that_may_skip("a_disks_requests_equal_qemus_with_aio_threads", || disk("threads")),
        trial_that_may_skip("a_disks_requests_equal_qemus_with_aio_io_uring", || disk("io_uring")),
        trial("disks_that_are_used_at_the_same_time_are_not_mixed_up", two_disks),
    ]
}

/// The figures of [`Self::NAMES`], in that order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic([u64; 4]);

impl std::ops::Add for Traffic {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(std::array::from_fn(|index| self.0[index] + other.0[index]))
    }
}

impl Traffic {
    const NAMES: [&str; 4] =
        ["guest_tx_packets", "guest_tx_bytes", "guest_rx_packets", "guest_rx_bytes"];

    pub(crate) fn of_daemon(daemon: &Daemon, name: &str) -> Result<Self> {
        figures(&vm(daemon, name)?["network"], Self::NAMES).map(Self)
    }

    pub(crate) fn of_kernel(tap: &Tap) -> Result<Self> {
        // The host receives what the guest sends.
        let TapCounters { rx_packets, rx_bytes, tx_packets, tx_bytes, tx_dropped, .. } =
            tap.counters()?;
        ensure!(tx_dropped == 0, "{}: {tx_dropped} packets never reached the guest", tap.name());
        Ok(Self([rx_packets, rx_bytes, tx_packets, tx_bytes]))
    }

    pub(crate) fn since(self, before: Self) -> Self {
        Self(grown(self.0, before.0))
    }

    pub(crate) fn figures(self) -> [u64; 4] {
        self.0
    }
}

/// The figures of [`Self::NAMES`], in that order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Requests([u64; 4]);

impl Requests {
    const NAMES: [&str; 4] = ["read_ops", "read_bytes", "write_ops", "write_bytes"];

    pub(crate) fn of_daemon(daemon: &Daemon, name: &str) -> Result<Self> {
        // A completion that the programs missed is taken off the books after some seconds of quiet.
        let settled = |row: &Value| row["storage"]["in_flight"] == 0;
        let row = wait_for_vm(daemon, name, "nothing in flight", SETTLE_LIMIT, settled)?;
        figures(&row["storage"], Self::NAMES).map(Self)
    }

    /// What QEMU handed on: requests that it merged went down as one.
    pub(crate) fn of_qemu(guest: &Guest) -> Result<Self> {
        let devices = guest.qmp("query-blockstats", &Value::Null)?;
        let devices = devices.as_array().context("query-blockstats lists nothing")?;
        let disk = devices.iter().find(|device| device["device"] == "disk0");
        let stats = &disk.with_context(|| format!("no disk0 in {devices:?}"))?["stats"];
        let [reads, reads_merged, read_bytes, writes, writes_merged, write_bytes] = figures(
            stats,
            ["rd_operations", "rd_merged", "rd_bytes", "wr_operations", "wr_merged", "wr_bytes"],
        )?;
        Ok(Self([reads - reads_merged, read_bytes, writes - writes_merged, write_bytes]))
    }

    pub(crate) fn since(self, before: Self) -> Self {
        Self(grown(self.0, before.0))
    }

    /// Whether each figure is within 1 % of QEMU's, so that nothing stays nothing.
    pub(crate) fn is_close_to(self, qemu: Self) -> bool {
        self.0.iter().zip(qemu.0).all(|(ours, qemus)| ours.abs_diff(qemus) * 100 <= qemus)
    }
}

/// A daemon that counts, and restarts nothing.
pub(crate) fn observer(rig: &Rig) -> Result<DaemonConfig> {
    let mut config = rig.daemon_config()?;
    "observe".clone_into(&mut config.mode);
    config.sample_interval = OFTEN;
    Ok(config)
}

fn figures<const N: usize>(object: &Value, names: [&str; N]) -> Result<[u64; N]> {
    let mut figures = [0; N];
    for (figure, name) in figures.iter_mut().zip(names) {
        *figure = object[name].as_u64().with_context(|| format!("no figure {name}: {object}"))?;
    }
    Ok(figures)
}

fn grown(now: [u64; 4], before: [u64; 4]) -> [u64; 4] {
    // A counter that went back shows as a figure that nothing equals.
    std::array::from_fn(|index| now[index].wrapping_sub(before[index]))
}

/// The daemon's figures and the oracle's, of one moment: nothing moved for longer than a sample's age.
pub(crate) fn quiet<T: Copy + PartialEq + std::fmt::Debug>(
    what: &str,
    oracle: impl Fn() -> Result<T>,
    daemon: impl Fn() -> Result<T>,
) -> Result<(T, T)> {
    let begin = Instant::now();
    loop {
        let before = oracle()?;
        interrupt::sleep(SAMPLE_AGE)?;
        let shown = daemon();
        let after = oracle()?;
        if before == after {
            return Ok((shown?, after));
        }
        if begin.elapsed() > QUIET_LIMIT {
            bail!("{what}: never quiet: {before:?}, then {after:?}");
        }
    }
}

fn taps(hook: &str) -> Result<()> {
    let rig = Rig::new()?;
    // The daemon lives in one guest's namespace and not in the other's. Both taps come first in their
    // namespaces, and so have the same index.
    let home = Netns::new()?;
    let away = rig.linux("away", 1)?;
    let mut near = rig.linux("near", 2)?;
    near.tap = Some(home.tap("tap2", Some("10.7.2.1/24"))?);
    let configs = [away, near];
    let guests = boot_all(&configs)?;
    let mut config = rig.daemon_config()?;
    config.binary = binary_inside(&home, &rig)?;
    config.extra_toml = format!("[probes]\ntap_hook = \"{hook}\"");
    config.sample_interval = OFTEN;
    let daemon = rig.daemon(&config)?;
    let pid = daemon.pid().context("it was started")?;
    ensure!(
        std::fs::metadata(format!("/proc/{pid}/ns/net"))?.ino()
            == std::fs::metadata(home.path())?.ino(),
        "the daemon is not in the namespace that it was put into"
    );
    let mut indices = Vec::new();
    for guest in &guests {
        wait_for_vm(&daemon, guest.name(), "its tap is read", COMMAND_LIMIT, |row| {
            row["network"].is_object()
        })?;
        let tap = &daemon.show(guest.name())?["taps"][0];
        ensure!(tap["attached"] == true && tap["hook"] == hook, "{}: {tap}", guest.name());
        indices.push(tap["ifindex"].clone());
    }
    ensure!(indices[0] == indices[1], "the taps were to have the same index: {indices:?}");

    let tap_of = |config: &GuestConfig| config.tap.clone().context("it has a tap");
    let quiet_traffic = |config: &GuestConfig| {
        let tap = tap_of(config)?;
        quiet(
            &config.name,
            || Traffic::of_kernel(&tap),
            || Traffic::of_daemon(&daemon, &config.name),
        )
    };
    let before = configs.iter().map(quiet_traffic).collect::<Result<Vec<_>>>()?;
    // Different figures for each, so that one's can't pass for the other's.
    let storm = Broadcast::start(&tap_of(&configs[0])?, 100)?;
    guests[0].run("net 40", COMMAND_LIMIT)?;
    guests[1].run("net 75", COMMAND_LIMIT)?;
    interrupt::sleep(Duration::from_secs(1))?;
    let broadcasts = storm.sent();
    drop(storm);
    // Silence, so that the daemon asks: its probes and their answers are packets like any other.
    interrupt::sleep(config.flat_for * 2)?;
    for (((config, guest), (before_daemon, before_kernel)), pings) in
        configs.iter().zip(&guests).zip(before).zip([40, 75])
    {
        let (daemons, kernels) = quiet_traffic(config)?;
        let (daemons, kernels) = (daemons.since(before_daemon), kernels.since(before_kernel));
        println!("{}, {hook}: {daemons:?}; kernel: {kernels:?}", config.name);
        ensure!(daemons == kernels, "{}: shown {daemons:?}, kernel {kernels:?}", config.name);
        let [sent, _, received, _] = daemons.0;
        let broadcasts = if config.name == "away" { broadcasts } else { 0 };
        ensure!(sent >= pings && received >= pings + broadcasts, "{}: {daemons:?}", config.name);
        let answers = map_total(&rig, guest, "probe_answers")?;
        ensure!(answers > 0, "{}: the silence was to be probed", config.name);
    }
    Ok(())
}

/// A script that becomes the daemon or its client inside `netns`.
fn binary_inside(netns: &Netns, rig: &Rig) -> Result<PathBuf> {
    let path = rig.dir().join("flatline-inside");
    let mut words = netns.enter_prefix().map(|word| word.display().to_string()).join(" ");
    words.push_str(&format!(" -- '{}'", std::path::absolute(binary()?)?.display()));
    std::fs::write(&path, format!("#!/bin/sh\nexec {words} \"$@\"\n"))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// A field of the VM's row in the map `vms`: the one that all CPUs share, or the sum over its lanes.
pub(crate) fn map_total(rig: &Rig, guest: &Guest, field: &str) -> Result<u64> {
    let rows = dump_vms(rig.dir())?;
    let row = rows.iter().find(|row| pid_of(row) == Some(u64::from(guest.pid())));
    let row = row.with_context(|| format!("no row of {} in {rows:?}", guest.name()))?;
    let counters = &row["formatted"]["value"];
    if let Some(shared) = counters["shared"][field].as_u64() {
        return Ok(shared);
    }
    let lanes = counters["lanes"].as_array().context("no lanes")?;
    let figure = |lane: &Value| lane[field].as_u64();
    lanes.iter().map(|lane| figure(lane).with_context(|| format!("no {field}: {lane}"))).sum()
}

/// The VM of a row of the map `vms`.
pub(crate) fn pid_of(row: &Value) -> Option<u64> {
    row["formatted"]["value"]["lanes"][0]["pid"].as_u64()
}

/// The rows of the map `vms` that the daemon in `dir` pinned and that are a VM's, as bpftool prints them.
pub(crate) fn dump_vms(dir: &Path) -> Result<Vec<Value>> {
    let map = dir.join("bpf/flatline/vms");
    let output = Command::new("bpftool").args(["-j", "map", "dump", "pinned"]).arg(map).output()?;
    ensure!(output.status.success(), "bpftool: {}", String::from_utf8_lossy(&output.stderr));
    let mut rows: Vec<Value> =
        serde_json::from_slice(&output.stdout).context("bpftool printed no JSON list")?;
    rows.retain(|row| pid_of(row) != Some(0));
    Ok(rows)
}

/// Why QEMU can't use `aio` here, in its own words.
pub(crate) fn refusal(aio: &str, image: &Path) -> Result<Option<String>> {
    let drive = format!("file={},format=raw,if=none,aio={aio},cache=none", image.display());
    let mut qemu = Command::new("qemu-system-x86_64")
        .args(["-nodefaults", "-display", "none", "-machine", "none", "-monitor", "stdio"])
        .args(["-drive", &drive])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    // It may have refused and gone already.
    let _ = qemu.stdin.take().context("the pipe was asked for")?.write_all(b"quit\n");
    let output = qemu.wait_with_output()?;
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let refused = !output.status.success() || words.contains("falling back");
    Ok(refused.then_some(words))
}

/// Fills the guest's image with real blocks: reads of a hole never reach the block layer, and a first
/// write into one makes the file system write of its own.
pub(crate) fn fill_disk(config: &GuestConfig) -> Result<PathBuf> {
    let disk = config.disk.as_ref().context("it has a disk")?;
    let mut file = File::create(&disk.path)?;
    let chunk = vec![0x5a; 1 << 20];
    for _ in 0..disk.size >> 20 {
        file.write_all(&chunk)?;
    }
    file.sync_all()?;
    Ok(disk.path.clone())
}

fn quiet_requests(daemon: &Daemon, guest: &Guest) -> Result<(Requests, Requests)> {
    let name = guest.name();
    quiet(name, || Requests::of_qemu(guest), || Requests::of_daemon(daemon, name))
}

fn disk(aio: &str) -> Result<Option<String>> {
    let rig = Rig::new()?;
    let mut config = rig.linux("stores", 1)?;
    let image = fill_disk(&config)?;
    if let Some(why) = refusal(aio, &image)? {
        return Ok(Some(why));
    }
    config.disk.as_mut().context("it has a disk")?.aio = aio.to_owned();
    let guests = boot_all(&[config])?;
    let guest = &guests[0];
    let daemon = rig.daemon(&observer(&rig)?)?;
    wait_for_vm(&daemon, guest.name(), "its row is read", COMMAND_LIMIT, |row| {
        row["storage"].is_object()
    })?;
    // What is quiet after one command is so before the next.
    let mut before = quiet_requests(&daemon, guest)?;
    for (command, operations, kib) in [
        ("disk-read", 2000, 4),
        ("disk-write", 2000, 4),
        ("disk-read", 500, 64),
        ("disk-write", 500, 64),
    ] {
        guest.run(&format!("{command} {operations} {kib}"), COMMAND_LIMIT)?;
        let after = quiet_requests(&daemon, guest)?;
        let (shown, submitted) = (after.0.since(before.0), after.1.since(before.1));
        before = after;
        println!("aio={aio}: {command} {operations} {kib}: {shown:?}; QEMU: {submitted:?}");
        let bytes = operations * kib * 1024;
        let moved = if command == "disk-read" { submitted.0[1] } else { submitted.0[3] };
        ensure!(moved >= bytes, "{command}: the guest moved {moved} of {bytes} bytes");
        ensure!(shown.is_close_to(submitted), "{command}: shown {shown:?}, QEMU {submitted:?}");
    }
    let log = guest.log();
    ensure!(
        log.count(log.start(), "falling back") == 0,
        "QEMU went without aio={aio}: {}",
        log.text()
    );
    // Nothing in flight means something only where requests are followed at all.
    let followed = ["read_ops", "write_ops", "flush_ops", "discard_ops", "other_ops"]
        .into_iter()
        .map(|field| map_total(&rig, guest, field))
        .sum::<Result<u64>>()?
        - map_total(&rig, guest, "untracked_ops")?;
    let completed = map_total(&rig, guest, "completed_ops")?;
    // The kernel may skip a program, see the daemon's `lost_completions`: rarely, or the counts are worthless.
    let nearly_all = followed - followed / 100..=followed;
    ensure!(
        followed >= 5000 && nearly_all.contains(&completed),
        "{completed} of {followed} completed"
    );
    Ok(None)
}

fn two_disks() -> Result<()> {
    let rig = Rig::new()?;
    let configs = [rig.linux("reads", 1)?, rig.linux("writes", 2)?];
    for config in &configs {
        fill_disk(config)?;
    }
    let guests = boot_all(&configs)?;
    let daemon = rig.daemon(&observer(&rig)?)?;
    for guest in &guests {
        wait_for_vm(&daemon, guest.name(), "its row is read", COMMAND_LIMIT, |row| {
            row["storage"].is_object()
        })?;
    }
    let before =
        guests.iter().map(|guest| quiet_requests(&daemon, guest)).collect::<Result<Vec<_>>>()?;
    let marks = [guests[0].mark(), guests[1].mark()];
    guests[0].send("disk-read 4000 4")?;
    guests[1].send("disk-write 700 64")?;
    guests[0].wait_for_after(marks[0], "DONE disk-read", COMMAND_LIMIT)?;
    guests[1].wait_for_after(marks[1], "DONE disk-write", COMMAND_LIMIT)?;
    for (guest, (daemon_before, qemu_before)) in guests.iter().zip(before) {
        let (daemon_after, qemu_after) = quiet_requests(&daemon, guest)?;
        let shown = daemon_after.since(daemon_before);
        let submitted = qemu_after.since(qemu_before);
        println!("{}: {shown:?}; QEMU: {submitted:?}", guest.name());
        ensure!(shown.is_close_to(submitted), "{}: {shown:?}, QEMU {submitted:?}", guest.name());
        let [reads, _, writes, _] = shown.0;
        match guest.name() {
            "reads" => ensure!(reads >= 4000 && writes == 0, "it only read: {shown:?}"),
            _ => ensure!(writes >= 700 && reads == 0, "it only wrote: {shown:?}"),
        }
    }
    Ok(())
}
