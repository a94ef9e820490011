//! Guests that are deaf by their registers while many VMs of the host are silent: they are not held for that, and what
//! else speaks against a guest counts for nothing meanwhile.

use super::rig::{
    FLAT_TICKS, Guest, Rig, TICK, excused, healthy, inconclusive, motionless, no_address, stuck,
    unanswered, unavailable, unresponsive,
};
use crate::{
    activity::StorageActivity,
    verdict::{Answer, Cause, Input},
};

type Shape = fn(&mut Guest);

/// Each way of being deaf, and of what such a guest is convicted.
const DEAF: [(Shape, Cause); 3] = [
    (Guest::halt, Cause::Halted),
    (Guest::spin, Cause::Spinning),
    (
        |guest| {
            guest.spin();
            let last_words = "its console says: ---[ end Kernel panic - not syncing: x ]---";
            guest.registers = inconclusive();
            guest.requests = Answer::LastWords(last_words.to_owned());
        },
        Cause::Panicked,
    ),
];

fn storm() -> Input {
    Input::Storm(Some("9 of 10 VMs fell silent at once".to_owned()))
}

/// One that was heard once, and falls silent at a moment that is returned.
fn silent() -> Rig {
    let mut rig = Rig::calibrated();
    rig.guest.sends(0);
    rig
}

#[test]
fn a_deaf_guest_is_convicted_in_its_usual_time_in_a_storm() {
    for (shape, cause) in DEAF {
        let mut rig = silent();
        let fell_silent = rig.now;
        rig.run(FLAT_TICKS, |_, guest| shape(guest));
        rig.next_round();
        rig.feed(&storm());
        rig.run(5, |_, _| {});
        let (when, convicted) = rig.conviction().expect("it is dead, whatever its host does");
        assert_eq!(convicted, cause);
        assert!(when - fell_silent <= TICK * (FLAT_TICKS + 3), "{:?}", when - fell_silent);
    }
}

#[test]
fn a_deaf_guest_is_convicted_while_it_is_undecided_how_many_are_silent() {
    for (shape, cause) in DEAF {
        let mut rig = silent();
        rig.undecided = true;
        rig.run(FLAT_TICKS + 4, |_, guest| shape(guest));
        assert_eq!(rig.conviction().map(|(_, cause)| cause), Some(cause));
    }
}

#[test]
fn a_guest_that_is_held_in_a_storm_and_turns_out_to_be_deaf_has_a_window_from_then_on() {
    for (shape, cause) in DEAF {
        let mut rig = silent();
        rig.run(FLAT_TICKS, |_, guest| guest.fall_silent());
        rig.feed(&storm());
        rig.run(3 * FLAT_TICKS, |_, _| {});
        assert_eq!((rig.state(), rig.conviction()), ("held", None));
        let turned = rig.now;
        rig.run(2 * FLAT_TICKS, |_, guest| shape(guest));
        let (when, convicted) = rig.conviction().expect("it is deaf");
        assert_eq!(convicted, cause);
        let least = TICK * (FLAT_TICKS - 1);
        assert!(cause == Cause::Panicked || when - turned >= least, "{:?}", when - turned);
    }
}

#[test]
fn no_guest_that_a_sick_host_may_make_look_so_is_convicted_in_a_storm() {
    for registers in [
        // An interrupt can't reach one that does not run, or that only waits.
        motionless(),
        inconclusive(),
        // Its vCPUs hang in the host's kernel.
        unavailable(),
        unresponsive(),
    ] {
        for level in [0.0, 0.93] {
            let mut rig = silent();
            let still = |guest: &mut Guest| {
                guest.level(&[(level, 0.0)]);
                (guest.arp, guest.registers) = (unanswered(), registers.clone());
            };
            rig.run(FLAT_TICKS, |_, guest| still(guest));
            rig.feed(&storm());
            rig.run(20 * FLAT_TICKS, |_, _| {});
            assert_eq!((rig.state(), rig.conviction()), ("held", None), "{registers:?}");
        }
    }
}

#[test]
fn a_guest_that_waits_with_interrupts_on_lives_in_a_storm() {
    let mut rig = silent();
    rig.run(FLAT_TICKS, |_, guest| guest.fall_silent());
    rig.feed(&storm());
    rig.guest.registers = healthy();
    rig.next_round();
    assert_eq!((rig.state(), &rig.watch.storm), ("alive", &None));
}

#[test]
fn what_holds_a_guest_by_itself_holds_a_deaf_one_in_a_storm_as_well() {
    let stall: Shape = |guest| {
        let stalled = StorageActivity { in_flight: 1, ..StorageActivity::default() };
        guest.activity.storage = Ok(stalled);
    };
    let holds: [(&str, Shape); 3] = [
        ("its storage stalls", stall),
        ("a witness excuses it", |guest| guest.jobs = excused()),
        ("it is starved", |guest| guest.level(&[(0.0, 0.95)])),
    ];
    for (what, hold) in holds {
        let mut rig = silent();
        rig.run(FLAT_TICKS, |_, guest| guest.halt());
        rig.feed(&storm());
        hold(&mut rig.guest);
        rig.run(20 * FLAT_TICKS, |_, _| {});
        assert_eq!((rig.state(), rig.conviction()), ("held", None), "{what}");
    }
}

#[test]
fn deafness_that_is_seen_once_is_none_and_the_guest_is_held_again() {
    for deaf in [Answer::Halted, stuck()] {
        let mut rig = silent();
        rig.run(FLAT_TICKS, |_, guest| guest.fall_silent());
        rig.feed(&storm());
        for round in 0..200 {
            rig.guest.registers = if round % 2 == 0 { deaf.clone() } else { inconclusive() };
            rig.next_round();
            let expected = if round % 2 == 0 { "suspect" } else { "held" };
            assert_eq!((rig.state(), rig.conviction()), (expected, None), "round {round}");
        }
    }
}

#[test]
fn a_deaf_guest_that_cannot_be_asked_for_anything_else_needs_no_answer_of_it() {
    let mut rig = Rig::without_address();
    rig.guest.halt();
    rig.guest.arp = no_address();
    rig.run(FLAT_TICKS, |_, _| {});
    rig.next_round();
    rig.feed(&storm());
    rig.run(4, |_, _| {});
    assert_eq!(rig.conviction().map(|(_, cause)| cause), Some(Cause::Halted));
}
