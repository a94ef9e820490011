//! Figures that are missing convict nothing.

use super::healthy::an_hour;
use super::rig::{FLAT_TICKS, Guest, HOUR, Rig, TICK, inconclusive, missing, stuck, unanswered};
use crate::{
    activity::StorageActivity,
    verdict::{Answer, Input, Monitor},
};
use flatline_samples::RunState;

/// All that would convict it, were all figures known.
pub(super) fn dead(guest: &mut Guest, n: u32) {
    guest.sends(0);
    guest.arp = unanswered();
    if n.is_multiple_of(2) {
        guest.level(&[(0.0, 0.0)]);
        guest.registers = Answer::Halted;
    } else {
        guest.level(&[(1.0, 0.0)]);
        guest.registers = stuck();
    }
}

#[test]
fn a_vm_is_never_convicted_while_its_io_is_not_known() {
    for (network, storage) in [(true, false), (false, true), (true, true)] {
        an_hour(Rig::calibrated(), &["unobservable"], |n, guest| {
            dead(guest, n / HOUR);
            if network {
                guest.activity.network = Err(missing("network"));
            }
            if storage {
                guest.activity.storage = Err(missing("storage"));
            }
        });
    }
}

#[test]
fn a_vm_is_never_convicted_while_its_vcpus_are_not_known() {
    an_hour(Rig::calibrated(), &["alive", "unobservable"], |_, guest| {
        dead(guest, 0);
        guest.activity.vcpus = Err(missing("vCPU time"));
    });
}

#[test]
fn figures_that_are_missing_every_other_tick_convict_nobody() {
    for which in ["network", "storage"] {
        an_hour(Rig::calibrated(), &["unobservable"], |n, guest| {
            dead(guest, 0);
            guest.activity.storage = Ok(StorageActivity::default());
            match (n % 2, which) {
                (0, "network") => guest.activity.network = Err(missing("network")),
                (0, _) => guest.activity.storage = Err(missing("storage")),
                _ => {}
            }
        });
    }
    an_hour(Rig::calibrated(), &["alive", "suspect", "unobservable"], |n, guest| {
        dead(guest, 0);
        if n % 2 == 0 {
            guest.activity.vcpus = Err(missing("vCPU time"));
        }
    });
}

#[test]
fn a_guest_that_the_host_starves_is_given_the_time_that_it_did_not_get() {
    for (busy, seconds) in [(0.95, 10), (0.5, 10), (0.25, 20), (0.125, 40)] {
        let mut rig = Rig::without_address();
        rig.guest.spin();
        rig.guest.level(&[(busy, 0.95 - busy)]);
        let last_life = rig.now;
        rig.run(60, |_, _| {});
        let (when, cause) = rig.conviction().expect("it is dead");
        assert_eq!(cause, crate::verdict::Cause::Spinning);
        let reason = &rig.watch.reason;
        let told = reason.contains("the host let a vCPU run for");
        assert!(told == (busy < 0.5) || busy == 0.5, "{busy}: {reason}");
        // A silence of ten ticks is needed, and to have run for half of that; half a tick of it is let off.
        let (took, least) = (when - last_life, TICK * seconds);
        assert!(took >= least.mul_f64(0.95) && took <= least + TICK * 3, "{busy}: {took:?}");
    }
}

#[test]
fn a_figure_that_is_missing_once_makes_the_window_begin_anew() {
    let mut rig = Rig::without_address();
    rig.guest.halt();
    rig.run(FLAT_TICKS, |_, _| {});
    rig.guest.activity.network = Err(missing("network"));
    rig.tick();
    assert_eq!(rig.state(), "unobservable");
    rig.run(1, |_, guest| guest.sends(0));
    assert_eq!(rig.state(), "unobservable");
    rig.run(FLAT_TICKS - 2, |_, _| {});
    assert_eq!((rig.state(), rig.conviction()), ("suspect", None));
    rig.run(4, |_, _| {});
    assert_eq!(rig.state(), "crashed");
}

#[test]
fn whatever_else_holds_a_starved_guest_makes_the_window_begin_anew() {
    type Shape = fn(&mut Rig);
    let shapes: [(&str, Shape, &str); 2] = [
        (
            "a figure is missing",
            |rig| rig.guest.activity.network = Err(missing("network")),
            "unobservable",
        ),
        (
            "a storm",
            |rig| {
                rig.feed(&Input::Storm(Some("9 of 10 VMs fell silent at once".to_owned())));
            },
            "held",
        ),
    ];
    for (what, shape, state) in shapes {
        let mut rig = Rig::without_address();
        rig.guest.level(&[(0.05, 0.95)]);
        rig.guest.registers = inconclusive();
        rig.run(FLAT_TICKS - 1, |_, _| {});
        shape(&mut rig);
        rig.tick();
        assert_eq!(rig.state(), state, "{what}");
        let over = rig.now;
        rig.feed(&Input::Storm(None));
        rig.guest.registers = Answer::LastWords("Kernel panic - not syncing".to_owned());
        rig.run(3 * FLAT_TICKS, |_, guest| guest.sends(0));
        let (when, _) = rig.conviction().expect("its kernel said that it dies");
        assert!(when - over >= TICK * FLAT_TICKS - TICK / 2, "{what}: {:?}", when - over);
    }
}

#[test]
fn a_hold_makes_the_window_begin_anew() {
    let mut rig = Rig::without_address();
    rig.guest.halt();
    rig.next_round();
    assert_eq!(rig.state(), "suspect");
    rig.guest.monitor = Monitor::Answers(RunState::Paused);
    rig.tick();
    rig.guest.monitor = super::rig::running();
    rig.run(FLAT_TICKS - 1, |_, _| {});
    assert_eq!((rig.state(), rig.conviction()), ("suspect", None));
    rig.run(4, |_, _| {});
    assert_eq!(rig.state(), "crashed");
}
