//! What was recorded of a crash is judged again: the same on the same terms, and otherwise on others.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{daemon::Daemon, guest::Guest, interrupt::sleep};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::rig::{
    BOOT_LIMIT, Crash, FLAT_FOR, Load, Rig, binary, boot_watched, check_restart, trial_with,
    wait_for_incident,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial_with(
        Load::Spins(1),
        "a_recorded_panic_is_judged_the_same_again_and_later_on_longer_terms",
        recorded,
    )]
}

fn recorded() -> Result<()> {
    let rig = Rig::new()?;
    let mut config = rig.daemon_config()?;
    // It boots before its eyes.
    config.boot_grace = Duration::from_secs(5);
    config.extra_toml = "[recorder]\ndisk = true\n".to_owned();
    let mut daemon = rig.daemon(&config)?;
    let guests = boot_watched(&daemon, &[rig.linux("is-recorded", 1)?])?;
    let guest = &guests[0];
    // Long enough to have been asked once.
    sleep(FLAT_FOR * 2)?;
    let mark = guest.mark();
    guest.send("panic")?;
    // A busy machine takes its time until then.
    guest.wait_for_after(mark, "Kernel panic - not syncing", BOOT_LIMIT)?;
    let crash = Crash::now(&daemon, guest)?;
    check_restart(&daemon, guest, &crash)?;
    let incident = wait_for_incident(&daemon, guest.name(), "recovered", BOOT_LIMIT, |incident| {
        incident["outcome"] == "recovered"
    })?;

    let asked_for = record(&daemon, guest)?;
    check_same(&asked_for, &incident)?;
    let id = incident["id"].as_str().context("no id")?;
    let evidence = incident["evidence"].as_array().context("no evidence")?;
    ensure!(evidence.iter().any(|name| name == "recording.flr"), "{incident}");
    check_same(&rig.dir().join("state/incidents").join(id).join("recording.flr"), &incident)?;
    check_longer_terms(rig.dir(), &asked_for)?;
    check_torn(rig.dir(), &asked_for)?;
    check_drawing(&daemon, guest)?;

    daemon.terminate()?;
    let for_good: Vec<PathBuf> = fs::read_dir(rig.dir().join("state/recordings"))?
        .map(|entry| Ok(entry?.path()))
        .filter(|path| !path.as_ref().is_ok_and(|path| *path == asked_for))
        .collect::<Result<_>>()?;
    ensure!(for_good.len() == 1, "{for_good:?}\n{}", daemon.log().text());
    check_same(&for_good[0], &incident)
}

/// Runs the program without a configuration, and without a daemon to ask.
fn flatline(arguments: &[&str]) -> Result<Output> {
    Command::new("timeout").arg("20").arg(binary()?).args(arguments).output().context("no timeout")
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("no text")
}

/// Has the guest's last minutes written down.
fn record(daemon: &Daemon, guest: &Guest) -> Result<PathBuf> {
    let nobody = daemon.client(&["record", "nobody"])?;
    ensure!(nobody.status.code() == Some(1), "{nobody:?}");
    let output = daemon.client(&["record", guest.name()])?;
    ensure!(output.status.success(), "{output:?}\n{}", daemon.log().text());
    let path = PathBuf::from(String::from_utf8(output.stdout)?.trim());
    ensure!(path.is_file(), "{} is not there", path.display());
    Ok(path)
}

/// The recording is judged as it was live, and holds the conviction of `incident` and the recovery.
fn check_same(recording: &Path, incident: &Value) -> Result<()> {
    let output = flatline(&["replay", text(recording)?])?;
    let shown = String::from_utf8(output.stdout)?;
    ensure!(output.status.code() == Some(0) && output.stderr.is_empty(), "{shown}");
    for part in ["suspect -> crashed (spinning)", "recovering -> alive: recovered", "all the same"]
    {
        ensure!(shown.contains(part), "{}: no {part:?} in {shown}", recording.display());
    }
    let output = flatline(&["replay", text(recording)?, "--json"])?;
    let replay: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(replay["same"] == true && replay["summary"]["same_convictions"] == 1, "{replay}");
    let lines = replay["lines"].as_array().context("no lines")?;
    ensure!(lines.iter().all(|line| line["live"]["what"] == line["replay"]["what"]), "{replay}");
    let convicted = lines
        .iter()
        .find(|line| line["replay"]["what"] == "suspect -> crashed (spinning)")
        .context("no conviction")?;
    let time = |value: &Value| -> Result<SystemTime> {
        Ok(humantime::parse_rfc3339(value.as_str().context("no time")?)?)
    };
    // The incident's has whole seconds.
    let apart = time(&convicted["at"])?
        .duration_since(time(&incident["detected_at"])?)
        .context("convicted before it was detected")?;
    ensure!(apart < Duration::from_millis(1500), "{apart:?}: {convicted} {incident}");
    println!("{}: {} lines, all the same", recording.display(), lines.len());
    Ok(())
}

