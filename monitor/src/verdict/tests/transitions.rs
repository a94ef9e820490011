//! Every arrow of the drawing, in and out.

use std::collections::BTreeSet;

use super::rig::{FLAT_TICKS, GRACE_TICKS, Rig, TICK, all_seen, healthy, missing, no_address};
use crate::{
    qmp::{QmpEvent, RunState},
    verdict::{Cause, Monitor, Testimony},
};

const STATES: [&str; 8] =
    ["starting", "alive", "suspect", "crashed", "recovering", "held", "failed", "unobservable"];

fn in_state(name: &str) -> Rig {
    let mut rig = match name {
        "starting" => Rig::new(TICK),
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
            rig.watch.limit_reached(Cause::Halted, "three restarts in an hour".to_owned(), rig.now);
            rig.edges.insert(("crashed", "failed"));
            rig
        }
        "unobservable" => {
            let mut rig = Rig::without_address();
            rig.guest.activity.storage = Err(missing("storage"));
            rig.tick();
            rig.guest.activity.storage = Ok(crate::activity::StorageActivity::default());
            rig
        }
        other => panic!("no such state: {other}"),
    };
    assert_eq!(rig.state(), name);
    // How it got there counts where that is tested.
    rig.edges.clear();
    rig
}

type Input = fn(&mut Rig);

/// What may happen in any state, and where that leads from each of [`STATES`].
const INPUTS: [(&str, Input, [&str; 8]); 13] = [
    (
        "a sign of life",
        |rig| {
            rig.guest.sends(1);
            rig.tick();
        },
        ["alive"; 8],
    ),
    (
        "a tick without one",
        |rig| {
            rig.asked = None;
            rig.tick();
        },
        ["starting", "alive", "suspect", "crashed", "recovering", "alive", "failed", "alive"],
    ),
    (
        "a witness's acquittal",
        |rig| {
            rig.tick_with(Some(&Testimony {
                arp: no_address(),
                registers: healthy(),
                requests: all_seen(),
            }));
        },
        ["alive", "alive", "alive", "crashed", "recovering", "alive", "failed", "alive"],
    ),
    ("paused", |rig| told(rig, RunState::Paused), HELD),
    ("an incoming migration", |rig| told(rig, RunState::Inmigrate), HELD),
    ("suspended to RAM", |rig| told(rig, RunState::Suspended), HELD),
    (
        "storage missing",
        |rig| {
            rig.guest.activity.storage = Err(missing("storage"));
            rig.tick();
        },
        UNOBSERVABLE,
    ),
    (
        "network missing",
        |rig| {
            rig.guest.activity.network = Err(missing("network"));
            rig.tick();
        },
        UNOBSERVABLE,
    ),
    (
        "vCPUs missing, which only a suspect's judge needs",
        |rig| {
            rig.guest.activity.vcpus = Err(missing("vCPU time"));
            rig.asked = None;
            rig.tick();
        },
        [
            "starting",
            "alive",
            "unobservable",
            "crashed",
            "recovering",
            "alive",
            "failed",
            "unobservable",
        ],
    ),
    (
        "a panic announced by an event",
        |rig| {
            rig.event(&QmpEvent::GuestPanicked { action: "run".to_owned() });
        },
        CONVICTED,
    ),
    ("a panic announced by the run state", |rig| told(rig, RunState::GuestPanicked), CONVICTED),
    (
        "the guest resets itself",
        |rig| {
            rig.event(&QmpEvent::Reset { guest: true });
        },
        RESET,
    ),
    (
        "a reset from outside",
        |rig| {
            rig.event(&QmpEvent::Reset { guest: false });
        },
        RESET,
    ),
];

/// A conviction outlasts the pause that QEMU makes of it.
const HELD: [&str; 8] = ["held", "held", "held", "crashed", "recovering", "held", "failed", "held"];
const UNOBSERVABLE: [&str; 8] = [
    "unobservable",
    "unobservable",
    "unobservable",
    "crashed",
    "recovering",
    "unobservable",
    "failed",
    "unobservable",
];
const CONVICTED: [&str; 8] =
    ["crashed", "crashed", "crashed", "crashed", "crashed", "crashed", "failed", "crashed"];
/// The resets that a restart brings belong to it.
const RESET: [&str; 8] = [
    "starting",
    "starting",
    "starting",
    "starting",
    "recovering",
    "starting",
    "starting",
    "starting",
];

fn told(rig: &mut Rig, run_state: RunState) {
    rig.guest.monitor = Monitor::Answers(run_state);
    rig.tick();
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
    go("starting", "suspect", GRACE_TICKS - 1, |_| {});
    go("starting", "alive", FLAT_TICKS / 2, |rig| *rig = Rig::new(TICK * (GRACE_TICKS - 5)));
    go("alive", "suspect", FLAT_TICKS, |_| {});
    go("suspect", "crashed", 2, |rig| rig.guest.halt());
    go("suspect", "alive", 1, |_| {});
    go("crashed", "recovering", 1, Rig::restarted);
    go("recovering", "crashed", GRACE_TICKS + 2, |rig| rig.guest.halt());
    go("recovering", "alive", GRACE_TICKS + 1, |rig| rig.guest.registers = super::rig::healthy());
    go("failed", "failed", 2 * GRACE_TICKS, |_| {});
    // Limits and refusals come from recovery.
    let mut rig = in_state("crashed");
    rig.watch.set_aside("its storage is stalled".to_owned(), rig.now);
    assert_eq!(rig.state(), "held");
    let mut rig = in_state("crashed");
    rig.watch.limit_reached(Cause::Halted, "three restarts in an hour".to_owned(), rig.now);
    assert_eq!(rig.state(), "failed");
    edges.insert(("crashed", "held"));
    edges.insert(("crashed", "failed"));
    edges
}

#[test]
fn every_arrow_of_the_drawing_is_reached_and_no_other() {
    let mut reached = after_every_input();
    reached.append(&mut after_time_and_recovery());
    reached.retain(|(from, to)| from != to);
    let mut drawn = BTreeSet::from([
        ("starting", "alive"),
        ("starting", "suspect"),
        ("alive", "suspect"),
        ("suspect", "alive"),
        ("suspect", "crashed"),
        ("crashed", "recovering"),
        ("crashed", "failed"),
        ("recovering", "crashed"),
        ("recovering", "alive"),
        ("crashed", "alive"),
        ("failed", "alive"),
        ("held", "alive"),
        ("unobservable", "alive"),
        // What recovery refuses to restart.
        ("crashed", "held"),
    ]);
    for unjudged in ["starting", "alive", "suspect"] {
        drawn.extend([(unjudged, "held"), (unjudged, "unobservable"), (unjudged, "crashed")]);
    }
    drawn.extend([("held", "unobservable"), ("unobservable", "held")]);
    drawn.extend([("held", "crashed"), ("unobservable", "crashed")]);
    drawn.extend(
        ["alive", "suspect", "crashed", "held", "failed", "unobservable"]
            .map(|from| (from, "starting")),
    );
    assert_eq!(reached, drawn);
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
