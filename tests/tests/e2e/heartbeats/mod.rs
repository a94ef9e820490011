//! What a guest's agent says from inside: heard at its tap, seen nowhere else, and missed when it stays away.

mod cards;
mod documented;
mod hostile;
mod orderly;

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    capture::Capture,
    daemon::Daemon,
    guest::{Guest, GuestConfig},
    interrupt::sleep,
};
use libtest_mimic::Trial;
use monitor_ebpf::heartbeat::HEARTBEAT_ETHERTYPE;
use serde_json::Value;

use crate::rig::{
    BOOT_LIMIT, Crash, FLAT_FOR, Load, MARGIN, Rig, boot_all, boot_watched, incidents_of,
    outer_resets, trial, trial_with, vm, wait_for_incident, wait_for_vm,
};

/// Three intervals of a second, and two seconds.
const LOST_AFTER: Duration = Duration::from_secs(5);
const COMMAND_LIMIT: Duration = Duration::from_secs(20);

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = vec![
        trial("a_guests_heart_is_heard_at_its_taps_and_nowhere_else", heard),
        trial("a_user_space_that_died_is_told_of_and_restarted_only_where_configured", dead),
        trial_with(Load::Spins(2), "a_guest_with_an_agent_that_panics_is_found_sooner", sooner),
        trial("an_agent_is_heard_through_a_port_and_so_is_a_line_of_shell", ports),
        trial("a_service_that_hangs_is_named_by_its_guests_agent", service),
    ];
    trials.extend(orderly::trials());
    trials.extend(hostile::trials());
    trials.extend(documented::trials());
    trials.extend(cards::trials());
    trials
}

/// Starts the guest's agent with these arguments.
fn start_agent(guest: &Guest, arguments: &str) -> Result<()> {
    guest.run(&format!("heartbeat {arguments}"), COMMAND_LIMIT)?;
    Ok(())
}

/// Waits until its beats are heard.
fn wait_for_beats(daemon: &Daemon, guest: &Guest) -> Result<Value> {
    wait_for_vm(daemon, guest.name(), "its heart is heard", COMMAND_LIMIT, |row| {
        row["heartbeat"]["beats"].as_u64() > Some(0)
    })
}

fn beats(row: &Value) -> Result<u64> {
    row["heartbeat"]["beats"].as_u64().with_context(|| format!("no beats in {row}"))
}

