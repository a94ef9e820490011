//! A living VM is not looked at: that one of its taps lost its programs is told by what the kernel counts there.

use std::{
    ffi::CString,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use flatline_tests::{interrupt, netns::Tap};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    counts::{SAMPLE_AGE, Traffic},
    foreign::detach_link,
    hubs::{SEEN_WITHIN, hub, hub_arguments, send, tap_of, wait_until_attached},
    rig::{Rig, incidents_of, trial, wait_for_vm},
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("programs_that_are_gone_from_a_living_vm_are_missed_by_the_kernels_counts", missed)]
}

fn received(tap: &Tap) -> Result<u64> {
    Ok(tap.counters()?.rx_packets)
}

/// The links that the daemon pinned for a tap.
fn links_of(rig: &Rig, tap: &Tap) -> Result<Vec<PathBuf>> {
    let name = CString::new(tap.name())?;
    // SAFETY: the name is a string with an end, and outlives the call.
    let ifindex = tap.inside(move || unsafe { libc::if_nametoindex(name.as_ptr()) })?;
    let mut links = Vec::new();
    for entry in std::fs::read_dir(rig.dir().join("bpf/flatline/links"))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("tap-") && name.contains(&format!("-{ifindex}-")) {
            links.push(path);
        }
    }
    Ok(links)
}

fn missed() -> Result<()> {
    let rig = Rig::new()?;
    let taps = [rig.netns.tap("tap1", None)?, rig.netns.tap("tap2", None)?];
    let mut config = hub(&rig, "lives-on", "")?;
    for (hub, tap) in (1..).zip(&taps) {
        config.extra_args.extend(hub_arguments(hub, &tap_of(hub, tap), 7000 + hub));
    }
    let _guest = config.start()?;
    let mut config = rig.daemon_config()?;
    config.boot_grace = Duration::from_secs(2);
    let daemon = rig.daemon(&config)?;
    wait_until_attached(&daemon, "lives-on", &["tap1", "tap2"])?;
    let both_send = || -> Result<()> {
        for (port, tap) in (7001..).zip(&taps) {
            send(&rig, tap, received, port, 3)?;
        }
        Ok(())
    };
    let begun = Instant::now();
    // Longer than it takes to be alive for good, and to be looked at because it was found.
    while begun.elapsed() < Duration::from_secs(6) {
        both_send()?;
        interrupt::sleep(Duration::from_millis(300))?;
    }
    wait_for_vm(&daemon, "lives-on", "alive", SEEN_WITHIN, |row| row["state"] == "alive")?;
    let links = links_of(&rig, &taps[0])?;
    ensure!(links.len() == 2, "pinned links: {links:?}");
    for link in &links {
        detach_link(link)?;
    }
    // It lives by the other one meanwhile.
    let begun = Instant::now();
    interrupt::wait_until("the loss to be noticed", SEEN_WITHIN, || {
        both_send()?;
        interrupt::sleep(Duration::from_millis(300))?;
        Ok(daemon.log().text().contains("somebody detached the programs on tap1").then_some(()))
    })?;
    println!("noticed after {:?}", begun.elapsed());
    let is_read = |row: &Value| row["network"].is_object();
    wait_for_vm(&daemon, "lives-on", "read again", SEEN_WITHIN, is_read)?;
    interrupt::sleep(SAMPLE_AGE * 2)?;
    let before = (Traffic::of_daemon(&daemon, "lives-on")?, Traffic::of_kernel(&taps[0])?);
    send(&rig, &taps[0], received, 7001, 100)?;
    interrupt::sleep(SAMPLE_AGE * 2)?;
    let shown = Traffic::of_daemon(&daemon, "lives-on")?.since(before.0);
    let passed = Traffic::of_kernel(&taps[0])?.since(before.1);
    ensure!(shown == passed, "attached again: shown {shown:?}, kernel {passed:?}");
    ensure!(incidents_of(&daemon, "lives-on")?.is_empty());
    Ok(())
}
