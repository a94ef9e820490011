//! A simulated VM: what its guest shows in each tick, how it answers, and what the verdict made of it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

pub(super) use super::guest::*;
use super::{drawing, resting::Resting};
use crate::{
    policy::{Mode, Policy},
    verdict::{
        Act, Answer, Cause, DetectionPolicy, Input, Questions, State, Testimony, Tick, Watch,
    },
};
use flatline_samples::QmpEvent;

pub(super) const TICK: Duration = Duration::from_secs(1);
/// How long a round of questions takes: three looks at the registers, 250 ms apart, and the asking.
pub(super) const ROUND: Duration = Duration::from_millis(650);
pub(super) const FLAT_TICKS: u32 = 10;
pub(super) const GRACE_TICKS: u32 = 60;
pub(super) const HOUR: u32 = 3600;

pub(super) fn policy() -> Policy {
    Policy {
        mode: Mode::Recover,
        flat_for: TICK * FLAT_TICKS,
        unconfirmed_flat_for: TICK * 120,
        unresponsive_for: Duration::ZERO,
        heartbeat_lost_after: None,
        boot_grace: TICK * GRACE_TICKS,
        boot_loop_resets: 5,
        boot_loop_window: TICK * 300,
        max_restarts: 3,
        window: TICK * HOUR,
        pause: Duration::from_secs(10),
        restart_without_heartbeat: false,
    }
}

/// A round of questions that is under way.
#[derive(Clone, Debug)]
pub(super) struct Round {
    pub(super) questions: Questions,
    ends: Duration,
    /// The boot that it is about: an answer about another one says nothing, and is thrown away.
    boot_began: Duration,
}

/// One input, and what became of it.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) at: Duration,
    pub(super) input: Input,
    pub(super) before: State,
    pub(super) act: Act,
    pub(super) after: State,
}

/// The VM under watch, and what the daemon does for it: one round of questions at a time.
pub(super) struct Rig {
    /// When the last tick ended, or the last input came in.
    pub(super) now: Duration,
    /// When the last tick ended.
    pub(super) ticked: Duration,
    pub(super) detection: DetectionPolicy,
    pub(super) watch: Watch,
    pub(super) guest: Guest,
    /// How long a round takes.
    pub(super) round: Duration,
    /// Others fell silent with it, and it isn't known yet how many.
    pub(super) undecided: bool,
    /// The questions that are being asked.
    pub(super) asked: Option<Round>,
    /// Whether it rests while it lives, and the rest that has begun.
    pub(super) rests: bool,
    pub(super) resting: Option<Resting>,
    /// Rounds that were answered.
    pub(super) rounds: u32,
    /// All that was to be done, but for nothing and questions.
    pub(super) acts: Vec<(Duration, Act)>,
    /// All that it was told, where a test wants to know.
    pub(super) log: Option<Vec<Told>>,
    /// From which state to which it went.
    pub(super) edges: BTreeSet<(&'static str, &'static str)>,
}

impl Rig {
    /// A daemon that has been up for a while, and finds a QEMU that has been running for `age`.
    pub(super) fn new(age: Duration) -> Self {
        let (now, policy) = (TICK * HOUR, policy());
        Self {
            now,
            ticked: now,
            watch: Watch::begin(now, age, policy.boot_grace),
            detection: DetectionPolicy { policy, tick: TICK },
            guest: Guest::idle(),
            round: ROUND,
            undecided: false,
            asked: None,
            rests: false,
            resting: None,
            rounds: 0,
            acts: Vec::new(),
            log: None,
            edges: BTreeSet::new(),
        }
    }

    /// A guest that was up long before the daemon looked, sends packets, and answered ARP.
    pub(super) fn calibrated() -> Self {
        let mut rig = Self::new(TICK * HOUR);
        rig.run(3, |_, _| {});
        assert!(rig.watch.boot.answered.contains("ARP"), "not asked for, or not answered");
        rig.guest.sends(1);
        rig.tick();
        rig.guest.sends(0);
        rig
    }

    /// A guest that was up long before, and has no address that is known.
    pub(super) fn without_address() -> Self {
        let mut rig = Self::new(TICK * HOUR);
        rig.guest.arp = no_address();
        rig.guest.sends(1);
        rig.tick();
        rig.guest.sends(0);
        rig
    }

    /// One that is suspected, and whose first round has just been asked for.
    pub(super) fn suspect() -> Self {
        let mut rig = Self::without_address();
        rig.run(FLAT_TICKS, |_, _| {});
        assert_eq!((rig.state(), rig.rounds), ("suspect", 0));
        rig
    }

    /// One that was convicted as halted, and still is.
    pub(super) fn crashed() -> Self {
        let mut rig = Self::suspect();
        rig.guest.halt();
        rig.run(3, |_, _| {});
        assert_eq!(rig.watch.state, State::Crashed { cause: Cause::Halted });
        rig
    }

    /// One that was restarted just now.
    pub(super) fn recovering() -> Self {
        let mut rig = Self::crashed();
        rig.restarted();
        rig.acts.clear();
        rig
    }

