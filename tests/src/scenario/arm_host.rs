//! What is played on a host of 64-bit Arm, with guests of its own kind under KVM: each with a console that is only a terminal's,
//! and with one whose words QEMU also writes to a file, which the daemon then reads.

use anyhow::{Context as _, Result};

use super::crashes::{after, at, one, two_vcpus};
use super::healthy::ALIVE;
use super::{Expected, Place, Scenario, Stage};
use crate::guest::GuestConfig;

/// What of these is only watched: the guest called `guest` idles on two vCPUs, and one of these names is beside it.
pub const BUSY: &str = "busy";
/// Idles without an address, an agent or a disk.
pub const UNASKED: &str = "unasked";

/// Linux' loop after a panic takes timer interrupts, and so does a CPU that it parked; which witness has the last word depends
/// on the kernel. Where its console is read, it said so.
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
    lives(
        "arm-healthy",
        "Linux idles beside one that computes and one without an address",
        healthy,
    ),
    lives("arm-healthy-console", "The same, with console logs", |place| said(healthy(place)?)),
];

type Guests = fn(&mut Place) -> Result<Vec<GuestConfig>>;

const fn panics(name: &'static str, what: &'static str, pins: usize, guests: Guests) -> Scenario {
    // Until then it works: an emulated host takes seconds to have it print what it has to say.
    let fault = |stage: &Stage| after(stage, "panic", "end Kernel panic");
    Scenario { name, what, guests, boots: true, pins, fault, expected: PANICKED }
}

const fn halts(name: &'static str, what: &'static str, pins: usize, guests: Guests) -> Scenario {
    let fault = |stage: &Stage| at(stage, "halt");
    Scenario { name, what, guests, boots: true, pins, fault, expected: HALTED }
}

const fn lives(name: &'static str, what: &'static str, guests: Guests) -> Scenario {
    let fault = |stage: &Stage| {
        let busy = stage.guests.iter().find(|guest| guest.name() == BUSY);
        busy.context("no guest is to compute")?.send("compute 1")?;
        Ok(stage.started)
    };
    Scenario { name, what, guests, boots: true, pins: 1, fault, expected: ALIVE }
}

fn healthy(place: &mut Place) -> Result<Vec<GuestConfig>> {
    let mut guests = two_vcpus(place)?;
    guests.extend([place.linux(BUSY)?, place.bare_linux(UNASKED)]);
    Ok(guests)
}

/// Has QEMU write down what comes over the guests' consoles.
fn said(mut guests: Vec<GuestConfig>) -> Result<Vec<GuestConfig>> {
    guests.iter_mut().for_each(|config| config.console_log = true);
    Ok(guests)
}
