//! Guests that are well on a host that is not: restarting them would not mend it.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use rustix::process::Pid;

use super::crashes::one;
use super::lifecycle::reaches;
use super::{Expected, Place, Scenario, Stage};
use crate::guest::{DiskConfig, GuestConfig};
use crate::interrupt;
use crate::stopped::Stopped;

/// How long a process is stopped that goes on afterwards.
const STOPPED_FOR: Duration = Duration::from_secs(60);
/// Guests that compute at once.
const CROWD: usize = 8;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "overcommit",
        what: "Eight guests compute at once, on far fewer CPUs",
        guests: |place| (0..CROWD).map(|number| place.linux(&format!("guest-{number}"))).collect(),
        boots: true,
        pins: CROWD,
        fault: |stage| {
            let now = SystemTime::now();
            for guest in &stage.guests {
                guest.send("compute 1")?;
            }
            Ok(now)
        },
        // Starved vCPUs hold the verdict.
        expected: Expected::LeftAlone { states: &["alive", "suspect", "held"] },
    },
    Scenario {
        name: "qemu-stopped",
        what: "QEMU is stopped by SIGSTOP for a minute, and goes on",
        guests: one,
        boots: true,
        pins: 0,
        fault: |stage| stop_for_a_minute(stage.guest().pid()),
        expected: Expected::LeftAlone { states: &["alive"] },
    },
    Scenario {
        name: "qemu-stays-stopped",
        what: "QEMU is stopped by SIGSTOP, and stays so",
        guests: one,
        boots: true,
        pins: 0,
        fault: |stage| {
            stage.until_the_end(Stopped::new(pid(stage.guest().pid())?)?);
            Ok(SystemTime::now())
        },
        expected: Expected::Held { reason_contains: "stopped by a signal" },
    },
    Scenario {
        name: "daemon-stopped",
        what: "The daemon is stopped by SIGSTOP for a minute, and goes on",
        guests: one,
        boots: true,
        pins: 0,
        fault: |stage| stop_for_a_minute(stage.daemon.pid().context("the daemon runs")?),
        expected: Expected::LeftAlone { states: &["alive"] },
    },
    Scenario {
        name: "disk-hangs",
        what: "What serves the disk stops; Linux answers the network, and a process waits for its read",
        guests: |place| on_disk(place, Place::disk_behind_fuse),
        boots: true,
        pins: 0,
        fault: |stage| {
            stage.until_the_end(stage.place().fuse()?.stop()?);
            stage.guest().send("hung-task")?;
            Ok(SystemTime::now())
        },
        expected: Expected::LeftAlone { states: &["alive", "held"] },
    },
    Scenario {
        name: "disk-hangs-under-load",
        what: "What serves the disk stops while Linux reads and writes as fast as it can",
        guests: |place| on_disk(place, Place::disk_behind_fuse),
        boots: true,
        pins: 1,
        fault: |stage| {
            under_disk_load(stage)?;
            stage.until_the_end(stage.place().fuse()?.stop()?);
            Ok(SystemTime::now())
        },
        expected: Expected::LeftAlone { states: &["alive", "held"] },
    },
    Scenario {
        name: "file-system-frozen",
        what: "The file system that the image lies on is frozen, while Linux writes to it",
        guests: |place| on_disk(place, Place::disk_on_own_file_system),
        boots: true,
        pins: 1,
        fault: freeze,
        expected: Expected::LeftAlone { states: &["alive", "held"] },
    },
    Scenario {
        name: "file-system-frozen-native",
        what: "The same with aio=native: QEMU's main thread waits for the disk, and QMP does not answer",
        guests: |place| {
            on_disk(place, |place| {
                let mut disk = place.disk_on_own_file_system()?;
                "native".clone_into(&mut disk.aio);
                Ok(disk)
            })
        },
        boots: true,
        pins: 1,
        fault: freeze,
        expected: Expected::LeftAlone { states: &["held", "suspect", "unobservable"] },
    },
    Scenario {
        name: "disk-full",
        what: "Linux writes, the host's file system is full, and QEMU pauses the guest (werror=stop)",
        guests: |place| {
            on_disk(place, |place| {
                let mut disk = place.disk_without_room()?;
                disk.stops_at_errors = true;
                Ok(disk)
            })
        },
        boots: true,
        pins: 0,
        fault: |stage| {
            stage.guest().send("disk-write 2048 4")?;
            reaches(stage, "io-error")
        },
        expected: Expected::Held { reason_contains: "storage error" },
    },
];

fn on_disk(
    place: &mut Place,
    disk: impl Fn(&mut Place) -> Result<DiskConfig>,
) -> Result<Vec<GuestConfig>> {
    let mut guests = one(place)?;
    for config in &mut guests {
        config.disk = Some(disk(place)?);
    }
    Ok(guests)
}

fn under_disk_load(stage: &Stage) -> Result<()> {
    stage.guest().send("disk")?;
    interrupt::sleep(Duration::from_secs(3))
}

fn freeze(stage: &Stage) -> Result<SystemTime> {
    under_disk_load(stage)?;
    stage.until_the_end(stage.place().file_system()?.freeze()?);
    Ok(SystemTime::now())
}

/// Stops a child of ours, and lets it go on.
fn stop_for_a_minute(child: u32) -> Result<SystemTime> {
    let stopped = Stopped::new(pid(child)?)?;
    let now = SystemTime::now();
    interrupt::sleep(STOPPED_FOR)?;
    drop(stopped);
    Ok(now)
}

fn pid(pid: u32) -> Result<Pid> {
    Pid::from_raw(i32::try_from(pid)?).context("no process has this number")
}
