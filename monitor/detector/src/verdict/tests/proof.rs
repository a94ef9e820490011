//! What is known of a guest is not thrown away: a hold's end is no sign of life, and what speaks against a guest whatever
//! its host does is heard while the host starves it.

use std::time::Duration;

use super::rig::{
    FLAT_TICKS, GRACE_TICKS, Guest, HOUR, ROUND, Rig, TICK, excused, healthy, inconclusive,
    missing, no_address, nothing_to_excuse, panicked_event, running, stuck, unanswered,
};
use crate::{
    activity::StorageActivity,
    verdict::{Act, Answer, Cause, Input, Monitor, Questions, State, Watch},
};
use flatline_samples::{ProcessState, RunState};

/// A vCPU that gets a twentieth of what it wants.
const STARVED: [(f64, f64); 1] = [(0.05, 0.95)];
/// One that gets half of it.
const FED: [(f64, f64); 1] = [(0.5, 0.48)];

fn last_words() -> Answer {
    Answer::LastWords("its console says: ---[ end Kernel panic - not syncing: x ]---".to_owned())
}

/// Panicked with its last words on the console; its registers say nothing.
fn panic(guest: &mut Guest) {
    guest.sends(0);
    guest.level(&STARVED);
    (guest.arp, guest.registers, guest.requests) = (no_address(), inconclusive(), last_words());
}

fn storm() -> Input {
    Input::Storm(Some("9 of 10 VMs fell silent at once".to_owned()))
}

fn told(rig: &mut Rig, input: &Input) {
    rig.feed(input);
}

type Shape = fn(&mut Rig);

/// What begins a hold, or else makes the window begin anew, and what ends it.
const INTERRUPTIONS: [(&str, Shape, Shape); 9] = [
    ("starved", |rig| rig.guest.level(&STARVED), |rig| rig.guest.level(&FED)),
    (
        "its storage is stalled",
        |rig| {
            let in_flight = StorageActivity { in_flight: 1, ..StorageActivity::default() };
            rig.guest.activity.storage = Ok(in_flight);
        },
        |rig| rig.guest.activity.storage = Ok(StorageActivity::default()),
    ),
    ("a storm", |rig| told(rig, &storm()), |rig| told(rig, &Input::Storm(None))),
    ("an excuse", |rig| rig.guest.jobs = excused(), |rig| rig.guest.jobs = nothing_to_excuse()),
    (
        "paused",
        |rig| rig.guest.monitor = Monitor::Answers(RunState::Paused),
        |rig| rig.guest.monitor = running(),
    ),
    (
        "frozen",
        |rig| rig.guest.activity.process = ProcessState::Frozen,
        |rig| rig.guest.activity.process = ProcessState::Running,
    ),
    (
        "the daemon held up",
        |rig| rig.guest.activity.elapsed = TICK * 5,
        |rig| rig.guest.activity.elapsed = TICK,
    ),
    (
        "a figure missing",
        |rig| rig.guest.activity.storage = Err(missing("storage")),
        |rig| rig.guest.activity.storage = Ok(StorageActivity::default()),
    ),
    ("a tap plugged in", |_| {}, |rig| told(rig, &Input::Unseen("a tap".to_owned()))),
];

#[test]
fn a_guest_that_was_suspected_is_not_alive_after_a_hold_but_has_a_window_before_it_is_convicted() {
    for (what, begin, end) in INTERRUPTIONS {
        let mut rig = Rig::suspect();
        let life = rig.watch.silence.life;
        rig.guest.registers = inconclusive();
        rig.next_round();
        assert_eq!(rig.state(), "suspect");
        let not_alive = |rig: &mut Rig, ticks| {
            for _ in 0..ticks {
                rig.tick();
                let (state, reason) = (rig.state(), &rig.watch.reason);
                assert!(["held", "suspect", "unobservable"].contains(&state), "{what}: {reason}");
            }
        };
        begin(&mut rig);
        not_alive(&mut rig, 2 * FLAT_TICKS);
        end(&mut rig);
        let ended = rig.now;
        // Nothing spoke against it before; all of it does now.
        rig.guest.registers = Answer::Halted;
        let level = if what == "starved" { 0.5 } else { 0.0 };
        rig.guest.level(&[(level, 0.0)]);
        not_alive(&mut rig, FLAT_TICKS - 1);
        assert_eq!((rig.conviction(), rig.watch.silence.life), (None, life), "{what}");
        rig.guest.level(&[(0.0, 0.0)]);
        rig.run(2 * FLAT_TICKS, |_, _| {});
        let (when, _) = rig.conviction().expect("it is dead");
        assert!(when - ended >= TICK * FLAT_TICKS - TICK / 2, "{what}: {:?}", when - ended);
    }
}

