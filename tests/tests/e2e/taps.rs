//! A tap is the one that QEMU's descriptor is of, wherever it was moved to; and on kernels without tcx, what its owner
//! has on it goes on working beside flatline, and nothing of flatline's is left there.

use std::{
    io::ErrorKind,
    net::UdpSocket,
    os::unix::fs::MetadataExt as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    daemon::{Daemon, DaemonConfig},
    interrupt,
    netns::{Netns, Tap},
};
use libtest_mimic::Trial;
use monitor_ebpf::PROBE_MAC;
use serde_json::Value;

use crate::{
    counts::{SAMPLE_AGE, observer},
    hubs::{hub, hub_arguments, tap_of, wait_until_attached},
    lifecycle::tc,
    programs,
    rig::{Macvtap, Rig, trial, trial_that_may_skip, vm, wait_for_vm},
};

/// Longer than the daemon takes to look twice at a VM's taps.
const SEEN_WITHIN: Duration = Duration::from_secs(30);
/// Where the socket of the guest's hub listens, and where it sends to.
pub(crate) const TO_HUB: u16 = 7001;
const FROM_HUB: u16 = TO_HUB + 1000;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_tap_in_a_third_namespace_is_found_and_never_another_of_its_name", moved),
        trial("taps_whose_descriptors_can_not_be_asked_are_known_by_name_and_said_so", by_name),
        trial("somebody_elses_ingress_discipline_is_shared", ingress),
        trial_that_may_skip(
            "a_macvtap_with_an_ingress_discipline_is_unread_and_not_silent",
            macvtap,
        ),
        trial("a_half_made_attachment_is_taken_back", half_made),
        trial("nothing_is_left_in_clsact_of_taps_that_were_renamed_or_whose_vm_ended", left),
        trial("a_filter_that_takes_packets_before_ours_is_overtaken", overtaken),
    ]
}

/// A daemon that attaches as one does on kernels without tcx.
fn older(rig: &Rig) -> Result<DaemonConfig> {
    let mut config = observer(rig)?;
    config.extra_toml = "[probes]\ntap_hook = \"clsact\"".to_owned();
    Ok(config)
}

/// Has the guest send so many frames, one after the other.
fn send(rig: &Rig, frame: &[u8], times: u32) -> Result<()> {
    let frame = frame.to_vec();
    rig.netns.interface("lo").inside(move || -> Result<()> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        for _ in 0..times {
            socket.send_to(&frame, ("127.0.0.1", TO_HUB))?;
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    })?
}

/// Of a protocol that nothing uses.
fn some_frame() -> Vec<u8> {
    let mut frame = vec![0_u8; 64];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&MAC);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

/// As 10.7.0.2 sends it, to all.
fn arp(operation: u8, target: [u8; 6]) -> Vec<u8> {
    let head = [8, 6, 0, 1, 8, 0, 6, 4, 0, operation];
    [&[0xff; 6], &MAC[..], &head, &MAC, &[10, 7, 0, 2], &target, &[10, 7, 0, 1]].concat()
}

fn is_reported(daemon: &Daemon, words: &str) -> Result<bool> {
    let status = daemon.status()?;
    Ok(status["host"]["degraded"].as_str().is_some_and(|text| text.contains(words)))
}

/// Has the guest send, and waits until the daemon shows as many packets more.
pub(crate) fn check_counted(rig: &Rig, daemon: &Daemon, name: &str) -> Result<()> {
    let sent = |row: &Value| row["network"]["guest_tx_packets"].as_u64();
    let before = sent(&vm(daemon, name)?).with_context(|| format!("{name} is not read"))?;
    send(rig, &some_frame(), 20)?;
    let is_so = |row: &Value| sent(row) == Some(before + 20);
    wait_for_vm(daemon, name, "its packets", SEEN_WITHIN, is_so).map(drop)
}

fn wait_until_in(daemon: &Daemon, name: &str, netns: &Netns) -> Result<()> {
    let inode = std::fs::metadata(netns.path())?.ino().to_string();
    interrupt::wait_until(&format!("its tap in {}", netns.name()), SEEN_WITHIN, || {
        // It may not have been found yet.
        let Ok(shown) = daemon.show(name) else { return Ok(None) };
        let tap = &shown["taps"][0];
        Ok((tap["netns"] == inode && tap["attached"] == true).then_some(()))
    })
    .with_context(|| format!("{:?}\n{}", daemon.show(name), daemon.log().text()))?;
    wait_for_vm(daemon, name, "is read", SEEN_WITHIN, |row| row["network"].is_object()).map(drop)
}

