//! Guests that save a crash dump of their own, and how long they are waited for.

use super::rig::{
    FLAT_TICKS, GRACE_TICKS, Guest, Rig, TICK, busy_monitor, missing, packets, panicked_event,
    running,
};
use crate::{
    activity::StorageActivity,
    verdict::{Act, Answer, Cause, DUMP_BOOTS_WITHIN, DUMP_PATIENCE, Input, Monitor},
};
use flatline_samples::{QmpEvent, RunState};

fn writes(guest: &mut Guest) {
    guest.activity.storage =
        Ok(StorageActivity { submitted: 9, completed: 9, in_flight: 0, oldest: None });
}

fn writes_nothing(guest: &mut Guest) {
    guest.activity.storage = Ok(StorageActivity::default());
}

/// A guest that said that it saves its dump, and spins, as a kernel does that boots on one vCPU.
fn announced() -> Rig {
    let mut rig = Rig::without_address();
    assert_eq!(rig.event(&QmpEvent::GuestCrashloaded), Act::Nothing);
    rig.guest.spin();
    rig
}

#[test]
fn a_guest_that_announced_a_dump_and_writes_nothing_is_left_to_boot_for_a_minute() {
    let mut rig = announced();
    let begin = rig.now;
    while rig.now + TICK < begin + DUMP_BOOTS_WITHIN {
        rig.tick();
        assert_eq!(rig.state(), "held");
    }
    assert_eq!(rig.tick(), Act::Convict(Cause::Panicked));
    assert!(rig.watch.reason.contains("has written nothing for 60 s"), "{}", rig.watch.reason);
}

#[test]
fn a_guest_that_stops_writing_its_dump_has_as_long_as_any_silent_guest() {
    let mut rig = announced();
    rig.run(30, |n, guest| if n < 20 { writes_nothing(guest) } else { writes(guest) });
    let last_write = rig.now;
    rig.run(FLAT_TICKS - 1, |_, guest| writes_nothing(guest));
    assert_eq!((rig.state(), rig.conviction()), ("held", None));
    assert_eq!(rig.tick(), Act::Convict(Cause::Panicked));
    assert_eq!(rig.conviction(), Some((last_write + TICK * FLAT_TICKS, Cause::Panicked)));
}

/// The same, once it has begun to write.
fn writing() -> Rig {
    let mut rig = announced();
    rig.run(2, |_, guest| writes_nothing(guest));
    rig.run(5, |_, guest| writes(guest));
    rig
}

#[test]
fn what_its_dead_kernel_had_asked_for_is_no_sign_of_its_crash_kernel() {
    let in_flight: fn(&mut Guest) = |guest| {
        guest.activity.storage = Ok(StorageActivity { in_flight: 1, ..StorageActivity::default() });
    };
    let unknown: fn(&mut Guest) = |guest| guest.activity.storage = Err(missing("storage"));
    let sent: fn(&mut Guest) = |guest| guest.activity.network = Ok(Some(packets(1, 1)));
    for before in [writes, in_flight, unknown, sent] {
        let mut rig = announced();
        rig.run(3, |_, guest| before(guest));
        let last_write = rig.now;
        rig.guest.activity.network = Ok(None);
        rig.run(60 - 1, |_, guest| writes_nothing(guest));
        assert_eq!((rig.state(), rig.conviction()), ("held", None));
        rig.tick();
        assert_eq!(rig.conviction(), Some((last_write + DUMP_BOOTS_WITHIN, Cause::Panicked)));
    }
}

#[test]
fn a_figure_that_is_missing_is_no_sign_of_its_crash_kernel() {
    let mut rig = announced();
    rig.run(2, |_, guest| writes_nothing(guest));
    rig.run(1, |_, guest| guest.activity.storage = Err(missing("storage")));
    rig.run(2 * FLAT_TICKS, |_, guest| writes_nothing(guest));
    assert_eq!((rig.state(), rig.conviction()), ("held", None));
}

#[test]
fn a_dump_that_never_ends_is_waited_for_so_long_and_no_longer() {
    let sends: fn(&mut Guest) = |guest| guest.activity.network = Ok(Some(packets(7, 7)));
    for write in [writes, sends] {
        let mut rig = announced();
        let begin = rig.now;
        rig.run(2 * 600, |_, guest| write(guest));
        let (when, cause) = rig.conviction().expect("it was waited for long enough");
        assert_eq!((when, cause), (begin + DUMP_PATIENCE, Cause::Panicked));
    }
}

#[test]
fn a_dump_whose_progress_is_not_known_is_no_silence() {
    let mut rig = announced();
    rig.run(300, |_, guest| guest.activity.storage = Err(missing("storage")));
    assert_eq!((rig.state(), rig.conviction()), ("held", None));
    rig.guest.activity.storage = Ok(StorageActivity::default());
    rig.run(300, |_, guest| guest.activity.network = Err(missing("network")));
    let ended = rig.conviction().map(|(when, _)| when);
    assert_eq!(ended, Some(rig.now - TICK * 600 + DUMP_PATIENCE));
}

#[test]
fn time_in_which_somebody_paused_it_is_none_of_its_dumps() {
    let mut rig = writing();
    rig.run(2 * 600, |_, guest| {
        writes_nothing(guest);
        guest.monitor = Monitor::Answers(RunState::Paused);
    });
    assert_eq!(rig.state(), "held");
    rig.guest.monitor = running();
    rig.run(FLAT_TICKS - 1, |_, _| {});
    assert_eq!((rig.state(), rig.conviction()), ("held", None));
    rig.tick();
    assert_eq!(rig.state(), "crashed");
}

