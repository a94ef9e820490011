//! The stage that columns share: an idle guest and a busy one beside it, and what the daemon says there of its programs.
//!
//! One second of watching is as good for both guests, and the daemon of a stage has all its programs attached.

use std::time::Duration;

use anyhow::{Context, Result};
use flatline_tests::guest::GuestConfig;
use flatline_tests::interrupt;
use flatline_tests::scenario::{self, Expected, Outcome, Programs, Scenario, Stage};
use serde_json::Value;

use super::{cell, offers};
use crate::hosts::cell::Cell;

/// The columns of what the daemon says, and of the two guests.
pub(super) const SAID: [&str; 2] = ["hook", "programs"];
pub(super) const GUESTS: [&str; 2] = ["idle", "busy"];
const BUSY: &str = "busy";
const ALIVE: &str = "alive";
/// A healthy guest is suspected now and then, until it has answered.
const ANSWERS_WITHIN: Duration = Duration::from_secs(20);

const SCENARIO: Scenario = Scenario {
    name: "idle-beside-busy",
    what: "Linux idles on two vCPUs, and another one computes on its one vCPU",
    guests: |place| Ok(vec![GuestConfig { vcpus: 2, ..place.linux("guest")? }, place.linux(BUSY)?]),
    boots: true,
    pins: 1,
    fault: |stage| {
        stage.guests[1].send("compute 1")?;
        Ok(stage.started)
    },
    expected: Expected::LeftAlone { states: &[ALIVE] },
};

/// Plays it for the columns that are wanted.
pub(super) fn play(
    programs: &Programs,
    wanted: impl Fn(&str) -> bool,
    tell: &mut impl FnMut(&Cell),
) {
    let wants = |names: &[&str]| names.iter().any(|name| wanted(name));
    if !wants(&SAID) && !wants(&GUESTS) {
        return;
    }
    let stage = match Stage::set_up(&SCENARIO, programs) {
        Ok(stage) => stage,
        Err(error) => {
            let columns = SAID.iter().chain(&GUESTS).filter(|name| wanted(name));
            columns.for_each(|name| tell(&Cell::unplayed(name, &error)));
            return;
        }
    };
    if wants(&SAID) {
        match offers::programs(&stage) {
            Ok(cells) => cells.iter().for_each(&mut *tell),
            Err(error) => SAID.iter().for_each(|name| tell(&Cell::unplayed(name, &error))),
        }
    }
    if wants(&GUESTS) {
        let played = scenario::run(&SCENARIO, &stage);
        tell(&cell("idle", &SCENARIO, &played));
        let busy = played
            .context("the stage broke")
            .and_then(|outcome| beside(BUSY, BUSY, &[ALIVE], &stage, &outcome));
        tell(&busy.unwrap_or_else(|error| Cell::unplayed(BUSY, &error)));
    }
}

/// Another guest's cell, once the first has been watched: it is to be in one of these states.
///
/// # Errors
///
/// If the daemon says nothing of it.
pub(super) fn beside(
    column: &str,
    guest: &str,
    states: &[&str],
    stage: &Stage,
    outcome: &Outcome,
) -> Result<Cell> {
    let state = || -> Result<String> {
        let row = stage.row(guest)?;
        let state = row.as_ref().and_then(|row| row["state"].as_str());
        Ok(state.unwrap_or("gone").to_owned())
    };
    let is_so = interrupt::wait_until("the other guest's answer", ANSWERS_WITHIN, || {
        Ok(states.contains(&state()?.as_str()).then_some(()))
    });
    let is_convicted = |incident: &Value| incident["vm"] == guest;
    let convicted = stage.daemon.incidents()?.into_iter().find(is_convicted);
    let is_due = is_so.is_ok() && convicted.is_none() && outcome.wrong_resets == 0;
    let detail = convicted.map_or_else(|| outcome.reason.clone(), |incident| incident.to_string());
    let cell = Cell::played(column, format!("left alone ({})", state()?), is_due);
    Ok(cell.with_detail(detail))
}
