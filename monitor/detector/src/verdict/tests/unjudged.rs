//! What is said or shown while no verdict may be given is not lost: the window that follows has not begun before it.

use std::time::Duration;

use super::rig::{
    FLAT_TICKS, Guest, Rig, TICK, answered, excused, inconclusive, missing, no_address,
    nothing_to_excuse, running,
};
use crate::{
    activity::StorageActivity,
    verdict::{Act, Answer, Cause, Input, Monitor, Questions},
};
use flatline_samples::RunState;

/// From a tick to an answer: more than what is let off of a window.
const LATER: Duration = Duration::from_millis(900);

type Shape = fn(&mut Guest);

/// What keeps a guest from being judged for a tick.
const UNJUDGED: [(&str, Shape); 3] = [
    ("paused", |guest| guest.monitor = Monitor::Answers(RunState::Paused)),
    ("a figure is missing", |guest| guest.activity.network = Err(missing("network"))),
    ("its store stalls", stall),
];

fn stall(guest: &mut Guest) {
    let in_flight = StorageActivity { in_flight: 1, ..StorageActivity::default() };
    guest.activity.storage = Ok(in_flight);
}

fn storm() -> Input {
    Input::Storm(Some("9 of 10 VMs fell silent at once".to_owned()))
}

/// A suspect that is halted.
fn halted() -> Rig {
    let mut rig = Rig::suspect();
    rig.guest.halt();
    rig
}

/// Witnesses are heard between two ticks; when.
fn hear(rig: &mut Rig) -> Duration {
    rig.asked = None;
    rig.pass_until(rig.ticked + LATER);
    rig.testify(rig.guest.testimony(Questions::All));
    rig.now
}

fn check_convicted_a_window_after(rig: &mut Rig, moment: Duration, what: &str) {
    rig.run(3 * FLAT_TICKS, |_, _| {});
    let (when, _) = rig.conviction().expect("it is dead");
    let after = when - moment;
    assert!(after >= TICK * FLAT_TICKS - TICK / 2, "{what}: {after:?}");
    assert!(after <= TICK * (FLAT_TICKS + 3), "{what}: {after:?}");
}

#[test]
fn an_answer_of_a_living_guest_that_is_not_judged_begins_its_window_anew() {
    for (what, shape) in UNJUDGED {
        let mut rig = halted();
        let healthy = rig.guest.clone();
        shape(&mut rig.guest);
        rig.tick();
        rig.guest.arp = answered();
        let heard = hear(&mut rig);
        rig.guest = healthy;
        check_convicted_a_window_after(&mut rig, heard, what);
    }
}

#[test]
fn last_words_are_no_older_than_such_an_answer() {
    for (what, shape) in UNJUDGED {
        let mut rig = Rig::suspect();
        rig.guest.spin();
        rig.guest.registers = Answer::LastWords("Kernel panic - not syncing".to_owned());
        let dead = rig.guest.clone();
        shape(&mut rig.guest);
        rig.tick();
        rig.guest.arp = answered();
        let heard = hear(&mut rig);
        rig.guest = dead;
        check_convicted_a_window_after(&mut rig, heard, what);
    }
}

#[test]
fn an_excuse_of_a_guest_that_is_held_already_begins_its_window_anew() {
    let held = UNJUDGED.into_iter().filter(|(what, _)| !what.contains("missing"));
    for (what, shape) in held {
        let mut rig = halted();
        let healthy = rig.guest.clone();
        shape(&mut rig.guest);
        rig.guest.jobs = excused();
        rig.tick();
        let heard = hear(&mut rig);
        rig.guest = healthy;
        check_convicted_a_window_after(&mut rig, heard, what);
    }
}

#[test]
fn an_excuse_in_a_storm_begins_the_window_anew() {
    let mut rig = halted();
    rig.feed(&storm());
    rig.guest.jobs = excused();
    rig.tick();
    let heard = hear(&mut rig);
    rig.feed(&Input::Storm(None));
    rig.guest.jobs = nothing_to_excuse();
    check_convicted_a_window_after(&mut rig, heard, "a storm");
}

