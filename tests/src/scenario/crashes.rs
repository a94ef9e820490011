//! Guests that crash, and what is due when nothing but flatline is there to notice it.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use rustix::process::Signal;

use super::{Expected, Place, Scenario, Stage, stage::BOOT_LIMIT};
use crate::boot_sector::BootSector;
use crate::broadcast::Broadcast;
use crate::guest::{GuestConfig, WatchdogAction};
use crate::interrupt;

/// A kernel that spins for ever after its last words. Where the host gets a trickle out of it, `silent`.
pub(super) const SPINS: Expected =
    Expected::Crashed { causes: &["spinning", "silent"], recovers: true };
/// The guest, or QEMU for it, said so.
const PANICKED: Expected = Expected::Crashed { causes: &["panicked"], recovers: true };
/// A console prints its last words within this.
pub(super) const SAYS_WITHIN: Duration = Duration::from_secs(20);

const PANIC: &str = "Kernel panic - not syncing";

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "panic-1-vcpu",
        what: "Linux panics with panic=0 and spins for ever, on one vCPU",
        guests: one,
        boots: true,
        pins: 1,
        fault: panic,
        expected: SPINS,
    },
    Scenario {
        name: "panic-2-vcpus",
        what: "Linux panics on two vCPUs: one spins, the other is at zero",
        guests: two_vcpus,
        boots: true,
        pins: 1,
        fault: panic,
        expected: SPINS,
    },
    Scenario {
        name: "panic-in-broadcasts",
        what: "Linux panics, and 100 broadcasts a second go on into its tap",
        guests: one,
        boots: true,
        pins: 1,
        fault: panic_in_broadcasts,
        expected: SPINS,
    },
    Scenario {
        name: "panic-busy",
        what: "Linux panics in the middle of disk and network load",
        guests: one,
        boots: true,
        pins: 1,
        fault: |stage| {
            stage.guest().send("disk")?;
            stage.guest().send("net-flood")?;
            interrupt::sleep(Duration::from_secs(5))?;
            panic(stage)
        },
        expected: SPINS,
    },
    Scenario {
        name: "init-killed",
        what: "Process 1 ends, and Linux panics",
        guests: one,
        boots: true,
        pins: 1,
        fault: |stage| after(stage, "init-killed", "Attempted to kill init"),
        expected: SPINS,
    },
    Scenario {
        name: "out-of-memory",
        what: "Memory is full and no process is left to be killed but process 1: Linux panics",
        guests: one,
        boots: true,
        pins: 1,
        fault: |stage| after(stage, "oom", "System is deadlocked on memory"),
        expected: SPINS,
    },
    Scenario {
        name: "linux-halt",
        what: "Linux halts every CPU for good",
        guests: two_vcpus,
        boots: true,
        pins: 0,
        fault: |stage| after(stage, "halt", "System halted"),
        expected: Expected::Crashed { causes: &["halted"], recovers: true },
    },
    Scenario {
        name: "cli-hlt",
        what: "A boot sector halts with interrupts off; it is as dead after a restart",
        guests: |place| Ok(vec![place.boot_sector("guest", BootSector::CliHlt)]),
        boots: false,
        pins: 0,
        fault: boot_sector_runs,
        expected: Expected::Crashed { causes: &["halted"], recovers: false },
    },
    Scenario {
        name: "cli-jmp",
        what: "A boot sector spins with interrupts off; it is as dead after a restart",
        guests: |place| Ok(vec![place.boot_sector("guest", BootSector::CliJmp)]),
        boots: false,
        pins: 1,
        fault: boot_sector_runs,
        expected: Expected::Crashed { causes: &["spinning"], recovers: false },
    },
    Scenario {
        name: "pvpanic-pause",
        what: "Linux reports its panic to pvpanic, and QEMU pauses it",
        guests: |place| pvpanic(place, "panic=pause"),
        boots: true,
        pins: 0,
        fault: panic,
        expected: PANICKED,
    },
    Scenario {
        name: "pvpanic-none",
        what: "Linux reports its panic to pvpanic, QEMU lets it run, and it spins",
        guests: |place| pvpanic(place, "panic=none"),
        boots: true,
        pins: 1,
        fault: panic,
        expected: PANICKED,
    },
    Scenario {
        name: "pvpanic-default",
        what: "Linux reports its panic to pvpanic, and QEMU ends, as it does by default",
        guests: |place| pvpanic(place, "panic=shutdown"),
        boots: true,
        pins: 0,
        fault: panic,
        // Only its owner can start it again.
        expected: Expected::Crashed { causes: &["panicked", "qemu-exited"], recovers: false },
    },
    Scenario {
        name: "watchdog-pause",
        what: "Linux' i6300esb fires unfed, and QEMU pauses the guest",
        guests: |place| watchdog(place, WatchdogAction::Pause),
        boots: true,
        pins: 0,
        // The run state lasts for no longer than the daemon takes to see it.
        fault: |stage| Ok(after(stage, "watchdog-start 5", "DONE")? + Duration::from_secs(5)),
        expected: Expected::Crashed { causes: &["watchdog"], recovers: true },
    },
    Scenario {
        name: "watchdog-reset",
        what: "Linux' i6300esb fires unfed, and QEMU resets the guest",
        guests: |place| watchdog(place, WatchdogAction::Reset),
        boots: true,
        pins: 0,
        fault: |stage| at(stage, "watchdog-start 5"),
        expected: Expected::SelfReboot,
    },
    Scenario {
        name: "panic-reboots",
        what: "Linux panics with panic=3: it spins for 3 s and reboots itself",
        guests: one,
        boots: true,
        pins: 1,
        fault: |stage| after(stage, "panic-after 3", PANIC),
        expected: Expected::SelfReboot,
    },
    Scenario {
        name: "boot-loop",
        what: "Linux panics at every boot, for want of a process 1, and reboots itself a second later",
        guests: |place| {
            let mut config = place.linux("guest")?;
            config.kernel_args.extend(["rdinit=/none".to_owned(), "panic=1".to_owned()]);
            Ok(vec![config])
        },
        boots: false,
        pins: 1,
        fault: |stage| {
            stage.guest().wait_for(PANIC, BOOT_LIMIT)?;
            Ok(SystemTime::now())
        },
        expected: Expected::Failed { causes: &["boot-loop"] },
    },
    Scenario {
        name: "triple-fault-loop",
        what: "A boot sector faults three times over and is reset, several times a second",
        guests: |place| Ok(vec![place.boot_sector("guest", BootSector::TripleFault)]),
        boots: false,
        pins: 1,
        fault: |stage| Ok(stage.started),
        expected: Expected::Failed { causes: &["boot-loop"] },
    },
    Scenario {
        name: "qemu-killed",
        what: "QEMU is killed by SIGKILL",
        guests: one,
        boots: true,
        pins: 0,
        fault: |stage| {
            let now = SystemTime::now();
            stage.guest().signal(Signal::KILL)?;
            Ok(now)
        },
        // Only its owner can start it again.
        expected: Expected::Crashed { causes: &["qemu-exited"], recovers: false },
    },
];

