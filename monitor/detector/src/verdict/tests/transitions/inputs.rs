//! What each input makes of each state.

use super::*;

type Told = fn(&mut Rig);

/// What may happen in any state, and where that leads from each of [`STATES`].
pub(super) const INPUTS: [(&str, Told, [&str; 8]); 36] = [
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
        "it is given a new start",
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
/// It was not seen to live since.
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

pub(super) fn told(rig: &mut Rig, run_state: RunState) {
    rig.guest.monitor = Monitor::Answers(run_state);
    rig.tick();
}
