//! What must never be convicted, however long it goes on.

use super::rig::{
    FLAT_TICKS, Guest, HOUR, Rig, TICK, busy_monitor, healthy, inconclusive, motionless,
    no_address, packets, stuck, unanswered, unavailable, unresponsive,
};
use super::unseen::dead;
use crate::{
    activity::StorageActivity,
    verdict::{Answer, Cause, HURRIED_ROUNDS_APART, Monitor, ROUNDS_APART},
};
use flatline_samples::{ProcessState, RunState};

/// Runs it for an hour. `states`: those it may be in, each of which it must have been in.
pub(super) fn an_hour(
    mut rig: Rig,
    states: &[&str],
    mut shape: impl FnMut(u32, &mut Guest),
) -> Rig {
    let mut seen = Vec::new();
    for n in 0..HOUR {
        shape(n, &mut rig.guest);
        rig.tick();
        let state = rig.state();
        assert!(states.contains(&state), "{state} after {n} s: {}", rig.watch.reason);
        if !seen.contains(&state) {
            seen.push(state);
        }
    }
    assert_eq!(seen.len(), states.len(), "only {seen:?}");
    assert_eq!(rig.conviction(), None);
    rig
}

/// As [`an_hour`], of a guest that is asked again and again, and acquitted each time.
fn an_hour_of_acquittals(rig: Rig, shape: impl FnMut(u32, &mut Guest)) {
    let rig = an_hour(rig, &["alive", "suspect"], shape);
    assert!(rig.rounds >= HOUR / (FLAT_TICKS + 2), "asked {} times only", rig.rounds);
}

#[test]
fn an_idle_guest_that_answers_arp_is_acquitted_each_time() {
    an_hour_of_acquittals(Rig::calibrated(), |_, guest| guest.registers = unavailable());
}

#[test]
fn an_idle_guest_without_an_address_is_acquitted_by_its_registers() {
    an_hour_of_acquittals(Rig::without_address(), |_, _| {});
}

#[test]
fn a_guest_that_computes_without_io_is_acquitted_by_its_registers() {
    an_hour_of_acquittals(Rig::without_address(), |_, guest| guest.level(&[(0.95, 0.04)]));
}

#[test]
fn a_guest_that_computes_beside_a_vcpu_that_was_never_started_is_acquitted() {
    an_hour_of_acquittals(Rig::without_address(), |_, guest| {
        guest.level(&[(0.99, 0.0), (0.0, 0.0)])
    });
}

#[test]
fn a_guest_that_took_its_network_down_on_purpose_is_acquitted_by_its_registers() {
    an_hour_of_acquittals(Rig::calibrated(), |_, guest| guest.arp = unanswered());
}

#[test]
fn a_pinned_guest_whose_registers_say_neither_stays_suspect() {
    let rig = an_hour(Rig::without_address(), &["alive", "suspect"], |_, guest| {
        guest.level(&[(1.0, 0.0)]);
        guest.registers = inconclusive();
    });
    assert_eq!(rig.state(), "suspect");
}

#[test]
fn a_guest_that_only_stands_still_at_one_spot_with_interrupts_off_has_the_long_time() {
    let mut rig = Rig::without_address();
    let dead = |guest: &mut Guest| {
        guest.level(&[(1.0, 0.0)]);
        guest.registers = motionless();
    };
    rig.run(119, |_, guest| dead(guest));
    assert_eq!((rig.state(), rig.conviction()), ("suspect", None));
    rig.run(5, |_, guest| dead(guest));
    assert!(matches!(rig.conviction(), Some((_, Cause::Spinning))), "{:?}", rig.watch);
    // One interrupt that it was seen to take, or one step, is enough for it.
    for other in [healthy(), inconclusive()] {
        let rig = an_hour(Rig::without_address(), &["alive", "suspect"], |n, guest| {
            dead(guest);
            if n % 100 == 50 {
                guest.registers = other.clone();
            }
        });
        assert_eq!(rig.conviction(), None);
    }
}

#[test]
fn a_guest_whose_vcpus_can_never_be_looked_at_is_not_halted_for_using_no_time() {
    fn opaque() -> Answer {
        Answer::Opaque("its registers are encrypted".to_owned())
    }
    let at = |registers: fn() -> Answer, share: f64| {
        let mut rig = Rig::without_address();
        rig.run(FLAT_TICKS * 30, |_, guest| {
            guest.level(&[(share, 0.0)]);
            guest.registers = registers();
        });
        rig.conviction().map(|(_, cause)| cause)
    };
    assert_eq!(at(unavailable, 0.0), Some(Cause::Halted));
    assert_eq!(at(opaque, 0.0), None);
    assert_eq!(at(opaque, 1.0), Some(Cause::Spinning));
}

#[test]
fn what_our_own_questions_cost_a_halted_guest_keeps_no_conviction_away() {
    // 32 vCPUs, of which each look wakes every one: without it, each uses next to nothing.
    let level = |share: f64| vec![(share, share); 32];
    let mut rig = Rig::without_address();
    rig.run(FLAT_TICKS, |_, guest| {
        guest.halt();
        guest.level(&level(0.000_01));
    });
    assert_eq!(rig.state(), "suspect");
    // On a busy host, they also wait for each other.
    rig.run(3, |_, guest| guest.level(&vec![(0.002, 0.3); 32]));
    assert!(matches!(rig.conviction(), Some((_, Cause::Halted))), "{:?}", rig.watch);
    // One that did as much before it was asked has not stood still.
    an_hour(Rig::without_address(), &["alive", "suspect"], |_, guest| {
        guest.halt();
        guest.level(&level(0.002));
    });
}

