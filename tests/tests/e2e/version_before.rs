//! The daemon takes over from the version before it: pins, open cases, budgets, recordings, and what was not delivered.
//!
//! The program of that version is named by `FLATLINE_OLD_BINARY`. Without it, only what that program once wrote is
//! read: `version_before/` holds a state directory of its making and what it said of it itself. Both are made anew
//! where `FLATLINE_KEEP` names a directory for them.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    boot_sector::BootSector,
    daemon::{Daemon, DaemonConfig, free_address},
    guest::{Accelerator, Guest, was_killed},
    interrupt,
    netns::Tap,
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    counts::Traffic,
    rig::{
        BOOT_LIMIT, Rig, binary, boot_all, incidents_of, outer_resets, trial, trial_that_may_skip,
        wait_for_incident, wait_for_vm,
    },
    telling::{NO_CONTENT, Receiver},
};

/// A guest that dies, and comes back.
const FALLS: &str = "falls";
/// A guest that no reset brings back; its only restart is under way while the daemons change.
const STAYS_DEAD: &str = "stays-dead";
/// A guest that sends all the while.
const SENDS: &str = "sends";
/// For a verdict on a busy machine.
const LIMIT: Duration = Duration::from_secs(40);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("what_the_version_before_wrote_is_read_as_it_read_it", read),
        trial_that_may_skip("the_version_before_is_taken_over_from", || {
            let Some(old) = env::var_os("FLATLINE_OLD_BINARY") else {
                return Ok(Some("FLATLINE_OLD_BINARY does not name its program".to_owned()));
            };
            taken_over(Path::new(&old))?;
            Ok(None)
        }),
    ]
}

fn read() -> Result<()> {
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/version_before");
    let said = |name: &str| {
        fs::read(made.join(name)).with_context(|| format!("{}/{name}", made.display()))
    };
    let rig = Rig::new()?;
    copy(&made.join("state"), &rig.dir().join("state"))?;
    let daemon = rig.daemon(&rig.daemon_config()?)?;
    let expected: Vec<Value> = serde_json::from_slice(&said("incidents.json")?)?;
    let incidents = daemon.incidents()?;
    ensure!(!expected.is_empty() && incidents == expected, "{incidents:?}\nnot\n{expected:?}");
    let log = daemon.log().text();
    ensure!(!log.contains("cannot be read"), "{log}");
    let recording = recording_of(rig.dir(), &expected[0])?;
    let expected: Value = serde_json::from_slice(&said("replay.json")?)?;
    let replay = replay(&binary()?, &recording)?;
    ensure!(replay["same"] == true && replay == expected, "{replay}\nnot\n{expected}");
    Ok(())
}

/// Copies a directory with all that is in it.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), &to).with_context(|| to.display().to_string())?;
        }
    }
    Ok(())
}

fn recording_of(dir: &Path, incident: &Value) -> Result<PathBuf> {
    let id = incident["id"].as_str().with_context(|| format!("no id: {incident}"))?;
    Ok(dir.join("state/incidents").join(id).join("recording.flr"))
}

/// What `program` says of a recording, but for the recording's own path.
fn replay(program: &Path, recording: &Path) -> Result<Value> {
    let output: Output = Command::new("timeout")
        .arg("20")
        .arg(program)
        .arg("replay")
        .arg(recording)
        .arg("--json")
        .output()?;
    let mut said: Value =
        serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))?;
    said.as_object_mut().context("no object")?.remove("file");
    Ok(said)
}

fn config(rig: &Rig, binary: &Path, webhook: &str) -> Result<DaemonConfig> {
    let mut config = rig.daemon_config()?;
    config.binary = binary.to_owned();
    config.flat_for = Duration::from_secs(2);
    config.boot_grace = Duration::from_secs(4);
    config.extra_toml = format!(
        "[recovery]\nmax_restarts = 1\n\n\
         [[tell]]\nname = \"late\"\nwebhook = \"http://{webhook}/\"\nevents = \"all\"\n"
    );
    Ok(config)
}

