//! A QEMU that hangs: its monitor answers nothing, nothing is seen of its guest, and the host is not at fault. That is
//! none of the guest's crashes, and hardly anything brings such a VM back but another QEMU in its place: so it is only
//! judged where [`Policy::unresponsive_for`] says so.

use std::time::Duration;

use super::{Act, Cause, Monitor, State, Testimony, Tick, Watch, evaluate, step::is_due};
use crate::policy::Policy;

/// Takes note of a tick in which nothing was seen of the guest, and the host was not at fault: `before`, it had been silent
/// since then.
pub(super) fn note(watch: &mut Watch, tick: &Tick, before: Option<Duration>, now: Duration) {
    // What was heard or learned during the tick ended what was before.
    let begin = now.saturating_sub(tick.activity.elapsed).max(watch.liveness.last_life);
    let is_mute = matches!(tick.monitor, Monitor::Unresponsive(_));
    watch.monitor_silent_since = is_mute.then(|| before.unwrap_or(begin));
}

/// Whether it has been silent for so long that only its witnesses' word is wanting.
pub(super) fn hangs(watch: &Watch, tick: &Tick, policy: &Policy, now: Duration) -> bool {
    let may_be_judged = match watch.state {
        State::Crashed { .. } | State::Failed { .. } => false,
        State::Recovering { deadline, .. } => is_due(watch, deadline, policy, now),
        State::Starting
        | State::Alive
        | State::Suspect { .. }
        | State::Held
        | State::Unobservable => evaluate::past_grace(&watch.boot, policy, now),
    };
    let long = policy.unresponsive_for;
    may_be_judged
        && !long.is_zero()
        && !tick.undecided
        // Whoever can't see its threads is half blind.
        && tick.activity.vcpus.as_ref().is_ok_and(|vcpus| !vcpus.is_empty())
        && watch.monitor_silent_since.is_some_and(|since| now.saturating_sub(since) >= long)
}

/// Nobody acquitted it, and nobody excuses it.
pub(super) fn convict(watch: &mut Watch, said: &Testimony, now: Duration) -> Act {
    let since = watch.monitor_silent_since.unwrap_or(now);
    let reason = format!(
        "QEMU's monitor has not answered for {} s, and nothing was seen of its guest; {}",
        now.saturating_sub(since).as_secs(),
        said.summary()
    );
    let recovers = matches!(watch.state, State::Recovering { .. });
    let act = evaluate::convict(watch, Cause::QemuUnresponsive, reason, now);
    if recovers { Act::NotRecovered(Cause::QemuUnresponsive) } else { act }
}
