//! What is played on a host of 64-bit Arm, with guests of its own kind under KVM: each with a console that is only a terminal's,
//! and with one whose words QEMU also writes to a file, which the daemon then reads.

use anyhow::Result;

use super::crashes::{at, one, panic, two_vcpus};
use super::healthy::{ALIVE, UNASKED, nothing};
use super::{Expected, Place, Scenario};
use crate::guest::GuestConfig;

/// Linux' loop after a panic takes timer interrupts, and what it parks does, too; which witness has the last word depends on
/// the kernel. Where its console is read, it said so.
const PANICKED: Expected =
    Expected::Crashed { causes: &["spinning", "silent", "panicked"], recovers: true };
/// A halted CPU waits in a loop, which may pin the host's.
const HALTED: Expected =
    Expected::Crashed { causes: &["halted", "spinning", "silent"], recovers: true };

/// Those scenarios.
pub fn scenarios() -> Vec<Scenario> {
    SCENARIOS.to_vec()
}

const SCENARIOS: &[Scenario] = &[
    panics("arm-panic-1", "Linux panics on one vCPU", 1, one),
    panics("arm-panic-1-console", "The same, with a console log", 1, |place| said(one(place)?)),
    panics(
        "arm-panic-2",
        "Linux panics on two vCPUs: one spins, the other is parked",
        2,
        two_vcpus,
    ),
    panics("arm-panic-2-console", "The same, with a console log", 2, |place| {
        said(two_vcpus(place)?)
    }),
    halts("arm-halt-1", "Linux halts its one CPU for good", 1, one),
    halts("arm-halt-1-console", "The same, with a console log", 1, |place| said(one(place)?)),
    halts("arm-halt-2", "Linux halts both CPUs for good", 2, two_vcpus),
    halts("arm-halt-2-console", "The same, with a console log", 2, |place| said(two_vcpus(place)?)),
    idles("arm-idle", "Linux idles on two vCPUs", ALIVE, two_vcpus),
    idles("arm-idle-console", "The same, with a console log", ALIVE, |place| {
        said(two_vcpus(place)?)
    }),
    idles("arm-idle-unasked", "Linux idles without an address, an agent or a disk", UNASKED, bare),
    idles("arm-idle-unasked-console", "The same, with a console log", UNASKED, |place| {
        said(bare(place)?)
    }),
    computes("arm-busy", "Linux computes on its one vCPU", ALIVE, one),
    computes("arm-busy-console", "The same, with a console log", ALIVE, |place| said(one(place)?)),
    computes(
        "arm-busy-unasked",
        "Linux computes without an address, an agent or a disk",
        UNASKED,
        bare,
    ),
    computes("arm-busy-unasked-console", "The same, with a console log", UNASKED, |place| {
        said(bare(place)?)
    }),
];

type Guests = fn(&mut Place) -> Result<Vec<GuestConfig>>;

const fn panics(name: &'static str, what: &'static str, pins: usize, guests: Guests) -> Scenario {
    Scenario { name, what, guests, boots: true, pins, fault: panic, expected: PANICKED }
}

const fn halts(name: &'static str, what: &'static str, pins: usize, guests: Guests) -> Scenario {
    let fault = |stage: &super::Stage| at(stage, "halt");
    Scenario { name, what, guests, boots: true, pins, fault, expected: HALTED }
}

const fn idles(
    name: &'static str,
    what: &'static str,
    expected: Expected,
    guests: Guests,
) -> Scenario {
    Scenario { name, what, guests, boots: true, pins: 0, fault: nothing, expected }
}

const fn computes(
    name: &'static str,
    what: &'static str,
    expected: Expected,
    guests: Guests,
) -> Scenario {
    let fault = |stage: &super::Stage| at(stage, "compute 1");
    Scenario { name, what, guests, boots: true, pins: 1, fault, expected }
}

/// Has QEMU write down what comes over the first guest's console.
fn said(mut guests: Vec<GuestConfig>) -> Result<Vec<GuestConfig>> {
    guests.iter_mut().for_each(|config| config.console_log = true);
    Ok(guests)
}

fn bare(place: &mut Place) -> Result<Vec<GuestConfig>> {
    Ok(vec![place.bare_linux("guest")])
}
