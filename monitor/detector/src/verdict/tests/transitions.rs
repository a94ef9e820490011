//! Every arrow of the drawing, in and out.

mod inputs;

use std::collections::BTreeSet;

use super::{
    drawing::{STATES, arrows},
    rig::{
        FLAT_TICKS, GRACE_TICKS, Rig, TICK, excused, healthy, inconclusive, missing, no_address,
        panicked_event,
    },
};
use crate::{
    activity::StorageActivity,
    verdict::{Cause, Input, Monitor, Questions},
};
use flatline_samples::{ProcessState, QmpEvent, RunState};
use inputs::{INPUTS, told};

fn in_state(name: &str) -> Rig {
    let mut rig = match name {
        "starting" => {
            let mut rig = Rig::new(TICK);
            rig.tick();
            rig
        }
        "alive" => Rig::without_address(),
        "suspect" => Rig::suspect(),
        "crashed" => Rig::crashed(),
        "recovering" => Rig::recovering(),
        "held" => {
            let mut rig = Rig::without_address();
            rig.guest.monitor = Monitor::Answers(RunState::Paused);
            rig.tick();
            rig.guest.monitor = Monitor::Answers(RunState::Running);
            rig
        }
        "failed" => {
            let mut rig = Rig::crashed();
            rig.feed(&limit_reached());
            rig
        }
        "unobservable" => {
            let mut rig = Rig::without_address();
            rig.guest.activity.storage = Err(missing("storage"));
            rig.tick();
            rig.guest.activity.storage = Ok(StorageActivity::default());
            rig
        }
        other => panic!("no such state: {other}"),
    };
    assert_eq!(rig.state(), name);
    // How it got there counts where that is tested.
    rig.edges.clear();
    rig
}

fn limit_reached() -> Input {
    Input::LimitReached { cause: Cause::Halted, reason: "three restarts in an hour".to_owned() }
}

fn after_every_input() -> BTreeSet<(&'static str, &'static str)> {
    let mut edges = BTreeSet::new();
    for (what, input, expected) in INPUTS {
        for (from, to) in STATES.into_iter().zip(expected) {
            let mut rig = in_state(from);
            input(&mut rig);
            assert_eq!(rig.state(), to, "{what} in {from}");
            edges.append(&mut rig.edges);
        }
    }
    edges
}

#[test]
fn every_input_leads_from_every_state_to_the_one_that_is_drawn() {
    after_every_input();
}

/// The arrows that time and recovery bring, each with a VM that goes along it.
fn after_time_and_recovery() -> BTreeSet<(&'static str, &'static str)> {
    let mut edges = BTreeSet::new();
    let mut go = |from: &str, to: &str, ticks: u32, shape: fn(&mut Rig)| {
        let mut rig = in_state(from);
        shape(&mut rig);
        rig.run(ticks, |_, _| {});
        assert_eq!(rig.state(), to, "{from} after {ticks} ticks");
        edges.append(&mut rig.edges);
    };
    go("starting", "suspect", GRACE_TICKS - 2, |_| {});
    go("starting", "alive", FLAT_TICKS / 2, |rig| *rig = Rig::new(TICK * (GRACE_TICKS - 5)));
    go("alive", "suspect", FLAT_TICKS, |_| {});
    go("unobservable", "suspect", FLAT_TICKS, |_| {});
    go("suspect", "suspect", 1, |rig| {
        rig.asked = None;
        told(rig, RunState::Paused);
        rig.guest.monitor = Monitor::Answers(RunState::Running);
        rig.asked = None;
    });
    go("suspect", "crashed", 2, |rig| rig.guest.halt());
    go("suspect", "alive", 1, |_| {});
    go("crashed", "recovering", 1, Rig::restarted);
    go("recovering", "crashed", GRACE_TICKS + 2, |rig| rig.guest.halt());
    go("recovering", "alive", GRACE_TICKS + 1, |rig| rig.guest.registers = healthy());
    go("failed", "failed", 2 * GRACE_TICKS, |_| {});
    edges
}

#[test]
fn every_arrow_of_the_drawing_is_reached() {
    let mut reached = after_every_input();
    reached.append(&mut after_time_and_recovery());
    reached.retain(|(from, to)| from != to);
    let missing: Vec<_> = arrows().difference(&reached).copied().collect();
    assert_eq!(missing, [], "these are drawn, and no test goes along them");
}

#[test]
fn a_state_keeps_the_moment_it_was_entered_until_it_is_left() {
    let mut rig = in_state("suspect");
    let entered = rig.watch.since;
    rig.guest.registers = super::rig::inconclusive();
    rig.run(5, |_, _| {});
    assert_eq!((rig.state(), rig.watch.since), ("suspect", entered));
    rig.guest.sends(1);
    rig.tick();
    assert_eq!((rig.state(), rig.watch.since), ("alive", rig.now));
}
