//! Silence that is not the guest's fault: excuses, storms, and time in which it was not watched.

use std::time::Duration;

use super::rig::{
    FLAT_TICKS, GRACE_TICKS, HOUR, ROUND, Rig, TICK, busy_monitor, excused, healthy, inconclusive,
    nothing_to_excuse, panicked_event, running, unanswered,
};
use crate::verdict::{Act, Cause, Input, Monitor, Questions, ROUNDS_TO_CONVICT};
use flatline_samples::{ProcessState, QmpEvent, RunState};

/// A guest that is dead, and whose silence a witness excuses.
fn excused_rig() -> Rig {
    let mut rig = Rig::suspect();
    rig.guest.halt();
    rig.guest.jobs = excused();
    rig.next_round();
    assert_eq!(rig.state(), "held");
    rig
}

/// It is convicted as halted when a whole window has passed since `over`: whenever a round ends, and half a tick of the
/// window is let off.
fn check_convicted_a_window_after(rig: &Rig, over: Duration) {
    let (when, cause) = rig.conviction().expect("it is dead");
    let after = when - over;
    let window = TICK * FLAT_TICKS;
    assert!(after >= window - TICK / 2, "{after:?}");
    assert!(after <= window + ROUND * ROUNDS_TO_CONVICT, "{after:?}");
    assert_eq!(cause, Cause::Halted);
}

#[test]
fn an_excuse_holds_for_as_long_as_it_lasts_and_then_the_window_begins_anew() {
    let mut rig = excused_rig();
    for _ in 0..HOUR {
        rig.tick();
        assert_eq!(rig.state(), "held");
    }
    assert!(rig.watch.reason.contains("a backup job"), "{}", rig.watch.reason);
    rig.guest.jobs = nothing_to_excuse();
    let ended = rig.now;
    rig.run(2 * FLAT_TICKS, |_, _| {});
    let (when, cause) = rig.conviction().expect("nothing excuses it any more");
    let after = when - ended;
    assert!(after >= TICK * FLAT_TICKS, "{after:?}");
    assert!(after <= TICK * (FLAT_TICKS + 3) + ROUND, "{after:?}");
    assert_eq!(cause, Cause::Halted);
}

#[test]
fn an_excuse_ends_however_long_a_round_takes() {
    for round in [50, 650, 999, 1001, 1300, 2700, 8000] {
        let mut rig = excused_rig();
        rig.round = Duration::from_millis(round);
        rig.run(60, |_, _| {});
        assert_eq!(rig.state(), "held");
        rig.guest.jobs = nothing_to_excuse();
        rig.run(60, |_, _| {});
        let convicted = rig.conviction().map(|(_, cause)| cause);
        assert_eq!(convicted, Some(Cause::Halted), "rounds of {round} ms");
    }
}

#[test]
fn an_answer_that_comes_in_while_no_tick_does_is_not_weighed() {
    let mut rig = Rig::calibrated();
    rig.guest.fall_silent();
    rig.next_round();
    rig.next_round();
    assert_eq!((rig.state(), rig.conviction()), ("suspect", None));
    // The third would convict it; but its packets were not looked at for half a minute.
    rig.now = rig.ticked + TICK * 30;
    let testimony = rig.guest.testimony(Questions::All);
    rig.asked = None;
    assert_eq!(rig.testify(testimony), Act::Nothing);
    assert_eq!(rig.state(), "suspect");
    rig.guest.activity.elapsed = TICK * 31;
    rig.guest.sends(1);
    rig.tick();
    assert_eq!((rig.state(), rig.conviction()), ("alive", None));
}

#[test]
fn an_excuse_of_the_boot_before_holds_nobody() {
    for guest in [true, false] {
        let mut rig = excused_rig();
        rig.event(&QmpEvent::Reset { guest });
        // The round that is under way is thrown away, and no other is asked for.
        rig.run(3, |_, _| {});
        assert_eq!((rig.state(), rig.questions()), ("starting", None));
    }
}

#[test]
fn who_is_excused_while_it_boots_is_asked_nothing_that_would_disturb_it() {
    let mut rig = Rig::new(Duration::ZERO);
    rig.guest.sends(1);
    rig.tick();
    rig.guest.sends(0);
    (rig.guest.arp, rig.guest.registers) = (unanswered(), inconclusive());
    rig.guest.jobs = excused();
    for _ in 2..GRACE_TICKS {
        rig.tick();
        let disturbs = rig.questions().is_some_and(|asked| asked != Questions::DuringBoot);
        assert!(!disturbs, "{:?} in {}", rig.questions(), rig.state());
    }
    assert_eq!(rig.state(), "held");
}

#[test]
fn an_answer_of_a_living_guest_ends_an_excuse() {
    let mut rig = excused_rig();
    rig.guest.registers = healthy();
    rig.next_round();
    assert_eq!(rig.state(), "alive");
    assert_eq!(rig.watch.excuse, None);
}

#[test]
fn a_guest_that_says_that_it_crashed_is_excused_by_nobody() {
    let mut rig = excused_rig();
    assert_eq!(rig.event(&panicked_event("pause")), Act::Convict(Cause::Panicked));
}

#[test]
fn a_storm_holds_all_that_are_silent_for_as_long_as_it_lasts_and_a_window_more() {
    let mut rig = Rig::calibrated();
    rig.run(FLAT_TICKS, |_, guest| guest.fall_silent());
    assert_eq!(rig.state(), "suspect");
    rig.feed(&Input::Storm(Some("9 of 10 VMs fell silent at once".to_owned())));
    // Rounds that were under way convict no guest either.
    for _ in 0..4 {
        rig.testify(rig.guest.testimony(Questions::All));
    }
    assert_eq!(rig.conviction(), None);
    for _ in 0..HOUR {
        rig.tick();
        assert_eq!(rig.state(), "held");
    }
    let over = rig.now;
    rig.feed(&Input::Storm(None));
    rig.run(2 * FLAT_TICKS, |_, _| {});
    let (when, cause) = rig.conviction().expect("it is dead");
    assert_eq!(cause, Cause::Silent);
    assert!(when - over >= TICK * FLAT_TICKS - TICK / 2, "{:?}", when - over);
}

