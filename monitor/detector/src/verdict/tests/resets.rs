//! Resets: the guest's own, in bursts and in loops, and those that others bring.

use std::time::Duration;

use super::rig::{FLAT_TICKS, Rig, TICK};
use crate::verdict::{Act, Cause, LOOP_OVER_AFTER, State};
use flatline_samples::QmpEvent;

const OWN: QmpEvent = QmpEvent::Reset { guest: true };
const OUTER: QmpEvent = QmpEvent::Reset { guest: false };

/// So many bursts of the guest's own resets, `apart` from each other.
fn bursts(rig: &mut Rig, times: u32, apart: Duration) {
    for _ in 0..times {
        rig.pass_until(rig.now + apart);
        for _ in 0..4 {
            rig.event(&OWN);
            rig.now += Duration::from_millis(150);
        }
    }
}

fn given_up(rig: &Rig) -> usize {
    rig.acts.iter().filter(|(_, act)| *act == Act::GiveUp(Cause::BootLoop)).count()
}

#[test]
fn a_burst_of_the_guests_own_resets_counts_once() {
    let mut rig = Rig::calibrated();
    bursts(&mut rig, 3, TICK * 20);
    let counted: Vec<_> = rig.acts.iter().map(|(_, act)| act.clone()).collect();
    assert_eq!(counted, [1, 2, 3].map(Act::GuestReset));
    assert_eq!(rig.state(), "starting");
}

#[test]
fn resets_that_are_further_apart_than_the_window_never_make_a_loop() {
    let mut rig = Rig::calibrated();
    let apart = rig.detection.policy.boot_loop_window / 4;
    bursts(&mut rig, 40, apart);
    assert_eq!((rig.state(), given_up(&rig)), ("starting", 0));
}

#[test]
fn a_guest_that_resets_itself_again_and_again_is_given_up_once() {
    let mut rig = Rig::calibrated();
    bursts(&mut rig, 30, TICK * 8);
    assert_eq!(rig.watch.state, State::Failed { cause: Cause::BootLoop });
    assert_eq!(given_up(&rig), 1);
    assert!(rig.watch.reason.contains("5 times within 5m"), "{}", rig.watch.reason);
}

#[test]
fn a_guest_that_shows_life_in_each_turn_of_its_loop_is_given_up_all_the_same() {
    let mut rig = Rig::calibrated();
    rig.guest.sends(1);
    for _ in 0..30 {
        rig.run(8, |_, _| {});
        rig.event(&OWN);
    }
    assert_eq!(rig.watch.state, State::Failed { cause: Cause::BootLoop });
    assert_eq!(given_up(&rig), 1);
}

#[test]
fn a_stream_of_triple_faults_is_a_boot_loop_within_seconds_and_remembers_little() {
    let mut rig = Rig::calibrated();
    let began = rig.now;
    for n in 0..600_u32 {
        rig.pass_until(began + TICK * n / 6);
        rig.event(&OWN);
        if n % 6 == 0 {
            rig.ticked = rig.now - TICK;
            rig.tick();
        }
    }
    let given_up: Vec<_> =
        rig.acts.iter().filter(|(_, act)| matches!(act, Act::GiveUp(_))).collect();
    let [(when, _)] = given_up[..] else { panic!("given up {} times", given_up.len()) };
    assert!(*when - began <= TICK * 10, "after {:?}", *when - began);
    assert!(rig.watch.resets.len() <= 60, "{}", rig.watch.resets.len());
}

#[test]
fn a_loop_that_was_given_up_ends_when_the_guest_lives_for_a_minute_without_a_reset() {
    let mut rig = Rig::calibrated();
    bursts(&mut rig, 5, TICK * 8);
    assert_eq!(rig.state(), "failed");
    let last = *rig.watch.resets.last().unwrap();
    rig.ticked = rig.now;
    rig.guest.sends(1);
    while rig.now + TICK < last + LOOP_OVER_AFTER {
        rig.tick();
        assert_eq!(rig.state(), "failed", "{:?} after its last reset", rig.now - last);
    }
    rig.run(2, |_, _| {});
    assert_eq!(rig.state(), "alive");
}

#[test]
fn a_reset_from_outside_ends_a_loop_and_the_resets_that_it_brings_are_not_counted() {
    let mut rig = Rig::calibrated();
    bursts(&mut rig, 5, TICK * 8);
    assert_eq!(rig.state(), "failed");
    rig.acts.clear();
    rig.event(&OUTER);
    for _ in 0..4 {
        rig.now += Duration::from_millis(200);
        assert_eq!(rig.event(&OWN), Act::Nothing);
    }
    assert_eq!((rig.state(), given_up(&rig)), ("starting", 0));
    // Those that come later are its own.
    bursts(&mut rig, 1, TICK * 8);
    assert_eq!(rig.acts.last().map(|(_, act)| act.clone()), Some(Act::GuestReset(1)));
}

#[test]
fn a_restarted_guest_that_resets_itself_again_and_again_is_given_up() {
    let mut rig = Rig::recovering();
    bursts(&mut rig, 6, TICK * 8);
    assert_eq!(rig.watch.state, State::Failed { cause: Cause::BootLoop });
    assert_eq!(given_up(&rig), 1);
}

#[test]
fn a_new_boot_forgets_which_witnesses_answered_and_when_they_were_asked() {
    for reset in [OWN, OUTER] {
        let mut rig = Rig::calibrated();
        assert!(!rig.watch.boot.answered.is_empty());
        rig.event(&reset);
        assert!(rig.watch.boot.answered.is_empty());
        assert!(rig.watch.wants_calibration(rig.now));
        // It dies before it answers again: no witness' silence counts against it.
        rig.guest.fall_silent();
        rig.run(60 + FLAT_TICKS * 20, |_, _| {});
        assert_eq!((rig.state(), rig.conviction()), ("suspect", None));
    }
}
