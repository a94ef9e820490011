//! Random sequences of inputs, judged by the reference model.
//!
//! `PROPTEST_CASES` sets how many; a sequence that fails is made small, and its seed is kept.

mod strategies;

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
use strategies::{Happening, Stretch, stretch};

/// Sequences of a run that isn't told how many: a few seconds.
const CASES: u32 = 400;
const SEEDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/verdict.txt");

/// One VM's life, and what the model makes of it so far.
struct Life {
    rig: Rig,
    model: Model,
    free_since: Duration,
    convictions: u32,
}

impl Life {
    fn begin(age: u32, rests: bool) -> Self {
        let mut rig = Rig::new(TICK * age);
        rig.rests = rests;
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
                // A convicted guest isn't asked, and an answer about the boot before is thrown away.
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

/// How many cases are tried, and where the seeds of those that fail are kept.
pub(super) fn config(cases: u32, seeds: &'static str) -> Config {
    #[expect(
        clippy::disallowed_methods,
        reason = "how many cases are tried is no input of the verdict"
    )]
    let told = std::env::var_os("PROPTEST_CASES").is_some();
    let default = Config::default();
    Config {
        cases: if told { default.cases } else { cases },
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(seeds))),
        max_shrink_iters: 20_000,
        ..default
    }
}

#[test]
fn nobody_is_convicted_against_the_rules_and_no_crash_is_missed_in_random_sequences() {
    let sequences = (select(vec![0, 6, 3600]), any::<bool>(), vec(stretch(), 1..14));
    let convictions = std::cell::Cell::new(0);
    let result =
        TestRunner::new(config(CASES, SEEDS)).run(&sequences, |(age, rests, stretches)| {
            let mut life = Life::begin(age, rests);
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
