//! A QEMU that hangs, and those that only seem to.

use std::time::Duration;

use super::rig::{
    GRACE_TICKS, HOUR, Rig, TICK, answered, excused, in_its_firmware, missing, no_address, running,
    unresponsive, up,
};
use crate::{
    activity::StorageActivity,
    verdict::{Cause, Monitor, State},
};
use flatline_samples::ProcessState;

/// For how long its monitor must be silent here.
const MUTE_TICKS: u32 = 60;

/// A VM whose QEMU answers nothing any more, and that is judged for that after a minute.
fn hanging() -> Rig {
    let mut rig = Rig::without_address();
    rig.detection.policy.unresponsive_for = TICK * MUTE_TICKS;
    hang(&mut rig);
    rig
}

fn hang(rig: &mut Rig) {
    rig.guest.sends(0);
    rig.guest.monitor = Monitor::Unresponsive("a QMP command got no answer in time".to_owned());
    rig.guest.registers = unresponsive();
}

#[test]
fn a_qemu_that_is_mute_for_long_is_convicted_of_hanging_and_its_witnesses_are_heard_first() {
    let mut rig = hanging();
    let begin = rig.now;
    rig.run(MUTE_TICKS, |_, _| {});
    assert_eq!((rig.state(), rig.rounds), ("unobservable", 0), "{}", rig.watch.reason);
    rig.run(2, |_, _| {});
    let (at, cause) = rig.conviction().expect("it hangs");
    assert_eq!(cause, Cause::QemuUnresponsive);
    assert!(at - begin < TICK * (MUTE_TICKS + 2), "{:?}", at - begin);
    assert_eq!(rig.rounds, 1);
    assert!(rig.watch.reason.contains("has not answered for 60 s"), "{}", rig.watch.reason);
}

#[test]
fn unless_somebody_says_so_no_qemu_is_ever_convicted_of_hanging() {
    let mut rig = Rig::without_address();
    hang(&mut rig);
    rig.run(HOUR, |_, _| {});
    assert_eq!((rig.state(), rig.conviction()), ("unobservable", None));
}

#[test]
fn whatever_speaks_for_it_or_for_the_host_s_fault_begins_its_time_anew() {
    type Change = fn(&mut Rig);
    let changes: [(&str, Change); 8] = [
        ("a packet", |rig| rig.guest.sends(1)),
        ("an answer of its monitor's", |rig| rig.guest.monitor = running()),
        ("a stalled store", |rig| {
            let stalled =
                StorageActivity { submitted: 0, completed: 0, in_flight: 2, oldest: None };
            rig.guest.activity.storage = Ok(stalled);
        }),
        ("the D state", |rig| rig.guest.activity.process = ProcessState::Uninterruptible),
        ("a stop", |rig| rig.guest.activity.process = ProcessState::Stopped),
        ("a figure that is missing", |rig| {
            rig.guest.activity.network = Err(missing("network"));
        }),
        ("a daemon that was held up", |rig| rig.guest.activity.elapsed = TICK * 30),
        ("a vCPU that starves", |rig| rig.guest.level(&[(0.01, 0.99)])),
    ];
    for (what, change) in changes {
        let mut rig = hanging();
        // Once in a while is enough, for however long it lasts.
        for _ in 0..10 {
            let ticks = MUTE_TICKS - 10;
            rig.run(ticks, |_, _| {});
            let healthy = rig.guest.clone();
            change(&mut rig);
            rig.run(3, |_, _| {});
            rig.guest = healthy;
            hang(&mut rig);
        }
        assert_eq!(rig.conviction(), None, "{what}");
        rig.run(MUTE_TICKS * 2, |_, _| {});
        assert!(rig.conviction().is_some(), "{what}: {}", rig.watch.reason);
    }
}

#[test]
fn a_witness_that_lives_or_excuses_it_is_believed() {
    let mut rig = hanging();
    rig.guest.arp = answered();
    rig.run(MUTE_TICKS * 5, |_, _| {});
    assert_eq!(rig.conviction(), None, "{}", rig.watch.reason);

    let mut rig = hanging();
    rig.guest.jobs = excused();
    rig.run(MUTE_TICKS * 5, |_, _| {});
    assert_eq!((rig.state(), rig.conviction()), ("held", None));
    rig.guest.jobs = super::rig::nothing_to_excuse();
    rig.run(MUTE_TICKS * 2, |_, _| {});
    assert_eq!(rig.watch.state, State::Crashed { cause: Cause::QemuUnresponsive });
}

#[test]
fn one_that_hangs_after_its_restart_is_not_recovered() {
    let mut rig = Rig::recovering();
    rig.detection.policy.unresponsive_for = Duration::from_secs(30);
    hang(&mut rig);
    rig.run(300, |_, _| {});
    let (_, cause) = rig.conviction().expect("it hangs");
    assert_eq!(cause, Cause::QemuUnresponsive);
}

#[test]
fn one_that_boots_has_its_grace() {
    let mut rig = Rig::new(Duration::ZERO);
    rig.detection.policy.unresponsive_for = Duration::from_secs(30);
    rig.guest.arp = no_address();
    hang(&mut rig);
    rig.run(59, |_, _| {});
    assert_eq!(rig.conviction(), None, "{}", rig.watch.reason);
    rig.run(40, |_, _| {});
    assert!(rig.conviction().is_some(), "{}", rig.watch.reason);
}

#[test]
fn a_qemu_with_firmware_that_answers_does_not_hang() {
    let mut rig = Rig::crashed();
    rig.acts.clear();
    rig.detection.policy.unresponsive_for = TICK * 30;
    rig.restarted_from(true);
    hang(&mut rig);
    rig.run(GRACE_TICKS, |_, _| {});
    (rig.guest.arp, rig.guest.stage) = (answered(), in_its_firmware());
    rig.next_round();
    let heard = rig.now;
    (rig.guest.arp, rig.guest.stage) = (no_address(), up());
    rig.run(3 * GRACE_TICKS, |_, _| {});
    let (when, cause) = rig.conviction().expect("it hangs");
    assert_eq!(cause, Cause::QemuUnresponsive);
    assert!(when - heard >= TICK * 30, "{:?}", when - heard);
}
