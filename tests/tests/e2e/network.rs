//! Every packet of every kind of tap is counted for its VM, whatever happens to the tap meanwhile, and
//! other people's programs on it go on working.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    broadcast::{Broadcast, flood},
    daemon::Daemon,
    interrupt,
    netns::Tap,
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    counts::{SAMPLE_AGE, Traffic, observer},
    foreign::{Foreign, Place, Verdict, detach_link},
    hubs::{SEEN_WITHIN, hub, hub_arguments, plug, send, tap_of, unplug, wait_until_attached},
    lifecycle::tc,
    rig::{
        BOOT_LIMIT, Macvtap, OFTEN, Rig, boot_all, incidents_of, trial, trial_that_may_skip, vm,
        wait_for_vm,
    },
};

/// Packets in each direction for the great count.
const MANY: u64 = 500_000;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_million_packets_are_counted_beside_other_peoples_programs", a_million),
        trial("taps_that_are_plugged_renamed_and_made_again_are_counted_on", plugged),
        trial("a_tap_with_several_queues_is_counted_once", several_queues),
        trial_that_may_skip("a_macvtap_is_counted_the_right_way_round", macvtap),
        trial("programs_that_somebody_detached_are_noticed_and_attached_again", detached),
        trial("packets_that_another_program_takes_first_are_missed_and_not_zero", taken),
    ]
}

fn received(tap: &Tap) -> Result<u64> {
    Ok(tap.counters()?.rx_packets)
}

/// The daemon's figures and the kernel's for these taps together, once nothing moves any more.
fn check_equal(daemon: &Daemon, name: &str, taps: &[&Tap], since: Traffic) -> Result<Traffic> {
    let kernels = || {
        taps.iter()
            .try_fold(Traffic::default(), |sum, tap| anyhow::Ok(sum + Traffic::of_kernel(tap)?))
    };
    let limit = Instant::now() + Duration::from_secs(40);
    loop {
        let before = kernels()?;
        interrupt::sleep(SAMPLE_AGE)?;
        let daemons = Traffic::of_daemon(daemon, name)?;
        if kernels()? == before {
            let kernels = before.since(since);
            println!("{name}: {daemons:?}; kernel: {kernels:?}");
            ensure!(daemons == kernels, "{name}: shown {daemons:?}, kernel {kernels:?}");
            return Ok(daemons);
        }
        ensure!(Instant::now() < limit, "{name}: never quiet");
    }
}

fn observing(rig: &Rig) -> Result<Daemon> {
    rig.daemon(&observer(rig)?)
}

fn a_million() -> Result<()> {
    let rig = Rig::new()?;
    let taps = [rig.netns.tap("tap1", None)?, rig.netns.tap("tap2", None)?];
    let mut config = hub(&rig, "sends-much", "")?;
    for (hub, tap) in (1..).zip(&taps) {
        config.extra_args.extend(hub_arguments(hub, &tap_of(hub, tap), 7000 + hub));
    }
    // One more whose packets can't be seen.
    config.extra_args.extend(["-netdev", "user,id=u"].map(str::to_owned));
    let _guest = config.start()?;
    rig.netns.ip(&["link", "add", "sink", "type", "veth", "peer", "name", "drain"])?;
    for name in ["sink", "drain"] {
        rig.netns.ip(&["link", "set", name, "up"])?;
    }
    let filters = [true, false];
    for from_guest in filters {
        add_filter(&taps[0], from_guest)?;
    }
    let early = [true, false]
        .map(|from_guest| Foreign::attach(&taps[0], from_guest, Place::First, Verdict::HandOn));
    let daemon = observing(&rig)?;
    wait_until_attached(&daemon, "sends-much", &["tap1", "tap2"])?;
    let unseen = daemon.show("sends-much")?["unseen_networks"].clone();
    ensure!(unseen.as_str().is_some_and(|unseen| unseen.contains("user")), "unseen: {unseen}");
    let late = [true, false]
        .map(|from_guest| Foreign::attach(&taps[0], from_guest, Place::Last, Verdict::HandOn));
    let before = check_equal(&daemon, "sends-much", &[&taps[0], &taps[1]], Traffic::default())?;

    send(&rig, &taps[0], received, 7001, MANY)?;
    flood(&taps[0], MANY)?;
    send(&rig, &taps[1], received, 7002, 1000)?;
    flood(&taps[1], 2000)?;
    let after = check_equal(&daemon, "sends-much", &[&taps[0], &taps[1]], Traffic::default())?;
    let [sent, _, received, _] = after.since(before).figures();
    ensure!(sent >= MANY + 1000 && received >= MANY + 2000, "{after:?}");
    let kernel = taps[0].counters()?;
    for from_guest in filters {
        let seen = filtered(&taps[0], from_guest)?;
        ensure!(
            seen >= MANY,
            "the administrator's filter saw {seen}, from the guest: {from_guest}"
        );
    }
    for (foreign, what) in
        early.into_iter().chain(late).zip(["early from", "early to", "late from", "late to"])
    {
        let (seen, passed) = (
            foreign?.packets()?,
            if what.ends_with("from") { kernel.rx_packets } else { kernel.tx_packets },
        );
        ensure!(seen >= MANY && seen <= passed, "{what}: saw {seen} of {passed}");
    }
    Ok(())
}

