//! A VM that rests while it lives is judged as one that is looked at in each tick.

use std::time::Duration;

use proptest::{
    collection::vec,
    prelude::{Strategy, any},
    test_runner::{TestCaseError, TestRunner},
};

use super::{
    random::config,
    rig::{GRACE_TICKS, ROUND, Rig, TICK, no_address},
};
use crate::verdict::{Act, CALIBRATE_EVERY, Input, LONGEST_REST, Questions, State};

/// How much later a verdict may come: a silence is known from its second tick on, when there are two samples. Its rounds
/// of questions fall elsewhere in a tick then: where a round completes the evidence, it may come earlier by one.
const LATER: Duration = Duration::from_secs(2);

/// Lives of a run that isn't told how many: a second.
const CASES: u32 = 600;
const SEEDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/rest.txt");

fn rests() -> Rig {
    let mut rig = Rig::calibrated();
    rig.rests = true;
    rig.log = Some(Vec::new());
    rig
}

fn told(rig: &mut Rig) -> Vec<&'static str> {
    let log = rig.log.replace(Vec::new()).unwrap_or_default();
    let name = |input: &Input| match input {
        Input::Tick(_) => "tick",
        Input::Lived { .. } => "lived",
        Input::Testimony(_) => "testimony",
        _ => "other",
    };
    log.iter().map(|told| name(&told.input)).collect()
}

#[test]
fn a_vm_that_lives_is_told_of_once_in_a_while() {
    let mut rig = rests();
    rig.guest.sends(1);
    let ticks = 120;
    rig.run(ticks, |_, _| {});
    let told = told(&mut rig);
    let lived = told.iter().filter(|told| **told == "lived").count();
    assert!((3..=4).contains(&lived), "{told:?}");
    assert!(told.len() <= 2 * lived + 2, "{told:?}");
    assert_eq!(rig.state(), "alive");
    assert!(rig.watch.liveness.silence(rig.now) <= LONGEST_REST);
}

#[test]
fn it_is_calibrated_as_ever() {
    let mut rig = rests();
    rig.guest.sends(1);
    let before = rig.rounds;
    let most = CALIBRATE_EVERY + TICK * 5;
    rig.run(u32::try_from(most.as_secs()).unwrap(), |_, _| {});
    assert_eq!(rig.rounds - before, 1);
}

#[test]
fn it_is_calibrated_in_the_very_tick_in_which_its_grace_is_over() {
    let mut rig = Rig::new(Duration::ZERO);
    rig.rests = true;
    rig.guest.sends(1);
    rig.run(GRACE_TICKS, |_, _| {});
    assert_eq!(rig.questions(), Some(Questions::Calibrate));
}

#[test]
fn it_rests_though_no_witness_can_be_asked() {
    let mut rig = rests();
    rig.guest.sends(1);
    let more = CALIBRATE_EVERY + LONGEST_REST;
    rig.run(u32::try_from(more.as_secs()).unwrap(), |_, guest| guest.arp = no_address());
    told(&mut rig);
    rig.run(60, |_, _| {});
    assert!(told(&mut rig).len() < 10);
}

#[test]
fn its_silence_counts_from_its_last_sign_of_life() {
    let mut rig = rests();
    rig.guest.sends(1);
    rig.run(20, |_, _| {});
    let lived_at = rig.now;
    rig.guest.sends(0);
    rig.tick();
    assert_eq!(rig.watch.liveness.last_life, lived_at);
    assert_eq!(rig.watch.silence.length(rig.now), TICK);
}

#[test]
fn a_daemon_that_was_held_up_counts_no_silence() {
    let mut rig = rests();
    rig.guest.sends(1);
    rig.run(5, |_, _| {});
    rig.guest.sends(0);
    rig.guest.activity.elapsed = TICK * 60;
    rig.tick();
    assert!(rig.watch.silence.length(rig.now) < TICK, "{}", rig.watch.reason);
    rig.guest.activity.elapsed = TICK;
    rig.tick();
    assert_eq!(rig.state(), "alive");
}

#[test]
fn what_comes_in_between_is_told_after_what_was_seen_before_it() {
    let mut rig = rests();
    rig.guest.sends(1);
    rig.run(10, |_, _| {});
    told(&mut rig);
    rig.feed(&Input::Unseen("its tap was plugged in just now".to_owned()));
    assert_eq!(told(&mut rig), ["lived", "other"]);
}

/// A life in stretches: how many ticks, and how the guest is.
fn lives() -> impl Strategy<Value = Vec<(u32, u8)>> {
    vec((1_u32..25, 0_u8..6), 1..8)
}

fn shape(rig: &mut Rig, kind: u8) {
    let healthy = Rig::calibrated().guest;
    rig.guest = healthy;
    match kind {
        0 | 1 => rig.guest.sends(3),
        2 => {}
        3 => rig.guest.halt(),
        4 => rig.guest.spin(),
        _ => rig.guest.fall_silent(),
    }
}

/// When it was convicted first, and as what.
fn first_conviction(rig: &Rig) -> Option<(Duration, Act)> {
    let convicts = |act: &Act| matches!(act, Act::Convict(_));
    rig.acts.iter().find(|(_, act)| convicts(act)).cloned()
}

#[test]
fn it_is_convicted_of_the_same_and_hardly_later() {
    let mut runner = TestRunner::new(config(CASES, SEEDS));
    let seen = std::cell::Cell::new(0);
    let result = runner.run(&(lives(), any::<bool>()), |(stretches, up_before)| {
        let (mut looked_at, mut rests) = if up_before {
            (Rig::calibrated(), Rig::calibrated())
        } else {
            (Rig::new(Duration::ZERO), Rig::new(Duration::ZERO))
        };
        rests.rests = true;
        for (ticks, kind) in stretches {
            for rig in [&mut looked_at, &mut rests] {
                shape(rig, kind);
                rig.run(ticks, |_, _| {});
            }
            if first_conviction(&looked_at).is_some() {
                break;
            }
        }
        // What one of the two found out at the very end, the other may find a little later.
        for rig in [&mut looked_at, &mut rests] {
            rig.run(4, |_, _| {});
        }
        match (first_conviction(&looked_at), first_conviction(&rests)) {
            (Some((at, act)), Some((later, same))) => {
                seen.set(seen.get() + 1);
                if act != same || later + ROUND < at || later > at + LATER {
                    return Err(TestCaseError::fail(format!(
                        "{act:?} at {at:?}, {same:?} at {later:?}"
                    )));
                }
            }
            (None, None) => {}
            (one, other) => return Err(TestCaseError::fail(format!("{one:?}, but {other:?}"))),
        }
        if looked_at.state() != rests.state()
            && !matches!(looked_at.watch.state, State::Suspect { .. })
        {
            return Err(TestCaseError::fail(format!(
                "{}, but {}",
                looked_at.state(),
                rests.state()
            )));
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    assert!(seen.get() > 50, "only {} convictions", seen.get());
}
