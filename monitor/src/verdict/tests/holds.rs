//! Silence that is somebody else's: excuses, storms, and time in which nobody watched.

use std::time::Duration;

use super::rig::{FLAT_TICKS, HOUR, ROUND, Rig, TICK, excused, nothing_to_excuse};
use crate::verdict::{Act, Cause, Questions};

/// A guest that is dead, and whose silence a witness excuses.
fn excused_rig() -> Rig {
    let mut rig = Rig::suspect();
    rig.guest.halt();
    rig.guest.jobs = excused();
    rig.next_round();
    assert_eq!(rig.state(), "held");
    rig
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
    let (when, cause) = rig.conviction().expect("nobody excuses it any more");
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
    // The third would convict it; but nobody has looked at its packets for half a minute.
    rig.now = rig.ticked + TICK * 30;
    let testimony = rig.guest.testimony(Questions::All);
    rig.asked = None;
    assert_eq!(rig.testify(testimony), Act::Nothing);
    assert_eq!(rig.state(), "alive");
    rig.guest.activity.elapsed = TICK * 31;
    rig.guest.sends(1);
    rig.tick();
    assert_eq!((rig.state(), rig.conviction()), ("alive", None));
}