/// What an administrator's own filter looks like: it copies all packets to another interface.
fn add_filter(tap: &Tap, from_guest: bool) -> Result<()> {
    // There is one for both directions.
    let _ = tc(tap, &["qdisc", "add", "dev", tap.name(), "clsact"]);
    let all = ["protocol", "all", "u32", "match", "u32", "0", "0"];
    let mirror = ["action", "mirred", "egress", "mirror", "dev", "sink"];
    let add = ["filter", "add", "dev", tap.name(), direction(from_guest)];
    tc(tap, &[&add[..], &all, &mirror].concat())?;
    Ok(())
}

fn direction(from_guest: bool) -> &'static str {
    if from_guest { "ingress" } else { "egress" }
}

/// Packets that the filter saw.
fn filtered(tap: &Tap, from_guest: bool) -> Result<u64> {
    let show = ["-j", "-s", "filter", "show", "dev", tap.name(), direction(from_guest)];
    let filters: Value = serde_json::from_str(&tc(tap, &show)?)?;
    let filters = filters.as_array().context("no list of filters")?;
    let packets =
        |filter: &Value| filter.pointer("/options/actions/0/stats/packets").and_then(Value::as_u64);
    filters.iter().find_map(packets).with_context(|| format!("no packets in {filters:?}"))
}

fn plugged() -> Result<()> {
    let rig = Rig::new()?;
    let first = rig.netns.tap("tap1", None)?;
    let mut config = hub(&rig, "plugs", "")?;
    config.extra_args.extend(hub_arguments(1, &tap_of(1, &first), 7001));
    let guest = config.start()?;
    let daemon = observing(&rig)?;
    wait_until_attached(&daemon, "plugs", &["tap1"])?;
    send(&rig, &first, received, 7001, 100)?;
    check_equal(&daemon, "plugs", &[&first], Traffic::default())?;

    // A second one, plugged in while it runs.
    let second = rig.netns.tap("tap2", None)?;
    plug(&guest, 2, "tap2", 7002)?;
    wait_until_attached(&daemon, "plugs", &["tap1", "tap2"])?;
    send(&rig, &second, received, 7002, 200)?;
    check_equal(&daemon, "plugs", &[&first, &second], Traffic::default())?;

    // Renamed, the first one is the same all the while.
    first.set(&["down"])?;
    first.set(&["name", "renamed"])?;
    let first = rig.netns.interface("renamed");
    first.set(&["up"])?;
    send(&rig, &first, received, 7001, 300)?;
    wait_until_attached(&daemon, "plugs", &["renamed", "tap2"])?;
    let before = check_equal(&daemon, "plugs", &[&first, &second], Traffic::default())?;

    // Unplugged, what it counted stays counted; made again, it begins anew and is added.
    let gone = Traffic::of_kernel(&second)?;
    unplug(&guest, 2)?;
    wait_until_attached(&daemon, "plugs", &["renamed"])?;
    rig.netns.ip(&["link", "delete", "tap2"])?;
    let third = rig.netns.tap("tap2", None)?;
    plug(&guest, 3, "tap2", 7003)?;
    wait_until_attached(&daemon, "plugs", &["renamed", "tap2"])?;
    send(&rig, &third, received, 7003, 400)?;
    interrupt::sleep(SAMPLE_AGE)?;
    let now = Traffic::of_daemon(&daemon, "plugs")?;
    let kernels = Traffic::of_kernel(&first)? + gone + Traffic::of_kernel(&third)?;
    println!("plugs: {now:?}, before {before:?}; kernel: {kernels:?}");
    ensure!(now == kernels, "shown {now:?}, kernel {kernels:?}");
    Ok(())
}

