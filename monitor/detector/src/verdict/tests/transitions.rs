//! Every arrow of the drawing, in and out.

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

type Told = fn(&mut Rig);

/// What may happen in any state, and where that leads from each of [`STATES`].
const INPUTS: [(&str, Told, [&str; 8]); 36] = [
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
        [
            "starting",
            "alive",
            "suspect",
            "crashed",
            "recovering",
            "alive",
            "failed",
            "unobservable",
        ],
    ),
    (
        "a witness's acquittal",
        |rig| {
            rig.guest.registers = healthy();
            rig.testify(rig.guest.testimony(Questions::All));
        },
        ["alive", "alive", "alive", "crashed", "recovering", "held", "failed", "unobservable"],
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
            rig.event(&panicked_event("run"));
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
    (
        "the guest resets itself for the fifth time",
        |rig| {
            rig.watch.resets = [50, 40, 30, 20].map(|ago| rig.now - TICK * ago).into();
            // Past those that a restart brings.
            rig.now += TICK * 10;
            rig.event(&QmpEvent::Reset { guest: true });
        },
        ["failed"; 8],
    ),
    (
        "other events",
        |rig| {
            rig.event(&QmpEvent::Stop);
            rig.event(&QmpEvent::Resume);
            rig.event(&QmpEvent::Other("VSERPORT_CHANGE".to_owned()));
        },
        STATES,
    ),
    (
        "a dump that the guest announces",
        |rig| {
            rig.event(&QmpEvent::GuestCrashloaded);
            rig.tick();
        },
        HELD,
    ),
    (
        "a panic told by the run state between two ticks",
        |rig| {
            rig.feed(&Input::RunState(RunState::GuestPanicked));
        },
        CONVICTED,
    ),
    (
        "a pause told between two ticks, which the next tick will show",
        |rig| {
            rig.feed(&Input::RunState(RunState::Paused));
        },
        STATES,
    ),
    (
        "a witness's excuse, which only who is suspected needs",
        |rig| {
            rig.guest.jobs = excused();
            (rig.guest.arp, rig.guest.registers) = (no_address(), inconclusive());
            rig.testify(rig.guest.testimony(Questions::All));
        },
        ["starting", "alive", "held", "crashed", "recovering", "held", "failed", "unobservable"],
    ),
    (
        "silence of all witnesses",
        |rig| {
            rig.guest.fall_silent();
            rig.testify(rig.guest.testimony(Questions::All));
        },
        STATES,
    ),
    (
        "a storm",
        |rig| {
            rig.feed(&Input::Storm(Some("9 of 10 VMs fell silent at once".to_owned())));
            rig.asked = None;
            rig.tick();
        },
        HELD,
    ),
    (
        "figures that were lost",
        |rig| {
            rig.feed(&Input::Unseen("its tap was plugged in just now".to_owned()));
        },
        UNOBSERVABLE,
    ),
    (
        "a late tick",
        |rig| {
            rig.guest.activity.elapsed = TICK * 30;
            rig.asked = None;
            rig.tick();
        },
        [
            "starting",
            "alive",
            "suspect",
            "crashed",
            "recovering",
            "alive",
            "failed",
            "unobservable",
        ],
    ),
    ("QEMU stopped by a signal", |rig| in_process_state(rig, ProcessState::Stopped), HELD),
    ("QEMU frozen", |rig| in_process_state(rig, ProcessState::Frozen), HELD),
    ("QEMU ending", |rig| in_process_state(rig, ProcessState::Gone), HELD),
    (
        "QEMU hangs in the kernel",
        |rig| {
            rig.guest.monitor = Monitor::Unresponsive("2 s".to_owned());
            in_process_state(rig, ProcessState::Uninterruptible);
        },
        HELD,
    ),
    (
        "storage is stalled",
        |rig| {
            rig.guest.activity.storage =
                Ok(StorageActivity { submitted: 0, completed: 0, in_flight: 1, oldest: None });
            rig.tick();
        },
        HELD,
    ),
    (
        "the host starves it",
        |rig| {
            rig.guest.level(&[(0.01, 0.99)]);
            rig.tick();
        },
        HELD,
    ),
    (
        "a restart was carried out",
        |rig| {
            rig.feed(&Input::Restarted { cause: Cause::Halted, was_up: true });
        },
        only_from_crashed("recovering"),
    ),
    (
        "it is found writing",
        |rig| {
            rig.feed(&Input::StillWriting);
        },
        only_from_crashed("held"),
    ),
    (
        "its restart is refused",
        |rig| {
            rig.feed(&Input::SetAside("not restarted: its store is stalled".to_owned()));
        },
        only_from_crashed("held"),
    ),
    (
        "the limit is reached",
        |rig| {
            rig.feed(&limit_reached());
        },
        only_from_crashed("failed"),
    ),
    (
        "somebody gives it a new start",
        |rig| {
            rig.feed(&Input::Released);
        },
        JUDGED_ANEW,
    ),
    (
        "it may be restarted now",
        |rig| {
            rig.feed(&Input::MayBeTouched("its hold is over".to_owned()));
        },
        JUDGED_ANEW,
    ),
    (
        "its monitor answers again",
        |rig| {
            rig.feed(&Input::Reexamine);
        },
        only_from_crashed("suspect"),
    ),
];

/// A conviction outlasts the pause that QEMU makes of it.
const HELD: [&str; 8] = ["held", "held", "held", "crashed", "recovering", "held", "failed", "held"];
/// Nobody has seen it live since.
const JUDGED_ANEW: [&str; 8] =
    ["starting", "alive", "suspect", "suspect", "recovering", "held", "suspect", "unobservable"];
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

/// What recovery reports is about a conviction, and anywhere else it is out of date.
const fn only_from_crashed(to: &'static str) -> [&'static str; 8] {
    let [starting, alive, suspect, _, recovering, held, failed, unobservable] = STATES;
    [starting, alive, suspect, to, recovering, held, failed, unobservable]
}

fn in_process_state(rig: &mut Rig, state: ProcessState) {
    rig.guest.activity.process = state;
    rig.tick();
}

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
