//! Two programs judge the same guests, each with its own maps, taps' programs and monitors: they must decide alike.
//!
//! The other program is named by `FLATLINE_OLD_BINARY`. Both only observe. The guests have two monitors each, one for
//! either. What each recorded of a crash is judged once more by both.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    boot_sector::BootSector,
    daemon::{Daemon, DaemonConfig},
    guest::{Accelerator, GuestConfig},
    interrupt::sleep,
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::rig::{Rig, binary, boot_watched, trial_that_may_skip, wait_for_vm};

const FLAT_FOR: Duration = Duration::from_secs(5);
/// The guests live for this before the first of them fails, and are watched for this after the last one has.
const LIFE: Duration = Duration::from_secs(20);
const AFTER: Duration = Duration::from_secs(40);
/// Convictions lie at most so far apart: two daemons' ticks are a second apart, each asks for itself and stops the guest
/// for that, and a round more is seven seconds.
const APART: Duration = Duration::from_secs(8);

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial_that_may_skip("the_version_before_decides_alike", || {
        let Some(old) = env::var_os("FLATLINE_OLD_BINARY") else {
            return Ok(Some("FLATLINE_OLD_BINARY does not name its program".to_owned()));
        };
        alike(Path::new(&old))?;
        Ok(None)
    })]
}

fn two_monitors(rig: &Rig, mut config: GuestConfig) -> GuestConfig {
    let path = rig.dir().join(format!("{}.second.qmp", config.name));
    config
        .extra_args
        .extend(["-qmp".to_owned(), format!("unix:{},server=on,wait=off", path.display())]);
    config
}

fn guests(rig: &Rig) -> Result<Vec<GuestConfig>> {
    let mut reports = rig.boot_sector_on_disk("reports", BootSector::OnCommand)?;
    reports.pvpanic = true;
    reports.extra_args.extend(["-action", "panic=none"].map(str::to_owned));
    let all = vec![
        rig.linux("idles", 1)?,
        rig.linux("panics", 2)?,
        rig.linux("reboots", 3)?,
        reports,
        rig.boot_sector_on_disk("stops", BootSector::OnCommand)?,
        rig.boot_sector_on_disk("paused", BootSector::OnCommand)?,
        rig.boot_sector("halted", BootSector::CliHlt, Accelerator::Tcg),
        rig.boot_sector("rests", BootSector::StiHlt, Accelerator::Tcg),
    ];
    Ok(all.into_iter().map(|config| two_monitors(rig, config)).collect())
}

fn daemon(rig: &Rig, binary: &Path, dir: &str) -> Result<Daemon> {
    let mut config = DaemonConfig::new(binary, &rig.qemu);
    config.mode = "observe".to_owned();
    (config.flat_for, config.boot_grace) = (FLAT_FOR, Duration::from_secs(5));
    let dir = rig.dir().join(dir);
    fs::create_dir_all(&dir)?;
    Daemon::start(&config, &dir)
}

/// What is held of each VM: crashed or failed, with the cause; else only that it is not.
type Verdicts = BTreeMap<String, Vec<(Duration, String)>>;

fn note(daemon: &Daemon, began: Instant, verdicts: &mut Verdicts) -> Result<()> {
    let status = daemon.status()?;
    for row in status["vms"].as_array().context("no vms")? {
        let name = row["name"].as_str().context("no name")?;
        let state = row["state"].as_str().unwrap_or_default();
        let now = match state {
            "crashed" | "failed" | "exited" | "paused" => {
                format!("{state} {}", row["cause"].as_str().unwrap_or_default())
            }
            _ => "not".to_owned(),
        };
        let of_it = verdicts.entry(name.to_owned()).or_default();
        if of_it.last().is_none_or(|(_, last)| *last != now) {
            of_it.push((began.elapsed(), now));
        }
    }
    Ok(())
}

fn replay(program: &Path, recording: &Path) -> Result<Value> {
    let output: Output = Command::new("timeout")
        .args([
            "20".as_ref(),
            program.as_os_str(),
            "replay".as_ref(),
            recording.as_os_str(),
            "--json".as_ref(),
        ])
        .output()?;
    serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))
}

fn recordings(rig: &Rig, dir: &str) -> Result<Vec<PathBuf>> {
    let incidents = fs::read_dir(rig.dir().join(dir).join("state/incidents"))?;
    let all = incidents.map(|entry| Ok(entry?.path().join("recording.flr")));
    let all: Vec<PathBuf> = all.collect::<Result<_>>()?;
    Ok(all.into_iter().filter(|path| path.exists()).collect())
}

fn alike(old: &Path) -> Result<()> {
    let rig = Rig::new()?;
    let new = binary()?;
    let daemons = [("old", old), ("new", &new)];
    let running = daemons.map(|(dir, program)| daemon(&rig, program, dir));
    let running = running.into_iter().collect::<Result<Vec<_>>>()?;
    let guests = boot_watched(&running[0], &guests(&rig)?)?;
    for daemon in &running {
        for name in ["idles", "panics", "stops"] {
            wait_for_vm(daemon, name, "alive", LIFE, |row| row["state"] == "alive")?;
        }
    }
    let began = Instant::now();
    let mut verdicts = [Verdicts::new(), Verdicts::new()];
    let named =
        |name: &str| guests.iter().find(|guest| guest.name() == name).context("no such guest");
    let mut watch = |until: Duration| -> Result<()> {
        while began.elapsed() < until {
            for (daemon, verdicts) in running.iter().zip(&mut verdicts) {
                note(daemon, began, verdicts)?;
            }
            sleep(Duration::from_millis(150))?;
        }
        Ok(())
    };
    watch(LIFE)?;
    named("panics")?.send("panic")?;
    named("reports")?.send("p")?;
    named("paused")?.qmp("stop", &Value::Null)?;
    watch(LIFE + Duration::from_secs(4))?;
    named("stops")?.send("x")?;
    named("reboots")?.send("reboot")?;
    watch(LIFE + AFTER)?;
    let [theirs, ours] = &verdicts;
    let mut apart = Vec::new();
    for (name, of_it) in theirs {
        let ours = ours.get(name).context("not seen by both")?;
        println!("{name:<8} old {of_it:?}\n{:<8} new {ours:?}", "");
        let (Some((at, what)), Some((at_ours, what_ours))) = (of_it.last(), ours.last()) else {
            continue;
        };
        // The old one takes a read that completed before the announcement, in the same tick, for one after it.
        let what = if name == "reports" { "crashed panicked" } else { what };
        if what != what_ours || at.abs_diff(*at_ours) > APART {
            apart.push(name);
        }
    }
    judged_again(&rig, old, &new)?;
    ensure!(apart.is_empty(), "decided otherwise: {apart:?}");
    Ok(())
}

/// What each recorded, judged by each: the old one can't read the other's, where a rest is one record.
fn judged_again(rig: &Rig, old: &Path, new: &Path) -> Result<()> {
    for (by, program_of) in [("old", old), ("new", new)] {
        for of in ["old", "new"] {
            for path in recordings(rig, of)? {
                let Ok(said) = replay(program_of, &path) else {
                    ensure!((by, of) == ("old", "new"), "{}", path.display());
                    continue;
                };
                let summary = &said["summary"];
                println!(
                    "recorded by the {of}, judged by the {by}: same {}, {summary}",
                    said["same"]
                );
                let kinds = ["other_causes", "missing_convictions", "additional_convictions"];
                ensure!(kinds.iter().all(|kind| summary[kind] == 0), "{}", path.display());
            }
        }
    }
    Ok(())
}