fn several_queues() -> Result<()> {
    let rig = Rig::new()?;
    let mut config = rig.linux("many-queues", 1)?;
    config.tap = None;
    config.vcpus = 2;
    config.ip = Some("10.7.9.2/24".to_owned());
    let tap = rig.netns.multi_queue_tap("mq1", "10.7.9.1/24")?;
    let netdev = format!("tap,id=net0,ifname={},script=no,downscript=no,queues=2", tap.name());
    let device = "virtio-net-pci,netdev=net0,mq=on,vectors=6,romfile=";
    config.extra_args = ["-netdev", &netdev, "-device", device].map(str::to_owned).to_vec();
    config.executable = hub(&rig, "many-queues", "")?.executable;
    let guests = boot_all(&[config])?;
    let daemon = observing(&rig)?;
    wait_until_attached(&daemon, "many-queues", &["mq1"])?;
    // The tap was there before the daemon.
    let early = Traffic::of_kernel(&tap)?.since(Traffic::of_daemon(&daemon, "many-queues")?);
    let storm = Broadcast::start(&tap, 200)?;
    guests[0].run("net 500", BOOT_LIMIT)?;
    drop(storm);
    let counted = check_equal(&daemon, "many-queues", &[&tap], early)?;
    ensure!(counted.figures()[0] >= 500, "{counted:?}");
    Ok(())
}

fn macvtap() -> Result<Option<String>> {
    let rig = Rig::new()?;
    let Macvtap { tap, device } = match Macvtap::new(&rig.netns)? {
        Ok(macvtap) => macvtap,
        Err(why) => return Ok(Some(why)),
    };
    let mut config = hub(&rig, "on-macvtap", &format!("exec 9<>{}", device.display()))?;
    config.extra_args = hub_arguments(1, "tap,id=t1,fd=9", 7001);
    let _guest = config.start()?;
    let daemon = observing(&rig)?;
    wait_until_attached(&daemon, "on-macvtap", &["mv1"])?;
    // The host *sends* there what the guest sends.
    let sent = |tap: &Tap| Ok(tap.counters()?.tx_packets);
    let before = (Traffic::of_daemon(&daemon, "on-macvtap")?, tap.counters()?);
    send(&rig, &tap, sent, 7001, 1000)?;
    let outside = rig.netns.interface("outside");
    let storm = Broadcast::start(&outside, 200)?;
    interrupt::sleep(Duration::from_secs(2))?;
    drop(storm);
    interrupt::sleep(SAMPLE_AGE)?;
    let kernel = tap.counters()?;
    let shown = Traffic::of_daemon(&daemon, "on-macvtap")?.since(before.0).figures();
    let kernels = [
        kernel.tx_packets - before.1.tx_packets,
        kernel.tx_bytes - before.1.tx_bytes,
        kernel.rx_packets - before.1.rx_packets,
        kernel.rx_bytes - before.1.rx_bytes,
    ];
    println!("on-macvtap: {shown:?}; kernel: {kernels:?}");
    ensure!(shown[0] >= 1000 && shown[2] >= 300, "{shown:?}");
    ensure!([shown[0], shown[2]] == [kernels[0], kernels[2]], "{shown:?}, kernel {kernels:?}");
    Ok(None)
}