    pub(super) fn state(&self) -> &'static str {
        self.watch.state.name()
    }

    /// One tick, after the rounds that end before it.
    pub(super) fn tick(&mut self) -> Act {
        let at = self.ticked + self.guest.activity.elapsed;
        self.pass_until(at);
        (self.now, self.ticked) = (at, at);
        let (activity, monitor) = (self.guest.activity.clone(), self.guest.monitor.clone());
        let calibratable = !matches!(self.guest.arp, Answer::NotAsked(_));
        let tick = Tick { activity, monitor, calibratable, undecided: self.undecided };
        if let Some(act) = self.rest_on(&tick) {
            return act;
        }
        let act = self.take(&Input::Tick(Arc::new(tick)));
        if self.rests && act == Act::Nothing && self.asked.is_none() {
            self.lie_down();
        }
        act
    }

    /// Lets time pass, and those rounds end that end before `at`.
    pub(super) fn pass_until(&mut self, at: Duration) {
        while let Some(round) = self.asked.take_if(|round| round.ends < at) {
            self.answer(&round);
        }
        self.now = at;
    }

    fn answer(&mut self, round: &Round) {
        self.now = round.ends;
        self.rounds += 1;
        // An answer about the boot before is thrown away by what asks.
        if round.boot_began == self.watch.boot.began {
            self.testify(self.guest.testimony(round.questions));
        }
    }

    /// Lets time pass until a round of questions has been answered.
    pub(super) fn next_round(&mut self) {
        for _ in 0..HOUR {
            let next_tick = self.ticked + self.guest.activity.elapsed;
            if let Some(round) = self.asked.take_if(|round| round.ends < next_tick) {
                return self.answer(&round);
            }
            self.tick();
        }
        panic!("no witness was asked for an hour");
    }

    /// Witnesses are heard, whether they were asked or not.
    pub(super) fn testify(&mut self, testimony: Testimony) -> Act {
        self.feed(&Input::Testimony(Arc::new(testimony)))
    }

    /// Tells the verdict something at this moment, and asks what it wants asked.
    pub(super) fn feed(&mut self, input: &Input) -> Act {
        if !matches!(input, Input::Memory(_)) {
            self.wake();
        }
        self.take(input)
    }

    pub(super) fn take(&mut self, input: &Input) -> Act {
        let before = self.state();
        let stood = self.log.is_some().then(|| self.watch.state.clone());
        let act = self.watch.step(input, &self.detection, self.now);
        if let (Some(log), Some(before)) = (&mut self.log, stood) {
            let (at, after) = (self.now, self.watch.state.clone());
            log.push(Told { at, input: input.clone(), before, act: act.clone(), after });
        }
        let after = self.state();
        assert!(
            before == after || drawing::arrows().contains(&(before, after)),
            "{before} -> {after} is not drawn: {input:?}: {}",
            self.watch.reason
        );
        let convicts = matches!(act, Act::Convict(_) | Act::NotRecovered(_));
        assert!(
            !convicts || (before != "crashed" && before != "failed" && after == "crashed"),
            "convicted {before} -> {after}: {input:?}"
        );
        self.edges.insert((before, after));
        match act {
            Act::Nothing => {}
            Act::Ask(questions) => {
                let (ends, boot_began) = (self.now + self.round, self.watch.boot.began);
                self.asked.get_or_insert(Round { questions, ends, boot_began });
            }
            _ => self.acts.push((self.now, act.clone())),
        }
        act
    }

    /// The questions that are being asked.
    pub(super) fn questions(&self) -> Option<Questions> {
        self.asked.as_ref().map(|round| round.questions)
    }

    /// Ticks so often; `shape` may change the guest before each tick, which it gets the number of.
    pub(super) fn run(&mut self, ticks: u32, mut shape: impl FnMut(u32, &mut Guest)) {
        for n in 0..ticks {
            shape(n, &mut self.guest);
            self.tick();
        }
    }

    /// QEMU tells of an event between two ticks.
    pub(super) fn event(&mut self, event: &QmpEvent) -> Act {
        let monitor = self.guest.monitor.clone();
        self.feed(&Input::Event { monitor, event: event.clone() })
    }

    /// Recovery carried out a restart of what was convicted, which had only come as far as its firmware.
    pub(super) fn restarted(&mut self) {
        self.restarted_from(false);
    }

    /// As [`Rig::restarted`], of one that had been up or not.
    pub(super) fn restarted_from(&mut self, was_up: bool) {
        let cause = self.watch.state.cause().expect("only the convicted are restarted");
        self.feed(&Input::Restarted { cause, was_up });
    }

    /// The only conviction so far, and when; `None` if there was none.
    pub(super) fn conviction(&self) -> Option<(Duration, Cause)> {
        let mut convictions = self.acts.iter().filter_map(|(when, act)| match act {
            Act::Convict(cause) | Act::NotRecovered(cause) => Some((*when, *cause)),
            _ => None,
        });
        let first = convictions.next();
        assert_eq!(convictions.next(), None, "convicted twice");
        first
    }
}
