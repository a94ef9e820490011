//! Random sequences of inputs, judged by the reference model.
//!
//! `PROPTEST_CASES` sets how many; a sequence that fails is made small, and its seed is kept.

use std::{sync::Arc, time::Duration};

use proptest::{
    collection::vec,
    option,
    prelude::{Just, Strategy, any, prop_oneof},
    sample::select,
    test_runner::{Config, FileFailurePersistence, TestCaseError, TestRunner},
};

use super::{
    model::Model,
    rig::{
        Guest, Rig, TICK, answered, busy_monitor, excused, healthy, in_its_firmware, inconclusive,
        missing, motionless, no_address, nothing_to_excuse, packets, panicked_event, stuck,
        unanswered, unavailable, unresponsive, up, vcpus,
    },
};
use crate::{
    activity::StorageActivity,
    verdict::{Act, Answer, Cause, Input, Monitor, Questions, State, Watch},
};
use flatline_samples::{Memory, Missing, ProcessState, QmpEvent, RunState, Strain};

/// Sequences of a run that isn't told how many: a few seconds.
const CASES: u32 = 400;

/// A stretch of like ticks: only what lasts can convict, so what is seen must not be thrown each time.
#[derive(Clone, Debug)]
struct Stretch {
    ticks: u32,
    /// By how much each tick is late.
    late: Duration,
    /// What happens before the first of them.
    before: Option<Happening>,
    undecided: bool,
    /// Many fall silent with it, until the stretch ends.
    storm: bool,
    guest: Guest,
}

/// What happens between two ticks.
#[derive(Clone, Debug)]
enum Happening {
    Told(Input),
    Event(QmpEvent),
    /// Resets of the guest's own.
    Burst(u32),
    /// An answer that nobody asked for just now.
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

fn stretch() -> impl Strategy<Value = Stretch> {
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

/// One VM's life, and what the model makes of it so far.
struct Life {
    rig: Rig,
    model: Model,
    free_since: Duration,
    convictions: u32,
}

impl Life {
    fn begin(age: u32) -> Self {
        let mut rig = Rig::new(TICK * age);
        let policy = &mut rig.detection.policy;
        policy.flat_for = TICK * 5;
        policy.unconfirmed_flat_for = TICK * 20;
        policy.unresponsive_for = TICK * 8;
        policy.boot_grace = TICK * 12;
        policy.boot_loop_resets = 4;
        policy.boot_loop_window = TICK * 60;
        rig.watch = Watch::begin(rig.now, TICK * age, policy.boot_grace);
        rig.log = Some(Vec::new());
        let model = Model::new(rig.now, TICK * age);
        Self { free_since: rig.now, rig, model, convictions: 0 }
    }

    fn live(&mut self, stretch: &Stretch) -> Result<(), TestCaseError> {
        if let Some(happening) = &stretch.before {
            self.happens(happening);
            self.check()?;
        }
        if stretch.storm {
            self.rig.feed(&Input::Storm(Some("9 of 10 VMs fell silent at once".to_owned())));
        }
        self.rig.undecided = stretch.undecided;
        self.rig.guest = stretch.guest.clone();
        self.rig.guest.activity.elapsed += stretch.late;
        for _ in 0..stretch.ticks {
            self.rig.tick();
            self.check()?;
        }
        if stretch.storm {
            self.rig.feed(&Input::Storm(None));
        }
        self.check()
    }

    fn happens(&mut self, happening: &Happening) {
        match happening {
            // What was announced needs no other look.
            Happening::Told(Input::Reexamine)
                if !matches!(
                    self.rig.watch.state.cause(),
                    Some(Cause::Halted | Cause::Spinning | Cause::Silent)
                ) => {}
            Happening::Told(input) => {
                // A restart is of what it was convicted of.
                let input = match (input, self.rig.watch.state.cause()) {
                    (Input::Restarted { was_up, .. }, Some(cause)) => {
                        Input::Restarted { cause, was_up: *was_up }
                    }
                    (other, _) => other.clone(),
                };
                self.rig.feed(&input);
            }
            Happening::Event(event) => {
                self.rig.event(event);
            }
            Happening::Burst(times) => {
                for _ in 0..*times {
                    self.rig.event(&QmpEvent::Reset { guest: true });
                    self.rig.now += Duration::from_millis(30);
                }
            }
            Happening::Answer(guest) => {
                // Whoever was convicted isn't asked, and an answer about the boot before is thrown away.
                let Watch { state, last, .. } = &self.rig.watch;
                if state.cause().is_none() && last.is_some() {
                    self.rig.testify(guest.testimony(Questions::All));
                }
            }
        }
    }

    /// Holds all that happened since the last look against the model.
    fn check(&mut self) -> Result<(), TestCaseError> {
        let log = self.rig.log.replace(Vec::new()).unwrap_or_default();
        let policy = &self.rig.detection.policy;
        for told in log {
            let fail = |what: String| {
                let (state, reason) = (&told.after, &self.rig.watch.reason);
                TestCaseError::fail(format!("{what} at {:?}: {state:?}: {reason}", told.at))
            };
            self.model.note(&told.input, &told.before, told.at);
            if told.after == State::Alive && self.model.is_accused {
                return Err(fail("shown as alive, and nothing was seen to live".to_owned()));
            }
            self.model.stands(&told.after);
            let free = told.after.cause().is_none();
            if told.before.cause().is_some() && free {
                self.free_since = told.at;
            }
            match told.act {
                Act::Convict(cause) | Act::NotRecovered(cause) => {
                    self.convictions += 1;
                    if !self.model.may(cause, &told.input, &told.before, policy, told.at) {
                        return Err(fail(format!("wrongly convicted as {cause}")));
                    }
                    if told.after != (State::Crashed { cause }) {
                        return Err(fail("convicted, and not crashed".to_owned()));
                    }
                }
                Act::GiveUp(cause) if told.after != (State::Failed { cause }) => {
                    return Err(fail("given up, and not failed".to_owned()));
                }
                Act::Nothing
                | Act::Ask(_)
                | Act::Recovered
                | Act::GuestReset(_)
                | Act::GiveUp(_)
                | Act::Report(_)
                | Act::BeatsAgain => {
                    if let Some(cause) = self.model.must(policy, self.free_since, told.at)
                        && free
                    {
                        return Err(fail(format!("a crash was missed, {cause}")));
                    }
                }
            }
        }
        let Rig { watch, now, .. } = &self.rig;
        if watch.since.max(watch.liveness.last_life).max(watch.boot.began) > *now {
            return Err(TestCaseError::fail("something is later than now"));
        }
        Ok(())
    }
}

fn config() -> Config {
    let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/verdict.txt");
    #[expect(
        clippy::disallowed_methods,
        reason = "how many cases are tried is no input of the verdict"
    )]
    let told = std::env::var_os("PROPTEST_CASES").is_some();
    let default = Config::default();
    Config {
        cases: if told { default.cases } else { CASES },
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(seeds))),
        max_shrink_iters: 20_000,
        ..default
    }
}

#[test]
fn nobody_is_convicted_against_the_rules_and_no_crash_is_missed_in_random_sequences() {
    let sequences = (select(vec![0, 6, 3600]), vec(stretch(), 1..14));
    let convictions = std::cell::Cell::new(0);
    let result = TestRunner::new(config()).run(&sequences, |(age, stretches)| {
        let mut life = Life::begin(age);
        let lived = stretches.iter().try_for_each(|stretch| life.live(stretch));
        convictions.set(convictions.get() + life.convictions);
        lived
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    // Else the sequences would show nothing.
    assert!(convictions.get() > CASES / 4, "only {} convictions", convictions.get());
}
