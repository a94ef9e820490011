//! Healthy guests that look dead to a plain rule: busy, idle, silent, or flooded.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};

use super::crashes::{at, boot_sector_runs, one, two_vcpus};
use super::stage::BOOT_LIMIT;
use super::{Expected, Scenario, Stage};
use crate::boot_sector::BootSector;
use crate::broadcast::Broadcast;
use crate::interrupt;

pub(super) const ALIVE: Expected = Expected::LeftAlone { states: &["alive"] };
/// What cannot be asked may stay suspected.
pub(super) const UNASKED: Expected = Expected::LeftAlone { states: &["alive", "suspect"] };

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "idle-1-vcpu",
        what: "Linux idles on one vCPU",
        guests: one,
        boots: true,
        pins: 0,
        fault: nothing,
        expected: ALIVE,
    },
    Scenario {
        name: "idle-2-vcpus",
        what: "Linux idles on two vCPUs",
        guests: two_vcpus,
        boots: true,
        pins: 0,
        fault: nothing,
        expected: ALIVE,
    },
    Scenario {
        name: "idle-unasked",
        what: "Linux idles without an address, an agent or a disk",
        guests: |place| Ok(vec![place.bare_linux("guest")]),
        boots: true,
        pins: 0,
        fault: nothing,
        expected: UNASKED,
    },
    Scenario {
        name: "compute-1-vcpu",
        what: "Linux computes on its one vCPU, without any I/O",
        guests: one,
        boots: true,
        pins: 1,
        fault: |stage| at(stage, "compute 1"),
        expected: ALIVE,
    },
    Scenario {
        name: "compute-unasked",
        what: "Linux computes on its one vCPU, without an address, an agent or a disk",
        guests: |place| Ok(vec![place.bare_linux("guest")]),
        boots: true,
        pins: 1,
        fault: |stage| at(stage, "compute 1"),
        expected: UNASKED,
    },
    Scenario {
        name: "compute-1-of-2",
        what: "Linux was told to start one of two vCPUs, and computes on that: the other is at zero",
        guests: |place| {
            let mut guests = two_vcpus(place)?;
            guests.iter_mut().for_each(|config| config.maxcpus = true);
            Ok(guests)
        },
        boots: true,
        pins: 1,
        fault: |stage| at(stage, "compute 1"),
        expected: ALIVE,
    },
    Scenario {
        name: "disk-load",
        what: "Linux reads and writes its disk as fast as it can",
        guests: one,
        boots: true,
        pins: 1,
        fault: |stage| at(stage, "disk"),
        expected: ALIVE,
    },
    Scenario {
        name: "network-load",
        what: "Linux floods its gateway, which answers",
        guests: one,
        boots: true,
        pins: 1,
        fault: |stage| at(stage, "net-flood"),
        expected: ALIVE,
    },
    Scenario {
        name: "fork-bomb",
        what: "Linux' processes breed up to their limit, again and again",
        guests: one,
        boots: true,
        pins: 1,
        fault: |stage| at(stage, "fork-bomb"),
        expected: ALIVE,
    },
    Scenario {
        name: "broadcasts",
        what: "Linux idles, and 100 broadcasts a second go into its tap",
        guests: one,
        boots: true,
        pins: 0,
        fault: |stage| {
            let tap = stage.tap.as_ref().context("it has a tap")?;
            stage.until_the_end(Broadcast::start(tap, 100)?);
            Ok(SystemTime::now())
        },
        expected: ALIVE,
    },
    Scenario {
        name: "network-down",
        what: "Linux takes its network down and idles on: its witness fails, and nothing else does",
        guests: one,
        boots: true,
        pins: 0,
        fault: |stage| at(stage, "net-down"),
        expected: UNASKED,
    },
    Scenario {
        name: "agent-and-balloon",
        what: "Linux idles with a balloon and an agent, and takes its network down",
        guests: |place| {
            let mut guests = one(place)?;
            for config in &mut guests {
                (config.agent, config.balloon) = (true, true);
            }
            Ok(guests)
        },
        boots: true,
        pins: 0,
        fault: |stage| at(stage, "net-down"),
        expected: ALIVE,
    },
    Scenario {
        name: "sti-hlt",
        what: "A boot sector halts with interrupts on: the smallest healthy guest that idles",
        guests: |place| Ok(vec![place.boot_sector("guest", BootSector::StiHlt)]),
        boots: false,
        pins: 0,
        fault: boot_sector_runs,
        expected: UNASKED,
    },
    Scenario {
        name: "sti-jmp",
        what: "A boot sector spins with interrupts on: the smallest healthy guest that is busy",
        guests: |place| Ok(vec![place.boot_sector("guest", BootSector::StiJmp)]),
        boots: false,
        pins: 1,
        fault: boot_sector_runs,
        expected: UNASKED,
    },
    Scenario {
        name: "masked-wait",
        what: "A boot sector waits with interrupts off at one spot, and takes ten a second all the while",
        guests: |place| Ok(vec![place.boot_sector("guest", BootSector::MaskedWait)]),
        boots: false,
        pins: 1,
        fault: takes_interrupts,
        expected: UNASKED,
    },
    Scenario {
        name: "idle-poll",
        what: "Linux idles with idle=poll, without an address, an agent or a disk: its vCPU never halts",
        guests: |place| {
            let mut config = place.bare_linux("guest");
            config.kernel_args.push("idle=poll".to_owned());
            Ok(vec![config])
        },
        boots: true,
        pins: 1,
        fault: nothing,
        expected: UNASKED,
    },
    Scenario {
        name: "nothing-to-boot",
        what: "The firmware finds no bootable device, and waits for ever",
        guests: |place| Ok(vec![place.nothing("guest")]),
        boots: false,
        pins: 0,
        fault: nothing,
        expected: UNASKED,
    },
];

/// Waits until a [`BootSector::MaskedWait`] has taken some of its interrupts.
pub(super) fn takes_interrupts(stage: &Stage) -> Result<SystemTime> {
    interrupt::wait_until("interrupts are taken", BOOT_LIMIT, || {
        let taken = stage.guest().dword_at(BootSector::COUNTER_AT)?;
        Ok((taken >= 3).then(SystemTime::now))
    })
}

/// Time alone may tell.
pub(super) fn nothing(_stage: &Stage) -> Result<SystemTime> {
    interrupt::sleep(Duration::from_secs(5))?;
    Ok(SystemTime::now())
}
