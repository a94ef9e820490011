//! Resets, and what comes after a restart.

use super::rig::{
    FLAT_TICKS, GRACE_TICKS, Guest, ROUND, Rig, TICK, answered, healthy, in_its_firmware,
    no_address, panicked_event, unanswered, up,
};
use crate::{
    activity::StorageActivity,
    verdict::{
        Act, Boot, Cause, DUMP_BOOTS_WITHIN, LEAST_RECOVERY_PATIENCE, Monitor, Questions,
        ROUNDS_TO_CONVICT, State, Tally,
    },
};
use flatline_samples::{QmpEvent, RunState};

#[test]
fn a_sign_of_life_is_a_recovery() {
    let mut rig = Rig::recovering();
    rig.guest.sends(1);
    assert_eq!(rig.tick(), Act::Recovered);
    assert_eq!(rig.state(), "alive");
    assert_eq!(rig.tick(), Act::Nothing);
}

#[test]
fn a_guest_that_had_been_up_has_recovered_when_it_is_seen_up_again_and_not_by_its_firmwares_io() {
    let mut rig = Rig::crashed();
    rig.acts.clear();
    rig.restarted_from(true);
    rig.guest.stage = in_its_firmware();
    rig.guest.sends(1);
    rig.run(GRACE_TICKS / 2, |_, _| {});
    assert_eq!((rig.state(), &rig.acts[..]), ("recovering", &[][..]));
    assert!(rig.watch.reason.contains("not up"), "{}", rig.watch.reason);
    rig.guest.stage = up();
    rig.run(2, |_, _| {});
    assert_eq!(rig.state(), "alive");
    assert!(matches!(rig.acts[..], [(_, Act::Recovered)]), "{:?}", rig.acts);
}

#[test]
fn a_guest_that_does_io_in_its_firmware_beyond_its_time_has_not_recovered() {
    let mut rig = Rig::crashed();
    rig.acts.clear();
    rig.restarted_from(true);
    let deadline = rig.now + TICK * GRACE_TICKS;
    rig.guest.stage = in_its_firmware();
    rig.guest.sends(1);
    // Once it is convicted anew, its I/O acquits it; the daemon would restart it before.
    rig.run(2 * GRACE_TICKS, |_, _| {});
    let (when, act) = rig.acts[0].clone();
    assert_eq!(act, Act::NotRecovered(Cause::Halted));
    let late = when - deadline;
    assert!(late <= TICK * 2 + ROUND, "{late:?} after its time was up");
    assert!(late > ROUND, "by one look");
}

#[test]
fn one_look_that_meets_the_firmware_does_not_undo_a_recovery() {
    let mut rig = Rig::crashed();
    rig.acts.clear();
    rig.restarted_from(true);
    let deadline = rig.now + TICK * GRACE_TICKS;
    rig.guest = Guest { stage: in_its_firmware(), ..Guest::idle() };
    while rig.now < deadline {
        rig.tick();
    }
    rig.next_round();
    assert_eq!((rig.state(), &rig.acts[..]), ("recovering", &[][..]));
    rig.guest.stage = up();
    rig.run(3, |_, _| {});
    assert!(matches!(rig.acts[..], [(_, Act::Recovered)]), "{:?}", rig.acts);
}

#[test]
fn firmware_that_answers_is_not_dead_within_the_window() {
    let mut rig = Rig::crashed();
    rig.acts.clear();
    rig.restarted_from(true);
    while rig.questions().is_none() {
        rig.tick();
    }
    (rig.guest.arp, rig.guest.stage) = (answered(), in_its_firmware());
    rig.next_round();
    let heard = rig.now;
    (rig.guest.arp, rig.guest.stage) = (no_address(), up());
    rig.run(2 * FLAT_TICKS, |_, _| {});
    let (when, _) = rig.conviction().expect("it is dead");
    assert!(when - heard >= TICK * FLAT_TICKS - TICK / 2, "{:?}", when - heard);
}

