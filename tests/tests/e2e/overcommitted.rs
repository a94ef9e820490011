//! A host whose CPUs are wanted four times over: a guest that said itself that it dies is found in its time, is never shown
//! as alive after that, and its record tells the times as they were.

use std::{
    process::{Child, Command, Stdio},
    thread::available_parallelism,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{daemon::Daemon, guest::Guest, interrupt};
use libtest_mimic::Trial;
use rustix::process::{Pid, setpriority_process};
use serde_json::Value;

use crate::rig::{BOOT_LIMIT, Load, Rig, boot_all, incidents_of, trial_with, vm, wait_for_vm};

/// Programs that want a CPU each, for each CPU of the host.
const WANTED_OVER: usize = 4;
/// Silence before one is suspected: on such a host less of it would say little.
const FLAT_FOR: Duration = Duration::from_secs(5);
/// How soon after a guest's panic it has to be convicted, at the latest.
const LIMIT: Duration = Duration::from_secs(2 * FLAT_FOR.as_secs() + 5);
/// From one look at how the guests stand to the next.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A sign of life counts from the end of its tick, and an answer is of the last tick.
const TICKS: Duration = Duration::from_secs(2);
/// The guest whose QEMU comes after all others: it gets less than a tenth of what it wants, and is held for that.
const STARVED: &str = "starved";
/// One that gets its share.
const SHARING: &str = "sharing";
/// How nice the first one is: a third of the weight of those beside it.
const NICE: i32 = 5;

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial_with(
        Load::Alone,
        "a_guest_that_says_that_it_dies_is_found_in_time_on_an_overcommitted_host",
        panics,
    )]
}

/// Programs that want all CPUs, until they are dropped.
struct Hogs(Vec<Child>);