#[test]
fn an_excuse_that_is_heard_as_a_storm_ends_holds_the_guest() {
    let mut rig = halted();
    // One that is deaf would not be held.
    rig.guest.registers = inconclusive();
    rig.feed(&storm());
    rig.run(5, |_, _| {});
    rig.feed(&Input::Storm(None));
    rig.guest.jobs = excused();
    hear(&mut rig);
    assert_eq!((rig.state(), rig.watch.excuse.is_some()), ("held", true));
    rig.run(3 * FLAT_TICKS, |_, _| {});
    assert_eq!((rig.state(), rig.conviction()), ("held", None));
}

#[test]
fn last_words_of_a_starved_guest_convict_it_a_window_after_its_last_excuse() {
    let mut rig = Rig::without_address();
    rig.guest.level(&[(0.05, 0.95)]);
    (rig.guest.registers, rig.guest.jobs) = (inconclusive(), excused());
    rig.run(2 * FLAT_TICKS, |_, _| {});
    assert_eq!((rig.state(), rig.conviction()), ("held", None));
    let heard = hear(&mut rig);
    rig.guest.jobs = nothing_to_excuse();
    rig.guest.requests = Answer::LastWords("Kernel panic - not syncing".to_owned());
    check_convicted_a_window_after(&mut rig, heard, "starved");
    assert_eq!(rig.conviction().map(|(_, cause)| cause), Some(Cause::Panicked));
}

#[test]
fn a_level_that_begins_in_a_tick_is_no_older_than_what_was_heard_during_it() {
    let mut rig = halted();
    let dead = rig.guest.clone();
    rig.guest.monitor = Monitor::Answers(RunState::Paused);
    rig.tick();
    rig.guest.arp = answered();
    let heard = hear(&mut rig);
    rig.guest = dead;
    rig.guest.spin();
    rig.tick();
    assert_eq!(rig.watch.liveness.pinned_since, Some(heard));
}

#[test]
fn a_guest_that_is_let_run_on_after_it_was_said_to_have_crashed_has_a_whole_window() {
    let shapes: [(&str, Shape); 3] =
        [("it lived then", |guest| guest.sends(1)), ("it was silent", |_| {}), ("stalled", stall)];
    for (what, shape) in shapes {
        let mut rig = Rig::without_address();
        rig.run(FLAT_TICKS - 3, |_, guest| guest.halt());
        let healthy = rig.guest.clone();
        rig.guest.monitor = Monitor::Answers(RunState::GuestPanicked);
        shape(&mut rig.guest);
        assert_eq!(rig.tick(), Act::Convict(Cause::Panicked));
        let said = rig.now;
        rig.acts.clear();
        rig.guest = healthy;
        rig.feed(&Input::Released);
        check_convicted_a_window_after(&mut rig, said, what);
    }
}

#[test]
fn an_answer_of_a_guest_that_was_said_to_have_crashed_is_heard_when_it_is_judged_anew() {
    let mut rig = halted();
    rig.feed(&Input::RunState(RunState::GuestPanicked));
    assert_eq!(rig.state(), "crashed");
    rig.acts.clear();
    rig.guest.arp = answered();
    let heard = hear(&mut rig);
    rig.guest.arp = no_address();
    rig.feed(&Input::Released);
    check_convicted_a_window_after(&mut rig, heard, "said to have crashed");
}

#[test]
fn what_a_guest_does_while_nothing_is_asked_is_its_own() {
    let mut rig = halted();
    rig.guest.jobs = excused();
    rig.next_round();
    assert!(rig.state() == "held" && rig.watch.is_being_asked());
    rig.tick();
    assert!(rig.watch.liveness.still_since.is_some());
    stall(&mut rig.guest);
    rig.tick();
    assert!(rig.state() == "held" && !rig.watch.is_being_asked());
    // As an idle guest does, and one that is only looked at.
    rig.guest.level(&[(0.02, 0.0)]);
    rig.guest.monitor = running();
    rig.tick();
    assert_eq!(rig.watch.liveness.still_since, None);
}
