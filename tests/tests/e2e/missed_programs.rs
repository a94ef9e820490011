//! A living VM is not looked at: what happens to its taps is told by news of their interfaces, and that one lost its programs by
//! what the kernel counts there.

use std::{
    ffi::CString,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{daemon::Daemon, guest::Guest, interrupt, netns::Tap};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    counts::{SAMPLE_AGE, Traffic},
    foreign::detach_link,
    hubs::{SEEN_WITHIN, hub, hub_arguments, plug, send, tap_of, unplug, wait_until_attached},
    rig::{Rig, incidents_of, trial, wait_for_vm},
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("programs_that_are_gone_from_a_living_vm_are_missed_by_the_kernels_counts", missed),
        trial("taps_of_a_living_vm_are_followed_within_seconds", followed),
    ]
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

/// A VM that lives by what it sends on its taps, and a daemon that ticks once a second.
struct Scene {
    rig: Rig,
    guest: Guest,
    daemon: Daemon,
    taps: [Tap; 2],
}

impl Scene {
    fn new() -> Result<Self> {
        let rig = Rig::new()?;
        let taps = [rig.netns.tap("tap1", None)?, rig.netns.tap("tap2", None)?];
        let mut config = hub(&rig, "lives-on", "")?;
        for (hub, tap) in (1..).zip(&taps) {
            config.extra_args.extend(hub_arguments(hub, &tap_of(hub, tap), 7000 + hub));
        }
        let guest = config.start()?;
        let mut config = rig.daemon_config()?;
        config.boot_grace = Duration::from_secs(2);
        let daemon = rig.daemon(&config)?;
        wait_until_attached(&daemon, "lives-on", &["tap1", "tap2"])?;
        let scene = Self { rig, guest, daemon, taps };
        let begun = Instant::now();
        // Longer than it takes to be alive for good, and to be looked at because it was found.
        while begun.elapsed() < Duration::from_secs(6) {
            scene.lives(7001..)?;
        }
        let is_alive = |row: &Value| row["state"] == "alive";
        wait_for_vm(&scene.daemon, "lives-on", "alive", SEEN_WITHIN, is_alive)?;
        Ok(scene)
    }

    /// It sends on those of its taps that the ports are of.
    fn lives(&self, ports: impl Iterator<Item = u16>) -> Result<()> {
        for port in ports.take_while(|port| *port <= 7002) {
            send(&self.rig, &self.taps[usize::from(port - 7001)], received, port, 3)?;
        }
        interrupt::sleep(Duration::from_millis(300))
    }

    /// Waits until these are the taps that are counted, while it lives by the second one.
    fn wait_until_taps_are(&self, what: &str, wanted: &[&str]) -> Result<()> {
        let begun = Instant::now();
        interrupt::wait_until(what, WITHIN, || {
            self.lives(7002..)?;
            let shown = self.daemon.show("lives-on")?;
            let taps = shown["taps"].as_array().context("it has no taps")?;
            let counted = taps.iter().filter(|tap| tap["attached"] == true);
            let mut names: Vec<&str> = counted.filter_map(|tap| tap["name"].as_str()).collect();
            names.sort_unstable();
            Ok((names == wanted && names.len() == taps.len()).then_some(()))
        })?;
        println!("{what} after {:?}", begun.elapsed());
        Ok(())
    }
}

/// Two ticks until the news is read and the VM looked at, two more for a tap that is no VM's yet; and a look at a VM by itself
/// would take up to a minute.
const WITHIN: Duration = Duration::from_secs(8);

fn followed() -> Result<()> {
    let scene = Scene::new()?;
    let Scene { rig, guest, taps: [first, _], .. } = &scene;
    first.set(&["down"])?;
    first.set(&["name", "renamed"])?;
    scene.wait_until_taps_are("a tap is renamed", &["renamed", "tap2"])?;
    let _third = rig.netns.tap("tap3", None)?;
    plug(guest, 3, "tap3", 7003)?;
    scene.wait_until_taps_are("a tap is plugged in", &["renamed", "tap2", "tap3"])?;
    unplug(guest, 3)?;
    scene.wait_until_taps_are("a tap is unplugged", &["renamed", "tap2"])?;
    let first = rig.netns.interface("renamed");
    first.set(&["up"])?;
    rig.netns.ip(&["link", "delete", "renamed"])?;
    scene.wait_until_taps_are("a tap is deleted", &["tap2"])?;
    ensure!(incidents_of(&scene.daemon, "lives-on")?.is_empty());
    Ok(())
}

/// Counts are compared every twenty ticks, and none of a VM before the first time.
const MISSED_WITHIN: Duration = Duration::from_secs(45);

fn missed() -> Result<()> {
    let scene = Scene::new()?;
    let Scene { rig, daemon, taps, .. } = &scene;
    let links = links_of(rig, &taps[0])?;
    ensure!(links.len() == 2, "pinned links: {links:?}");
    for link in &links {
        detach_link(link)?;
    }
    // It lives by the other one meanwhile.
    let begun = Instant::now();
    interrupt::wait_until("the loss to be noticed", MISSED_WITHIN, || {
        scene.lives(7001..)?;
        Ok(daemon.log().text().contains("somebody detached the programs on tap1").then_some(()))
    })?;
    println!("noticed after {:?}", begun.elapsed());
    let is_read = |row: &Value| row["network"].is_object();
    wait_for_vm(daemon, "lives-on", "read again", SEEN_WITHIN, is_read)?;
    interrupt::sleep(SAMPLE_AGE * 2)?;
    let before = (Traffic::of_daemon(daemon, "lives-on")?, Traffic::of_kernel(&taps[0])?);
    send(rig, &taps[0], received, 7001, 100)?;
    interrupt::sleep(SAMPLE_AGE * 2)?;
    let shown = Traffic::of_daemon(daemon, "lives-on")?.since(before.0);
    let passed = Traffic::of_kernel(&taps[0])?.since(before.1);
    ensure!(shown == passed, "attached again: shown {shown:?}, kernel {passed:?}");
    ensure!(incidents_of(daemon, "lives-on")?.is_empty());
    Ok(())
}