fn taken_over(old: &Path) -> Result<()> {
    let rig = Rig::new()?;
    let mut falls = rig.boot_sector_on_disk(FALLS, BootSector::OnCommand)?;
    falls.pvpanic = true;
    falls.extra_args.extend(["-action".to_owned(), "panic=pause".to_owned()]);
    let stays_dead = rig.boot_sector(STAYS_DEAD, BootSector::CliHlt, Accelerator::Tcg);
    let sends = rig.linux(SENDS, 1)?;
    let tap = sends.tap.clone().context("it has a tap")?;
    let guests = boot_all(&[falls, sends])?;
    let (falls, sends) = (&guests[0], &guests[1]);
    let late = free_address()?;
    let mut daemon = rig.daemon(&config(&rig, old, &late.to_string())?)?;
    for name in [FALLS, SENDS] {
        wait_for_vm(&daemon, name, "alive", BOOT_LIMIT, |row| row["state"] == "alive")?;
    }
    falls.send("p")?;
    let fell = wait_for_incident(&daemon, FALLS, "recovered", LIMIT, |incident| {
        incident["outcome"] == "recovered"
    })?;
    let recording = recording_of(rig.dir(), &fell)?;
    let replayed = replay(old, &recording)?;
    // Whatever its end did not deliver lies in the state directory.
    ensure!(daemon.terminate()?.success(), "{}", daemon.log().text());
    let undelivered = rig.dir().join("state/telling.json");
    let kept = fs::read(&undelivered).context("nothing is left undelivered")?;
    if let Some(directory) = env::var_os("FLATLINE_KEEP") {
        keep(Path::new(&directory), rig.dir(), &fell, &replayed)?;
    }

    daemon.start_again()?;
    let dead = boot_all(&[stays_dead])?;
    let open = wait_for_incident(&daemon, STAYS_DEAD, "restarted", LIMIT, |incident| {
        !incident["action_at"].is_null()
    })?;
    let counted = (Traffic::of_daemon(&daemon, SENDS)?, Traffic::of_kernel(&tap)?);
    sends.send("net 3000")?;
    ensure!(was_killed(daemon.kill()?), "it ended by itself: {}", daemon.log().text());

    fs::write(&undelivered, kept)?;
    let receiver = Receiver::start(late, NO_CONTENT)?;
    daemon.set_binary(&binary()?);
    daemon.start_again()?;
    receiver.wait_for(&["crashed", "restarted", "recovered"])?;
    // Of another layout, no pin is taken over, and that is said.
    let counted = if daemon.log().text().contains("counters are given up") {
        wait_for_vm(&daemon, SENDS, "counted", LIMIT, |row| !row["network"].is_null())?;
        // What was sent before may be on its way still.
        let since = interrupt::wait_until("a moment without traffic", LIMIT, || {
            let kernels = Traffic::of_kernel(&tap)?;
            interrupt::sleep(Duration::from_millis(300))?;
            let ours = Traffic::of_daemon(&daemon, SENDS)?;
            Ok((kernels == Traffic::of_kernel(&tap)?).then_some((ours, kernels)))
        })?;
        sends.send("net 3000")?;
        since
    } else {
        counted
    };
    check_counts(&daemon, &tap, counted)?;
    check_cases(&daemon, &dead[0], &fell, &open)?;
    ensure!(replay(&binary()?, &recording)? == replayed, "another replay than {replayed}");
    Ok(())
}

/// Keeps what the version wrote, and what it says of that itself.
fn keep(to: &Path, dir: &Path, incident: &Value, replayed: &Value) -> Result<()> {
    copy(&dir.join("state"), &to.join("state"))?;
    fs::write(to.join("incidents.json"), serde_json::to_vec_pretty(&[incident])?)?;
    Ok(fs::write(to.join("replay.json"), serde_json::to_vec_pretty(replayed)?)?)
}

/// What was over stays as it was, what was open stays open without another reset, and the budgets count on.
fn check_cases(daemon: &Daemon, dead: &Guest, fell: &Value, open: &Value) -> Result<()> {
    for name in [FALLS, STAYS_DEAD] {
        wait_for_vm(daemon, name, "its restart counted", LIMIT, |row| {
            row["restarts_in_window"] == 1
        })?;
    }
    ensure!(incidents_of(daemon, FALLS)? == std::slice::from_ref(fell), "not {fell}");
    let row =
        wait_for_vm(daemon, STAYS_DEAD, "waited for", LIMIT, |row| row["state"] == "recovering")?;
    let mut incidents = incidents_of(daemon, STAYS_DEAD)?;
    // What this version adds to an incident that it goes on with.
    for incident in incidents.iter_mut().filter_map(Value::as_object_mut) {
        incident.remove("uid");
    }
    let same = incidents == std::slice::from_ref(open) && open["outcome"].is_null();
    ensure!(same, "{incidents:?}, not {open}; {row}");
    let resets = outer_resets(dead)?.len();
    ensure!(resets == 1, "{resets} resets of a guest that was restarted once: {incidents:?}");
    Ok(())
}

/// What is counted equals what the kernel counts: since `before`, also while no daemon ran.
fn check_counts(daemon: &Daemon, tap: &Tap, before: (Traffic, Traffic)) -> Result<()> {
    interrupt::wait_until("the counters of the kernel and ours to be equal", LIMIT, || {
        let kernels = Traffic::of_kernel(tap)?;
        interrupt::sleep(Duration::from_millis(1500))?;
        let ours = Traffic::of_daemon(daemon, SENDS)?.since(before.0);
        let quiet = kernels == Traffic::of_kernel(tap)?;
        let kernels = kernels.since(before.1);
        println!("{SENDS}: {ours:?}; kernel: {kernels:?}");
        Ok((quiet && ours == kernels && ours.figures()[0] >= 3000).then_some(()))
    })
    .with_context(|| daemon.log().text())
}
