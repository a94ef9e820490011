//! Announced crashes, which need no silence and no witness: the guest or KVM says so by an event, or by the run state.

use std::time::Duration;

use super::{
    Act, Cause, DUMP_BOOTS_WITHIN, DetectionPolicy, Dump, Monitor, RESET_BURST, State, Tally,
    Watch, outcome::convict,
};
use flatline_samples::{QmpEvent, RunState};

/// One reset from outside brings up to four of the guest's own, within this time: they belong to it.
const OWN_RESETS_AFTER_OUTER: Duration = Duration::from_secs(5);

/// Takes note of an event.
pub(super) fn event(
    watch: &mut Watch,
    monitor: &Monitor,
    event: &QmpEvent,
    detection: &DetectionPolicy,
    now: Duration,
) -> Act {
    match event {
        QmpEvent::Reset { guest: true } => return guest_reset(watch, detection, now),
        QmpEvent::Reset { guest: false } => {
            watch.reset_from_outside = Some(now);
            if !matches!(watch.state, State::Recovering { .. }) {
                // An operator looked at what the guest had done before.
                watch.resets.clear();
            }
            begin_boot(watch, "it was reset from outside", now);
            // The run state is still that of the boot before.
            return Act::Nothing;
        }
        QmpEvent::GuestCrashloaded => {
            watch.boot.dump = Some(Dump::new(now, DUMP_BOOTS_WITHIN));
        }
        // One that runs on and said that it writes its dump is left to it.
        QmpEvent::GuestPanicked { action }
            if !(watch.state.is_convicted() || action == "run" && watch.boot.dump.is_some()) =>
        {
            let reason = format!("the guest reported its own panic (QEMU's action: {action})");
            return convict(watch, Cause::Panicked, reason, now);
        }
        _ => {}
    }
    announcement(watch, monitor, now).unwrap_or(Act::Nothing)
}

/// Takes note of a run state that says that the guest crashed; `None` where it says nothing new.
pub(super) fn announcement(watch: &mut Watch, monitor: &Monitor, now: Duration) -> Option<Act> {
    let Monitor::Answers(run_state) = monitor else { return None };
    let (cause, reason) = crash_of(run_state)?;
    (!watch.state.is_convicted()).then(|| convict(watch, cause, reason.to_owned(), now))
}

/// The run states that say that a guest crashed.
fn crash_of(run_state: &RunState) -> Option<(Cause, &'static str)> {
    match run_state {
        RunState::GuestPanicked => Some((Cause::Panicked, "QEMU says that the guest panicked")),
        RunState::InternalError => Some((Cause::InternalError, "KVM gave up: an internal error")),
        RunState::Watchdog => {
            Some((Cause::Watchdog, "the guest's watchdog fired, and QEMU paused it"))
        }
        _ => None,
    }
}

/// Whether the run state still says that the guest crashed.
pub(super) fn ended_badly(monitor: &Monitor) -> bool {
    matches!(monitor, Monitor::Answers(run_state) if crash_of(run_state).is_some())
}

/// Counts a reset of the guest's own, as after a panic with `panic=5`; it is not answered with another.
fn guest_reset(watch: &mut Watch, detection: &DetectionPolicy, now: Duration) -> Act {
    let outer = watch.reset_from_outside;
    if outer.is_some_and(|outer| now.saturating_sub(outer) < OWN_RESETS_AFTER_OUTER) {
        begin_boot(watch, "it was reset from outside", now);
        return Act::Nothing;
    }
    let policy = &detection.policy;
    let begins = watch.resets.last().is_none_or(|last| now.saturating_sub(*last) >= RESET_BURST);
    if begins {
        watch.resets.retain(|at| now.saturating_sub(*at) < policy.boot_loop_window);
        if watch.resets.len() == Watch::RESETS {
            watch.resets.remove(0);
        }
        watch.resets.push(now);
    }
    let resets = watch.resets.len();
    let looping = usize::try_from(policy.boot_loop_resets).is_ok_and(|most| resets >= most);
    let failed = State::Failed { cause: Cause::BootLoop };
    if watch.state == failed {
        // What it does now is the same loop.
        watch.reboot(now, "the guest reset itself");
        return Act::Nothing;
    }
    if looping {
        watch.reboot(now, "the guest reset itself");
        let reason = format!(
            "the guest reset itself {resets} times within {}: a person is needed",
            humantime::format_duration(policy.boot_loop_window)
        );
        watch.enter(failed, reason, now);
        return Act::GiveUp(Cause::BootLoop);
    }
    begin_boot(watch, "the guest reset itself", now);
    if begins { Act::GuestReset(resets) } else { Act::Nothing }
}

/// Begins another boot. A guest that was restarted is still waited for, and its time is not prolonged; but what was seen of
/// it is of the boot before.
fn begin_boot(watch: &mut Watch, why: &str, now: Duration) {
    if let State::Recovering { tally, .. } = &mut watch.state {
        *tally = Tally::default();
        watch.reboot(now, "it was reset once more");
    } else {
        watch.reboot(now, why);
        watch.enter(State::Starting, why.to_owned(), now);
    }
}