fn heard() -> Result<()> {
    let rig = Rig::new()?;
    rig.netns.ip(&["link", "add", "bridge", "type", "bridge"])?;
    rig.netns.ip(&["link", "add", "port", "type", "veth", "peer", "name", "neighbour"])?;
    rig.netns.ip(&["link", "set", "port", "master", "bridge"])?;
    for name in ["bridge", "port", "neighbour"] {
        rig.netns.ip(&["link", "set", name, "up"])?;
    }
    let mut two = rig.linux("two-cards", 1)?;
    let second = rig.netns.tap("tap9", None)?;
    second.set(&["up"])?;
    let netdev = format!("tap,id=second,ifname={},script=no,downscript=no", second.name());
    two.extra_args
        .extend(["-netdev", &netdev, "-device", "virtio-net-pci,netdev=second"].map(str::to_owned));
    let mut tagged = rig.linux("tagged", 2)?;
    tagged.vlan = Some(7);
    let configs = [two, tagged];
    let taps = [&configs[0].tap, &configs[1].tap, &Some(second)];
    let taps = taps.map(|tap| tap.clone().unwrap_or_else(|| unreachable!()));
    for tap in &taps {
        tap.set(&["master", "bridge"])?;
    }
    let guests = boot_all(&configs)?;
    let daemon = rig.daemon(&rig.daemon_config()?)?;
    guests[0].run("up eth1", COMMAND_LIMIT)?;
    for guest in &guests {
        wait_for_vm(&daemon, guest.name(), "its taps are read", BOOT_LIMIT, |row| {
            row["network"].is_object()
        })?;
    }
    let on_taps = taps.iter().map(Capture::start).collect::<Result<Vec<_>>>()?;
    let elsewhere = ["neighbour", "bridge"];
    let around = elsewhere.map(|name| Capture::start(&rig.netns.interface(name)));
    let around = around.into_iter().collect::<Result<Vec<_>>>()?;
    for guest in &guests {
        start_agent(guest, "")?;
    }
    for guest in &guests {
        wait_for_beats(&daemon, guest)?;
    }
    let before = [vm(&daemon, "two-cards")?, vm(&daemon, "tagged")?];
    sleep(Duration::from_secs(6))?;
    // The second guest's VLAN is on its one card.
    for ((before, guest), cards) in before.iter().zip(&guests).zip([2, 1]) {
        let row = vm(&daemon, guest.name())?;
        let [heart, earlier] = [&row["heartbeat"], &before["heartbeat"]];
        let number = |heart: &Value| heart["sequence"].as_u64().unwrap_or_default();
        let (beats, steps) = (beats(&row)? - beats(before)?, number(heart) - number(earlier));
        println!("{}: {beats} frames of {steps} beats", guest.name());
        ensure!((4..=8).contains(&steps), "{row}");
        ensure!(beats.abs_diff(cards * steps) <= cards, "{row}");
        ensure!(heart["boot"] == earlier["boot"] && heart["interval_seconds"] == 1.0, "{row}");
        ensure!(heart["malformed"] == 0 && heart["leaving"] == false, "{row}");
        ensure!(row["state"] == "alive", "{row}");
    }
    ensure!(
        vm(&daemon, "two-cards")?["heartbeat"]["boot"]
            != vm(&daemon, "tagged")?["heartbeat"]["boot"]
    );
    let is_beat = |frame: &Vec<u8>| {
        let kind = HEARTBEAT_ETHERTYPE.to_be_bytes();
        // A tag stands before it where the kernel has not taken it off.
        frame.get(12..14) == Some(&kind) || frame.get(16..18) == Some(&kind)
    };
    for (capture, tap) in on_taps.iter().zip(&taps) {
        let seen = capture.frames()?.iter().filter(|frame| is_beat(frame)).count();
        ensure!(seen > 0, "{}: nothing was sent that could have gone further", tap.name());
    }
    for (capture, place) in around.iter().zip(elsewhere) {
        let frames = capture.frames()?;
        let seen = frames.iter().filter(|frame| is_beat(frame)).count();
        println!("{place} saw {} frames, {seen} of them beats", frames.len());
        ensure!(seen == 0, "{place} saw {seen} beats");
    }
    Ok(())
}

