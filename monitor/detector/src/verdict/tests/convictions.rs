//! Each row of the table that convicts, and what must not be missing from it.

use std::time::Duration;

use super::rig::{
    FLAT_TICKS, Guest, HOUR, ROUND, Rig, TICK, all_seen, answered, busy_monitor, healthy,
    inconclusive, no_address, packets, panicked_event, running, stuck, unanswered, unavailable,
    unresponsive,
};
use crate::{
    activity::StorageActivity,
    verdict::{
        Act, Answer, Cause, Input, Monitor, ROUNDS_TO_CONVICT, SILENT_ROUNDS_TO_CONVICT, Statement,
        Testimony,
    },
};
use flatline_samples::{QmpEvent, RunState};

/// How long after the last sign of life it is convicted, and as what.
fn convicted(mut rig: Rig, dead: impl Fn(&mut Guest)) -> (Duration, Cause) {
    let last_life = rig.watch.liveness.last_life;
    assert_eq!(last_life, rig.now, "it was alive just now");
    rig.run(FLAT_TICKS * 30, |_, guest| dead(guest));
    let (when, cause) = rig.conviction().expect("it is dead, and was not convicted");
    (when - last_life, cause)
}

/// So long after the last sign of life so many rounds in a row have been answered.
fn within(rounds: u32) -> Duration {
    TICK * FLAT_TICKS + ROUND * rounds
}

#[test]
fn a_halted_guest_is_convicted_by_two_rounds() {
    let (after, cause) = convicted(Rig::without_address(), Guest::halt);
    assert_eq!((after, cause), (within(ROUNDS_TO_CONVICT), Cause::Halted));
}

#[test]
fn a_spinning_guest_is_convicted_by_two_rounds() {
    let (after, cause) = convicted(Rig::without_address(), Guest::spin);
    assert_eq!((after, cause), (within(ROUNDS_TO_CONVICT), Cause::Spinning));
}

#[test]
fn a_guest_that_no_longer_answers_and_has_been_pinned_all_along_is_convicted_by_three_rounds() {
    let (after, cause) = convicted(Rig::calibrated(), |guest| {
        guest.fall_silent();
        guest.level(&[(0.9, 0.0)]);
    });
    assert_eq!((after, cause), (within(3), Cause::Silent));
}

#[test]
fn a_guest_whose_level_says_nothing_is_convicted_once_it_has_answered_nobody_for_the_whole_window()
{
    let (after, cause) = convicted(Rig::calibrated(), Guest::fall_silent);
    assert_eq!(cause, Cause::Silent);
    let twice = TICK * FLAT_TICKS * 2;
    assert!((twice..twice + TICK).contains(&after), "{after:?}");
}

#[test]
fn a_guest_that_fell_silent_is_convicted_without_a_monitor_if_its_vcpus_run_on() {
    let (after, cause) = convicted(Rig::calibrated(), |guest| {
        guest.fall_silent();
        guest.level(&[(0.9, 0.0)]);
        (guest.monitor, guest.registers) = (busy_monitor(), unavailable());
    });
    assert_eq!((after, cause), (within(SILENT_ROUNDS_TO_CONVICT), Cause::Silent));
}

#[test]
fn a_guest_that_never_answered_arp_is_not_convicted_by_its_silence() {
    let mut rig = Rig::without_address();
    rig.run(HOUR, |_, guest| guest.fall_silent());
    assert_eq!((rig.state(), rig.conviction()), ("suspect", None));
}

#[test]
fn broadcasts_and_probes_into_a_dead_guest_do_not_acquit_it() {
    let (after, cause) = convicted(Rig::calibrated(), |guest| {
        guest.spin();
        guest.arp = unanswered();
        guest.activity.network = Ok(Some(packets(0, 500)));
    });
    assert_eq!((after, cause), (within(ROUNDS_TO_CONVICT), Cause::Spinning));
}

#[test]
fn a_guest_that_halts_while_it_is_suspected_still_has_to_stand_still_for_the_whole_window() {
    let mut rig = Rig::suspect();
    rig.guest.registers = inconclusive();
    rig.guest.level(&[(0.5, 0.0)]);
    rig.run(3 * FLAT_TICKS, |_, _| {});
    let halted = rig.now;
    rig.run(2 * FLAT_TICKS, |_, guest| guest.halt());
    let (when, cause) = rig.conviction().expect("it is halted");
    // Whenever the next round ends; half a tick of the window is let off.
    let stood_still = when - halted;
    assert!(stood_still >= TICK * FLAT_TICKS - TICK / 2, "{stood_still:?}");
    assert!(stood_still <= TICK * FLAT_TICKS + ROUND, "{stood_still:?}");
    assert_eq!(cause, Cause::Halted);
}

