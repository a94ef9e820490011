//! A kernel's last words against what its interrupt handlers answer: with a vCPU pinned since, in several rounds that fit them,
//! they outweigh an answered probe. Neither alone does, nor does any healthy guest that looks like part of it.

use super::rig::{
    FLAT_TICKS, Guest, HOUR, Rig, TICK, healthy, inconclusive, motionless, no_address, stuck,
    unanswered, unavailable,
};
use crate::verdict::{Answer, Cause, Questions, Tally};

/// What a kernel's interrupt handlers answer, alive or after its panic.
fn serves() -> Answer {
    Answer::ServesInterrupts("192.0.2.7 answers".to_owned())
}

fn last_words() -> Answer {
    Answer::LastWords("its console says: ---[ end Kernel panic - not syncing: x ]---".to_owned())
}

fn no_words() -> Answer {
    Answer::Nothing("its console has no last words".to_owned())
}

fn loops() -> Answer {
    Answer::Loops("vCPU 0 loops in kernel mode at one depth of its stack".to_owned())
}

/// A panicked guest that answers probes on; with its registers.
fn dies(guest: &mut Guest, registers: Answer) {
    guest.sends(0);
    guest.level(&[(0.99, 0.0)]);
    (guest.arp, guest.registers, guest.requests) = (serves(), registers, last_words());
}

/// Runs a guest for an hour, which nothing may come of; and whether it ended as alive.
fn left_alone(shape: impl Fn(u32, &mut Guest)) -> bool {
    let mut rig = Rig::calibrated();
    rig.run(HOUR, |n, guest| shape(n, guest));
    assert_eq!(rig.conviction(), None, "{}", rig.watch.reason);
    rig.state() == "alive"
}

#[test]
fn words_with_a_vcpu_pinned_ever_since_outweigh_an_answered_probe() {
    for registers in [loops(), stuck()] {
        let mut rig = Rig::calibrated();
        let panicked = rig.now;
        rig.run(3 * FLAT_TICKS, |_, guest| dies(guest, registers.clone()));
        let (when, cause) = rig.conviction().expect("its kernel said that it dies");
        assert_eq!(cause, Cause::Panicked);
        let after = when - panicked;
        assert!(after >= TICK * FLAT_TICKS, "{after:?}");
        assert!(after <= TICK * (FLAT_TICKS + 3), "{after:?}");
        assert!(rig.watch.reason.contains("a vCPU was pinned all along"), "{}", rig.watch.reason);
    }
}

#[test]
fn words_alone_do_not_nor_does_a_pinned_vcpu_alone() {
    // A user reads an old log on the console of a guest that rests, or does a little.
    for level in [0.0024, 0.4, 0.79] {
        let rests = move |_: u32, guest: &mut Guest| {
            dies(guest, loops());
            guest.level(&[(level, 0.0)]);
        };
        assert!(left_alone(rests), "{level}");
    }
    for registers in [loops(), stuck(), motionless(), inconclusive()] {
        let computes = move |_: u32, guest: &mut Guest| {
            dies(guest, registers.clone());
            guest.requests = no_words();
        };
        assert!(left_alone(computes));
    }
}

#[test]
fn a_guest_that_computes_with_an_old_log_on_its_console_is_left_alone() {
    // User code is seen.
    assert!(left_alone(|_, guest| dies(guest, healthy())));
    let mut rig = Rig::calibrated();
    for registers in [loops(), loops(), healthy()].into_iter().cycle().take(99) {
        dies(&mut rig.guest, registers);
        rig.next_round();
    }
    assert_eq!((rig.state(), rig.conviction()), ("alive", None));
    // Its kernel computes, or waits with interrupts masked, or nothing is seen of its vCPUs.
    for registers in [inconclusive(), motionless(), unavailable(), Answer::Opaque("x".to_owned())] {
        let suspect = !left_alone(|_, guest| dies(guest, registers.clone()));
        assert!(suspect, "it is asked on, for as long as it is pinned: {registers:?}");
    }
    // It is pinned no more.
    let mut rig = Rig::calibrated();
    rig.run(2 * FLAT_TICKS, |_, guest| dies(guest, inconclusive()));
    assert_eq!(rig.state(), "suspect");
    rig.run(FLAT_TICKS / 2, |_, guest| guest.level(&[(0.3, 0.0)]));
    assert_eq!((rig.state(), rig.conviction()), ("alive", None));
}