/// A restarted guest that showed life in its firmware, and has just begun to run its kernel.
fn begins_to_boot() -> Rig {
    let mut rig = Rig::crashed();
    rig.acts.clear();
    rig.restarted_from(true);
    rig.guest.stage = in_its_firmware();
    rig.guest.sends(1);
    rig.run(5, |_, _| {});
    rig.guest.stage = up();
    rig.asked = None;
    rig
}

#[test]
fn a_guest_that_showed_life_while_it_booted_and_died_since_has_not_recovered() {
    let mut rig = begins_to_boot();
    // It panicked.
    rig.run(2 * GRACE_TICKS, |_, guest| guest.halt());
    let acts: Vec<_> = rig.acts.iter().map(|(_, act)| act.clone()).collect();
    assert_eq!(acts, [Act::NotRecovered(Cause::Halted)]);
}

#[test]
fn a_hold_makes_no_recovered_guest_of_one_that_died_as_it_booted() {
    let mut rig = begins_to_boot();
    // It panicked.
    rig.run(GRACE_TICKS - 8, |_, guest| guest.halt());
    rig.guest.activity.storage = Ok(StorageActivity { in_flight: 1, ..StorageActivity::default() });
    rig.tick();
    rig.guest.activity.storage = Ok(StorageActivity::default());
    rig.run(2 * GRACE_TICKS, |_, _| {});
    let acts: Vec<_> = rig.acts.iter().map(|(_, act)| act.clone()).collect();
    assert_eq!(acts, [Act::NotRecovered(Cause::Halted)]);
}

#[test]
fn what_firmware_answers_is_not_waited_for_of_its_operating_system() {
    let mut rig = Rig::recovering();
    while rig.questions().is_none() {
        rig.tick();
    }
    (rig.guest.arp, rig.guest.stage) = (answered(), in_its_firmware());
    rig.next_round();
    assert_eq!((rig.state(), rig.watch.boot.answered.len()), ("alive", 0));
}

#[test]
fn a_guest_that_showed_life_and_is_idle_when_its_time_is_up_has_recovered() {
    let mut rig = Rig::crashed();
    rig.acts.clear();
    rig.restarted_from(true);
    rig.guest.stage = in_its_firmware();
    rig.guest.sends(1);
    rig.run(5, |_, _| {});
    rig.guest = Guest::idle();
    rig.asked = None;
    rig.run(2 * GRACE_TICKS, |_, _| {});
    let acts: Vec<_> = rig.acts.iter().map(|(_, act)| act.clone()).collect();
    assert_eq!(acts, [Act::Recovered]);
}

#[test]
fn a_guest_that_had_not_been_up_need_not_be_up_to_have_recovered() {
    let mut rig = Rig::recovering();
    rig.guest.stage = in_its_firmware();
    rig.guest.sends(1);
    assert_eq!(rig.tick(), Act::Recovered);
}

#[test]
fn an_answer_before_its_time_is_up_is_no_recovery_since_it_may_be_about_the_boot_before() {
    let mut rig = Rig::recovering();
    for arp in [answered(), no_address()] {
        (rig.guest.arp, rig.guest.registers) = (arp, healthy());
        rig.tick();
        let testimony = rig.guest.testimony(Questions::Recovering);
        assert_eq!(rig.testify(testimony), Act::Nothing);
        assert_eq!(rig.state(), "recovering");
    }
    assert!(rig.watch.boot.answered.is_empty());
}

#[test]
fn a_restarted_guest_that_shows_no_life_in_time_is_reported_once() {
    let mut rig = Rig::recovering();
    let deadline = rig.now + LEAST_RECOVERY_PATIENCE.max(rig.detection.policy.boot_grace);
    rig.guest.spin();
    rig.run(5 * GRACE_TICKS, |_, _| {});
    let convicted = deadline + ROUND * ROUNDS_TO_CONVICT;
    assert_eq!(rig.acts, [(convicted, Act::NotRecovered(Cause::Spinning))]);
    assert_eq!(rig.watch.state, State::Crashed { cause: Cause::Spinning });
}

