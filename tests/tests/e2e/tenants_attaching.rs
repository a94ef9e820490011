//! Attaching to a tap takes the kernel's time, and there are only so many taps that can be counted: a user that makes and
//! removes taps without end neither keeps another user's new VM uncounted nor takes its place.
//!
//! The VMs are stand-ins with taps of their own, each run by its user, in a namespace of the test's.

use std::{
    fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{daemon::Daemon, interrupt::sleep};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::rig::{Load, Rig, put, trial_with};

/// The user that makes taps without end, and two that have a VM each: no other has these ids.
const HOSTILE: u32 = 64_970;
const VICTIM: u32 = 64_971;
const CONTROL: u32 = 64_972;
/// Taps of each of its VMs: more than a second of attaching.
const TAPS: usize = 48;
const VMS: usize = 6;
/// For one tap to be attached on a machine that is busy.
const WITHIN: Duration = Duration::from_secs(30);
/// What the attack may add to that.
const MARGIN: Duration = Duration::from_secs(3);
/// The least that `probes.max_taps` may be.
const ROOM: usize = 16;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial_with(Load::Spins(1), "a_user_that_makes_taps_without_end_delays_no_other", churn),
        trial_with(
            Load::Spins(1),
            "a_user_that_fills_the_room_for_taps_leaves_others_theirs",
            fill,
        ),
    ]
}

/// The place of these VMs.
struct Taps {
    rig: Rig,
    program: PathBuf,
}

/// A stand-in; its end takes its taps with it.
struct StandIn(Child);

