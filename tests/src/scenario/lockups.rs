//! Linux guests whose CPUs lock up, as a broken driver makes them. What one locked CPU does to the others is up
//! to the kernel: some go on answering for a while, until they wait for the one that does not.

use std::time::SystemTime;

use anyhow::Result;

use super::crashes::{SPINS, after, one, two_vcpus};
use super::{Expected, Scenario, Stage};

const CAUSES: &[&str] = &["spinning", "silent"];
const ALIVE: Expected = Expected::LeftAlone { states: &["alive"] };

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "hard-lockup-1-of-1",
        what: "The only vCPU spins with interrupts off",
        guests: one,
        boots: true,
        pins: 1,
        fault: |stage| lock_up(stage, "hard"),
        expected: SPINS,
    },
    Scenario {
        name: "hard-lockup-2-of-2",
        what: "Both vCPUs spin with interrupts off",
        guests: two_vcpus,
        boots: true,
        pins: 2,
        fault: |stage| lock_up(stage, "hard all"),
        expected: SPINS,
    },
    Scenario {
        name: "hard-lockup-1-of-2",
        what: "One of two vCPUs spins with interrupts off, and the other waits for it sooner or later",
        guests: two_vcpus,
        boots: true,
        pins: 2,
        fault: |stage| lock_up(stage, "hard"),
        expected: Expected::AsItAnswers { causes: CAUSES },
    },
    Scenario {
        name: "spinlock-1-of-1",
        what: "The only vCPU takes a spinlock twice, with interrupts off: a deadlock",
        guests: one,
        boots: true,
        pins: 1,
        fault: |stage| lock_up(stage, "spinlock"),
        expected: SPINS,
    },
    Scenario {
        name: "spinlock-2-of-2",
        what: "One vCPU takes a spinlock twice, and the other waits for the lock",
        guests: two_vcpus,
        boots: true,
        pins: 2,
        fault: |stage| lock_up(stage, "spinlock all"),
        expected: SPINS,
    },
    Scenario {
        name: "spinlock-1-of-2",
        what: "One of two vCPUs takes a spinlock twice, and the other waits for it sooner or later",
        guests: two_vcpus,
        boots: true,
        pins: 2,
        fault: |stage| lock_up(stage, "spinlock"),
        expected: Expected::AsItAnswers { causes: CAUSES },
    },
    Scenario {
        name: "soft-lockup-1-of-1",
        what: "The only vCPU spins with preemption off: interrupts are taken, but no softirq gets its turn for long",
        guests: one,
        boots: true,
        pins: 1,
        fault: |stage| lock_up(stage, "soft"),
        expected: Expected::AsItAnswers { causes: CAUSES },
    },
    Scenario {
        name: "soft-lockup-1-of-2",
        what: "One of two vCPUs spins with preemption off, and the other goes on",
        guests: two_vcpus,
        boots: true,
        pins: 1,
        fault: |stage| lock_up(stage, "soft"),
        expected: Expected::AsItAnswers { causes: CAUSES },
    },
    Scenario {
        name: "oops",
        what: "A kernel thread of Linux writes to a null pointer and is ended; all else goes on",
        guests: one,
        boots: true,
        pins: 0,
        fault: |stage| lock_up(stage, "oops"),
        expected: ALIVE,
    },
];

/// Locks up, and waits until the guest has said that it is about to. With `all`, the last to say so may be a
/// moment later.
fn lock_up(stage: &Stage, how: &str) -> Result<SystemTime> {
    after(stage, &format!("lockup {how}"), "lockup: ")
}