#[test]
fn a_restarted_guest_without_any_io_that_is_sound_when_asked_has_recovered() {
    let mut rig = Rig::recovering();
    let deadline = rig.now + LEAST_RECOVERY_PATIENCE.max(rig.detection.policy.boot_grace);
    rig.guest.arp = no_address();
    rig.guest.registers = healthy();
    rig.run(5 * GRACE_TICKS, |_, _| {});
    assert_eq!(rig.acts, [(deadline + ROUND, Act::Recovered)]);
}

#[test]
fn time_in_which_a_restarted_guest_could_show_no_life_is_not_its_own() {
    let shapes: [fn(&mut Guest); 2] = [
        |guest| guest.monitor = Monitor::Answers(RunState::Paused),
        |guest| guest.activity.network = Err(super::rig::missing("network")),
    ];
    for shape in shapes {
        let mut rig = Rig::recovering();
        let patience = LEAST_RECOVERY_PATIENCE.max(rig.detection.policy.boot_grace);
        let begin = rig.now;
        shape(&mut rig.guest);
        rig.run(300, |_, _| {});
        rig.guest.monitor = super::rig::running();
        rig.guest.sends(0);
        rig.guest.spin();
        rig.run(5 * GRACE_TICKS, |_, _| {});
        let convicted = begin + TICK * 300 + patience + ROUND * ROUNDS_TO_CONVICT;
        assert_eq!(rig.acts, [(convicted, Act::NotRecovered(Cause::Spinning))]);
    }
}

#[test]
fn a_reset_by_an_operator_is_not_judged_by_the_run_state_before_it() {
    let mut rig = Rig::calibrated();
    rig.guest.monitor = Monitor::Answers(RunState::GuestPanicked);
    rig.tick();
    rig.acts.clear();
    assert_eq!(rig.event(&QmpEvent::Reset { guest: false }), Act::Nothing);
    assert_eq!(rig.state(), "starting");
}

#[test]
fn a_short_boot_grace_does_not_shorten_the_patience_with_a_restarted_guest() {
    for (grace, patience) in [(TICK, LEAST_RECOVERY_PATIENCE), (TICK * 300, TICK * 300)] {
        let mut rig = Rig::crashed();
        rig.detection.policy.boot_grace = grace;
        rig.restarted();
        let deadline = rig.now + patience;
        let expected = State::Recovering {
            cause: Cause::Halted,
            deadline,
            tally: Tally::default(),
            was_up: false,
        };
        assert_eq!(rig.watch.state, expected);
    }
}

#[test]
fn resets_do_not_end_a_recovery_nor_prolong_it() {
    let mut rig = Rig::recovering();
    let before = rig.watch.state.clone();
    rig.run(3, |_, _| {});
    for guest in [false, true, true, true, true] {
        assert_eq!(rig.event(&QmpEvent::Reset { guest }), Act::Nothing);
        assert_eq!(rig.watch.state, before);
        assert_eq!(rig.watch.boot.began, rig.now);
    }
}

#[test]
fn a_restarted_guest_that_is_reset_when_its_time_is_up_is_asked_once_its_grace_is_over() {
    for guest in [true, false] {
        let mut rig = Rig::recovering();
        rig.guest.spin();
        while rig.questions().is_none() {
            rig.tick();
        }
        rig.next_round();
        rig.event(&QmpEvent::Reset { guest });
        let reset = rig.now;
        rig.run(GRACE_TICKS - 1, |_, _| {});
        assert_eq!((rig.state(), rig.conviction()), ("recovering", None));
        rig.run(FLAT_TICKS, |_, _| {});
        let (when, cause) = rig.conviction().expect("it is dead");
        assert!(when - reset >= TICK * GRACE_TICKS, "{:?}", when - reset);
        assert_eq!(cause, Cause::Spinning);
    }
}

