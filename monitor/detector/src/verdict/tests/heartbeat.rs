//! Guests whose agent beats, and those whose agent no longer does.

use std::time::Duration;

use proptest::{collection::vec, prelude::*};

use super::rig::{
    FLAT_TICKS, HOUR, ROUND, Rig, TICK, busy_monitor, missing, panicked_event, running,
};
use crate::{
    activity::HeartbeatActivity,
    verdict::{Act, Answer, Cause, Input, LEAVING_PATIENCE, Monitor, State},
};
use flatline_samples::{ProcessState, QmpEvent, Reading, RunState};

/// Three intervals of a second, and two seconds.
const PATIENCE: u32 = 5;

fn beat() -> HeartbeatActivity {
    HeartbeatActivity {
        beats: 1,
        failed: false,
        leaving: false,
        interval: TICK,
        boot: 1,
        check: String::new(),
    }
}

fn says(said: HeartbeatActivity) -> Reading<Option<HeartbeatActivity>> {
    Ok(Some(said))
}

/// A guest whose agent has beaten for a while, and which does nothing else.
fn beating() -> Rig {
    let mut rig = Rig::calibrated();
    rig.guest.activity.heartbeat = says(beat());
    rig.run(3, |_, _| {});
    assert_eq!((rig.state(), rig.watch.reason.as_str()), ("alive", "its agent's heart beats"));
    rig
}

fn reports(rig: &Rig) -> Vec<Cause> {
    let told = rig.acts.iter().filter_map(|(_, act)| match act {
        Act::Report(cause) => Some(*cause),
        _ => None,
    });
    told.collect()
}

#[test]
fn a_beat_is_a_sign_of_life_and_nobody_asks_on() {
    let mut rig = beating();
    let rounds = rig.rounds;
    rig.run(250, |_, _| {});
    assert_eq!((rig.state(), rig.conviction(), rig.rounds - rounds), ("alive", None, 0));
}

#[test]
fn an_agent_that_is_killed_makes_a_suspect_in_its_time_and_is_told_once() {
    for sends in [0, 5] {
        let mut rig = beating();
        rig.guest.activity.heartbeat = Ok(None);
        rig.guest.sends(sends);
        rig.run(PATIENCE - 1, |_, _| {});
        assert_eq!(rig.watch.shown_state().0, "alive");
        rig.run(1, |_, _| {});
        assert_eq!(rig.watch.shown_state().0, "suspect", "{}", rig.watch.reason);
        rig.run(HOUR / 10, |_, _| {});
        assert_eq!((reports(&rig), rig.conviction()), (vec![Cause::UserlandDead], None));
        let (state, cause, reason) = rig.watch.shown_state();
        assert_eq!((state, cause), ("suspect", Some(Cause::UserlandDead)));
        assert!(reason.contains("its kernel lives"), "{reason}");
        rig.guest.activity.heartbeat = says(beat());
        rig.run(3, |_, _| {});
        assert_eq!(rig.watch.shown_state().0, "alive");
        assert_eq!(rig.acts.last().map(|(_, act)| act), Some(&Act::BeatsAgain));
    }
}

#[test]
fn an_agent_that_said_nothing_of_a_check_has_none_that_failed_however_ticks_fall() {
    for early in [0, 1, 400] {
        let mut rig = beating();
        rig.detection.policy.restart_without_heartbeat = true;
        rig.detection.policy.flat_for = TICK * 3;
        rig.guest.activity.heartbeat = Ok(None);
        rig.guest.sends(1);
        rig.run(PATIENCE - 1, |_, _| {});
        rig.guest.activity.elapsed -= Duration::from_millis(early);
        rig.run(1, |_, _| {});
        rig.guest.activity.elapsed = TICK;
        assert!(rig.watch.shown_state().2.contains("last beat"), "{}", rig.watch.shown_state().2);
        assert_eq!(rig.conviction(), None, "it was not asked once");
        rig.run(10, |_, _| {});
        assert_eq!(rig.conviction().map(|(_, cause)| cause), Some(Cause::UserlandDead));
    }
}