#[test]
fn a_guest_that_shows_life_in_a_storm_is_alive() {
    for answers in [true, false] {
        let mut rig = Rig::suspect();
        rig.guest.registers = inconclusive();
        rig.feed(&Input::Storm(Some("9 of 10 VMs fell silent at once".to_owned())));
        rig.run(5, |_, _| {});
        assert_eq!(rig.state(), "held");
        if answers {
            rig.guest.registers = healthy();
            rig.next_round();
        } else {
            rig.guest.sends(1);
            rig.tick();
        }
        assert_eq!((rig.state(), &rig.watch.storm), ("alive", &None));
    }
}

#[test]
fn nobody_is_convicted_of_silence_while_it_is_undecided_how_many_are_silent() {
    let mut rig = Rig::calibrated();
    rig.undecided = true;
    rig.run(3 * FLAT_TICKS, |_, guest| guest.fall_silent());
    assert_eq!((rig.state(), rig.conviction()), ("suspect", None));
    rig.undecided = false;
    rig.run(2, |_, _| {});
    assert_eq!(rig.conviction().map(|(_, cause)| cause), Some(Cause::Silent));
}

#[test]
fn a_guest_that_boots_in_a_storm_is_asked_nothing_that_would_disturb_it() {
    let mut rig = Rig::recovering();
    rig.feed(&Input::Storm(Some("9 of 10 VMs fell silent at once".to_owned())));
    for _ in 0..GRACE_TICKS / 2 {
        rig.tick();
        let disturbs = rig.questions().is_some_and(|asked| asked != Questions::DuringBoot);
        assert!(!disturbs, "{:?}", rig.questions());
    }
}

#[test]
fn what_the_guest_says_outright_convicts_it_in_a_storm() {
    let mut rig = Rig::suspect();
    rig.feed(&Input::Storm(Some("9 of 10 VMs fell silent at once".to_owned())));
    rig.tick();
    rig.guest.monitor = Monitor::Answers(RunState::GuestPanicked);
    assert_eq!(rig.tick(), Act::Convict(Cause::Panicked));
}

#[test]
fn a_qemu_that_is_frozen_or_hangs_in_the_kernel_is_held_and_convicted_a_window_after() {
    let unresponsive = || Monitor::Unresponsive("2 s".to_owned());
    for (process, monitor) in [
        (ProcessState::Frozen, running()),
        (ProcessState::Frozen, unresponsive()),
        (ProcessState::Frozen, busy_monitor()),
        (ProcessState::Stopped, unresponsive()),
        (ProcessState::Uninterruptible, unresponsive()),
    ] {
        let mut rig = Rig::suspect();
        rig.guest.halt();
        (rig.guest.activity.process, rig.guest.monitor) = (process, monitor);
        for _ in 0..HOUR {
            rig.tick();
            assert_eq!(rig.state(), "held", "{process:?}: {}", rig.watch.reason);
        }
        (rig.guest.activity.process, rig.guest.monitor) = (ProcessState::Running, running());
        let over = rig.now;
        rig.run(2 * FLAT_TICKS, |_, _| {});
        check_convicted_a_window_after(&rig, over);
    }
}

#[test]
fn a_qemu_in_the_kernel_whose_monitor_answers_is_judged_as_any_other() {
    let mut rig = Rig::suspect();
    rig.guest.activity.process = ProcessState::Uninterruptible;
    rig.run(3, |_, guest| guest.halt());
    assert_eq!(rig.state(), "crashed");
}

#[test]
fn a_guest_whose_restart_was_refused_is_judged_afresh() {
    let mut rig = Rig::crashed();
    rig.acts.clear();
    rig.feed(&Input::SetAside("not restarted: its store is stalled".to_owned()));
    let refused = rig.now;
    rig.run(FLAT_TICKS - 1, |_, _| {});
    assert_eq!((rig.state(), rig.conviction()), ("suspect", None));
    rig.run(FLAT_TICKS, |_, _| {});
    check_convicted_a_window_after(&rig, refused);
}

#[test]
fn figures_that_were_lost_make_the_window_begin_anew() {
    let mut rig = Rig::suspect();
    rig.guest.halt();
    rig.next_round();
    rig.feed(&Input::Unseen("its tap was plugged in just now".to_owned()));
    assert_eq!(rig.state(), "unobservable");
    let lost = rig.now;
    rig.run(2 * FLAT_TICKS, |_, _| {});
    let (when, _) = rig.conviction().expect("it is dead");
    assert!(when - lost >= TICK * FLAT_TICKS - TICK / 2, "{:?}", when - lost);
}

#[test]
fn ticks_that_are_a_little_late_are_no_hold_up() {
    let mut rig = Rig::without_address();
    rig.guest.halt();
    rig.guest.activity.elapsed = TICK * 4;
    let last_life = rig.now;
    rig.run(5, |_, _| {});
    let (when, _) = rig.conviction().expect("it is dead");
    assert!(when - last_life <= TICK * 12 + ROUND * 2, "{:?}", when - last_life);
    rig.guest.activity.elapsed = TICK * 4 + Duration::from_millis(1);
    let mut rig = Rig { guest: rig.guest, ..Rig::without_address() };
    rig.run(100, |_, _| {});
    assert_eq!((rig.state(), rig.conviction()), ("alive", None));
}