#[test]
fn the_last_words_of_a_guest_that_is_starved_now_and_then_convict_it_in_their_time() {
    for (starved, fed) in [(6, 4), (3, 1), (1, 5), (1000, 0)] {
        let mut rig = Rig::without_address();
        let panicked = rig.now;
        for n in 0..3 * FLAT_TICKS {
            panic(&mut rig.guest);
            rig.guest.level(if n % (starved + fed) < starved { &STARVED } else { &FED });
            rig.tick();
            let late = rig.now - panicked >= TICK * FLAT_TICKS;
            assert!(!(late && rig.state() == "alive"), "{starved}:{fed}: {}", rig.watch.reason);
            if rig.state() == "crashed" {
                break;
            }
        }
        let (when, cause) = rig.conviction().expect("its kernel said that it dies");
        assert_eq!(cause, Cause::Panicked);
        let after = when - panicked;
        assert!(after >= TICK * FLAT_TICKS, "{starved}:{fed}: {after:?}");
        assert!(after <= TICK * (FLAT_TICKS + 3), "{starved}:{fed}: {after:?}");
        let Watch { silence, reason, .. } = &rig.watch;
        assert_eq!(silence.life, panicked);
        assert!(starved < fed || silence.held >= TICK * 3, "{:?}", silence.held);
        let told =
            format!("held for {:.1} s since its last sign of life", silence.held.as_secs_f64());
        assert!(reason.contains(&told) || silence.held.is_zero(), "{reason}");
    }
}

#[test]
fn a_starved_guest_that_no_interrupt_can_reach_is_convicted_when_it_had_the_time_to_reboot_itself()
{
    let mut rig = Rig::without_address();
    let last_life = rig.now;
    rig.run(200, |_, guest| {
        guest.spin();
        guest.level(&STARVED);
    });
    let (when, cause) = rig.conviction().expect("nothing can reach it");
    assert_eq!(cause, Cause::Spinning);
    // Half of the window, at a twentieth of a CPU.
    let least = (TICK * FLAT_TICKS / 2).mul_f64(1.0 / 0.05);
    let after = when - last_life;
    assert!(after >= least - TICK * 10 && after <= least + TICK * 3, "{after:?}");
}

#[test]
fn nothing_else_that_a_starved_guest_shows_passes_its_hold() {
    for registers in [inconclusive(), Answer::Halted, unanswered()] {
        let mut rig = Rig::calibrated();
        rig.guest.fall_silent();
        rig.guest.level(&STARVED);
        rig.guest.registers = registers;
        rig.tick();
        rig.run(HOUR, |_, _| {});
        assert_eq!((rig.state(), rig.conviction()), ("held", None));
        assert!(rig.rounds > HOUR / 2, "it was asked {} times", rig.rounds);
    }
}

#[test]
fn a_starved_guest_that_answers_stays_held_and_its_silence_begins_anew() {
    let mut rig = Rig::without_address();
    rig.guest.level(&STARVED);
    rig.guest.registers = healthy();
    for n in 0..10 * FLAT_TICKS {
        rig.tick();
        assert_eq!(rig.state(), "held");
        let silence = rig.watch.silence;
        assert!(silence.since_life(rig.now) <= TICK * (FLAT_TICKS + 2), "after {n} s: {silence:?}");
    }
    let rounds = 10 * FLAT_TICKS / (FLAT_TICKS + 2);
    assert!((rounds..=10).contains(&rig.rounds), "asked {} times", rig.rounds);
}

#[test]
fn a_suspect_that_takes_back_what_spoke_against_it_is_held_again() {
    let mut rig = Rig::without_address();
    rig.guest.spin();
    rig.guest.level(&STARVED);
    rig.run(FLAT_TICKS + 2, |_, _| {});
    assert_eq!(rig.state(), "suspect");
    rig.guest.registers = inconclusive();
    rig.next_round();
    assert_eq!(rig.state(), "held", "{}", rig.watch.reason);
    rig.run(HOUR, |_, _| {});
    assert_eq!((rig.state(), rig.conviction()), ("held", None));
}

#[test]
fn that_the_host_withholds_its_time_excuses_who_does_not_speak_against_himself_and_nobody_else() {
    let withheld = || Answer::Starved("it is throttled by its CPU quota".to_owned());
    for (jobs, requests, convicted) in [
        (withheld(), last_words(), true),
        (withheld(), Answer::Nothing("its console has no last words".to_owned()), false),
        (excused(), last_words(), false),
    ] {
        let mut rig = Rig::without_address();
        panic(&mut rig.guest);
        rig.guest.level(&FED);
        (rig.guest.jobs, rig.guest.requests) = (jobs, requests);
        rig.run(3 * FLAT_TICKS, |_, _| {});
        let expected = if convicted { "crashed" } else { "held" };
        assert_eq!(rig.state(), expected, "{}", rig.watch.reason);
    }
}