impl Hogs {
    fn start() -> Result<Self> {
        let mut hogs = Self(Vec::new());
        for _ in 0..WANTED_OVER * available_parallelism()?.get() {
            let mut shell = Command::new("sh");
            shell.args(["-c", "while :; do :; done"]).stdin(Stdio::null());
            hogs.0.push(shell.spawn()?);
        }
        Ok(hogs)
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // Whichever has ended needs no end.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// All of QEMU's threads come after those of the others.
fn be_nice(guest: &Guest) -> Result<()> {
    for entry in std::fs::read_dir(format!("/proc/{}/task", guest.pid()))? {
        let tid = entry?.file_name().into_string().ok().context("no thread")?.parse()?;
        setpriority_process(Some(Pid::from_raw(tid).context("thread 0")?), NICE)?;
    }
    Ok(())
}

/// How a guest stood at one look.
struct Look {
    at: SystemTime,
    state: String,
    reason: String,
}

fn panics() -> Result<()> {
    let rig = Rig::new()?;
    let mut config = rig.daemon_config()?;
    (config.flat_for, config.boot_grace) = (FLAT_FOR, Duration::from_secs(2));
    config.mode = "observe".to_owned();
    let (mut starved, mut sharing) = (rig.linux(STARVED, 1)?, rig.linux(SHARING, 2)?);
    (starved.console_log, sharing.console_log) = (true, true);
    let guests = boot_all(&[starved, sharing])?;
    let daemon = rig.daemon(&config)?;
    for guest in &guests {
        wait_for_vm(&daemon, guest.name(), "alive", BOOT_LIMIT, |row| row["state"] == "alive")?;
    }
    be_nice(&guests[0])?;
    let hogs = Hogs::start()?;
    let mut panicked = Vec::new();
    for guest in &guests {
        let mark = guest.mark();
        guest.send("panic")?;
        guest.wait_for_after(mark, "---[ end Kernel panic", BOOT_LIMIT)?;
        panicked.push(SystemTime::now());
    }
    let mut looks: Vec<Vec<Look>> = guests.iter().map(|_| Vec::new()).collect();
    let mut incidents = vec![None; guests.len()];
    let begun = Instant::now();
    while incidents.iter().any(Option::is_none) && begun.elapsed() < LIMIT * 3 {
        for (n, guest) in guests.iter().enumerate() {
            let at = SystemTime::now();
            let row = vm(&daemon, guest.name())?;
            let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
            looks[n].push(Look { at, state: text("state"), reason: text("reason") });
            if incidents[n].is_none() && row["state"] == "crashed" {
                incidents[n] = incidents_of(&daemon, guest.name())?.pop();
            }
        }
        interrupt::sleep(LOOK_EVERY)?;
    }
    drop(hogs);
    for (n, guest) in guests.iter().enumerate() {
        let name = guest.name();
        tell(name, panicked[n], &looks[n]);
        let incident = incidents[n].as_ref();
        let incident = incident.with_context(|| format!("{name}: {}", daemon.log().text()))?;
        check_incident(&daemon, name, panicked[n], incident)?;
        let late = |look: &&Look| look.at > panicked[n] + FLAT_FOR + TICKS;
        let alive = looks[n].iter().filter(late).find(|look| look.state == "alive");
        ensure!(alive.is_none(), "{name} is shown as alive: {:?}", alive.map(|look| &look.reason));
    }
    let was_held = looks[0].iter().any(|look| look.state == "held");
    ensure!(was_held, "{STARVED} was to be starved, or nothing is shown by this");
    Ok(())
}

/// Each state that a guest was seen in, and since when after its panic.
fn tell(name: &str, panicked: SystemTime, looks: &[Look]) {
    let mut last = "";
    for look in looks.iter().filter(|look| std::mem::replace(&mut last, &look.state) != look.state)
    {
        let after = look.at.duration_since(panicked).unwrap_or_default().as_secs_f64();
        println!("{name}: {after:.1} s after its panic {}: {}", look.state, look.reason);
    }
}

/// The record says what it died of, in time, and when it was last heard.
fn check_incident(
    daemon: &Daemon,
    name: &str,
    panicked: SystemTime,
    incident: &Value,
) -> Result<()> {
    let log = || daemon.log().text();
    let time = |key: &str| -> Result<SystemTime> {
        let text = incident[key].as_str().with_context(|| format!("{name}: no {key}"))?;
        Ok(humantime::parse_rfc3339(text)?)
    };
    let seconds = |key: &str| incident[key].as_f64().with_context(|| format!("{name}: no {key}"));
    let since = |later: SystemTime, earlier: SystemTime| match later.duration_since(earlier) {
        Ok(after) => after.as_secs_f64(),
        Err(before) => -before.duration().as_secs_f64(),
    };
    let reason = incident["reason"].as_str().unwrap_or_default();
    println!("{name}: {incident}");
    ensure!(incident["cause"] == "panicked", "{incident}: {}", log());
    ensure!(reason.contains("its console says: ---[ end Kernel panic"), "{reason}");
    // Times in incidents have whole seconds, rounded down.
    let (detected, life) = (time("detected_at")?, time("last_sign_of_life")?);
    let took = since(detected, panicked);
    ensure!(
        took <= LIMIT.as_secs_f64(),
        "{name}: convicted {took:.1} s after its panic: {}",
        log()
    );
    // It sent nothing of its own, and was asked when it had been silent for as long as any suspect.
    let heard = since(panicked, life);
    let longest = (FLAT_FOR + TICKS * 2).as_secs_f64();
    ensure!((-TICKS.as_secs_f64()..=longest).contains(&heard), "{name}: heard {heard} s before");
    let (detect, held) = (seconds("detect_seconds")?, seconds("held_seconds")?);
    let true_one = since(detected, life);
    ensure!((detect - true_one).abs() <= 1.5, "{name}: {detect} s, and {true_one} s by its times");
    ensure!((0.0..=detect).contains(&held), "{name}: held for {held} of {detect} s");
    let told = reason.contains(&format!("held for {held:.1} s since its last sign of life"));
    ensure!(told || held == 0.0, "{name}: {held} s, and {reason}");
    ensure!(name != STARVED || held > 0.0, "{name} was never held: {reason}");
    Ok(())
}