/// The guest was restarted long before a longer window would have been over.
fn check_longer_terms(dir: &Path, recording: &Path) -> Result<()> {
    let config = dir.join("longer.toml");
    fs::write(&config, "[detection]\nflat_for = \"20s\"\nboot_grace = \"5s\"\n")?;
    let arguments = ["replay", text(recording)?, "--config", text(&config)?];
    let output = flatline(&arguments)?;
    let shown = String::from_utf8(output.stdout)?;
    ensure!(output.status.code() == Some(1), "{shown}");
    println!("{shown}");
    let output = flatline(&[&arguments[..], &["--json"]].concat())?;
    let replay: Value = serde_json::from_slice(&output.stdout)?;
    let summary = &replay["summary"];
    let later = summary["later_convictions"].as_u64().unwrap_or(0)
        + summary["missing_convictions"].as_u64().unwrap_or(0);
    ensure!(later == 1 && summary["same_convictions"] == 0, "{summary}");
    ensure!(shown.contains("restarted live; by then, the replay had not convicted it"), "{shown}");
    Ok(())
}

/// A torn file is used up to the tear, which is told; a damaged one is refused, with the place.
fn check_torn(dir: &Path, recording: &Path) -> Result<()> {
    let bytes = fs::read(recording)?;
    let torn = dir.join("torn.flr");
    fs::write(&torn, bytes.get(..bytes.len() - 9).context("too short")?)?;
    let output = flatline(&["replay", text(&torn)?])?;
    let remark = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(0) && remark.contains("torn at byte "), "{remark}");
    let mut damaged = bytes.clone();
    if let Some(byte) = damaged.get_mut(bytes.len() / 2) {
        *byte ^= 0x10;
    }
    fs::write(&torn, damaged)?;
    let output = flatline(&["replay", text(&torn)?])?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1) && error.contains("damaged at byte "), "{error}");
    Ok(())
}

fn check_drawing(daemon: &Daemon, guest: &Guest) -> Result<()> {
    let shown = String::from_utf8(daemon.client(&["show", guest.name()])?.stdout)?;
    println!("{shown}");
    for part in ["packets sent", "requests done", "vCPU time", "80 % pinned", "1 % still", "3s+"] {
        ensure!(shown.contains(part), "no {part:?} in {shown}");
    }
    for mark in ["suspected: ", "verdict: ", "restarted", "lives: "] {
        ensure!(shown.contains(mark), "no {mark:?} in {shown}");
    }
    let history = &daemon.show(guest.name())?["history"];
    let seconds = history["seconds"].as_u64().context("no seconds")?;
    let rows =
        ["packets_from_guest", "completed", "vcpu", "vcpu_wanted", "in_flight", "probe_answers"];
    for row in rows.map(|row| history[row].as_array().map_or(0, Vec::len)) {
        // From its first sign of life to its recovery, there are two silences at least, and its boot.
        ensure!(row as u64 == seconds && seconds >= 3 * FLAT_FOR.as_secs(), "{history}");
    }
    let pinned = |value: &Value| value.as_f64().is_some_and(|vcpu| vcpu > 0.8);
    let spun = history["vcpu_wanted"]
        .as_array()
        .map_or(0, |row| row.iter().filter(|it| pinned(it)).count());
    ensure!(spun as u64 >= FLAT_FOR.as_secs() - 1, "pinned for {spun} s only: {history}");
    Ok(())
}
