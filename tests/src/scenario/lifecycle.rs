//! Guests that an operator, or they themselves, stopped on purpose.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use serde_json::{Value, json};

use super::crashes::{SAYS_WITHIN, at, one};
use super::{Expected, Place, Scenario, Stage};
use crate::boot_sector::BootSector;
use crate::guest::GuestConfig;
use crate::interrupt;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "power-off",
        what: "Linux powers itself off, and QEMU ends",
        guests: one,
        boots: true,
        pins: 0,
        fault: |stage| at(stage, "poweroff"),
        expected: Expected::Gone,
    },
    Scenario {
        name: "power-off-no-shutdown",
        what: "Linux powers itself off, and QEMU was told to stay",
        guests: |place| with(place, |config| config.no_shutdown = true),
        boots: true,
        pins: 0,
        fault: |stage| {
            stage.guest().send("poweroff")?;
            reaches(stage, "shutdown")
        },
        expected: Expected::Held { reason_contains: "powered itself off" },
    },
    Scenario {
        name: "reboot",
        what: "Linux reboots itself on purpose",
        guests: one,
        boots: true,
        pins: 0,
        fault: |stage| at(stage, "reboot"),
        expected: Expected::SelfReboot,
    },
    Scenario {
        name: "reboot-no-reboot",
        what: "Linux reboots itself, and QEMU was told to end instead",
        guests: |place| with(place, |config| config.no_reboot = true),
        boots: true,
        pins: 0,
        fault: |stage| at(stage, "reboot"),
        expected: Expected::Gone,
    },
    Scenario {
        name: "triple-fault-no-reboot",
        what: "A boot sector faults three times over, and QEMU was told to end instead of a reset",
        guests: |place| {
            let mut config = place.boot_sector("guest", BootSector::TripleFault);
            config.no_reboot = true;
            // Let go by the fault: it would be over before the daemon has seen it.
            config.extra_args.push("-S".to_owned());
            Ok(vec![config])
        },
        boots: false,
        pins: 0,
        fault: |stage| {
            interrupt::sleep(Duration::from_secs(3))?;
            let now = SystemTime::now();
            stage.guest().qmp("cont", &Value::Null)?;
            Ok(now)
        },
        expected: Expected::Gone,
    },
    Scenario {
        name: "qmp-stop",
        what: "An operator pauses the guest through QMP",
        guests: one,
        boots: true,
        pins: 0,
        fault: |stage| {
            stage.guest().qmp("stop", &Value::Null)?;
            reaches(stage, "paused")
        },
        expected: Expected::Held { reason_contains: "paused" },
    },
    Scenario {
        name: "suspend",
        what: "Linux suspends itself to memory",
        guests: one,
        boots: true,
        pins: 0,
        fault: |stage| {
            stage.guest().send("suspend")?;
            reaches(stage, "suspended")
        },
        expected: Expected::Held { reason_contains: "suspended" },
    },
    Scenario {
        name: "not-started",
        what: "QEMU waits for an operator to start the guest (-S)",
        guests: |place| with(place, |config| config.extra_args.push("-S".to_owned())),
        boots: false,
        pins: 0,
        fault: |stage| reaches(stage, "prelaunch"),
        expected: Expected::Held { reason_contains: "not started" },
    },
    Scenario {
        name: "migration-target",
        what: "QEMU waits for a guest that comes from elsewhere",
        guests: |place| {
            with(place, |config| {
                config.extra_args.extend(["-incoming".to_owned(), "defer".to_owned()]);
            })
        },
        boots: false,
        pins: 0,
        fault: |stage| reaches(stage, "inmigrate"),
        expected: Expected::Held { reason_contains: "migration" },
    },
    Scenario {
        name: "migrated-away",
        what: "The guest runs elsewhere now, and what is left is its shell",
        guests: one,
        boots: true,
        pins: 0,
        fault: |stage| {
            stage.guest().qmp("migrate", &json!({ "uri": "exec:cat >/dev/null" }))?;
            reaches(stage, "postmigrate")
        },
        expected: Expected::Held { reason_contains: "migrat" },
    },
];

/// One Linux that is changed.
fn with(place: &mut Place, change: impl Fn(&mut GuestConfig)) -> Result<Vec<GuestConfig>> {
    let mut guests = one(place)?;
    guests.iter_mut().for_each(change);
    Ok(guests)
}

/// Waits for a run state.
pub(super) fn reaches(stage: &Stage, run_state: &str) -> Result<SystemTime> {
    interrupt::wait_until(run_state, SAYS_WITHIN, || {
        Ok((stage.guest().run_state()? == run_state).then(SystemTime::now))
    })
}