#[test]
fn a_round_of_another_kind_starts_the_row_anew() {
    let halted = Answer::Halted;
    for between in [inconclusive(), unavailable(), stuck()] {
        let mut rig = Rig::suspect();
        rig.guest.halt();
        for n in 0..8 {
            rig.guest.registers = if n % 2 == 0 { halted.clone() } else { between.clone() };
            rig.next_round();
        }
        assert_eq!((rig.state(), rig.conviction()), ("suspect", None), "{between:?}");
        rig.guest.registers = halted.clone();
        rig.next_round();
        assert_eq!(rig.conviction(), None);
        rig.next_round();
        assert_eq!(rig.conviction(), Some((rig.now, Cause::Halted)));
    }
    let mut rig = Rig::calibrated();
    rig.run(FLAT_TICKS, |_, guest| guest.fall_silent());
    for n in 0..HOUR {
        let unasked = n % SILENT_ROUNDS_TO_CONVICT == 0;
        rig.guest.arp = if unasked { no_address() } else { unanswered() };
        rig.next_round();
    }
    assert_eq!((rig.state(), rig.conviction()), ("suspect", None));
}

#[test]
fn an_acquittal_between_two_rounds_starts_the_window_and_the_tally_anew() {
    for arp in [true, false] {
        let mut rig = Rig::suspect();
        rig.guest.halt();
        rig.next_round();
        (rig.guest.arp, rig.guest.registers) = match arp {
            true => (answered(), Answer::Halted),
            false => (no_address(), healthy()),
        };
        rig.next_round();
        assert_eq!(rig.state(), "alive");
        let acquitted = rig.now;
        rig.run(2 * FLAT_TICKS, |_, guest| guest.halt());
        let (when, cause) = rig.conviction().expect("it is halted");
        let after = when - acquitted;
        assert!(after + TICK / 2 >= within(ROUNDS_TO_CONVICT), "{after:?}");
        assert!(after < within(ROUNDS_TO_CONVICT) + TICK, "{after:?}");
        assert_eq!(cause, Cause::Halted);
    }
}

#[test]
fn a_sign_of_life_between_two_rounds_starts_the_window_and_the_tally_anew() {
    let mut rig = Rig::suspect();
    rig.guest.halt();
    rig.next_round();
    rig.guest.activity.storage =
        Ok(StorageActivity { submitted: 1, completed: 1, in_flight: 0, oldest: None });
    rig.tick();
    assert_eq!(rig.state(), "alive");
    rig.guest.activity.storage = Ok(StorageActivity::default());
    let lived = rig.now;
    rig.run(2 * FLAT_TICKS, |_, guest| guest.halt());
    assert_eq!(rig.conviction(), Some((lived + within(ROUNDS_TO_CONVICT), Cause::Halted)));
}

#[test]
fn with_nobody_to_ask_only_the_longer_silence_convicts() {
    for (level, monitor, cause) in [
        (0.0, running(), Cause::Halted),
        (1.0, running(), Cause::Spinning),
        (1.0, busy_monitor(), Cause::Spinning),
    ] {
        let rig = Rig::without_address();
        let long = rig.detection.policy.unconfirmed_flat_for;
        let verdict = convicted(rig, |guest| {
            guest.level(&[(level, 0.0)]);
            guest.monitor = monitor.clone();
            guest.registers = unavailable();
        });
        let (after, as_what) = verdict;
        // Whenever a round ends.
        assert!(after >= long && after <= long + ROUND, "{after:?}");
        assert_eq!(as_what, cause);
    }
}

#[test]
fn with_nobody_to_ask_a_vm_that_stands_still_may_be_paused_and_is_not_convicted() {
    let mut rig = Rig::without_address();
    rig.run(HOUR, |_, guest| {
        guest.level(&[(0.0, 0.0)]);
        (guest.monitor, guest.registers) = (busy_monitor(), unavailable());
    });
    assert_eq!((rig.state(), rig.conviction()), ("held", None));
    assert!(rig.watch.reason.contains("paused"), "{}", rig.watch.reason);
}

