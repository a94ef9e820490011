//! What is installed from the packages: where the files are, what systemd makes of the unit and is told by the daemon, and
//! that the daemon does its whole job with no more than the unit lets it have.

mod capabilities;
mod install;
mod notify;
mod unit;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use libtest_mimic::Trial;

use crate::rig::{trial, trial_that_may_skip};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial_that_may_skip("packages_install_into_an_empty_root_as_debian_expects", install::test),
        trial_that_may_skip("systemd_finds_nothing_wrong_with_the_unit", unit::test),
        trial(
            "systemd_hears_that_the_daemon_is_ready_and_nothing_of_a_loop_that_is_stuck",
            notify::test,
        ),
        trial("the_units_capabilities_are_enough_for_the_whole_job", capabilities::whole_job),
        trial_that_may_skip("each_capability_of_the_unit_is_needed", capabilities::each),
    ]
}

/// The packages that `cargo xtask test` built.
fn packages() -> Result<Vec<PathBuf>> {
    let packages = std::env::var_os("FLATLINE_PACKAGES").context(
        "FLATLINE_PACKAGES is not set: run this through `cargo xtask test`, or let it name the \
         packages of `cargo xtask dist --debian`, with colons between",
    )?;
    Ok(std::env::split_paths(&packages).collect())
}

/// The daemon's unit, as it is packaged.
fn unit() -> Result<String> {
    let path =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../monitor/packaging/systemd/flatline.service");
    std::fs::read_to_string(path).context(path)
}

/// The values of all the unit's lines with that key, in order.
fn values(unit: &str, key: &str) -> Vec<String> {
    let of_key = |line: &str| Some(line.strip_prefix(key)?.strip_prefix('=')?.to_owned());
    unit.lines().filter_map(of_key).collect()
}
