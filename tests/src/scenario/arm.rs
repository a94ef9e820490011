//! Guests of 64-bit Arm, emulated: their registers tell other things than a PC's. Under emulation no KVM tells of their waits,
//! and CPUs that a panic parked sleep.

use anyhow::Result;

use super::crashes::{after, at, panic};
use super::healthy::{ALIVE, UNASKED, nothing};
use super::{Expected, Place, Scenario};
use crate::guest::GuestConfig;

/// With which Linux ends its panic.
const OLD_WORDS: &str = "---[ end Kernel panic - not syncing: sysrq triggered crash ]---";
const SILENT: Expected = Expected::Crashed { causes: &["silent"], recovers: true };

pub(super) const SCENARIOS: &[Scenario] = &[
    panics("panic-arm", "Linux panics on a 64-bit Arm machine, emulated", SILENT, |place| {
        Ok(vec![place.arm_linux("guest")?])
    }),
    panics("panic-arm-2-vcpus", "The same on two vCPUs: one loops, the other is parked", SILENT, {
        |place| Ok(vec![GuestConfig { vcpus: 2, ..place.arm_linux("guest")? }])
    }),
    panics(
        "panic-arm-console",
        "Linux panics on a 64-bit Arm machine, emulated, and its last words are in its console's log",
        Expected::Crashed { causes: &["panicked"], recovers: true },
        |place| Ok(vec![GuestConfig { console_log: true, ..place.arm_linux("guest")? }]),
    ),
    panics(
        "panic-arm-unasked",
        "Linux panics on a 64-bit Arm machine, emulated, without an address, an agent, a disk or a console's \
         log: it is not found, since a kernel that computes looks the same. Any of these helps, and so does KVM",
        Expected::LeftAlone { states: &["suspect"] },
        |place| Ok(vec![bare(place)?]),
    ),
    Scenario {
        name: "halt-arm",
        what: "Linux halts both CPUs of a 64-bit Arm machine, emulated: one spins with interrupts masked",
        guests: |place| Ok(vec![GuestConfig { vcpus: 2, ..place.arm_linux("guest")? }]),
        boots: true,
        pins: 1,
        fault: |stage| at(stage, "halt"),
        expected: SILENT,
    },
    Scenario {
        name: "idle-arm",
        what: "Linux idles on a 64-bit Arm machine, emulated",
        guests: |place| Ok(vec![place.arm_linux("guest")?]),
        boots: true,
        pins: 0,
        fault: nothing,
        expected: ALIVE,
    },
    Scenario {
        name: "idle-arm-unasked",
        what: "Linux idles on a 64-bit Arm machine, emulated, without an address, an agent or a disk",
        guests: |place| Ok(vec![bare(place)?]),
        boots: true,
        pins: 0,
        fault: nothing,
        expected: UNASKED,
    },
    Scenario {
        name: "busy-arm-unasked",
        what: "Linux computes on a 64-bit Arm machine, emulated, without an address, an agent or a disk",
        guests: |place| Ok(vec![bare(place)?]),
        boots: true,
        pins: 1,
        fault: |stage| at(stage, "compute 1"),
        expected: UNASKED,
    },
    Scenario {
        name: "nohlt-arm-old-words",
        what: "Linux idles by polling (nohlt) on a 64-bit Arm machine, emulated, and an old log's last words are \
               printed on its console",
        guests: |place| {
            let mut config = GuestConfig { console_log: true, ..place.arm_linux("guest")? };
            config.kernel_args.push("nohlt".to_owned());
            Ok(vec![config])
        },
        boots: true,
        pins: 1,
        fault: |stage| after(stage, &format!("echo {OLD_WORDS}"), OLD_WORDS),
        // It is asked on for as long as it is pinned.
        expected: Expected::LeftAlone { states: &["alive", "suspect"] },
    },
    Scenario {
        name: "busy-arm-old-words",
        what: "Linux computes on a 64-bit Arm machine, emulated, and an old log's last words are printed on its \
               console",
        guests: |place| Ok(vec![GuestConfig { console_log: true, ..place.arm_linux("guest")? }]),
        boots: true,
        pins: 1,
        fault: |stage| {
            stage.guest().send("compute 1")?;
            after(stage, &format!("echo {OLD_WORDS}"), OLD_WORDS)
        },
        expected: ALIVE,
    },
];

const fn panics(
    name: &'static str,
    what: &'static str,
    expected: Expected,
    guests: fn(&mut Place) -> Result<Vec<GuestConfig>>,
) -> Scenario {
    Scenario { name, what, guests, boots: true, pins: 1, fault: panic, expected }
}

/// One without network and disk.
fn bare(place: &mut Place) -> Result<GuestConfig> {
    let linux = place.arm_linux("guest")?;
    Ok(GuestConfig { tap: None, ip: None, disk: None, ..linux })
}