#[test]
fn what_was_told_is_no_verdict_and_a_crash_is_found_all_the_same() {
    let mut rig = beating();
    rig.guest.activity.heartbeat = Ok(None);
    rig.guest.sends(1);
    rig.run(60, |_, _| {});
    assert_eq!(reports(&rig), [Cause::UserlandDead]);
    rig.guest.halt();
    rig.run(FLAT_TICKS - 1, |_, _| {});
    assert_eq!(rig.conviction(), None, "sooner than without an agent");
    rig.run(4, |_, _| {});
    assert_eq!(rig.conviction().map(|(_, cause)| cause), Some(Cause::Halted));
    let mut rig = beating();
    rig.guest.activity.heartbeat = Ok(None);
    rig.guest.sends(1);
    rig.run(60, |_, _| {});
    rig.feed(&Input::Event { monitor: running(), event: panicked_event("run") });
    assert_eq!(rig.conviction().map(|(_, cause)| cause), Some(Cause::Panicked));
}

#[test]
fn where_it_is_configured_a_dead_user_space_is_a_crash_and_its_kernel_does_not_speak_for_it() {
    let mut rig = beating();
    rig.detection.policy.restart_without_heartbeat = true;
    rig.guest.activity.heartbeat = Ok(None);
    rig.guest.sends(1);
    let begin = rig.now;
    rig.run(FLAT_TICKS - 1, |_, _| {});
    assert_eq!(rig.conviction(), None);
    rig.run(2, |_, _| {});
    let (at, cause) = rig.conviction().expect("its user space is dead");
    assert_eq!(cause, Cause::UserlandDead);
    assert!(at - begin <= TICK * (FLAT_TICKS + 1), "{:?}", at - begin);
    rig.run(5, |_, _| {});
    assert_eq!(rig.state(), "crashed", "{}", rig.watch.reason);
    rig.guest.activity.heartbeat = says(beat());
    rig.tick();
    assert_eq!(rig.state(), "alive");
}

#[test]
fn a_guest_agent_that_answers_says_that_only_the_program_that_beats_is_gone() {
    let mut rig = beating();
    rig.detection.policy.restart_without_heartbeat = true;
    rig.guest.activity.heartbeat = Ok(None);
    rig.guest.sends(1);
    rig.guest.registers = Answer::UserSpaceLives("its agent answers".to_owned());
    rig.run(HOUR / 10, |_, _| {});
    assert_eq!(
        (rig.watch.shown_state().0, reports(&rig), rig.conviction()),
        ("alive", vec![], None)
    );
}

#[test]
fn a_check_that_fails_is_named_though_the_guest_lives() {
    let fails = HeartbeatActivity { beats: 0, failed: true, check: "web".to_owned(), ..beat() };
    let mut rig = beating();
    rig.guest.activity.heartbeat = says(fails.clone());
    rig.run(PATIENCE + 1, |_, _| {});
    assert_eq!(reports(&rig), [Cause::ServiceDead]);
    let (state, cause, reason) = rig.watch.shown_state();
    assert_eq!((state, cause), ("suspect", Some(Cause::ServiceDead)));
    assert!(reason.starts_with("its check web has failed for"), "{reason}");
    // No guest is restarted for a service that is restarted itself.
    let mut rig = beating();
    rig.detection.policy.restart_without_heartbeat = true;
    rig.guest.activity.heartbeat = says(fails.clone());
    rig.run(FLAT_TICKS - 1, |_, _| {});
    assert_eq!(rig.conviction(), None);
    rig.run(2, |_, _| {});
    assert_eq!(rig.conviction().map(|(_, cause)| cause), Some(Cause::ServiceDead));
    // One that has not succeeded yet is still starting.
    let mut rig = Rig::calibrated();
    rig.guest.activity.heartbeat = says(fails);
    rig.run(HOUR / 10, |_, _| {});
    assert_eq!((rig.watch.shown_state().0, reports(&rig)), ("alive", vec![]));
}

#[test]
fn a_crash_is_found_sooner_than_without_an_agent() {
    let took = |mut rig: Rig, dies: fn(&mut Rig)| {
        let begin = rig.now;
        dies(&mut rig);
        rig.guest.activity.heartbeat = Ok(None);
        rig.run(30, |_, _| {});
        let (at, cause) = rig.conviction().expect("it is dead");
        (at - begin, cause)
    };
    let halts = |rig: &mut Rig| rig.guest.halt();
    let spins = |rig: &mut Rig| rig.guest.spin();
    for (dies, cause) in [(halts as fn(&mut Rig), Cause::Halted), (spins, Cause::Spinning)] {
        let (with, of) = took(beating(), dies);
        let (without, _) = took(Rig::calibrated(), dies);
        assert_eq!(of, cause);
        assert!(with <= TICK * (PATIENCE + 2), "{with:?}");
        assert!(without >= TICK * FLAT_TICKS - ROUND, "{without:?}");
    }
}

