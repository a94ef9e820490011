//! Frames that only look like beats, and more of them than are of use: from a guest that was taken over.
//!
//! They are sent by a real QEMU into its tap, whose network is a hub between the tap and a socket of the test's.

use std::{
    net::UdpSocket,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    capture::Capture,
    daemon::free_address,
    guest::GuestConfig,
    interrupt::{sleep, wait_until},
    netns::Tap,
};
use libtest_mimic::Trial;
use monitor_ebpf::heartbeat::{
    CHECK_NAME_BYTES, FLAG_LEAVING, HEARTBEAT_ETHERTYPE, HEARTBEAT_FRAME_BYTES, HEARTBEAT_MAGIC,
    HEARTBEAT_VERSION, Heartbeat, frame,
};
use serde_json::Value;

use super::{COMMAND_LIMIT, start_agent, wait_for_beats};
use crate::{
    counts::map_total,
    hubs::{hub, hub_arguments, tap_of, wait_until_attached},
    metrics::{of_vm, scrape},
    rig::{BOOT_LIMIT, MARGIN, Rig, incidents_of, outer_resets, trial, vm, wait_for_vm},
};

const MAC: [u8; 6] = [0x52, 0x54, 0, 0xf1, 0xa7, 0x77];
const PORT: u16 = 7100;
const FLOOD_FOR: Duration = Duration::from_secs(5);

pub(super) fn trials() -> Vec<Trial> {
    vec![trial("forged_malformed_and_flooding_beats_are_dropped_and_hurt_nobody_else", hostile)]
}

fn beat() -> Heartbeat {
    Heartbeat {
        magic: HEARTBEAT_MAGIC,
        version: HEARTBEAT_VERSION,
        flags: 0,
        reserved: [0; 2],
        interval_ms: 1000_u32.to_be_bytes(),
        boot: [7; 8],
        sequence: 1_u64.to_be_bytes(),
        check: [0; CHECK_NAME_BYTES],
    }
}

/// Frames that begin like a beat, and are none.
fn malformed() -> Vec<Vec<u8>> {
    let whole = |beat: Heartbeat| frame(MAC, &beat).to_vec();
    let cut = |bytes: usize| {
        let mut cut = whole(beat());
        cut.truncate(bytes);
        cut
    };
    vec![
        whole(Heartbeat { version: 0, ..beat() }),
        whole(Heartbeat { version: 255, ..beat() }),
        whole(Heartbeat { flags: 0x80, ..beat() }),
        whole(Heartbeat { interval_ms: [0; 4], ..beat() }),
        cut(HEARTBEAT_FRAME_BYTES - 1),
        cut(18),
    ]
}

