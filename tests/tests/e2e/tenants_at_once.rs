//! All that a user without rights can do to the VMs of others, at once: `cargo xtask hostile`, in short.

use std::time::Duration;

use anyhow::{Result, ensure};
use flatline_tests::hostile::{self, Plan, Scale};
use libtest_mimic::Trial;

use crate::rig::{FLAT_FOR, Load, binary, fakes, trial_with};

/// Enough for each crashing guest to crash once without an attack, and twice with it.
const CONTROL: Duration = Duration::from_secs(12);
const ATTACK: Duration = Duration::from_secs(30);
/// What a daemon that is not optimized can bear.
const SCALE: Scale = Scale {
    processes: 24,
    files: 3000,
    threads: 1000,
    taps: 24,
    storm: 3,
    crashes: 2,
    monitors: 1,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial_with(
        Load::Spins(2),
        "a_user_that_does_all_of_it_at_once_hurts_no_others_vms",
        at_once,
    )]
}

fn at_once() -> Result<()> {
    let plan = Plan {
        daemon: binary()?,
        fakes: fakes(),
        flat_for: FLAT_FOR,
        control: CONTROL,
        attack: ATTACK,
        healthy: 4,
        crashing: 2,
        users: 2,
        scale: SCALE,
    };
    let summary = hostile::run(&plan, |line| println!("{line}"))?;
    for attacked in &summary.attacks {
        println!("{} rounds: {}", attacked.rounds, attacked.name);
    }
    let wrong = summary.wrong();
    ensure!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), summary.log);
    Ok(())
}