fn dead() -> Result<()> {
    let rig = Rig::new()?;
    let configs = [rig.linux("killed", 1)?, rig.linux("frozen", 2)?, rig.linux("beats", 3)?];
    let mut config = rig.daemon_config()?;
    // They boot before its eyes.
    config.boot_grace = Duration::from_secs(5);
    config.extra_toml = "[[vm]]\nmatch = \"frozen\"\nrestart_without_heartbeat = true\n".to_owned();
    let daemon = rig.daemon(&config)?;
    let guests = boot_watched(&daemon, &configs)?;
    let [killed, frozen, healthy] = &guests[..] else { unreachable!() };
    for guest in &guests {
        start_agent(guest, "")?;
        wait_for_beats(&daemon, guest)?;
    }
    // Long enough for their addresses to have been asked for once.
    sleep(config.boot_grace)?;

    let begin = SystemTime::now();
    // Nothing of it runs any more but its kernel.
    frozen.send("freeze")?;
    killed.run("heartbeat-kill KILL", COMMAND_LIMIT)?;
    let within = LOST_AFTER + MARGIN;
    wait_for_vm(&daemon, "killed", "a suspect", within, |row| row["state"] == "suspect")?;
    println!("suspected {:.1?} after its agent was killed", begin.elapsed()?);
    // Its silence begins with the last beat, which came up to a second before.
    ensure!(begin.elapsed()? >= FLAT_FOR - Duration::from_secs(1), "too early");
    let told = |incident: &Value| incident["cause"] == "userland-dead";
    let incident = wait_for_incident(&daemon, "killed", "told of", MARGIN * 2, told)?;
    println!("{}", incident["reason"]);
    ensure!(incident["outcome"] == "observed" && incident["action"].is_null(), "{incident}");
    let row = vm(&daemon, "killed")?;
    ensure!(row["state"] == "suspect" && row["cause"] == "userland-dead", "{row}");

    let restarted = |incident: &Value| !incident["action_at"].is_null();
    let within = config.flat_for + LOST_AFTER + MARGIN * 2;
    let incident = wait_for_incident(&daemon, "frozen", "restarted", within, restarted)?;
    println!("restarted: {}", incident["reason"]);
    ensure!(incident["cause"] == "userland-dead", "{incident}");
    let recovered = |incident: &Value| incident["outcome"] == "recovered";
    wait_for_incident(&daemon, "frozen", "recovered", BOOT_LIMIT, recovered)?;
    ensure!(outer_resets(frozen)?.len() == 1, "{}", daemon.log().text());

    start_agent(killed, "")?;
    wait_for_vm(&daemon, "killed", "alive", MARGIN, |row| row["state"] == "alive")?;
    let over = |incident: &Value| !incident["recovered_at"].is_null();
    wait_for_incident(&daemon, "killed", "over", MARGIN, over)?;
    ensure!(incidents_of(&daemon, "killed")?.len() == 1, "told more than once");
    ensure!(incidents_of(&daemon, "beats")?.is_empty(), "its neighbour was suspected");
    for guest in [killed, healthy] {
        ensure!(outer_resets(guest)?.is_empty(), "{} was reset", guest.name());
    }
    Ok(())
}

fn sooner() -> Result<()> {
    /// Far above what an agent takes.
    const LONG_FLAT_FOR: Duration = Duration::from_secs(40);
    let rig = Rig::new()?;
    let configs = [rig.linux("with-agent", 1)?, rig.linux("without", 2)?];
    let mut config = rig.daemon_config()?;
    (config.flat_for, config.boot_grace) = (LONG_FLAT_FOR, Duration::from_secs(5));
    let daemon = rig.daemon(&config)?;
    let guests = boot_watched(&daemon, &configs)?;
    start_agent(&guests[0], "")?;
    wait_for_beats(&daemon, &guests[0])?;
    sleep(config.boot_grace)?;
    let crash = Crash::now(&daemon, &guests[0])?;
    for guest in &guests {
        guest.send("panic")?;
    }
    let restarted = |incident: &Value| !incident["action_at"].is_null();
    let incident = wait_for_incident(&daemon, "with-agent", "restarted", LONG_FLAT_FOR, restarted)?;
    let took = crash.at.elapsed()?;
    let limit = crash.allowed(LOST_AFTER + MARGIN, &daemon, &guests[0])?;
    println!("restarted {took:.1?} after its panic, of {limit:.1?}: {incident}");
    ensure!(took <= limit, "restarted only {took:?} after its panic: {incident}");
    ensure!(incident["cause"] != "userland-dead", "{incident}");
    ensure!(incidents_of(&daemon, "without")?.is_empty(), "found as soon without an agent");
    let recovered = |incident: &Value| incident["outcome"] == "recovered";
    wait_for_incident(&daemon, "with-agent", "recovered", BOOT_LIMIT, recovered)?;
    Ok(())
}

