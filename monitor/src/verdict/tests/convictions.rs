//! Each row of the table that convicts, and what must not be missing from it.

use std::time::Duration;

use super::rig::{
    FLAT_TICKS, Guest, HOUR, Rig, TICK, answered, busy_monitor, healthy, inconclusive, no_address,
    packets, running, stuck, unanswered, unavailable,
};
use crate::{
    activity::StorageActivity,
    qmp::{QmpEvent, RunState},
    verdict::{
        ARP_ROUNDS_TO_CONVICT, Act, Cause, DUMP_PATIENCE, Monitor, ROUNDS_TO_CONVICT,
        RegistersFinding, RequestsAnswer,
    },
};

/// How long after the last sign of life it is convicted, and as what.
fn convicted(mut rig: Rig, dead: impl Fn(&mut Guest)) -> (Duration, Cause) {
    let last_life = rig.watch.line.last_life;
    assert_eq!(last_life, rig.now, "it was alive just now");
    rig.run(FLAT_TICKS * 30, |_, guest| dead(guest));
    let (when, cause) = rig.conviction().expect("it is dead, and was not convicted");
    (when - last_life, cause)
}

fn within(rounds: u32) -> Duration {
    TICK * (FLAT_TICKS + rounds)
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
fn a_guest_that_no_longer_answers_arp_is_convicted_by_four_rounds() {
    let (after, cause) = convicted(Rig::calibrated(), Guest::fall_silent);
    assert_eq!((after, cause), (within(ARP_ROUNDS_TO_CONVICT), Cause::Silent));
}

#[test]
fn a_guest_that_fell_silent_is_convicted_without_a_monitor_if_its_vcpus_run_on() {
    let (after, cause) = convicted(Rig::calibrated(), |guest| {
        guest.fall_silent();
        (guest.monitor, guest.registers) = (busy_monitor(), unavailable());
    });
    assert_eq!((after, cause), (within(ARP_ROUNDS_TO_CONVICT), Cause::Silent));
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
    assert_eq!(rig.conviction(), Some((halted + TICK * FLAT_TICKS, Cause::Halted)));
}

#[test]
fn a_round_of_another_kind_starts_the_row_anew() {
    let halted = RegistersFinding::AllHalted;
    for between in [inconclusive(), unavailable(), stuck()] {
        let mut rig = Rig::suspect();
        rig.run(8, |n, guest| {
            guest.halt();
            guest.registers = if n % 2 == 0 { halted.clone() } else { between.clone() };
        });
        assert_eq!((rig.state(), rig.conviction()), ("suspect", None), "{between:?}");
        rig.run(2, |_, guest| guest.halt());
        assert_eq!(rig.conviction().map(|(_, cause)| cause), Some(Cause::Halted));
    }
    let mut rig = Rig::calibrated();
    rig.run(FLAT_TICKS, |_, guest| guest.fall_silent());
    rig.run(HOUR, |n, guest| {
        guest.arp = if n % ARP_ROUNDS_TO_CONVICT == 0 { no_address() } else { unanswered() };
    });
    assert_eq!(rig.conviction(), None);
}

#[test]
fn an_acquittal_between_two_rounds_starts_the_window_and_the_tally_anew() {
    for arp in [true, false] {
        let mut rig = Rig::suspect();
        rig.guest.halt();
        rig.tick();
        (rig.guest.arp, rig.guest.registers) = match arp {
            true => (answered(), RegistersFinding::AllHalted),
            false => (no_address(), healthy()),
        };
        rig.tick();
        assert_eq!(rig.state(), "alive");
        let acquitted = rig.now;
        rig.run(2 * FLAT_TICKS, |_, guest| guest.halt());
        let expected = acquitted + within(ROUNDS_TO_CONVICT);
        assert_eq!(rig.conviction(), Some((expected, Cause::Halted)));
    }
}

#[test]
fn a_sign_of_life_between_two_rounds_starts_the_window_and_the_tally_anew() {
    let mut rig = Rig::suspect();
    rig.guest.halt();
    rig.tick();
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
        let long = rig.policy.unconfirmed_flat_for;
        let verdict = convicted(rig, |guest| {
            guest.level(&[(level, 0.0)]);
            guest.monitor = monitor.clone();
            guest.registers = unavailable();
        });
        assert_eq!(verdict, (long, cause));
    }
}

#[test]
fn with_nobody_to_ask_a_vm_that_stands_still_may_be_paused_and_is_not_convicted() {
    let mut rig = Rig::without_address();
    rig.run(HOUR, |_, guest| {
        guest.level(&[(0.0, 0.0)]);
        (guest.monitor, guest.registers) = (busy_monitor(), unavailable());
    });
    assert_eq!((rig.state(), rig.conviction()), ("suspect", None));
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
    let panicked = QmpEvent::GuestPanicked { action: "pause".to_owned() };
    assert_eq!(rig.event(&panicked), Some(Act::Convict(Cause::Panicked)));
    rig.guest.monitor = Monitor::Answers(RunState::GuestPanicked);
    assert_eq!(rig.event(&panicked), None);
    assert_eq!(rig.event(&QmpEvent::Stop), None);
    rig.run(FLAT_TICKS, |_, _| {});
    assert_eq!(rig.conviction(), Some((rig.now - within(0), Cause::Panicked)));
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
        assert_eq!(rig.event(&event), None);
    }
    assert_eq!(rig.state(), "suspect");
}

#[test]
fn a_guest_that_writes_its_own_dump_is_held_for_so_long_and_no_longer() {
    let mut rig = Rig::without_address();
    assert_eq!(rig.event(&QmpEvent::GuestCrashloaded), None);
    let announced = rig.now;
    while rig.now + TICK < announced + DUMP_PATIENCE {
        rig.guest.spin();
        rig.tick();
        assert_eq!(rig.state(), "held");
    }
    rig.run(2 * FLAT_TICKS, |_, _| {});
    let expected = announced + DUMP_PATIENCE - TICK + within(ROUNDS_TO_CONVICT);
    assert_eq!(rig.conviction(), Some((expected, Cause::Spinning)));
}

#[test]
fn a_guest_whose_disk_only_qemu_sees_is_acquitted_while_it_completes_requests_and_convicted_after()
{
    let mut rig = Rig::suspect();
    rig.guest.spin();
    rig.guest.requests = RequestsAnswer::Completed(3);
    rig.run(FLAT_TICKS * 5, |_, _| {});
    assert_eq!(rig.conviction(), None, "{}", rig.watch.reason);
    rig.guest.requests = RequestsAnswer::Unmoved;
    rig.run(FLAT_TICKS + 5, |_, _| {});
    assert_eq!(rig.conviction().map(|(_, cause)| cause), Some(Cause::Spinning));
    assert!(rig.watch.reason.contains("QEMU completed no request"), "{}", rig.watch.reason);
}