fn hostile() -> Result<()> {
    let rig = Rig::new()?;
    rig.netns.ip(&["link", "add", "bridge", "type", "bridge"])?;
    rig.netns.ip(&["link", "set", "bridge", "up"])?;
    let tap = rig.netns.tap("hostile", None)?;
    tap.set(&["master", "bridge"])?;
    let mut taken_over = hub(&rig, "taken-over", "true")?;
    taken_over.extra_args.extend(hub_arguments(1, &tap_of(1, &tap), PORT));
    let mut healthy = rig.linux("healthy", 2)?;
    healthy.tap.as_ref().context("it has a tap")?.set(&["master", "bridge"])?;
    healthy.name = "healthy".to_owned();
    let configs = [taken_over, healthy];
    let mut config = rig.daemon_config()?;
    let address = free_address()?;
    config.metrics = address.to_string();
    let daemon = rig.daemon(&config)?;
    let guests = configs.iter().map(GuestConfig::start).collect::<Result<Vec<_>>>()?;
    guests[1].wait_until_booted(BOOT_LIMIT)?;
    start_agent(&guests[1], "")?;
    let before = wait_for_beats(&daemon, &guests[1])?;
    wait_until_attached(&daemon, "taken-over", &["hostile"])?;
    let bridge = Capture::start(&rig.netns.interface("bridge"))?;

    // In the healthy guest's name, with its boot's number: going down, so that it would not be missed.
    let boot = before["heartbeat"]["boot"].as_str().context("no boot")?;
    let boot = u64::from_str_radix(boot, 16)?.to_be_bytes();
    let forged = frame(MAC, &Heartbeat { boot, flags: FLAG_LEAVING, ..beat() });
    let mut frames = malformed();
    frames.push(forged.to_vec());
    // A tag makes no difference, and this one is later.
    let plain = frame(MAC, &Heartbeat { boot, flags: FLAG_LEAVING, ..beat() });
    frames.push([&plain[..12], &[0x81, 0, 0, 7], &plain[12..]].concat());
    // Another use of the number is none of the daemon's concern, and goes on to the bridge.
    let mut other = frame(MAC, &beat()).to_vec();
    other[..6].fill(0xff);
    other[14..18].copy_from_slice(b"else");
    frames.push(other);
    send(&rig, frames)?;
    let row = wait_for_vm(&daemon, "taken-over", "counted", MARGIN, |row| {
        row["heartbeat"]["malformed"] == malformed().len() && row["heartbeat"]["leaving"] == true
    })?;
    ensure!(row["heartbeat"]["boot"] == before["heartbeat"]["boot"], "{row}");
    let taken = map_total(&rig, &guests[0], "heartbeats")?;
    ensure!(taken == 2, "{taken} of two beats were taken off, one of them in a VLAN");
    let row = wait_for_vm(&daemon, "healthy", "alive", MARGIN, |row| row["state"] == "alive")?;
    ensure!(row["heartbeat"]["leaving"] == false, "{row}");
    let seen = bridge.frames()?;
    let of_kind = |frame: &&Vec<u8>| frame.get(12..14) == Some(&HEARTBEAT_ETHERTYPE.to_be_bytes());
    let seen: Vec<_> = seen.iter().filter(of_kind).collect();
    ensure!(seen.len() == 1 && seen[0].get(14..18) == Some(b"else"), "the bridge saw {seen:x?}");

    flood(&rig, &tap)?;
    let row = vm(&daemon, "healthy")?;
    ensure!(row["state"] == "alive" && row["cause"].is_null(), "{row}");
    let beats = |row: &Value| row["heartbeat"]["beats"].as_u64();
    ensure!(beats(&row) > beats(&before) && row["heartbeat"]["malformed"] == 0, "{row}");
    let begin = Instant::now();
    daemon.status()?;
    println!("status took {:.1?} after it", begin.elapsed());
    // No beat comes after these, which alone would have them looked at.
    send(&rig, malformed())?;
    sleep(Duration::from_secs(1))?;
    let told = vm(&daemon, "taken-over")?["heartbeat"]["malformed"].as_f64();
    wait_until("the last malformed frames to be served", MARGIN * 2, || {
        let served = of_vm(&scrape(address)?, "heartbeats_malformed_total", "taken-over", &[])?;
        Ok((served == told).then_some(()))
    })?;
    ensure!(incidents_of(&daemon, "healthy")?.is_empty(), "{}", daemon.log().text());
    ensure!(outer_resets(&guests[1])?.is_empty(), "it was reset");
    guests[1].run("idle", COMMAND_LIMIT)?;
    Ok(())
}

/// Hands QEMU each frame, which sends it into the tap.
fn send(rig: &Rig, frames: Vec<Vec<u8>>) -> Result<()> {
    rig.netns.interface("lo").inside(move || -> Result<()> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        for frame in &frames {
            socket.send_to(frame, ("127.0.0.1", PORT))?;
        }
        Ok(())
    })?
}

/// As many beats and malformed frames as QEMU passes on.
fn flood(rig: &Rig, tap: &Tap) -> Result<()> {
    let before = tap.counters()?.rx_packets;
    let begin = Instant::now();
    rig.netns.interface("lo").inside(move || -> Result<()> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        let frames = [frame(MAC, &beat()).to_vec(), malformed().swap_remove(0)];
        while begin.elapsed() < FLOOD_FOR {
            for frame in frames.iter().cycle().take(512) {
                // A full buffer is QEMU's own limit.
                let _ = socket.send_to(frame, ("127.0.0.1", PORT));
            }
        }
        Ok(())
    })??;
    let passed = tap.counters()?.rx_packets - before;
    let rate = passed as f64 / begin.elapsed().as_secs_f64();
    println!("{passed} frames came through the tap, {rate:.0} a second");
    ensure!(passed > 10_000, "QEMU passed on {passed}");
    Ok(())
}