fn moved() -> Result<()> {
    let rig = Rig::new()?;
    let (third, fourth) = (Netns::new()?, Netns::new()?);
    let tap = rig.netns.tap("tap1", None)?;
    let mut config = hub(&rig, "was-moved", "")?;
    config.extra_args.extend(hub_arguments(1, &tap_of(1, &tap), TO_HUB));
    let _guest = config.start()?;
    tap.set(&["netns", third.name()])?;
    third.interface("tap1").set(&["up"])?;
    // Another one has its name now where QEMU is.
    let other = rig.netns.tap("tap1", None)?;
    let mut config = observer(&rig)?;
    config.boot_grace = Duration::from_secs(2);
    let daemon = rig.daemon(&config)?;
    wait_until_in(&daemon, "was-moved", &third)?;
    ensure!(programs::on_tap(&other)?.is_empty(), "programs are on the other tap of that name");
    ensure!(programs::on_tap(&third.interface("tap1"))?.len() == 2);
    check_counted(&rig, &daemon, "was-moved")?;

    // It is also asked there, once it was seen to use an address.
    let asked = rig.netns.interface("lo").inside(|| UdpSocket::bind(("127.0.0.1", FROM_HUB)))??;
    asked.set_nonblocking(true)?;
    send(&rig, &arp(1, [0; 6]), 1)?;
    interrupt::wait_until("an ARP probe", SEEN_WITHIN, || {
        let mut frame = [0_u8; 2048];
        match asked.recv(&mut frame) {
            Ok(length) => {
                let is_probe =
                    frame[..length].get(6..14) == Some(&[&PROBE_MAC[..], &[8, 6]].concat());
                Ok(is_probe.then_some(()))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        }
    })?;
    send(&rig, &arp(2, PROBE_MAC), 1)?;
    wait_for_vm(&daemon, "was-moved", "its answer", SEEN_WITHIN, |row| {
        row["network"]["arp_answers"] == 1
    })?;

    // Moved once more, while it is watched.
    let tap = third.interface("tap1");
    tap.set(&["netns", fourth.name()])?;
    fourth.interface("tap1").set(&["up"])?;
    wait_until_in(&daemon, "was-moved", &fourth)?;
    ensure!(programs::on_tap(&other)?.is_empty(), "programs are on the other tap of that name");
    check_counted(&rig, &daemon, "was-moved")?;

    // Its namespace is its owner's to delete, and all taps go with it.
    drop(fourth);
    wait_until_attached(&daemon, "was-moved", &[])?;
    ensure!(is_reported(&daemon, "was-moved: not watched: tap without a name")?);
    Ok(())
}

fn by_name() -> Result<()> {
    let rig = Rig::new()?;
    let tap = rig.netns.tap("tap1", None)?;
    let mut config = hub(&rig, "is-named", "")?;
    config.extra_args.extend(hub_arguments(1, &tap_of(1, &tap), TO_HUB));
    let _guest = config.start()?;
    let mut config = observer(&rig)?;
    config.refused_call = Some(libc::SYS_pidfd_getfd);
    let daemon = rig.daemon(&config)?;
    wait_until_attached(&daemon, "is-named", &["tap1"])?;
    ensure!(is_reported(&daemon, "is-named: its taps are told by their names")?);
    ensure!(is_reported(&daemon, "Operation not permitted")?);
    check_counted(&rig, &daemon, "is-named")
}

/// All filters and disciplines of a tap, as `tc` tells of them.
fn on_tap(tap: &Tap) -> Result<String> {
    let mut all = tc(tap, &["qdisc", "show", "dev", tap.name()])?;
    for side in ["ingress", "egress"] {
        all.push_str(&tc(tap, &["filter", "show", "dev", tap.name(), side]).unwrap_or_default());
    }
    Ok(all)
}

/// A filter that takes all packets, so that none behind it sees any.
fn take_all(tap: &Tap, side: &str, more: &[&str]) -> Result<()> {
    let add = ["filter", "add", "dev", tap.name(), side, "protocol", "all"];
    let all = ["u32", "match", "u32", "0", "0", "flowid", "1:1"];
    tc(tap, &[&add[..], more, &all].concat()).map(drop)
}

fn ingress() -> Result<()> {
    let rig = Rig::new()?;
    let tap = rig.netns.tap("tap1", None)?;
    tc(&tap, &["qdisc", "add", "dev", "tap1", "ingress"])?;
    take_all(&tap, "ingress", &[])?;
    let before = on_tap(&tap)?;
    let mut config = hub(&rig, "is-policed", "")?;
    config.extra_args.extend(hub_arguments(1, &tap_of(1, &tap), TO_HUB));
    let _guest = config.start()?;
    let mut daemon = rig.daemon(&older(&rig)?)?;
    wait_until_attached(&daemon, "is-policed", &["tap1"])?;
    let shown = daemon.show("is-policed")?["taps"][0].clone();
    let detail = shown["detail"].as_str().unwrap_or_default();
    ensure!(shown["hook"] == "ingress" && detail.contains("sent to its guest"), "{shown}");
    ensure!(is_reported(&daemon, "is-policed: tap tap1: what is sent to its guest")?);
    check_counted(&rig, &daemon, "is-policed")?;
    let row = vm(&daemon, "is-policed")?;
    ensure!(row["network"]["guest_rx_packets"].is_null(), "missing is not zero: {row}");
    ensure!(on_tap(&tap)?.contains("tap_from_guest") && !on_tap(&tap)?.contains("tap_to_guest"));
    // Removed by its owner, it makes room for both directions.
    tc(&tap, &["qdisc", "del", "dev", "tap1", "ingress"])?;
    let is_whole = |row: &Value| row["network"]["guest_rx_packets"].is_u64();
    wait_for_vm(&daemon, "is-policed", "both directions", SEEN_WITHIN, is_whole)?;
    ensure!(daemon.show("is-policed")?["taps"][0]["hook"] == "clsact");
    // Which it has again when the daemon has ended.
    ensure!(daemon.terminate()?.success());
    tc(&tap, &["qdisc", "add", "dev", "tap1", "ingress"])?;
    take_all(&tap, "ingress", &[])?;
    daemon.start_again()?;
    wait_until_attached(&daemon, "is-policed", &["tap1"])?;
    ensure!(daemon.terminate()?.success());
    ensure!(on_tap(&tap)? == before, "{}, before {before}", on_tap(&tap)?);
    Ok(())
}

fn macvtap() -> Result<Option<String>> {
    let rig = Rig::new()?;
    let Macvtap { tap, device } = match Macvtap::new(&rig.netns)? {
        Ok(macvtap) => macvtap,
        Err(why) => return Ok(Some(why)),
    };
    tc(&tap, &["qdisc", "add", "dev", "mv1", "ingress"])?;
    let before = on_tap(&tap)?;
    let mut config = hub(&rig, "is-halved", &format!("exec 9<>{}", device.display()))?;
    config.extra_args = hub_arguments(1, "tap,id=t1,fd=9", TO_HUB);
    let _guest = config.start()?;
    let mut config = older(&rig)?;
    config.boot_grace = Duration::from_secs(2);
    let daemon = rig.daemon(&config)?;
    interrupt::wait_until("what is not counted", SEEN_WITHIN, || {
        let said = "is-halved: tap mv1 is not counted: what its guest sends cannot be counted";
        Ok(is_reported(&daemon, said)?.then_some(()))
    })?;
    let unread = |row: &Value| row["state"] == "unobservable";
    let row = wait_for_vm(&daemon, "is-halved", "unobservable", SEEN_WITHIN, unread)?;
    ensure!(row["network"].is_null(), "{row}");
    let reason = row["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("an ingress discipline"), "the reason is another: {reason}");
    ensure!(on_tap(&tap)? == before, "{}, before {before}", on_tap(&tap)?);
    Ok(None)
}

fn half_made() -> Result<()> {
    let rig = Rig::new()?;
    let tap = rig.netns.tap("tap1", None)?;
    tc(&tap, &["qdisc", "add", "dev", "tap1", "clsact"])?;
    // At the first priority there is none before it, and ours is another kind's: the second program is refused.
    let ours = 0xf1a7.to_string();
    take_all(&tap, "egress", &["prio", "1"])?;
    let without = on_tap(&tap)?;
    take_all(&tap, "egress", &["prio", &ours])?;
    let before = on_tap(&tap)?;
    let mut config = hub(&rig, "is-refused", "")?;
    config.extra_args.extend(hub_arguments(1, &tap_of(1, &tap), TO_HUB));
    let _guest = config.start()?;
    let mut daemon = rig.daemon(&older(&rig)?)?;
    interrupt::wait_until("the refusal", SEEN_WITHIN, || {
        Ok(daemon.log().text().contains("not attached: cannot attach tap_to_guest").then_some(()))
    })?;
    // It is tried again and again, and stands half made for a moment each time.
    interrupt::wait_until("what was made to be taken back", SEEN_WITHIN, || {
        Ok((on_tap(&tap)? == before).then_some(()))
    })
    .with_context(|| format!("{:?}, before {before}", on_tap(&tap)))?;
    ensure!(is_reported(&daemon, "is-refused: tap tap1 is not counted")?);
    ensure!(vm(&daemon, "is-refused")?["network"].is_null());
    // The kernel lists a discipline's filters by its own, so they go by their priority.
    tc(&tap, &["filter", "del", "dev", "tap1", "egress", "prio", &ours])?;
    wait_until_attached(&daemon, "is-refused", &["tap1"])?;
    check_counted(&rig, &daemon, "is-refused")?;
    ensure!(daemon.terminate()?.success());
    ensure!(on_tap(&tap)? == without, "{}, before {without}", on_tap(&tap)?);
    Ok(())
}

fn left() -> Result<()> {
    let rig = Rig::new()?;
    let [first, second] = [rig.netns.tap("tap1", None)?, rig.netns.tap("tap2", None)?];
    let mut config = hub(&rig, "goes-on", "")?;
    config.extra_args.extend(hub_arguments(1, &tap_of(1, &first), TO_HUB));
    let _guest = config.start()?;
    let mut config = hub(&rig, "ends", "")?;
    config.extra_args.extend(hub_arguments(2, &tap_of(2, &second), TO_HUB + 1));
    let ends = config.start()?;
    let before = [on_tap(&first)?, on_tap(&second)?];
    let mut daemon = rig.daemon(&older(&rig)?)?;
    wait_until_attached(&daemon, "goes-on", &["tap1"])?;
    wait_until_attached(&daemon, "ends", &["tap2"])?;
    ensure!(on_tap(&second)?.contains("tap_from_guest"), "{}", on_tap(&second)?);
    daemon.kill()?;
    // Its tap stays.
    drop(ends);
    daemon.start_again()?;
    wait_until_attached(&daemon, "goes-on", &["tap1"])?;
    first.set(&["down"])?;
    first.set(&["name", "renamed"])?;
    let renamed = rig.netns.interface("renamed");
    renamed.set(&["up"])?;
    // Another one bears its name, with the discipline that its owner gave it.
    let other = rig.netns.tap("tap1", None)?;
    tc(&other, &["qdisc", "add", "dev", "tap1", "clsact"])?;
    let others = on_tap(&other)?;
    wait_until_attached(&daemon, "goes-on", &["renamed"])?;
    ensure!(daemon.terminate()?.success());
    let after = [on_tap(&renamed)?, on_tap(&second)?];
    ensure!(after == before, "left: {after:?}, before {before:?}");
    ensure!(on_tap(&other)? == others, "{}, before {others}", on_tap(&other)?);
    Ok(())
}

fn overtaken() -> Result<()> {
    let rig = Rig::new()?;
    let tap = rig.netns.tap("tap1", None)?;
    let mut config = hub(&rig, "is-mirrored", "")?;
    config.extra_args.extend(hub_arguments(1, &tap_of(1, &tap), TO_HUB));
    let _guest = config.start()?;
    let daemon = rig.daemon(&older(&rig)?)?;
    wait_until_attached(&daemon, "is-mirrored", &["tap1"])?;
    check_counted(&rig, &daemon, "is-mirrored")?;
    // Without a priority it comes to stand before all others.
    take_all(&tap, "ingress", &[])?;
    let begun = Instant::now();
    let said = "another program takes its packets and does not hand them on: a filter of priority";
    interrupt::wait_until("the theft to be noticed", SEEN_WITHIN, || {
        send(&rig, &some_frame(), 5)?;
        Ok(daemon.log().text().contains(said).then_some(()))
    })?;
    println!("noticed after {:?}", begun.elapsed());
    wait_for_vm(&daemon, "is-mirrored", "read again", SEEN_WITHIN, |row| {
        row["network"].is_object()
    })?;
    // What is shown is up to a second old, and packets were sent just now.
    interrupt::sleep(SAMPLE_AGE)?;
    check_counted(&rig, &daemon, "is-mirrored")
}