fn ports() -> Result<()> {
    let rig = Rig::new()?;
    let with_port = |name: &str, number| -> Result<GuestConfig> {
        let mut config = rig.linux(name, number)?;
        // Neither a card nor a disk, on which anything of it could be seen.
        (config.tap, config.ip, config.disk) = (None, None, None);
        let socket = rig.dir().join(format!("{name}.heart"));
        let chardev = format!("socket,id=heart,path={},server=on,wait=off", socket.display());
        let port = "virtserialport,chardev=heart,name=org.flatline.heartbeat.0";
        config.extra_args.extend(
            ["-chardev", &chardev, "-device", "virtio-serial-pci", "-device", port]
                .map(str::to_owned),
        );
        Ok(config)
    };
    let configs = [with_port("by-port", 1)?, with_port("by-hand", 2)?];
    let mut config = rig.daemon_config()?;
    config.boot_grace = Duration::from_secs(5);
    let daemon = rig.daemon(&config)?;
    let guests = boot_all(&configs)?;
    let [by_port, by_hand] = &guests[..] else { unreachable!() };
    by_port.run("heartbeat-port", COMMAND_LIMIT)?;
    by_hand.run("heartbeat-by-hand", COMMAND_LIMIT)?;
    for guest in &guests {
        let row = wait_for_beats(&daemon, guest)?;
        ensure!(row["heartbeat"]["interval_seconds"] == 1.0, "{row}");
    }
    // Longer than beats may stay away, and than a guest that does nothing lives.
    sleep(LOST_AFTER + FLAT_FOR)?;
    for guest in &guests {
        let row = vm(&daemon, guest.name())?;
        let last = row["heartbeat"]["last_seconds"].as_f64();
        ensure!(last.is_some_and(|seconds| seconds < 3.0), "{row}");
        ensure!(row["state"] == "alive" && row["heartbeat"]["malformed"] == 0, "{row}");
    }
    // The one goes down in good order, the other is gone.
    for guest in &guests {
        guest.run("heartbeat-kill TERM", COMMAND_LIMIT)?;
    }
    let state = |name: &'static str, wanted: &'static str| {
        wait_for_vm(&daemon, name, wanted, LOST_AFTER + MARGIN, move |row| row["state"] == wanted)
    };
    let row = state("by-port", "held")?;
    ensure!(row["heartbeat"]["leaving"] == true, "{row}");
    state("by-hand", "suspect")?;
    for guest in &guests {
        ensure!(outer_resets(guest)?.is_empty(), "{} was reset", guest.name());
    }
    Ok(())
}

fn service() -> Result<()> {
    let rig = Rig::new()?;
    let daemon = rig.daemon(&rig.daemon_config()?)?;
    let guests = boot_all(&[rig.linux("serves", 1)?])?;
    let guest = &guests[0];
    guest.run("httpd", COMMAND_LIMIT)?;
    start_agent(guest, "--interval 2 --name web --check wget -q -O /dev/null http://127.0.0.1/")?;
    let row = wait_for_beats(&daemon, guest)?;
    ensure!(row["heartbeat"]["check"] == "web", "{row}");
    // Of some beats.
    sleep(Duration::from_secs(5))?;
    let row = vm(&daemon, "serves")?;
    ensure!(row["state"] == "alive" && row["heartbeat"]["failures"] == 0, "{row}");

    guest.run("httpd-hangs", COMMAND_LIMIT)?;
    let begin = SystemTime::now();
    let told = |incident: &Value| incident["cause"] == "service-dead";
    let incident = wait_for_incident(&daemon, "serves", "told of", MARGIN * 2, told)?;
    println!("told {:.1?} after the service hung: {}", begin.elapsed()?, incident["reason"]);
    let named = |why: &str| why.starts_with("its check web has failed");
    ensure!(incident["reason"].as_str().is_some_and(named), "{incident}");
    ensure!(incident["outcome"] == "observed", "{incident}");
    let row = vm(&daemon, "serves")?;
    ensure!(row["state"] == "suspect" && row["cause"] == "service-dead", "{row}");

    guest.run("httpd-goes-on", COMMAND_LIMIT)?;
    wait_for_vm(&daemon, "serves", "alive", MARGIN * 2, |row| row["state"] == "alive")?;
    ensure!(outer_resets(guest)?.is_empty(), "it was reset");
    Ok(())
}
