//! The agent by itself, without a daemon: what it costs, and that it follows its guest's network cards.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    capture::Capture,
    guest::Guest,
    interrupt::{sleep, wait_until},
    netns::Tap,
};
use libtest_mimic::Trial;
use serde_json::json;

use super::{COMMAND_LIMIT, start_agent};
use crate::rig::{Rig, boot_all, trial};

/// Long enough for a dozen beats.
const MEASURED: Duration = Duration::from_secs(20);
/// In which beats would be seen: there is one a second.
const BEATS_BE_SEEN: Duration = Duration::from_secs(3);
/// Of one CPU, which is emulated on cores that other guests use as well: measured, 0.0013, and 0.0001 on a real one.
const MOST_SHARE: f64 = 0.01;
/// Measured: 40.
const MOST_RSS_KIB: u64 = 512;

pub(super) fn trials() -> Vec<Trial> {
    vec![trial("an_agent_follows_its_guests_cards_and_costs_next_to_nothing", follows)]
}

/// How many beats were seen there since the last call.
fn beats(capture: &Capture) -> Result<usize> {
    let frames = capture.frames()?;
    Ok(frames.iter().filter(|frame| frame.get(12..18) == Some(b"\x88\xb5FLHB")).count())
}

fn wait_for_beats(capture: &Capture, what: &str) -> Result<()> {
    let mut seen = 0;
    wait_until(&format!("beats {what}"), COMMAND_LIMIT, || {
        seen += beats(capture)?;
        Ok((seen >= 3).then_some(()))
    })
}

fn follows() -> Result<()> {
    let rig = Rig::new()?;
    let config = rig.linux("follows", 1)?;
    let first = config.tap.clone().context("it has a tap")?;
    let second = rig.netns.tap("late", None)?;
    let guests = boot_all(&[config])?;
    let guest = &guests[0];
    let [on_first, on_second] = [&first, &second].map(Capture::start);
    let (on_first, on_second) = (on_first?, on_second?);
    start_agent(guest, "")?;
    wait_for_beats(&on_first, "at once")?;

    guest.run("net-down", COMMAND_LIMIT)?;
    sleep(Duration::from_millis(500))?;
    beats(&on_first)?;
    sleep(BEATS_BE_SEEN)?;
    ensure!(beats(&on_first)? == 0, "through a card that is down");
    guest.run("up eth0", COMMAND_LIMIT)?;
    wait_for_beats(&on_first, "from a card that is up again")?;

    plug(guest, &second)?;
    wait_until("beats from a card that was plugged in", COMMAND_LIMIT, || {
        // It takes the guest a moment to find it.
        guest.run("up eth1", COMMAND_LIMIT)?;
        thread::sleep(Duration::from_secs(1));
        Ok((beats(&on_second)? > 0).then_some(()))
    })?;
    guest.qmp("device_del", &json!({ "id": "late" }))?;
    sleep(Duration::from_secs(3))?;
    beats(&on_first)?;
    beats(&on_second)?;
    wait_for_beats(&on_first, "from the card that is left")?;
    ensure!(beats(&on_second)? == 0, "from a card that is gone");

    let before = costs(guest)?;
    sleep(MEASURED)?;
    let after = costs(guest)?;
    let share = (after.cpu - before.cpu).as_secs_f64() / MEASURED.as_secs_f64();
    println!("{:.4} % of an emulated CPU, {} KiB", share * 100.0, after.rss_kib);
    ensure!(share > 0.0 && share < MOST_SHARE, "{share}");
    ensure!((1..=MOST_RSS_KIB).contains(&after.rss_kib), "{} KiB", after.rss_kib);

    guest.run("heartbeat-kill TERM", COMMAND_LIMIT)?;
    let left = wait_until("it says that it goes", COMMAND_LIMIT, || {
        let frames = on_first.frames()?;
        Ok(frames.into_iter().find(|frame| frame.get(18..20) == Some(&[1, 1])))
    })?;
    ensure!(left.get(14..18) == Some(b"FLHB"), "{left:02x?}");
    Ok(())
}

fn plug(guest: &Guest, tap: &Tap) -> Result<()> {
    let netdev = json!({"type": "tap", "id": "late-net", "ifname": tap.name(), "script": "no",
        "downscript": "no"});
    guest.qmp("netdev_add", &netdev)?;
    let device = json!({"driver": "virtio-net-pci", "id": "late", "netdev": "late-net",
        "romfile": ""});
    guest.qmp("device_add", &device)?;
    Ok(())
}

struct Costs {
    cpu: Duration,
    rss_kib: u64,
}

/// What the agent took so far, by its guest's kernel.
fn costs(guest: &Guest) -> Result<Costs> {
    let before = guest.log().text().len();
    guest.run("heartbeat-costs", COMMAND_LIMIT)?;
    let text = guest.log().text();
    let said = text.get(before..).and_then(|text| text.split_once("COSTS "));
    let (_, said) = said.with_context(|| format!("no costs in {text}"))?;
    let numbers: Vec<u64> =
        said.lines().next().unwrap_or_default().split(' ').map_while(|n| n.parse().ok()).collect();
    let &[cpu, rss_kib] = &numbers[..] else { anyhow::bail!("{said}") };
    Ok(Costs { cpu: Duration::from_nanos(cpu), rss_kib })
}