#[test]
fn a_panic_of_a_restarted_guest_convicts_it_anew() {
    let mut rig = Rig::recovering();
    rig.tick();
    assert_eq!(rig.event(&panicked_event("run")), Act::Convict(Cause::Panicked));
    assert_eq!(rig.watch.state, State::Crashed { cause: Cause::Panicked });

    let mut rig = Rig::recovering();
    rig.guest.monitor = Monitor::Answers(RunState::InternalError);
    assert_eq!(rig.tick(), Act::Convict(Cause::InternalError));
}

#[test]
fn a_reset_makes_a_new_boot_with_a_grace_of_its_own() {
    for guest in [true, false] {
        let mut rig = Rig::calibrated();
        rig.event(&QmpEvent::GuestCrashloaded);
        rig.run(FLAT_TICKS, |_, _| {});
        let act = rig.event(&QmpEvent::Reset { guest });
        assert_eq!(act, if guest { Act::GuestReset(1) } else { Act::Nothing });
        assert_eq!(rig.state(), "starting");
        let boot = &rig.watch.boot;
        assert_eq!(*boot, Boot::new(rig.now));
        // The new boot's silence is none of the calibrated one's.
        rig.asked = None;
        for _ in 1..GRACE_TICKS {
            rig.guest.fall_silent();
            assert_eq!(rig.tick(), Act::Nothing);
        }
        rig.run(10 * FLAT_TICKS, |_, guest| guest.arp = unanswered());
        assert_eq!((rig.state(), rig.conviction()), ("suspect", None));
    }
}

#[test]
fn a_dump_of_the_boot_before_holds_nobody() {
    let mut rig = Rig::without_address();
    rig.event(&QmpEvent::GuestCrashloaded);
    rig.tick();
    assert_eq!(rig.state(), "held");
    rig.event(&QmpEvent::Reset { guest: true });
    rig.run(GRACE_TICKS + 5, |_, guest| guest.halt());
    assert_eq!(rig.conviction().map(|(_, cause)| cause), Some(Cause::Halted));
    assert!(TICK * (GRACE_TICKS + 5) > DUMP_BOOTS_WITHIN, "else it would say nothing");
}

#[test]
fn a_conviction_outlasts_a_pause_and_a_missing_figure() {
    let shapes: [fn(&mut Guest); 2] = [
        |guest| guest.monitor = Monitor::Answers(RunState::Paused),
        |guest| guest.activity.network = Err(super::rig::missing("network")),
    ];
    for shape in shapes {
        for mut rig in [Rig::crashed(), Rig::recovering()] {
            let before = rig.state();
            rig.acts.clear();
            shape(&mut rig.guest);
            rig.run(FLAT_TICKS, |_, _| {});
            assert_eq!((rig.state(), &rig.acts[..]), (before, &[][..]));
        }
    }
}

#[test]
fn a_guest_that_announced_its_crash_is_not_acquitted_while_qemu_still_says_so() {
    let mut rig = Rig::calibrated();
    rig.guest.monitor = Monitor::Answers(RunState::GuestPanicked);
    rig.tick();
    rig.guest.sends(1);
    assert_eq!(rig.tick(), Act::Nothing);
    assert_eq!(rig.state(), "crashed");
}

#[test]
fn a_convicted_guest_that_lives_after_all_can_be_convicted_again() {
    let mut rig = Rig::crashed();
    rig.acts.clear();
    rig.guest.sends(1);
    rig.tick();
    assert_eq!(rig.state(), "alive");
    let lived = rig.now;
    rig.run(FLAT_TICKS + 2, |_, guest| guest.halt());
    let convicted = lived + TICK * FLAT_TICKS + ROUND * ROUNDS_TO_CONVICT;
    assert_eq!(rig.acts, [(convicted, Act::Convict(Cause::Halted))]);
}
