//! What is tried on a host of 64-bit Arm: scenarios with guests of one kernel after the other.

use std::path::Path;

use anyhow::{Context, Result};
use flatline_tests::image::Images;
use flatline_tests::interrupt;
use flatline_tests::scenario::arm_host::{self, UNASKED};
use flatline_tests::scenario::{self, Programs, Scenario, Stage};

use super::{cell, images_of, played, shared};
use crate::hosts::catalogue::{self, Column, Host, Trial, arm};
use crate::hosts::cell::Cell;
use crate::hosts::disks::PAYLOAD;

/// The guest that a scenario is about.
const GUEST: &str = "guest";
/// The healthy ones' scenarios, without and with a console log.
const HEALTHY: [&str; 2] = ["arm-healthy", "arm-healthy-console"];

/// Plays what is wanted.
///
/// # Errors
///
/// If images were not brought, or on a signal.
pub(super) fn play(
    host: &Host,
    daemon: &Path,
    wanted: impl Fn(&Column) -> bool,
    tell: &mut impl FnMut(&Cell),
) -> Result<()> {
    let all = catalogue::columns(host);
    for (number, kernel) in arm::KERNELS.into_iter().enumerate() {
        let images = Images::built_in(&Path::new(PAYLOAD).join(images_of(kernel)))?;
        let programs = Programs { daemon: daemon.to_owned(), images };
        if number == 0 {
            let by_name = |name: &str| all.iter().any(|each| each.name == name && wanted(each));
            shared::play(&programs, by_name, tell);
        }
        for column in all.iter().filter(|each| wanted(each)) {
            interrupt::check()?;
            let Trial::Guest(guests, name) = column.trial else { continue };
            if guests.kernel == kernel {
                tell(&played(column, &named(name)?, &programs));
            }
        }
        for (console_log, name) in [false, true].into_iter().zip(HEALTHY) {
            interrupt::check()?;
            let due = arm::Guests { kernel, console_log };
            let columns: Vec<(&Column, &str)> = all
                .iter()
                .filter(|each| wanted(each))
                .filter_map(|each| match each.trial {
                    Trial::Beside(guests, guest) if guests == due => Some((each, guest)),
                    _ => None,
                })
                .collect();
            if !columns.is_empty() {
                watch(&named(name)?, &columns, &programs, tell);
            }
        }
    }
    Ok(())
}

fn named(name: &str) -> Result<Scenario> {
    let all = arm_host::scenarios();
    all.into_iter().find(|scenario| scenario.name == name).context("no such scenario")
}

/// A stage of healthy guests, a cell each.
fn watch(
    scenario: &Scenario,
    columns: &[(&Column, &str)],
    programs: &Programs,
    tell: &mut impl FnMut(&Cell),
) {
    let played = Stage::set_up(scenario, programs)
        .and_then(|stage| Ok((scenario::run(scenario, &stage)?, stage)));
    let (outcome, stage) = match played {
        Ok(played) => played,
        Err(error) => {
            columns.iter().for_each(|(column, _)| tell(&Cell::unplayed(column.name, &error)));
            return;
        }
    };
    for (column, guest) in columns {
        tell(&match *guest {
            GUEST => cell(column.name, scenario, &Ok(outcome.clone())),
            other => {
                // What can't be asked may stay suspected.
                let states: &[&str] =
                    if other == UNASKED { &["alive", "suspect"] } else { &["alive"] };
                shared::beside(column.name, other, states, &stage, &outcome)
                    .unwrap_or_else(|error| Cell::unplayed(column.name, &error))
            }
        });
    }
}
