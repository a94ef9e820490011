//! What may come to a VM, thrown at random.

use super::*;

/// A stretch of like ticks: only what lasts can convict, so what is seen must not be thrown each time.
#[derive(Clone, Debug)]
pub(super) struct Stretch {
    pub(super) ticks: u32,
    /// By how much each tick is late.
    pub(super) late: Duration,
    /// What happens before the first of them.
    pub(super) before: Option<Happening>,
    pub(super) undecided: bool,
    /// Many fall silent with it, until the stretch ends.
    pub(super) storm: bool,
    pub(super) guest: Guest,
}

/// What happens between two ticks.
#[derive(Clone, Debug)]
pub(super) enum Happening {
    Told(Input),
    Event(QmpEvent),
    /// Resets of the guest's own.
    Burst(u32),
    /// An answer that was not asked for just now.
    Answer(Box<Guest>),
}

fn level() -> impl Strategy<Value = Vec<(f64, f64)>> {
    let levels: [&[(f64, f64)]; 9] = [
        &[(0.0, 0.0)],
        &[(0.0003, 0.01)],
        &[(0.0024, 0.0), (0.0, 0.0)],
        &[(0.02, 0.0)],
        &[(0.4, 0.0)],
        &[(0.95, 0.04), (0.0, 0.0)],
        &[(1.0, 0.0)],
        &[(0.05, 0.95)],
        &[(0.0, 0.6)],
    ];
    select(levels.map(<[_]>::to_vec).to_vec())
}

fn answer() -> impl Strategy<Value = Answer> {
    select(vec![
        Answer::Halted,
        Answer::Halted,
        stuck(),
        stuck(),
        inconclusive(),
        motionless(),
        unavailable(),
        unresponsive(),
        healthy(),
        Answer::LastWords("Kernel panic - not syncing".to_owned()),
    ])
}

fn storage() -> impl Strategy<Value = StorageActivity> {
    let young = Some(Duration::from_millis(300));
    select(vec![
        StorageActivity::default(),
        StorageActivity { submitted: 1, completed: 1, in_flight: 0, oldest: None },
        StorageActivity { submitted: 1, completed: 0, in_flight: 1, oldest: young },
        StorageActivity { submitted: 0, completed: 0, in_flight: 2, oldest: None },
    ])
}

fn monitor() -> impl Strategy<Value = Monitor> {
    prop_oneof![
        6 => Just(Monitor::Answers(RunState::Running)),
        2 => Just(busy_monitor()),
        1 => Just(Monitor::Unresponsive("2 s".to_owned())),
        1 => Just(Monitor::NotStarted("QEMU has no vCPUs yet".to_owned())),
        2 => select(vec![
            RunState::Paused,
            RunState::Inmigrate,
            RunState::IoError,
            RunState::Other("invented later".to_owned()),
        ])
        .prop_map(Monitor::Answers),
        1 => select(vec![RunState::GuestPanicked, RunState::InternalError, RunState::Watchdog])
            .prop_map(Monitor::Answers),
    ]
}

/// Anything at all.
fn any_guest() -> impl Strategy<Value = Guest> {
    let elapsed = select(vec![TICK, TICK, TICK, TICK * 3, TICK * 30]);
    let process = prop_oneof![
        6 => Just(ProcessState::Running),
        1 => select(vec![
            ProcessState::Stopped,
            ProcessState::Frozen,
            ProcessState::Uninterruptible,
            ProcessState::Gone,
        ]),
    ];
    let arp = select(vec![answered(), unanswered(), unanswered(), no_address()]);
    let sent = select(vec![None, Some(packets(0, 0)), Some(packets(0, 9)), Some(packets(2, 3))]);
    let lost =
        select(vec![None, None, None, None, Some("network"), Some("storage"), Some("vCPUs")]);
    (
        (elapsed, process, level(), sent, storage(), lost),
        (monitor(), arp, answer(), any::<bool>(), any::<bool>()),
    )
        .prop_map(|((elapsed, process, level, sent, storage, lost), asked)| {
            let (monitor, arp, registers, excuse, firmware) = asked;
            let mut guest = Guest { monitor, arp, registers, ..Guest::idle() };
            guest.activity.elapsed = elapsed;
            guest.activity.process = process;
            guest.activity.vcpus = Ok(vcpus(&level));
            guest.activity.network = Ok(sent);
            guest.activity.storage = Ok(storage);
            match lost {
                Some("network") => guest.activity.network = Err(missing("network")),
                Some("storage") => guest.activity.storage = Err(missing("storage")),
                Some(_) => guest.activity.vcpus = Err(missing("vCPU time")),
                None => {}
            }
            guest.jobs = if excuse { excused() } else { nothing_to_excuse() };
            guest.stage = if firmware { in_its_firmware() } else { up() };
            guest
        })
}