/// One Linux with one vCPU.
pub(super) fn one(place: &mut Place) -> Result<Vec<GuestConfig>> {
    Ok(vec![place.linux("guest")?])
}

/// One Linux with two vCPUs.
pub(super) fn two_vcpus(place: &mut Place) -> Result<Vec<GuestConfig>> {
    let mut config = place.linux("guest")?;
    config.vcpus = 2;
    Ok(vec![config])
}

fn pvpanic(place: &mut Place, action: &str) -> Result<Vec<GuestConfig>> {
    let mut config = place.linux("guest")?;
    config.pvpanic = true;
    config.traces_commands = true;
    config.extra_args.extend(["-action".to_owned(), action.to_owned()]);
    Ok(vec![config])
}

fn watchdog(place: &mut Place, action: WatchdogAction) -> Result<Vec<GuestConfig>> {
    let mut config = place.linux("guest")?;
    config.watchdog = Some(action);
    config.traces_commands = true;
    Ok(vec![config])
}

/// Gives the guest a command, and does not wait for what comes of it.
pub(super) fn at(stage: &Stage, command: &str) -> Result<SystemTime> {
    let now = SystemTime::now();
    stage.guest().send(command)?;
    Ok(now)
}

/// Gives the guest a command, and waits for its words on the console.
pub(super) fn after(stage: &Stage, command: &str, words: &str) -> Result<SystemTime> {
    let mark = stage.guest().mark();
    stage.guest().send(command)?;
    stage.guest().wait_for_after(mark, words, SAYS_WITHIN)?;
    Ok(SystemTime::now())
}

/// Has Linux panic, and waits for its last words.
pub(super) fn panic(stage: &Stage) -> Result<SystemTime> {
    after(stage, "panic", PANIC)
}

fn panic_in_broadcasts(stage: &Stage) -> Result<SystemTime> {
    let tap = stage.tap.as_ref().context("it has a tap")?;
    stage.until_the_end(Broadcast::start(tap, 100)?);
    panic(stage)
}

/// Waits until the firmware has handed over.
pub(super) fn boot_sector_runs(stage: &Stage) -> Result<SystemTime> {
    interrupt::wait_until("the boot sector runs", BOOT_LIMIT, || {
        Ok(stage.guest().runs_its_boot_sector()?.then(SystemTime::now))
    })
}