#[test]
fn with_nobody_to_ask_a_guest_at_neither_level_is_not_convicted() {
    for shares in [&[(0.05, 0.0)][..], &[(0.3, 0.3), (0.3, 0.3)]] {
        let mut rig = Rig::without_address();
        rig.run(HOUR, |_, guest| {
            guest.level(shares);
            guest.registers = unavailable();
        });
        assert_eq!((rig.state(), rig.conviction()), ("suspect", None), "{shares:?}");
    }
}

#[test]
fn what_the_guest_or_kvm_says_outright_convicts_at_once() {
    for (run_state, cause) in [
        (RunState::GuestPanicked, Cause::Panicked),
        (RunState::InternalError, Cause::InternalError),
        (RunState::Watchdog, Cause::Watchdog),
    ] {
        // Even a guest that talks, one that boots, and one whose figures are missing.
        for mut rig in [Rig::calibrated(), Rig::new(TICK), Rig::suspect()] {
            rig.guest.sends(1);
            rig.guest.activity.vcpus = Err(super::rig::missing("vCPU time"));
            rig.guest.monitor = Monitor::Answers(run_state.clone());
            assert_eq!(rig.tick(), Act::Convict(cause));
            rig.run(FLAT_TICKS, |_, _| {});
            assert_eq!(
                (rig.state(), rig.conviction()),
                ("crashed", Some((rig.now - within(0), cause)))
            );
        }
    }
}

#[test]
fn an_announced_panic_convicts_at_once_and_only_once() {
    let mut rig = Rig::calibrated();
    let panicked = panicked_event("pause");
    assert_eq!(rig.event(&panicked), Act::Convict(Cause::Panicked));
    rig.guest.monitor = Monitor::Answers(RunState::GuestPanicked);
    assert_eq!(rig.event(&panicked), Act::Nothing);
    assert_eq!(rig.event(&QmpEvent::Stop), Act::Nothing);
    rig.run(FLAT_TICKS, |_, _| {});
    assert_eq!(rig.conviction(), Some((rig.now - within(0), Cause::Panicked)));
}

#[test]
fn an_answer_to_questions_that_were_under_way_when_it_was_convicted_calibrates_its_witness() {
    let mut rig = Rig::new(TICK * HOUR);
    rig.tick();
    assert!(rig.questions().is_some());
    rig.event(&panicked_event("run"));
    rig.tick();
    assert!(rig.watch.boot.answered.contains("ARP"));
}

#[test]
fn figures_that_were_missing_while_qemu_said_that_it_crashed_are_no_silence() {
    let shapes: [fn(&mut Guest); 2] = [
        |guest| guest.sends(1),
        |guest| guest.activity.network = Err(super::rig::missing("network")),
    ];
    for shape in shapes {
        let mut rig = Rig::crashed();
        rig.acts.clear();
        rig.guest.monitor = Monitor::Answers(RunState::GuestPanicked);
        shape(&mut rig.guest);
        rig.tick();
        // It was let run on, and its monitor answers anew.
        rig.guest.monitor = running();
        rig.feed(&Input::Reexamine);
        let seen = rig.now;
        rig.run(2 * FLAT_TICKS, |_, guest| guest.halt());
        let (when, _) = rig.conviction().expect("it is dead");
        assert!(when - seen >= TICK * FLAT_TICKS - TICK / 2, "{:?}", when - seen);
    }
}

