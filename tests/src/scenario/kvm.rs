//! Boot sectors under KVM, where this machine has one that runs them: a nested one may not.

use std::time::Duration;

use anyhow::Result;

use super::crashes::boot_sector_runs;
use super::healthy::takes_interrupts;
use super::{Expected, Place, Programs, Scenario};
use crate::boot_sector::BootSector;
use crate::guest::{Accelerator, GuestConfig};
use crate::interrupt;

/// What cannot be asked may stay suspected.
const UNASKED: Expected = Expected::LeftAlone { states: &["alive", "suspect"] };

/// It is as dead after a restart.
const DEAD: Expected = Expected::Crashed { causes: &["halted"], recovers: false };

/// A boot sector on one of many vCPUs, which halts.
const fn of_many_vcpus(
    name: &'static str,
    what: &'static str,
    guests: fn(&mut Place) -> Result<Vec<GuestConfig>>,
    expected: Expected,
) -> Scenario {
    Scenario { name, what, guests, boots: false, pins: 0, fault: boot_sector_runs, expected }
}

const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "kvm-cli-hlt",
        what: "A boot sector halts with interrupts off, under KVM; it is as dead after a restart",
        guests: |place| sector(place, BootSector::CliHlt),
        boots: false,
        pins: 0,
        fault: boot_sector_runs,
        expected: Expected::Crashed { causes: &["halted"], recovers: false },
    },
    Scenario {
        name: "kvm-cli-jmp",
        what: "A boot sector spins with interrupts off, under KVM; it is as dead after a restart",
        guests: |place| sector(place, BootSector::CliJmp),
        boots: false,
        pins: 1,
        fault: boot_sector_runs,
        expected: Expected::Crashed { causes: &["spinning"], recovers: false },
    },
    Scenario {
        name: "kvm-sti-hlt",
        what: "A boot sector halts with interrupts on, under KVM: it idles",
        guests: |place| sector(place, BootSector::StiHlt),
        boots: false,
        pins: 0,
        fault: boot_sector_runs,
        expected: UNASKED,
    },
    Scenario {
        name: "kvm-sti-jmp",
        what: "A boot sector spins with interrupts on, under KVM: it is busy",
        guests: |place| sector(place, BootSector::StiJmp),
        boots: false,
        pins: 1,
        fault: boot_sector_runs,
        expected: UNASKED,
    },
    Scenario {
        name: "kvm-masked-wait",
        what: "A boot sector waits with interrupts off at one spot under KVM, and takes ten a second all the while",
        guests: |place| sector(place, BootSector::MaskedWait),
        boots: false,
        pins: 1,
        fault: takes_interrupts,
        expected: UNASKED,
    },
    of_many_vcpus(
        "kvm-cli-hlt-8",
        "A boot sector halts with interrupts off on one of 8 vCPUs under KVM, as the firmware left the others",
        |place| many_vcpus::<8>(place, BootSector::CliHlt),
        DEAD,
    ),
    of_many_vcpus(
        "kvm-cli-hlt-16",
        "A boot sector halts with interrupts off on one of 16 vCPUs under KVM, as the firmware left the others",
        |place| many_vcpus::<16>(place, BootSector::CliHlt),
        DEAD,
    ),
    of_many_vcpus(
        "kvm-cli-hlt-32",
        "A boot sector halts with interrupts off on one of 32 vCPUs under KVM, as the firmware left the others",
        |place| many_vcpus::<32>(place, BootSector::CliHlt),
        DEAD,
    ),
    of_many_vcpus(
        "kvm-cli-hlt-64",
        "A boot sector halts with interrupts off on one of 64 vCPUs under KVM, as the firmware left the others",
        |place| many_vcpus::<64>(place, BootSector::CliHlt),
        DEAD,
    ),
    of_many_vcpus(
        "kvm-cli-hlt-240",
        "A boot sector halts with interrupts off on one of 240 vCPUs under KVM, as the firmware left the others",
        |place| many_vcpus::<240>(place, BootSector::CliHlt),
        DEAD,
    ),
    of_many_vcpus(
        "kvm-sti-hlt-32",
        "A boot sector halts with interrupts on on one of 32 vCPUs under KVM: it idles",
        |place| many_vcpus::<32>(place, BootSector::StiHlt),
        UNASKED,
    ),
    of_many_vcpus(
        "kvm-sti-hlt-64",
        "A boot sector halts with interrupts on on one of 64 vCPUs under KVM: it idles",
        |place| many_vcpus::<64>(place, BootSector::StiHlt),
        UNASKED,
    ),
    of_many_vcpus(
        "kvm-sti-hlt-240",
        "A boot sector halts with interrupts on on one of 240 vCPUs under KVM: it idles",
        |place| many_vcpus::<240>(place, BootSector::StiHlt),
        UNASKED,
    ),
    Scenario {
        name: "kvm-internal-error",
        what: "A boot sector jumps to where no memory is, and KVM gives up; it does so again after a restart",
        guests: |place| {
            let mut guests = sector(place, BootSector::NowhereJmp)?;
            guests[0].traces_commands = true;
            Ok(guests)
        },
        boots: false,
        pins: 0,
        fault: |stage| Ok(stage.started),
        expected: Expected::Crashed { causes: &["internal-error"], recovers: false },
    },
];

/// Those that are to be played where [`runs`] says so.
pub fn scenarios() -> Vec<Scenario> {
    SCENARIOS.to_vec()
}

/// Whether KVM runs a boot sector here.
///
/// # Errors
///
/// If there is no place to try it, or on a signal.
pub fn runs(programs: &Programs) -> Result<bool> {
    let place = Place::new(programs)?;
    let guests = sector(&place, BootSector::StiHlt)?;
    let Some(guest) = guests.first().and_then(|config| config.start().ok()) else {
        return Ok(false);
    };
    let booted = interrupt::wait_until("a boot sector under KVM", Duration::from_secs(15), || {
        Ok(guest.runs_its_boot_sector()?.then_some(()))
    });
    interrupt::check()?;
    Ok(booted.is_ok())
}

/// As many as make the looks at their registers add up: each wakes them all.
fn many_vcpus<const VCPUS: u32>(place: &Place, code: BootSector) -> Result<Vec<GuestConfig>> {
    let mut guests = sector(place, code)?;
    guests.iter_mut().for_each(|config| config.vcpus = VCPUS);
    Ok(guests)
}

fn sector(place: &Place, code: BootSector) -> Result<Vec<GuestConfig>> {
    let mut config = place.boot_sector("guest", code);
    config.accelerator = Accelerator::Kvm;
    Ok(vec![config])
}