#[test]
fn rounds_have_a_shortest_time_which_grows_for_a_guest_that_stays_in_doubt() {
    let mut rig = Rig::suspect();
    assert_eq!(rig.watch.rounds_apart(rig.now), HURRIED_ROUNDS_APART);
    rig.guest.registers = inconclusive();
    rig.run(10, |_, _| {});
    assert_eq!(rig.state(), "suspect");
    assert_eq!(rig.watch.rounds_apart(rig.now), ROUNDS_APART);
}

#[test]
fn registers_alone_convict_nobody_whose_vcpus_level_says_otherwise() {
    for (level, registers) in
        [(0.5, Answer::Halted), (0.5, stuck()), (0.0, stuck()), (1.0, Answer::Halted)]
    {
        an_hour(Rig::without_address(), &["alive", "suspect"], |_, guest| {
            guest.level(&[(level, 0.0)]);
            guest.registers = registers.clone();
        });
    }
}

#[test]
fn a_vm_that_someone_paused_is_held() {
    for run_state in [
        RunState::Paused,
        RunState::Inmigrate,
        RunState::Prelaunch,
        RunState::Postmigrate,
        RunState::FinishMigrate,
        RunState::SaveVm,
        RunState::RestoreVm,
        RunState::Debug,
        RunState::Colo,
        RunState::Shutdown,
        RunState::Suspended,
        RunState::IoError,
        RunState::Other("invented later".to_owned()),
    ] {
        an_hour(Rig::calibrated(), &["held"], |_, guest| {
            guest.halt();
            guest.arp = unanswered();
            guest.monitor = Monitor::Answers(run_state.clone());
        });
    }
}

#[test]
fn a_paused_vm_is_not_convicted_while_another_client_holds_its_monitor() {
    for arp in [unanswered(), no_address()] {
        let rig = an_hour(Rig::calibrated(), &["alive", "suspect", "held"], |_, guest| {
            guest.level(&[(0.0, 0.0), (0.0, 0.0)]);
            guest.monitor = busy_monitor();
            (guest.arp, guest.registers) = (arp.clone(), unavailable());
        });
        assert_eq!(rig.state(), "held");
    }
}

#[test]
fn a_vm_that_was_paused_while_it_computed_is_not_convicted_while_its_monitor_is_held() {
    let mut rig = Rig::calibrated();
    rig.guest.monitor = busy_monitor();
    rig.guest.level(&[(1.0, 0.0)]);
    rig.guest.registers = unavailable();
    rig.run(5 * FLAT_TICKS, |_, _| {});
    an_hour(rig, &["alive", "suspect", "held"], |n, guest| {
        guest.level(&[(if n == 0 { 0.5 } else { 0.0 }, 0.0)]);
        guest.arp = unanswered();
    });
}

#[test]
fn a_qemu_that_was_stopped_by_a_signal_is_held() {
    for monitor in [super::rig::running(), busy_monitor(), Monitor::Unresponsive("2 s".to_owned())]
    {
        an_hour(Rig::calibrated(), &["held"], |_, guest| {
            guest.halt();
            guest.arp = unanswered();
            guest.activity.process = ProcessState::Stopped;
            guest.monitor = monitor.clone();
        });
    }
}

#[test]
fn a_vm_whose_storage_is_stalled_is_held() {
    an_hour(Rig::calibrated(), &["held"], |_, guest| {
        guest.halt();
        guest.arp = unanswered();
        guest.activity.storage =
            Ok(StorageActivity { submitted: 0, completed: 0, in_flight: 3, oldest: None });
    });
}

#[test]
fn a_vm_that_the_host_starves_is_held() {
    an_hour(Rig::calibrated(), &["held"], |_, guest| {
        guest.fall_silent();
        guest.level(&[(0.05, 0.95), (0.0, 0.0)]);
        guest.registers = inconclusive();
    });
}

#[test]
fn a_qemu_that_does_not_answer_is_never_judged() {
    an_hour(Rig::calibrated(), &["alive", "unobservable"], |_, guest| {
        dead(guest, 0);
        guest.monitor = Monitor::Unresponsive("a QMP command got no answer in time".to_owned());
        guest.registers = unresponsive();
    });
}

#[test]
fn silence_that_the_daemon_itself_slept_through_is_not_the_guests() {
    an_hour(Rig::calibrated(), &["alive"], |_, guest| {
        dead(guest, 0);
        guest.activity.elapsed = TICK * 30;
    });
}

#[test]
fn a_tick_that_is_late_now_and_then_does_not_harm_an_idle_guest() {
    an_hour_of_acquittals(Rig::calibrated(), |n, guest| {
        guest.activity.elapsed = if n % 97 == 0 { TICK * 30 } else { TICK };
    });
}

#[test]
fn broadcasts_into_an_idle_guest_do_not_harm_it() {
    an_hour_of_acquittals(Rig::calibrated(), |_, guest| {
        guest.activity.network = Ok(Some(packets(0, 300)));
        guest.level(&[(0.006, 0.0)]);
    });
}

#[test]
fn a_guest_without_a_tap_is_judged_by_its_disk_and_its_registers() {
    an_hour_of_acquittals(Rig::without_address(), |_, guest| guest.activity.network = Ok(None));
    let mut rig = Rig::without_address();
    rig.run(5 * FLAT_TICKS, |_, guest| {
        guest.activity.network = Ok(None);
        guest.activity.storage =
            Ok(StorageActivity { submitted: 1, completed: 1, in_flight: 0, oldest: None });
        guest.registers = Answer::Halted;
    });
    assert_eq!((rig.state(), rig.rounds), ("alive", 0));
}