#[test]
fn a_guest_that_goes_down_in_good_order_is_given_its_time() {
    let mut rig = beating();
    rig.detection.policy.restart_without_heartbeat = true;
    rig.guest.activity.heartbeat = says(HeartbeatActivity { beats: 0, leaving: true, ..beat() });
    rig.tick();
    assert_eq!(rig.state(), "held");
    rig.guest.activity.heartbeat = Ok(None);
    rig.guest.halt();
    rig.run(100, |_, _| {});
    assert_eq!((rig.state(), rig.conviction()), ("held", None));
    // Its time is over.
    rig.run(40, |_, _| {});
    assert_eq!(rig.conviction().map(|(_, cause)| cause), Some(Cause::Halted));
}

#[test]
fn an_agent_that_was_told_to_end_is_waited_for_no_longer() {
    let mut rig = beating();
    rig.detection.policy.restart_without_heartbeat = true;
    rig.guest.activity.heartbeat = says(HeartbeatActivity { beats: 0, leaving: true, ..beat() });
    rig.guest.sends(1);
    rig.tick();
    rig.guest.activity.heartbeat = Ok(None);
    rig.run(HOUR / 10, |_, _| {});
    assert_eq!((rig.state(), rig.conviction(), reports(&rig)), ("alive", None, vec![]));
    assert!(Duration::from_secs(360) > LEAVING_PATIENCE * 2);
    // And one that is started again beats on.
    let mut rig = beating();
    rig.guest.activity.heartbeat = says(HeartbeatActivity { leaving: true, ..beat() });
    rig.tick();
    rig.guest.activity.heartbeat = says(beat());
    rig.tick();
    assert_eq!(rig.state(), "alive");
}

#[test]
fn who_is_stopped_or_cannot_be_seen_misses_no_beats() {
    type Change = fn(&mut Rig);
    let changes: [(&str, Change); 7] = [
        ("paused", |rig| rig.guest.monitor = Monitor::Answers(RunState::Paused)),
        ("suspended", |rig| rig.guest.monitor = Monitor::Answers(RunState::Suspended)),
        ("migrated", |rig| rig.guest.monitor = Monitor::Answers(RunState::Postmigrate)),
        ("its QEMU stopped", |rig| rig.guest.activity.process = ProcessState::Stopped),
        ("its taps lost", |rig| rig.guest.activity.network = Err(missing("network"))),
        ("its beats lost", |rig| rig.guest.activity.heartbeat = Err(missing("heartbeats"))),
        ("starved", |rig| rig.guest.level(&[(0.02, 0.97)])),
    ];
    for (what, change) in changes {
        let mut rig = beating();
        rig.detection.policy.restart_without_heartbeat = true;
        rig.guest.sends(1);
        let healthy = rig.guest.clone();
        rig.guest.activity.heartbeat = Ok(None);
        change(&mut rig);
        rig.run(30, |_, _| {});
        // It goes on: its next beat has its time from here.
        rig.guest = healthy;
        rig.guest.activity.heartbeat = Ok(None);
        rig.run(PATIENCE - 1, |_, _| {});
        rig.guest.activity.heartbeat = says(beat());
        rig.run(5, |_, _| {});
        assert_eq!((rig.conviction(), reports(&rig)), (None, vec![]), "{what}");
        assert_eq!(rig.watch.shown_state().0, "alive", "{what}: {}", rig.watch.reason);
    }
}

#[test]
fn a_reset_and_another_boot_s_number_end_what_was_expected() {
    let mut rig = beating();
    rig.feed(&Input::Event { monitor: running(), event: QmpEvent::Reset { guest: true } });
    rig.guest.activity.heartbeat = Ok(None);
    rig.guest.sends(1);
    rig.run(120, |_, _| {});
    assert_eq!((rig.watch.shown_state().0, reports(&rig)), ("alive", vec![]));
    // Where nothing tells of resets.
    let mut rig = beating();
    rig.guest.monitor = busy_monitor();
    let began = rig.watch.boot.began;
    rig.guest.activity.heartbeat = says(HeartbeatActivity { boot: 2, ..beat() });
    rig.tick();
    assert!(rig.watch.boot.began > began && rig.watch.boot.answered.is_empty());
    assert_eq!(rig.watch.shown_state().0, "alive");
}