#[test]
fn rounds_that_fit_have_to_be_in_a_row() {
    // Rounds take less than a tick: two in three don't fit.
    let mut rig = Rig::calibrated();
    rig.run(FLAT_TICKS, |_, guest| dies(guest, loops()));
    for _ in 0..50 {
        for registers in [loops(), loops(), inconclusive()] {
            dies(&mut rig.guest, registers);
            rig.next_round();
        }
    }
    assert_eq!(rig.conviction(), None, "{}", rig.watch.reason);
    rig.guest.registers = loops();
    (0..3).for_each(|_| rig.next_round());
    assert_eq!(rig.conviction().map(|(_, cause)| cause), Some(Cause::Panicked));
}

#[test]
fn a_real_sign_of_life_ends_it_whatever_was_said_before() {
    assert!(left_alone(|n, guest| {
        dies(guest, loops());
        guest.sends(u64::from(n % (FLAT_TICKS - 1) == 0));
    }));
}

#[test]
fn an_answer_while_all_is_well_is_no_life_of_a_guest_that_has_said_its_last_words() {
    let mut rig = Rig::calibrated();
    let life = rig.watch.silence.life;
    rig.run(3, |_, guest| dies(guest, loops()));
    let mut calibrated = rig.guest.testimony(Questions::All);
    calibrated.statements.retain(|said| said.witness != "registers");
    rig.testify(calibrated);
    assert_eq!((rig.state(), rig.watch.silence.life), ("alive", life));
    // Without words it is.
    rig.guest.requests = no_words();
    rig.testify(rig.guest.testimony(Questions::All));
    assert!(rig.watch.silence.life > life);
}

#[test]
fn one_that_answers_now_and_then_is_convicted_of_its_words_all_the_same() {
    for period in 1..5 {
        let mut rig = Rig::calibrated();
        rig.run(4 * FLAT_TICKS, |n, guest| {
            dies(guest, loops());
            guest.arp = if n % period == 0 { serves() } else { unanswered() };
        });
        assert_eq!(rig.conviction().map(|(_, cause)| cause), Some(Cause::Panicked), "{period}");
    }
}

#[test]
fn what_serves_interrupts_acquits_of_all_else() {
    for registers in [stuck(), Answer::Halted, motionless(), unavailable()] {
        let answers = |_: u32, guest: &mut Guest| {
            guest.spin();
            (guest.arp, guest.registers) = (serves(), registers.clone());
        };
        assert!(left_alone(answers), "{registers:?}");
    }
}

#[test]
fn a_loop_in_the_kernel_says_nothing_by_itself() {
    let mut rig = Rig::without_address();
    rig.run(HOUR, |_, guest| {
        dies(guest, loops());
        (guest.arp, guest.requests) = (no_address(), no_words());
    });
    assert_eq!((rig.state(), rig.conviction()), ("suspect", None));
    // Nor does it keep what had answered before from speaking against it.
    let mut rig = Rig::calibrated();
    rig.run(2 * FLAT_TICKS, |_, guest| {
        dies(guest, loops());
        (guest.arp, guest.requests) = (unanswered(), no_words());
    });
    assert_eq!(rig.conviction().map(|(_, cause)| cause), Some(Cause::Silent));
}

#[test]
fn a_round_that_is_answered_and_fits_nothing_begins_the_count_anew() {
    let answered = Default::default();
    let count = |tally: Tally, registers: Answer, arp: Answer| {
        let mut guest = Guest::idle();
        dies(&mut guest, registers);
        guest.arp = arp;
        tally.count(&guest.testimony(Questions::All), &answered, TICK)
    };
    let mut tally = Tally::default();
    for expected in 1..4 {
        tally = count(tally, loops(), serves());
        assert_eq!((tally.last_words, tally.unseen), (expected, 0));
    }
    assert_eq!(count(tally, inconclusive(), unanswered()).last_words, 4);
    assert_eq!(count(tally, inconclusive(), serves()).last_words, 0);
    // Nor is one that answers unseen.
    assert_eq!(count(tally, unavailable(), serves()).unseen, 0);
}

#[test]
fn a_guest_that_said_its_last_words_is_convicted_of_them_whichever_evidence_is_complete_first() {
    let shapes: [fn(&mut Guest); 2] = [Guest::halt, Guest::spin];
    for shape in shapes {
        // Its console could not be read in the first round.
        let mut rig = Rig::without_address();
        rig.run(FLAT_TICKS, |_, guest| shape(guest));
        rig.next_round();
        rig.guest.requests = last_words();
        rig.next_round();
        assert_eq!(rig.conviction(), Some((rig.now, Cause::Panicked)));
        assert!(rig.watch.reason.contains("Kernel panic"), "{}", rig.watch.reason);
    }
}