#[test]
fn a_starved_guest_that_boots_is_not_asked() {
    let mut rig = Rig::new(Duration::ZERO);
    rig.guest.level(&STARVED);
    rig.guest.arp = unanswered();
    rig.run(GRACE_TICKS * 3, |_, _| {});
    assert_eq!((rig.state(), rig.rounds), ("held", 0));
}

#[test]
fn a_guest_that_was_alive_before_a_pause_is_alive_after_it_and_has_a_whole_window() {
    let mut rig = Rig::without_address();
    let life = rig.now;
    rig.run(3, |_, _| {});
    rig.guest.monitor = Monitor::Answers(RunState::Paused);
    rig.run(100, |_, _| {});
    rig.guest.monitor = running();
    rig.run(FLAT_TICKS - 1, |_, _| {});
    assert_eq!((rig.state(), rig.rounds), ("alive", 0));
    rig.tick();
    assert_eq!(rig.state(), "suspect");
    let silence = rig.watch.silence;
    assert_eq!((silence.life, silence.held), (life, TICK * 100));
    let told =
        "silent for 10.0 s; asking its witnesses; held for 100.0 s since its last sign of life";
    assert_eq!(rig.watch.reason, told);
}

#[test]
fn silence_goes_on_while_the_host_is_at_fault_and_convicts_only_after_that() {
    let mut rig = Rig::without_address();
    rig.run(3, |_, guest| guest.halt());
    let in_flight = StorageActivity { in_flight: 1, ..StorageActivity::default() };
    rig.guest.activity.storage = Ok(in_flight);
    rig.run(3, |_, _| {});
    rig.guest.activity.storage = Ok(StorageActivity::default());
    rig.tick();
    assert_eq!(rig.state(), "alive", "silent for less than any suspect");
    rig.guest.activity.storage = Ok(in_flight);
    rig.run(FLAT_TICKS, |_, _| {});
    rig.guest.activity.storage = Ok(StorageActivity::default());
    let ended = rig.now;
    rig.tick();
    assert_eq!(rig.state(), "suspect");
    rig.run(2 * FLAT_TICKS, |_, _| {});
    let (when, _) = rig.conviction().expect("it is halted");
    let after = when - ended;
    assert!(after >= TICK * FLAT_TICKS - TICK / 2, "{after:?}");
    assert!(after <= TICK * FLAT_TICKS + ROUND * 2, "{after:?}");
}

#[test]
fn who_was_convicted_by_its_own_word_is_a_suspect_once_its_restart_was_refused() {
    let mut rig = Rig::calibrated();
    rig.guest.fall_silent();
    assert_eq!(rig.event(&panicked_event("run")), Act::Convict(Cause::Panicked));
    rig.feed(&Input::SetAside("not restarted: its store is stalled".to_owned()));
    rig.run(2, |_, _| {});
    assert_eq!(rig.state(), "suspect", "{}", rig.watch.reason);
}

#[test]
fn who_is_dead_still_when_it_may_be_restarted_is_convicted_by_two_rounds() {
    for input in [Input::Released, Input::MayBeTouched("it may be restarted now".to_owned())] {
        let mut rig = Rig::crashed();
        rig.run(HOUR, |_, _| {});
        rig.acts.clear();
        rig.asked = None;
        let freed = rig.now;
        rig.feed(&input);
        assert_eq!(rig.state(), "suspect");
        assert!(rig.watch.reason.ends_with(", and is judged anew"), "{}", rig.watch.reason);
        rig.run(4, |_, _| {});
        let (when, cause) = rig.conviction().expect("it is dead");
        assert!(cause == Cause::Halted && when - freed <= TICK + ROUND * 2, "{:?}", when - freed);
    }
}

#[test]
fn who_was_found_dead_by_an_earlier_daemon_is_a_suspect_until_it_shows_life() {
    let mut rig = Rig::new(TICK * HOUR);
    let state = State::Suspect { tally: crate::verdict::Tally::default() };
    rig.watch = Watch::resume(rig.now, TICK * HOUR, state, "an earlier daemon".to_owned());
    (rig.guest.arp, rig.guest.registers) = (no_address(), inconclusive());
    rig.guest.monitor = Monitor::Answers(RunState::Paused);
    rig.run(3, |_, _| {});
    rig.guest.monitor = running();
    rig.run(3, |_, _| {});
    assert_eq!((rig.state(), rig.questions()), ("suspect", Some(Questions::All)));
    rig.guest.registers = healthy();
    rig.next_round();
    assert_eq!(rig.state(), "alive");
}

#[test]
fn witnesses_are_asked_of_who_is_starved_for_as_long_as_it_is_silent() {
    let mut rig = Rig::without_address();
    rig.guest.level(&STARVED);
    rig.guest.registers = stuck();
    rig.run(FLAT_TICKS - 1, |_, _| {});
    assert!(rig.state() == "held" && !rig.watch.is_being_asked() && rig.questions().is_none());
    rig.tick();
    assert!(rig.state() == "held" && rig.watch.is_being_asked() && rig.questions().is_some());
}
