//! QEMUs whose networks are hubs between a tap and a UDP socket: they send what a test writes to the socket, with no guest.

use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::boot_sector::BootSector;
use flatline_tests::daemon::Daemon;
use flatline_tests::guest::{Accelerator, Guest, GuestConfig};
use flatline_tests::interrupt;
use flatline_tests::netns::Tap;
use serde_json::{Value, json};

use crate::rig::Rig;

/// Longer than the daemon takes to look at a VM's taps again, which it does every ten of its ticks.
pub(crate) const SEEN_WITHIN: Duration = Duration::from_secs(15);

/// A QEMU in the rig's namespace whose networks are hubs between a tap and a UDP socket, so that it sends as
/// fast as it is told to. `first` is a shell command that runs before it.
pub(crate) fn hub(rig: &Rig, name: &str, first: &str) -> Result<GuestConfig> {
    rig.netns.ip(&["link", "set", "lo", "up"])?;
    let [program, option] = rig.netns.enter_prefix().map(|word| word.display().to_string());
    let path = rig.dir().join(format!("{name}-inside"));
    let qemu = rig.qemu.display();
    std::fs::write(
        &path,
        format!("#!/bin/sh\n{first}\nexec {program} {option} -- {qemu} \"$@\"\n"),
    )?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    let mut config = rig.boot_sector(name, BootSector::StiHlt, Accelerator::Tcg);
    config.executable = path;
    Ok(config)
}

/// What a hub is made of: a tap (as QEMU's `-netdev` has it), and a socket that listens at `port`.
pub(crate) fn hub_arguments(hub: u16, tap: &str, port: u16) -> Vec<String> {
    let socket =
        format!("socket,id=s{hub},udp=127.0.0.1:{},localaddr=127.0.0.1:{port}", port + 1000);
    let ports =
        ["t", "s"].map(|kind| format!("hubport,id=h{kind}{hub},hubid={hub},netdev={kind}{hub}"));
    [tap.to_owned(), socket]
        .into_iter()
        .chain(ports)
        .flat_map(|netdev| ["-netdev".to_owned(), netdev])
        .collect()
}

/// A tap for a hub, as QEMU's `-netdev` has it.
pub(crate) fn tap_of(hub: u16, tap: &Tap) -> String {
    format!("tap,id=t{hub},ifname={},script=no,downscript=no", tap.name())
}

/// Plugs such a hub into a QEMU that runs.
pub(crate) fn plug(guest: &Guest, hub: u16, tap: &str, port: u16) -> Result<()> {
    let remote = format!("127.0.0.1:{}", port + 1000);
    for netdev in [
        json!({"type": "tap", "id": format!("t{hub}"), "ifname": tap, "script": "no",
            "downscript": "no"}),
        json!({"type": "socket", "id": format!("s{hub}"), "udp": remote,
            "localaddr": format!("127.0.0.1:{port}")}),
        json!({"type": "hubport", "id": format!("ht{hub}"), "hubid": hub,
            "netdev": format!("t{hub}")}),
        json!({"type": "hubport", "id": format!("hs{hub}"), "hubid": hub,
            "netdev": format!("s{hub}")}),
    ] {
        guest.qmp("netdev_add", &netdev)?;
    }
    Ok(())
}

/// Takes it out again.
pub(crate) fn unplug(guest: &Guest, hub: u16) -> Result<()> {
    for kind in ["ht", "hs", "t", "s"] {
        guest.qmp("netdev_del", &json!({"id": format!("{kind}{hub}")}))?;
    }
    Ok(())
}

/// Makes the QEMU whose socket listens at `port` send so many frames into its tap; returns once the kernel
/// has counted nearly all: a datagram may be lost on its way to QEMU.
pub(crate) fn send(
    rig: &Rig,
    tap: &Tap,
    counter: fn(&Tap) -> Result<u64>,
    port: u16,
    frames: u64,
) -> Result<()> {
    let inside = rig.netns.interface("lo");
    let before = counter(tap)?;
    let (mut sent, begin) = (0, Instant::now());
    while counter(tap)? < before + frames {
        ensure!(begin.elapsed() < Duration::from_secs(60), "QEMU sends nothing");
        inside.inside(move || -> Result<()> {
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            let mut frame = [0_u8; 64];
            frame[..6].fill(0xff);
            frame[6..14].copy_from_slice(&[2, 0, 0, 0, 0, 7, 0x88, 0xb5]);
            for n in 0..frames.min(20_000) {
                socket.send_to(&frame, ("127.0.0.1", port))?;
                if n % 64 == 63 {
                    // A socket's buffer holds some 250 datagrams of this size.
                    std::thread::sleep(Duration::from_micros(200));
                }
            }
            Ok(())
        })??;
        sent += frames.min(20_000);
    }
    println!("{}: {sent} datagrams for {frames} frames", tap.name());
    Ok(())
}

/// Waits until all of these taps, and no others, are attached.
pub(crate) fn wait_until_attached(daemon: &Daemon, name: &str, taps: &[&str]) -> Result<()> {
    let mut shown = Value::Null;
    let mut wanted: Vec<&str> = taps.to_vec();
    wanted.sort_unstable();
    interrupt::wait_until("its taps", SEEN_WITHIN, || {
        shown = daemon.show(name).unwrap_or_default();
        let rows = shown["taps"].as_array().cloned().unwrap_or_default();
        let mut names: Vec<&str> = rows
            .iter()
            .filter(|row| row["attached"] == true)
            .filter_map(|row| row["name"].as_str())
            .collect();
        names.sort_unstable();
        let counted = shown["network"].is_object() || taps.is_empty();
        Ok((names == wanted && names.len() == rows.len() && counted).then_some(()))
    })
    .with_context(|| format!("{name}: not {taps:?} but {}", shown["taps"]))
}
