//! What is told of a VM's memory is what its guest and its host say of it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{daemon::Daemon, guest::Guest, interrupt::wait_until};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::rig::{BOOT_LIMIT, Rig, boot_all, incidents_of, outer_resets, trial, wait_for_vm};

/// A guest is asked every 30 s, and its QEMU looked at every 10 s.
const TOLD_WITHIN: Duration = Duration::from_secs(45);
/// Of two figures that are taken at moments a little apart.
const SHARE: f64 = 0.01;

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("memory_is_told_as_the_guest_and_the_host_have_it", told)]
}

fn number(value: &Value) -> Result<f64> {
    value.as_f64().with_context(|| format!("{value} is no number"))
}

fn is_close(a: f64, b: f64) -> bool {
    (a - b).abs() <= SHARE * a.max(b)
}

/// What the guest says of itself: all that it has, and what of it is available.
fn meminfo(guest: &Guest) -> Result<[f64; 2]> {
    guest.run("meminfo", BOOT_LIMIT)?;
    let text = guest.log().text();
    let line =
        text.lines().rev().find_map(|line| line.split_once("MEMINFO ")).context("no MEMINFO")?;
    let kib = line.1.split_ascii_whitespace().map(str::parse::<f64>);
    let kib = kib.collect::<Result<Vec<_>, _>>()?;
    let [total, available] = kib[..] else { anyhow::bail!("{line:?}") };
    Ok([total * 1024.0, available * 1024.0])
}

fn host_has(guest: &Guest) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", guest.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<f64>()? * 1024.0)
}

fn check_host(daemon: &Daemon, guest: &Guest) -> Result<()> {
    wait_until(&format!("{}: its QEMU's memory", guest.name()), TOLD_WITHIN, || {
        let shown = number(&daemon.show(guest.name())?["memory"]["qemu_rss_bytes"])?;
        Ok(is_close(shown, host_has(guest)?).then_some(()))
    })
}

fn told() -> Result<()> {
    let rig = Rig::new()?;
    let mut tells = rig.linux("tells", 1)?;
    tells.balloon = true;
    let silent = rig.linux("has-no-balloon", 2)?;
    let mut thrashes = rig.linux("thrashes", 3)?;
    thrashes.balloon = true;
    thrashes.disk =
        Some(flatline_tests::guest::DiskConfig::new(rig.dir().join("swap.img"), 512 << 20));
    let daemon = rig.daemon(&rig.daemon_config()?)?;
    let guests = boot_all(&[tells, silent, thrashes])?;
    let [tells, silent, thrashes] = &guests[..] else { unreachable!() };
    thrashes.run("thrash 96", BOOT_LIMIT)?;
    let row = wait_for_vm(&daemon, "tells", "its memory", TOLD_WITHIN, |row| {
        row["memory"]["used_bytes"].is_u64() && row["memory"]["qemu_rss_bytes"].is_u64()
    })?;
    let (memory, own) = (&row["memory"], meminfo(tells)?);
    let shown = [number(&memory["total_bytes"])?, number(&memory["available_bytes"])?];
    println!("{memory}; by the guest: {own:?}");
    ensure!(shown[0] == own[0] && is_close(shown[1], own[1]), "{memory}, and not {own:?}");
    ensure!(number(&memory["used_bytes"])? == shown[0] - shown[1], "{memory}");
    ensure!(memory["thrashing"].is_null(), "{memory}");
    for guest in [tells, silent] {
        check_host(&daemon, guest)?;
    }
    let row = crate::rig::vm(&daemon, "has-no-balloon")?;
    ensure!(row["memory"]["total_bytes"].is_null() && row["memory"]["as_of"].is_null(), "{row}");

    let row = wait_for_vm(&daemon, "thrashes", "thrashing", TOLD_WITHIN * 3, |row| {
        row["memory"]["thrashing"].is_string()
    })?;
    println!("{}", row["memory"]);
    let named = row["reason"].as_str().is_some_and(|why| why.contains("it is thrashing"));
    ensure!(row["state"] == "alive" && named, "{row}");
    for guest in &guests {
        ensure!(incidents_of(&daemon, guest.name())?.is_empty(), "{}", daemon.log().text());
        ensure!(outer_resets(guest)?.is_empty(), "{} was reset", guest.name());
    }
    Ok(())
}
