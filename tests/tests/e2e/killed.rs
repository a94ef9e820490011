//! A daemon that is killed at any moment forgets nothing, and does nothing twice.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    boot_sector::BootSector,
    daemon::Daemon,
    guest::Guest,
    interrupt::{self, wait_until},
};
use libtest_mimic::Trial;

use crate::rig::{OFTEN, Rig, boot_all, incidents_of, outer_resets, trial, wait_for_vm};

/// How often each guest crashes, unless `FLATLINE_KILLS` says otherwise.
const KILLS: u32 = 4;
/// For a guest that crashed to be found dead, restarted, and seen alive.
const SETTLED: Duration = Duration::from_secs(4);
/// For a guest to be back: one whose restart may or may not have taken place is waited for, a minute long, before it is
/// restarted.
const BACK_WITHIN: Duration = Duration::from_secs(100);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_killed_daemon_restarts_a_guest_that_announced_its_crash_exactly_once", || {
            killed("announces", "p", Duration::from_millis(60))
        }),
        trial("a_killed_daemon_restarts_a_guest_that_died_in_silence_exactly_once", || {
            killed("falls-silent", "h", Duration::from_millis(150))
        }),
    ]
}

/// Crashes a guest again and again by a word on its serial line, and kills the daemon each time: half of the times within
/// `busy` after the verdict.
fn killed(name: &str, word: &str, busy: Duration) -> Result<()> {
    let rig = Rig::new()?;
    let mut config = rig.boot_sector_on_disk(name, BootSector::OnCommand)?;
    config.pvpanic = true;
    config.extra_args.extend(["-action".to_owned(), "panic=pause".to_owned()]);
    let guests = boot_all(&[config])?;
    let guest = &guests[0];
    let mut config = rig.daemon_config()?;
    config.flat_for = Duration::from_secs(1);
    config.boot_grace = Duration::from_secs(1);
    config.sample_interval = OFTEN;
    config.extra_toml = "[recovery]\nmax_restarts = 1000\npause = \"0s\"\n\
                         max_restarts_per_minute = 1000"
        .to_owned();
    let mut daemon = rig.daemon(&config)?;
    let kills = match std::env::var("FLATLINE_KILLS") {
        Ok(kills) => kills.parse().context("FLATLINE_KILLS is no number")?,
        Err(_) => KILLS,
    };
    for number in 1..=kills {
        let begin = Instant::now();
        alive(&daemon, guest)?;
        guest.events()?;
        let before = incidents_of(&daemon, name)?.len();
        guest.send(word)?;
        let moment = kill_sometime(&mut daemon, guest, number, busy)?;
        daemon.start_again()?;
        let back = wait_until("the end of the incident", BACK_WITHIN, || {
            let incidents = incidents_of(&daemon, name)?;
            let over = incidents.iter().all(|incident| incident["recovered_at"].is_string());
            Ok((over && incidents.len() > before).then_some(()))
        });
        alive(&daemon, guest)?;
        let (resets, incidents) = (outer_resets(guest)?.len(), incidents_of(&daemon, name)?);
        println!("{name} {number}: killed {moment}; {resets} resets, {:.1?}", begin.elapsed());
        let all = format!("killed {moment}: {incidents:?}\n{}", daemon.log().text());
        ensure!(resets == 1, "{resets} resets; {all}");
        ensure!(
            incidents.len() == before + 1,
            "{} incidents more; {all}",
            incidents.len() - before
        );
        ensure!(incidents.iter().all(|incident| incident["outcome"] == "recovered"), "{all}");
        back?;
    }
    Ok(())
}

/// Kills the daemon, and tells when.
fn kill_sometime(
    daemon: &mut Daemon,
    guest: &Guest,
    number: u32,
    busy: Duration,
) -> Result<String> {
    // Uniform enough, and another one each time.
    let share =
        f64::from(u32::try_from(RandomState::new().hash_one(number) >> 32)?) / f64::from(u32::MAX);
    let incidents = daemon.config_path().with_file_name("state/incidents");
    let known = std::fs::read_dir(&incidents)?.count();
    let delay;
    let after;
    if number.is_multiple_of(2) {
        (after, delay) = ("the crash", SETTLED.mul_f64(share));
    } else {
        (after, delay) = ("the incident appeared", busy.mul_f64(share));
        let end = Instant::now() + Duration::from_secs(30);
        while std::fs::read_dir(&incidents)?.count() == known {
            ensure!(Instant::now() < end, "{}: no incident: {}", guest.name(), daemon.log().text());
            interrupt::check()?;
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    std::thread::sleep(delay);
    daemon.kill()?;
    Ok(format!("{delay:.1?} after {after}"))
}

fn alive(daemon: &Daemon, guest: &Guest) -> Result<()> {
    let is_alive = |row: &serde_json::Value| row["state"] == "alive";
    wait_for_vm(daemon, guest.name(), "alive", BACK_WITHIN, is_alive)?;
    wait_until(
        "the guest runs",
        BACK_WITHIN,
        || Ok((guest.run_state()? == "running").then_some(())),
    )
}