impl Drop for StandIn {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Taps {
    fn new() -> Result<Self> {
        let rig = Rig::new()?;
        let program = rig.dir().join("qemu-system-x86_64-stand-in");
        put(Path::new(env!("CARGO_BIN_EXE_stand-in")), &program)?;
        let pace = rig.dir().join("pace");
        fs::write(&pace, "200")?;
        chown(rig.dir(), Some(HOSTILE), None)?;
        fs::set_permissions(rig.dir(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        Ok(Self { rig, program })
    }

    fn daemon(&self, lines: &str) -> Result<Daemon> {
        let mut config = self.rig.daemon_config()?;
        config.executables.push(self.program.display().to_string());
        lines.clone_into(&mut config.extra_toml);
        self.rig.daemon(&config)
    }

    /// A user's VM with so many taps, which sends on one of them.
    fn vm(&self, user: u32, name: &str, taps: usize) -> Result<StandIn> {
        let [enter, netns] = self.rig.netns.enter_prefix();
        let id = user.to_string();
        let netdevs = (0..taps).flat_map(|n| {
            ["-netdev".to_owned(), format!("tap,id=n{n},ifname={name}-{n},script=no,downscript=no")]
        });
        let child = Command::new(enter)
            .arg(netns)
            .args(["--", "setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"])
            // As a helper of root's hands taps to QEMUs: this one makes its own.
            .args(["--inh-caps", "+net_admin,+dac_override"])
            .args(["--ambient-caps", "+net_admin,+dac_override"])
            .arg(&self.program)
            .args(["-name", &format!("{name},debug-threads=on"), "-accel", "tcg"])
            .args(netdevs)
            .arg("-every")
            .arg(self.rig.dir().join("pace"))
            .stdin(Stdio::piped())
            .spawn()
            .context("cannot start a stand-in")?;
        Ok(StandIn(child))
    }

    /// Starts a user's VM with one tap, and waits until its packets are counted.
    fn is_counted(&self, daemon: &Daemon, user: u32, name: &str) -> Result<(StandIn, Duration)> {
        let vm = self.vm(user, name, 1)?;
        let begun = Instant::now();
        while !row(daemon, name)?["network"].is_object() {
            ensure!(begun.elapsed() < WITHIN, "{name} is not counted: {}", daemon.log().text());
            sleep(Duration::from_millis(50))?;
        }
        let took = begun.elapsed();
        println!("{name} of user {user}: counted {took:.1?} after its start");
        Ok((vm, took))
    }
}

fn row(daemon: &Daemon, name: &str) -> Result<Value> {
    let status = daemon.status()?;
    let vms = status["vms"].as_array().context("no vms")?;
    Ok(vms.iter().find(|vm| vm["name"] == name).cloned().unwrap_or_default())
}

/// How many of the hostile user's VMs are counted, with all of their taps, and how many are watched.
fn hostile(daemon: &Daemon) -> Result<(usize, usize)> {
    let status = daemon.status()?;
    let vms = status["vms"].as_array().context("no vms")?;
    let is_its = |vm: &&Value| vm["name"].as_str().is_some_and(|name| name.starts_with("h"));
    let its: Vec<_> = vms.iter().filter(is_its).collect();
    Ok((its.iter().filter(|vm| vm["network"].is_object()).count(), its.len()))
}

fn churn() -> Result<()> {
    let taps = Taps::new()?;
    let daemon = taps.daemon("")?;
    let (_control, usual) = taps.is_counted(&daemon, CONTROL, "control")?;

    let mut vms: Vec<StandIn> =
        (0..VMS).map(|n| taps.vm(HOSTILE, &format!("h{n}"), TAPS)).collect::<Result<_>>()?;
    let begun = Instant::now();
    while hostile(&daemon)?.1 < VMS {
        ensure!(begun.elapsed() < WITHIN, "the attack does not begin");
        sleep(Duration::from_millis(50))?;
    }
    let (_victim, took) = taps.is_counted(&daemon, VICTIM, "victim")?;
    let (counted, _) = hostile(&daemon)?;
    ensure!(counted < VMS, "all of the attack's taps were attached before");
    // They are made anew, while some of them wait.
    for n in 0..VMS {
        drop(vms.remove(0));
        vms.push(taps.vm(HOSTILE, &format!("h{}", VMS + n), TAPS)?);
    }
    let (_second, later) = taps.is_counted(&daemon, VICTIM, "second")?;
    for took in [took, later] {
        ensure!(took <= usual + MARGIN, "{took:?}, and {usual:?} without the attack");
    }
    // It is delayed by itself alone, and comes to its turn.
    let begun = Instant::now();
    while hostile(&daemon)? != (VMS, VMS) {
        ensure!(begun.elapsed() < WITHIN * 3, "{:?}: {}", hostile(&daemon)?, daemon.log().text());
        sleep(Duration::from_millis(200))?;
    }
    for name in ["control", "victim", "second"] {
        ensure!(row(&daemon, name)?["network"].is_object(), "{name} is counted no more");
    }
    Ok(())
}

fn fill() -> Result<()> {
    let taps = Taps::new()?;
    let daemon = taps.daemon(&format!("[probes]\nmax_taps = {ROOM}"))?;
    let (_control, _) = taps.is_counted(&daemon, CONTROL, "control")?;
    // Each with its own, so that those that give way can be told from those that don't.
    let _vms: Vec<StandIn> =
        (0..ROOM * 2).map(|n| taps.vm(HOSTILE, &format!("h{n}"), 1)).collect::<Result<_>>()?;
    let begun = Instant::now();
    while hostile(&daemon)?.1 < ROOM * 2 || hostile(&daemon)?.0 < ROOM - 1 {
        ensure!(begun.elapsed() < WITHIN, "{:?}: {}", hostile(&daemon)?, daemon.log().text());
        sleep(Duration::from_millis(100))?;
    }
    let (_victim, _) = taps.is_counted(&daemon, VICTIM, "victim")?;
    ensure!(row(&daemon, "control")?["network"].is_object(), "the control gave way");
    let (counted, _) = hostile(&daemon)?;
    ensure!((ROOM / 3..ROOM - 1).contains(&counted), "{counted} are counted still");
    // What isn't counted is missing, and no silence.
    for n in 0..ROOM * 2 {
        let row = row(&daemon, &format!("h{n}"))?;
        let state = row["state"].as_str().unwrap_or_default();
        ensure!(!["suspect", "crashed"].contains(&state), "{row}");
    }
    let log = daemon.log().text();
    ensure!(log.contains("share of what probes.max_taps allows"), "{log}");
    Ok(())
}