/// Alive or dead as guests are, and sometimes as they never are.
fn guest() -> impl Strategy<Value = Guest> {
    let shaped = |shape: fn(&mut Guest)| {
        let mut guest = Guest::idle();
        shape(&mut guest);
        Just(guest)
    };
    prop_oneof![
        3 => shaped(Guest::halt),
        3 => shaped(Guest::spin),
        2 => shaped(Guest::fall_silent),
        2 => shaped(|guest| {
            guest.fall_silent();
            guest.level(&[(0.95, 0.0)]);
        }),
        2 => shaped(|guest| guest.sends(1)),
        2 => shaped(|_| {}),
        1 => shaped(|guest| {
            guest.level(&[(1.0, 0.0)]);
            (guest.arp, guest.registers) = (no_address(), unavailable());
        }),
        4 => any_guest(),
    ]
}

/// What no verdict rests on.
fn thrashing() -> Input {
    let strain = Some(Strain { available: 0.001, major_faults: 5000.0 });
    let missing = || Missing::new("memory", "a test");
    Input::Memory(Arc::new(Memory { guest: Err(missing()), strain, qemu: Err(missing()) }))
}

fn happening() -> impl Strategy<Value = Happening> {
    let reports = vec![
        Input::StillWriting,
        Input::SetAside("not restarted: its store is stalled".to_owned()),
        Input::LimitReached {
            cause: Cause::Halted,
            reason: "three restarts in an hour".to_owned(),
        },
        Input::Reexamine,
        Input::Released,
        Input::MayBeTouched("its hold is over".to_owned()),
        Input::Unseen("its tap was plugged in just now".to_owned()),
        thrashing(),
        Input::RunState(RunState::Running),
        Input::RunState(RunState::Paused),
        Input::RunState(RunState::GuestPanicked),
    ];
    let restarted = any::<bool>()
        .prop_map(|was_up| Happening::Told(Input::Restarted { cause: Cause::Halted, was_up }));
    let events = vec![
        QmpEvent::GuestCrashloaded,
        panicked_event("run"),
        panicked_event("pause"),
        QmpEvent::Reset { guest: false },
        QmpEvent::Stop,
        QmpEvent::Other("VSERPORT_CHANGE".to_owned()),
    ];
    prop_oneof![
        4 => restarted,
        4 => select(reports).prop_map(Happening::Told),
        3 => select(events).prop_map(Happening::Event),
        1 => (1_u32..20).prop_map(Happening::Burst),
        2 => guest().prop_map(|guest| Happening::Answer(Box::new(guest))),
    ]
}

pub(super) fn stretch() -> impl Strategy<Value = Stretch> {
    let late = prop_oneof![Just(0_u64), 0_u64..=50].prop_map(Duration::from_millis);
    let seldom = || prop_oneof![15 => Just(false), 1 => Just(true)];
    (1_u32..16, late, option::weighted(0.4, happening()), seldom(), seldom(), guest()).prop_map(
        |(ticks, late, before, undecided, storm, guest)| Stretch {
            ticks,
            late,
            before,
            undecided,
            storm,
            guest,
        },
    )
}