#[test]
fn a_restarted_guest_whose_agent_beats_is_back() {
    let mut rig = Rig::recovering();
    if let State::Recovering { was_up, .. } = &mut rig.watch.state {
        *was_up = true;
    }
    rig.guest.activity.heartbeat = says(beat());
    rig.tick();
    assert_eq!(rig.state(), "alive");
    assert!(rig.acts.iter().any(|(_, act)| *act == Act::Recovered));
}

#[test]
fn agents_that_fall_silent_together_are_only_told_of() {
    let mut rig = beating();
    rig.detection.policy.restart_without_heartbeat = true;
    rig.guest.activity.heartbeat = Ok(None);
    rig.guest.sends(1);
    rig.run(PATIENCE, |_, _| {});
    rig.feed(&Input::Storm(Some("5 of 5 VMs".to_owned())));
    rig.run(1, |_, _| {});
    rig.feed(&Input::Storm(None));
    rig.run(60, |_, _| {});
    assert_eq!((rig.conviction(), reports(&rig)), (None, vec![Cause::UserlandDead]));
}

#[test]
fn beats_that_are_rarer_than_configured_are_not_missed_between_two() {
    let mut rig = beating();
    rig.detection.policy.heartbeat_lost_after = Some(TICK * 3);
    let rare = HeartbeatActivity { interval: TICK * 30, ..beat() };
    rig.run(300, |n, guest| {
        guest.sends(1);
        guest.activity.heartbeat = if n % 30 == 0 { says(rare.clone()) } else { Ok(None) };
    });
    assert_eq!(reports(&rig), []);
    rig.detection.policy.heartbeat_lost_after = None;
    rig.run(300, |n, guest| {
        guest.activity.heartbeat = if n % 90 == 0 { says(rare.clone()) } else { Ok(None) };
    });
    assert_eq!(reports(&rig), []);
}

/// What an agent says in a tick, of all that it may say.
fn heartbeats() -> impl Strategy<Value = Reading<Option<HeartbeatActivity>>> {
    prop_oneof![
        6 => Just(Ok(None)),
        3 => Just(says(beat())),
        1 => Just(says(HeartbeatActivity { beats: 0, failed: true, check: "web".to_owned(), ..beat() })),
        1 => Just(says(HeartbeatActivity { beats: 0, leaving: true, ..beat() })),
        1 => Just(says(HeartbeatActivity { boot: 2, ..beat() })),
        1 => Just(says(HeartbeatActivity { interval: Duration::MAX, ..beat() })),
        1 => Just(Err(missing("heartbeats"))),
    ]
}

proptest! {
    #[test]
    fn whatever_agents_say_only_a_silent_guest_is_convicted_unless_it_is_configured(
        steps in vec((heartbeats(), 0_u64..2, 0_u32..4, 1_u32..20), 1..40),
    ) {
        let mut rig = beating();
        let mut life = rig.now;
        for (heartbeat, sends, kind, ticks) in steps {
            match kind {
                0 => rig.guest.halt(),
                1 => rig.guest.spin(),
                2 => rig.guest.fall_silent(),
                _ => rig.guest = super::rig::Guest::idle(),
            }
            if kind == 3 {
                rig.guest.sends(sends);
            }
            for n in 0..ticks {
                // A change of what is said comes once; what it means lasts.
                rig.guest.activity.heartbeat = if n == 0 { heartbeat.clone() } else { Ok(None) };
                let lives = kind == 3 && sends > 0 || matches!(rig.guest.activity.heartbeat, Ok(Some(_)));
                let before = rig.acts.len();
                rig.tick();
                for (at, act) in &rig.acts[before..] {
                    if let Act::Convict(cause) | Act::NotRecovered(cause) = act {
                        prop_assert!(!cause.is_of_user_space());
                        prop_assert!(*at - life >= TICK * (PATIENCE - 1), "{cause} after {:?}", *at - life);
                    }
                }
                if lives {
                    life = rig.now;
                }
            }
        }
    }
}
