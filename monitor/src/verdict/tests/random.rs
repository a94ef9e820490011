//! Random sequences of evidence: whatever else is seen, who shows life is not convicted.

use std::time::Duration;

use super::rig::{
    FLAT_TICKS, ROUND, Rig, TICK, answered, busy_monitor, healthy, inconclusive, missing,
    no_address, packets, running, stuck, unanswered, unavailable, unresponsive,
};
use crate::{
    activity::StorageActivity,
    qmp::{QmpEvent, RunState},
    sample::ProcessState,
    verdict::{Act, Answer, Cause, Monitor, Questions},
};

const SEQUENCES: u64 = 20_000;
const STEPS: u32 = 60;

/// Marsaglia's xorshift64.
struct Dice(u64);

impl Dice {
    fn seeded(seed: u64) -> Self {
        // Neighbouring seeds give like sequences unless they are spread first.
        Self((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        let len = u64::try_from(from.len()).unwrap();
        from[usize::try_from(self.next() % len).unwrap()].clone()
    }
}

/// A stretch of like ticks: only what lasts can convict, so the level must not be thrown each time.
struct Mood {
    level: Vec<(f64, f64)>,
    arp: Answer,
    registers: Answer,
    monitor: Monitor,
}

fn mood(dice: &mut Dice) -> Mood {
    let registers = [
        Answer::Halted,
        Answer::Halted,
        stuck(),
        stuck(),
        inconclusive(),
        unavailable(),
        unresponsive(),
    ];
    let run_states = [
        RunState::Paused,
        RunState::Inmigrate,
        RunState::Shutdown,
        RunState::Suspended,
        RunState::IoError,
    ];
    Mood {
        level: dice.pick(&[
            vec![(0.0, 0.0)],
            vec![(0.0024, 0.0), (0.0, 0.0)],
            vec![(1.0, 0.0)],
            vec![(0.95, 0.05), (0.0, 0.0)],
            vec![(0.4, 0.0)],
            vec![(0.05, 0.95)],
        ]),
        arp: dice.pick(&[unanswered(), unanswered(), no_address()]),
        registers: dice.pick(&registers),
        monitor: match dice.next() % 8 {
            0 => Monitor::Answers(dice.pick(&run_states)),
            1 => Monitor::Unresponsive("2 s".to_owned()),
            2 | 3 => busy_monitor(),
            _ => running(),
        },
    }
}

/// The next tick's evidence, without a sign of life.
fn shape(rig: &mut Rig, mood: &Mood, dice: &mut Dice) {
    let guest = &mut rig.guest;
    guest.level(&mood.level);
    (guest.arp, guest.registers) = (mood.arp.clone(), mood.registers.clone());
    guest.monitor = mood.monitor.clone();
    guest.activity.network = Ok(dice.pick(&[None, Some(packets(0, 0)), Some(packets(0, 9))]));
    guest.activity.storage = Ok(StorageActivity::default());
    guest.activity.process = ProcessState::Running;
    guest.activity.elapsed = TICK;
    match dice.next() % 60 {
        0 => guest.activity.network = Err(missing("network")),
        1 => guest.activity.storage = Err(missing("storage")),
        2 => guest.activity.vcpus = Err(missing("vCPU time")),
        3 => guest.activity.process = ProcessState::Stopped,
        4 => {
            guest.activity.storage =
                Ok(StorageActivity { submitted: 0, completed: 0, in_flight: 2, oldest: None });
        }
        5 => guest.activity.elapsed = TICK * 3,
        6 => guest.activity.elapsed = TICK * 30,
        _ => {}
    }
}

/// A sign of life, in the tick or as an answer after it.
fn live(rig: &mut Rig, dice: &mut Dice) {
    // Whoever isn't judged isn't asked, and an answer then goes unheard.
    let unheard = matches!(rig.state(), "held" | "unobservable");
    match dice.next() % if unheard { 2 } else { 4 } {
        0 => rig.guest.sends(1),
        1 => {
            rig.guest.activity.storage =
                Ok(StorageActivity { submitted: 0, completed: 1, in_flight: 1, oldest: None });
        }
        2 => rig.guest.arp = answered(),
        _ => rig.guest.registers = healthy(),
    }
}

/// One VM's life, which a conviction ends: how many suspicions fell on it, and as what it was convicted.
fn sequence(seed: u64) -> (u32, Option<Cause>) {
    let mut dice = Dice::seeded(seed);
    let age = dice.pick(&[Duration::ZERO, TICK * 45, TICK * 3600]);
    let mut rig = Rig::new(age);
    let mut present = mood(&mut dice);
    let mut last_sign = rig.now;
    let mut suspicions = 0;
    for _ in 0..STEPS {
        if dice.one_in(15) {
            present = mood(&mut dice);
        }
        shape(&mut rig, &present, &mut dice);
        let announced = dice.one_in(2000);
        if announced {
            rig.guest.monitor = Monitor::Answers(RunState::GuestPanicked);
        }
        if dice.one_in(300) {
            let guest = dice.one_in(2);
            rig.event(&QmpEvent::Reset { guest });
        }
        let asked = rig.asked.take();
        let end = rig.ticked + rig.guest.activity.elapsed;
        // So late that it is suspected now and then, and one round may speak against it.
        let due = end - last_sign >= TICK * FLAT_TICKS;
        let lives = due || dice.one_in(25);
        if lives {
            last_sign = end;
            live(&mut rig, &mut dice);
        }
        let mut acts = vec![rig.tick()];
        suspicions += u32::from(rig.state() == "suspect" && rig.watch.since == rig.now);
        rig.asked = None;
        // Whether it was asked or not: an answer may be late.
        if lives || asked.is_some() || dice.one_in(3) {
            rig.now += ROUND;
            acts.push(rig.testify(rig.guest.testimony(Questions::All)));
        }
        for act in acts {
            if let Act::Convict(cause) | Act::NotRecovered(cause) = act {
                assert!(announced, "seed {seed}: {cause}: {}", rig.watch.reason);
                return (suspicions, Some(cause));
            }
        }
    }
    (suspicions, None)
}

#[test]
fn no_random_sequence_with_a_sign_of_life_in_every_window_is_convicted() {
    let lives: Vec<_> = (0..SEQUENCES).map(sequence).collect();
    let convicted = lives.iter().filter(|(_, cause)| cause.is_some()).count();
    let suspicions: u32 = lives.iter().map(|(suspicions, _)| suspicions).sum();
    // Else the sequences would show nothing.
    assert!(convicted > 100, "only {convicted} were announced");
    assert!(suspicions > 3_000, "only {suspicions} suspicions");
}