fn detached() -> Result<()> {
    let rig = Rig::new()?;
    let tap = rig.netns.tap("tap1", None)?;
    let mut config = hub(&rig, "is-detached", "")?;
    config.extra_args.extend(hub_arguments(1, &tap_of(1, &tap), 7001));
    let _guest = config.start()?;
    let mut config = rig.daemon_config()?;
    config.boot_grace = Duration::from_secs(2);
    config.sample_interval = OFTEN;
    let daemon = rig.daemon(&config)?;
    wait_until_attached(&daemon, "is-detached", &["tap1"])?;
    let links = rig.dir().join("bpf/flatline/links");
    let mut pins = Vec::new();
    for entry in std::fs::read_dir(&links)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("tap-")) {
            pins.push(path);
        }
    }
    ensure!(pins.len() == 2, "pinned links: {pins:?}");
    for pin in &pins {
        detach_link(pin)?;
    }
    interrupt::wait_until("the loss to be noticed", SEEN_WITHIN, || {
        Ok(daemon.log().text().contains("somebody detached the programs on tap1").then_some(()))
    })?;
    // What was read before is no figure any more, until it is read again.
    let is_read = |row: &Value| row["network"].is_object();
    wait_for_vm(&daemon, "is-detached", "read again", SEEN_WITHIN, is_read)?;
    let before = Traffic::of_daemon(&daemon, "is-detached")?;
    let kernel = Traffic::of_kernel(&tap)?;
    send(&rig, &tap, received, 7001, 100)?;
    interrupt::sleep(SAMPLE_AGE)?;
    let shown = Traffic::of_daemon(&daemon, "is-detached")?.since(before);
    let passed = Traffic::of_kernel(&tap)?.since(kernel);
    ensure!(shown == passed, "attached again: shown {shown:?}, kernel {passed:?}");
    wait_for_vm(&daemon, "is-detached", "alive", SEEN_WITHIN, |row| row["state"] == "alive")?;
    ensure!(vm(&daemon, "is-detached")?["cause"].is_null());
    ensure!(incidents_of(&daemon, "is-detached")?.is_empty());
    Ok(())
}

fn taken() -> Result<()> {
    let rig = Rig::new()?;
    let tap = rig.netns.tap("tap1", None)?;
    let mut config = hub(&rig, "is-hidden", "")?;
    config.extra_args.extend(hub_arguments(1, &tap_of(1, &tap), 7001));
    let _guest = config.start()?;
    let daemon = observing(&rig)?;
    wait_until_attached(&daemon, "is-hidden", &["tap1"])?;
    send(&rig, &tap, received, 7001, 10)?;
    check_equal(&daemon, "is-hidden", &[&tap], Traffic::default())?;

    let thief = Foreign::attach(&tap, true, Place::First, Verdict::Take)?;
    interrupt::wait_until("the theft to be noticed", SEEN_WITHIN * 2, || {
        send(&rig, &tap, received, 7001, 10)?;
        let said = daemon.log().text().contains("another program takes its packets");
        Ok(said.then_some(()))
    })?;
    let is_read = |row: &Value| row["network"].is_object();
    wait_for_vm(&daemon, "is-hidden", "read again", SEEN_WITHIN, is_read)?;
    // Ours stands before the other one now, which sees each packet as before. What is shown is up to a
    // second old, and packets were sent just now.
    interrupt::sleep(SAMPLE_AGE)?;
    let before = (Traffic::of_daemon(&daemon, "is-hidden")?, Traffic::of_kernel(&tap)?);
    let stolen = thief.packets()?;
    send(&rig, &tap, received, 7001, 100)?;
    interrupt::sleep(SAMPLE_AGE)?;
    let shown = Traffic::of_daemon(&daemon, "is-hidden")?.since(before.0);
    let passed = Traffic::of_kernel(&tap)?.since(before.1);
    ensure!(shown == passed && shown.figures()[0] >= 100, "shown {shown:?}, kernel {passed:?}");
    ensure!(thief.packets()? >= stolen + 100, "the other program sees nothing any more");

    // Another one before ours again: what can't be seen is said to be unseen.
    let _second = Foreign::attach(&tap, true, Place::First, Verdict::Take)?;
    interrupt::wait_until("the second to be noticed", SEEN_WITHIN * 2, || {
        send(&rig, &tap, received, 7001, 10)?;
        let text = daemon.log().text();
        Ok((text.matches("another program takes its packets").count() >= 2).then_some(()))
    })
}