#[test]
fn a_dump_that_the_host_holds_up_has_not_ended() {
    let mut rig = writing();
    writes_nothing(&mut rig.guest);
    rig.feed(&Input::Storm(Some("9 of 10 VMs fell silent at once".to_owned())));
    rig.run(3 * FLAT_TICKS, |_, _| {});
    assert_eq!((rig.state(), rig.conviction()), ("held", None));
    rig.feed(&Input::Storm(None));
    rig.run(FLAT_TICKS, |_, _| {});
    assert_eq!(rig.state(), "crashed");
}

#[test]
fn a_guest_whose_reset_after_its_dump_may_have_been_missed_is_judged_by_what_it_shows() {
    let mut rig = writing();
    rig.run(1, |_, guest| guest.monitor = busy_monitor());
    // It has booted, and works; its reset was not told.
    rig.guest.monitor = running();
    rig.guest.level(&[(0.3, 0.0)]);
    rig.run(2 * 600, |_, guest| writes(guest));
    assert_eq!((rig.state(), rig.conviction()), ("alive", None), "{}", rig.watch.reason);
    rig.run(2 * FLAT_TICKS, |_, guest| {
        writes_nothing(guest);
        guest.halt();
    });
    assert_eq!(rig.conviction().map(|(_, cause)| cause), Some(Cause::Halted));
}

#[test]
fn a_panic_with_a_dump_to_come_is_no_conviction_if_the_guest_runs_on_and_one_if_qemu_stops_it() {
    let mut rig = announced();
    assert_eq!(rig.event(&panicked_event("run")), Act::Nothing);
    assert_eq!(rig.event(&panicked_event("pause")), Act::Convict(Cause::Panicked));
}

#[test]
fn a_guest_found_writing_after_its_panic_is_left_to_it_until_it_pauses() {
    let mut rig = Rig::calibrated();
    rig.event(&panicked_event("run"));
    rig.acts.clear();
    rig.feed(&Input::StillWriting);
    rig.guest.spin();
    rig.run(60, |_, guest| writes(guest));
    assert_eq!((rig.state(), rig.conviction()), ("held", None));
    rig.run(FLAT_TICKS, |_, guest| writes_nothing(guest));
    assert_eq!(rig.acts, [(rig.now, Act::Convict(Cause::Panicked))]);
}

#[test]
fn a_restarted_guest_that_dumps_is_not_recovered_when_it_stops() {
    let mut rig = Rig::recovering();
    rig.event(&QmpEvent::GuestCrashloaded);
    rig.guest.spin();
    rig.run(3 * GRACE_TICKS, |n, guest| if n < 90 { writes(guest) } else { writes_nothing(guest) });
    assert_eq!(rig.acts.len(), 1);
    assert_eq!(rig.acts[0].1, Act::NotRecovered(Cause::Panicked));
}

#[test]
fn what_a_convicted_guest_announces_later_keeps_its_restart_from_nobody() {
    let mut rig = Rig::crashed();
    rig.acts.clear();
    rig.event(&QmpEvent::GuestCrashloaded);
    rig.run(2 * 600, |_, guest| guest.halt());
    assert_eq!((rig.state(), &rig.acts[..]), ("crashed", &[][..]));
}

/// A suspect that spins, and whose console tells of a panic that was not ended, when it is held for that.
fn begun_on_its_console() -> Rig {
    let mut rig = Rig::without_address();
    rig.guest.spin();
    rig.guest.requests = Answer::OwnDump("Kernel panic - not syncing: x".to_owned());
    rig.run(FLAT_TICKS + 2, |_, _| {});
    assert_eq!((rig.state(), rig.conviction()), ("held", None));
    assert!(rig.watch.saves_own_dump().is_some());
    rig.guest.requests = Answer::Nothing("nothing came of its panic".to_owned());
    rig
}

#[test]
fn a_panic_that_its_console_does_not_end_is_left_to_its_crash_kernel_and_then_judged_by_what_it_shows()
 {
    let mut rig = begun_on_its_console();
    let begin = rig.now;
    rig.run(90, |_, _| {});
    let (when, cause) = rig.conviction().expect("nothing was written");
    assert_eq!(cause, Cause::Spinning, "no word of a panic convicts it");
    let waited = when.saturating_sub(begin);
    let due = DUMP_BOOTS_WITHIN + TICK * FLAT_TICKS;
    assert!((due - TICK * 2..due + TICK * 4).contains(&waited), "{waited:?}");
    // A guest that only shows words, as a hypervisor may that has its guest's console on its own, lives on.
    let mut rig = begun_on_its_console();
    rig.run(300, |_, guest| *guest = Guest::idle());
    assert_eq!((rig.state(), rig.conviction()), ("alive", None), "{}", rig.watch.reason);
}

#[test]
fn a_guest_that_writes_after_a_panic_on_its_console_is_left_to_it_until_it_resets_itself() {
    let mut rig = begun_on_its_console();
    rig.run(200, |_, guest| writes(guest));
    assert_eq!((rig.state(), rig.conviction()), ("held", None));
    assert_eq!(rig.event(&QmpEvent::Reset { guest: true }), Act::GuestReset(1));
    assert_eq!(rig.watch.saves_own_dump(), None);
}

#[test]
fn a_panic_on_the_console_of_a_guest_that_another_witness_acquits_is_none_of_its_own() {
    let mut rig = Rig::calibrated();
    rig.guest.requests = Answer::OwnDump("Kernel panic - not syncing: x".to_owned());
    rig.run(300, |_, _| {});
    assert_eq!((rig.state(), rig.conviction()), ("alive", None), "{}", rig.watch.reason);
    assert_eq!(rig.watch.saves_own_dump(), None);
}