#[test]
fn last_words_convict_a_silent_guest_in_the_second_round_and_none_that_answers() {
    let dies = || Answer::LastWords("Kernel panic - not syncing: Fatal exception".to_owned());
    let (after, cause) = convicted(Rig::without_address(), |guest| {
        guest.level(&[(0.95, 0.0)]);
        guest.registers = inconclusive();
        guest.requests = dies();
    });
    assert_eq!((after, cause), (within(ROUNDS_TO_CONVICT), Cause::Panicked));
    // One that says so and goes on all the same, as after a warning that looks like it.
    let mut rig = Rig::without_address();
    rig.guest.requests = dies();
    rig.run(HOUR, |_, _| {});
    assert_eq!(rig.conviction(), None);
    // A kernel that ended its panic spins; one that doesn't did not say this.
    let mut rig = Rig::without_address();
    (rig.guest.registers, rig.guest.requests) = (inconclusive(), dies());
    rig.run(HOUR, |_, _| {});
    assert_eq!((rig.state(), rig.conviction()), ("suspect", None));
    // Said once is said; but an answer in between makes it a thing of the past.
    let mut rig = Rig::without_address();
    rig.guest.level(&[(0.95, 0.0)]);
    rig.run(FLAT_TICKS, |_, _| {});
    (rig.guest.registers, rig.guest.requests) = (inconclusive(), dies());
    rig.next_round();
    rig.guest.requests = Answer::Nothing("nothing new on its console".to_owned());
    rig.next_round();
    assert_eq!(rig.conviction(), Some((rig.now, Cause::Panicked)));
    let mut rig = Rig::suspect();
    (rig.guest.registers, rig.guest.requests) = (inconclusive(), dies());
    rig.next_round();
    (rig.guest.registers, rig.guest.requests) = (healthy(), all_seen());
    rig.next_round();
    rig.guest.registers = inconclusive();
    rig.run(2 * FLAT_TICKS, |_, _| {});
    assert_eq!((rig.state(), rig.conviction()), ("suspect", None));
}

#[test]
fn one_answer_acquits_however_many_witnesses_are_silent_and_whatever_else_is_said() {
    let silent = (0..100).map(|n| format!("witness {n}"));
    let statement = |witness: String, answer| Statement { witness: witness.into(), answer };
    let mut statements: Vec<_> = silent.clone().map(|name| statement(name, unanswered())).collect();
    for answer in [Answer::Halted, stuck(), Answer::LastWords("it dies".to_owned()), unresponsive()]
    {
        statements.push(statement(answer.word().to_owned(), answer));
    }
    for place in [Some(0), Some(50), Some(statements.len()), None] {
        let mut rig = Rig::suspect();
        rig.guest.halt();
        rig.watch.boot.answered.extend(silent.clone().map(Into::into));
        for _ in 0..SILENT_ROUNDS_TO_CONVICT {
            let mut said = statements.clone();
            if let Some(place) = place {
                said.insert(place, statement("the one".to_owned(), answered()));
            }
            rig.testify(Testimony { statements: said });
            rig.now += ROUND;
        }
        let expected = if place.is_some() { "alive" } else { "crashed" };
        assert_eq!(rig.state(), expected, "{place:?}");
    }
}

#[test]
fn a_witness_that_never_answered_in_this_boot_never_counts() {
    let mut rig = Rig::calibrated();
    rig.run(HOUR, |_, guest| {
        guest.fall_silent();
        guest.arp = no_address();
        guest.requests = unanswered();
    });
    assert_eq!((rig.state(), rig.conviction()), ("suspect", None));
    // The one that did does.
    rig.run(3 * FLAT_TICKS, |_, guest| guest.arp = unanswered());
    assert_eq!(rig.conviction().map(|(_, cause)| cause), Some(Cause::Silent));
}

#[test]
fn other_events_convict_nobody() {
    let mut rig = Rig::suspect();
    for event in [
        QmpEvent::Stop,
        QmpEvent::Resume,
        QmpEvent::Suspend,
        QmpEvent::Wakeup,
        QmpEvent::Watchdog { action: "none".to_owned() },
        QmpEvent::BlockIoError { action: "stop".to_owned() },
        QmpEvent::DeviceDeleted,
        QmpEvent::Shutdown { guest: true, reason: "guest-shutdown".to_owned() },
        QmpEvent::Other("VSERPORT_CHANGE".to_owned()),
    ] {
        assert_eq!(rig.event(&event), Act::Nothing);
    }
    assert_eq!(rig.state(), "suspect");
}

#[test]
fn a_guest_whose_disk_only_qemu_sees_is_acquitted_while_it_completes_requests_and_convicted_after()
{
    let mut rig = Rig::suspect();
    rig.guest.spin();
    rig.guest.requests = Answer::Lives("3 requests completed".to_owned());
    rig.run(FLAT_TICKS * 5, |_, _| {});
    assert_eq!(rig.conviction(), None, "{}", rig.watch.reason);
    rig.guest.requests = Answer::Nothing("none completed since the last round".to_owned());
    rig.run(FLAT_TICKS + 5, |_, _| {});
    assert_eq!(rig.conviction().map(|(_, cause)| cause), Some(Cause::Spinning));
}
