//! What gives a guest more time: its boot, a hold, a late tick.

use std::time::Duration;

use super::rig::{
    FLAT_TICKS, GRACE_TICKS, HOUR, Rig, TICK, healthy, inconclusive, missing, no_address, running,
    unanswered, unavailable, unresponsive, vcpus,
};
use super::{healthy::an_hour, unseen::dead};
use crate::{
    activity::StorageActivity,
    verdict::{Act, Answer, Monitor, Questions},
};
use flatline_samples::RunState;

#[test]
fn no_suspicion_falls_on_a_guest_that_boots_until_the_grace_is_over() {
    let mut rig = Rig::new(std::time::Duration::ZERO);
    for n in 1..GRACE_TICKS {
        dead(&mut rig.guest, n / 8);
        assert_eq!(rig.tick(), Act::Nothing, "{n} s after its start");
        assert_eq!(rig.state(), "starting");
    }
    rig.tick();
    assert_eq!(rig.state(), "suspect");
}

#[test]
fn a_guest_that_may_still_test_its_address_is_not_asked_for_it() {
    let mut rig = Rig::new(std::time::Duration::ZERO);
    rig.guest.sends(1);
    rig.tick();
    rig.guest.sends(0);
    rig.guest.registers = inconclusive();
    let (mut within, mut after) = (0, 0);
    for n in 2..=2 * GRACE_TICKS {
        rig.tick();
        let Some(questions) = rig.questions() else { continue };
        // A round that began within the grace may be under way when it ends.
        if n != GRACE_TICKS {
            let gentle = questions == Questions::DuringBoot;
            assert_eq!(gentle, n < GRACE_TICKS, "{n} s after its start");
        }
        *(if n < GRACE_TICKS { &mut within } else { &mut after }) += 1;
    }
    assert!(within > 0 && after > 0, "{within} rounds within the grace and {after} after it");
}

#[test]
fn a_guest_that_talks_is_calibrated_only_if_it_falls_silent_and_only_now_and_then() {
    let mut rig = Rig::new(TICK * HOUR);
    rig.run(HOUR, |n, guest| guest.sends(u64::from(n % 2)));
    let most = HOUR / 300 + 1;
    assert!((2..=most).contains(&rig.rounds), "{} rounds", rig.rounds);
}

#[test]
fn a_vcpu_that_waits_for_the_host_does_not_stand_still() {
    an_hour(Rig::without_address(), &["alive", "suspect"], |_, guest| {
        guest.activity.vcpus = Ok(vcpus(&[(0.0, 0.6)]));
        guest.registers = Answer::Halted;
    });
}

#[test]
fn a_guest_that_is_acquitted_begins_a_whole_window_anew() {
    let mut rig = Rig::suspect();
    rig.guest.registers = healthy();
    rig.tick();
    rig.guest.halt();
    rig.run(FLAT_TICKS - 1, |_, _| {});
    assert_eq!((rig.state(), rig.questions()), ("alive", None));
}

#[test]
fn a_late_tick_makes_a_suspect_wait_for_a_whole_window_again() {
    let mut rig = Rig::calibrated();
    rig.guest.fall_silent();
    rig.next_round();
    assert_eq!(rig.state(), "suspect");
    // The daemon did not run, so it wasn't asked either.
    rig.asked = None;
    rig.run(1, |_, guest| guest.activity.elapsed = TICK * 30);
    rig.run(FLAT_TICKS - 1, |_, guest| guest.activity.elapsed = TICK);
    assert_eq!((rig.state(), rig.conviction()), ("suspect", None));
}

#[test]
fn one_round_without_a_look_at_the_registers_does_not_make_an_hour_unconfirmed() {
    let mut rig = Rig::without_address();
    rig.guest.level(&[(1.0, 0.0)]);
    rig.guest.registers = inconclusive();
    rig.run(HOUR, |_, _| {});
    rig.guest.registers = unavailable();
    rig.tick();
    assert_eq!(rig.conviction(), None, "{}", rig.watch.reason);
}

#[test]
fn an_idle_guest_whose_registers_can_never_be_read_is_left_alone() {
    let mut rig = Rig::without_address();
    rig.guest.registers = unavailable();
    rig.run(HOUR, |_, _| {});
    assert_eq!(rig.conviction(), None, "{}", rig.watch.reason);
}

#[test]
fn storage_that_takes_requests_and_completes_none_is_stalled() {
    let mut rig = Rig::without_address();
    rig.run(300, |n, guest| {
        guest.level(&[(0.0, 0.0)]);
        guest.registers = unavailable();
        let in_flight = u64::from(n) + 1;
        guest.activity.storage =
            Ok(StorageActivity { submitted: 1, completed: 0, in_flight, oldest: None });
    });
    assert_eq!((rig.state(), rig.conviction()), ("held", None), "{}", rig.watch.reason);
}

#[test]
fn a_guest_in_a_qemu_that_stopped_answering_is_not_called_silent() {
    let mut rig = Rig::calibrated();
    rig.run(30, |_, guest| {
        guest.halt();
        guest.arp = unanswered();
        guest.registers = unresponsive();
    });
    assert_eq!(rig.conviction(), None, "{}", rig.watch.reason);
}

#[test]
fn a_guest_that_could_not_be_seen_at_first_has_its_boot_grace_all_the_same() {
    let mut rig = Rig::new(TICK);
    rig.guest.arp = no_address();
    rig.guest.activity.network = Err(missing("network"));
    rig.run(2, |_, _| {});
    assert_eq!(rig.state(), "unobservable");
    rig.guest.sends(0);
    rig.guest.spin();
    rig.run(GRACE_TICKS - 4, |_, _| {});
    assert_eq!((rig.state(), rig.rounds), ("starting", 0));
}

#[test]
fn a_guest_that_waited_to_be_started_has_its_boot_grace_before_it() {
    let mut rig = Rig::new(TICK);
    rig.guest.monitor = Monitor::Answers(RunState::Prelaunch);
    rig.run(HOUR, |_, _| {});
    rig.guest.monitor = running();
    rig.guest.spin();
    rig.run(GRACE_TICKS - 2, |_, _| {});
    assert_eq!((rig.state(), rig.rounds), ("starting", 0));
}

#[test]
fn a_request_that_was_made_just_now_is_no_stalled_store() {
    let mut rig = Rig::calibrated();
    let made = |oldest| StorageActivity { submitted: 1, completed: 0, in_flight: 1, oldest };
    rig.guest.activity.storage = Ok(made(Some(Duration::from_millis(300))));
    rig.tick();
    assert_eq!(rig.state(), "alive");
    rig.guest.activity.storage = Ok(made(Some(TICK)));
    rig.tick();
    assert_eq!(rig.state(), "held");
    assert!(rig.watch.reason.contains("the oldest for 1.0 s"), "{}", rig.watch.reason);
}
