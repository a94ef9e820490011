//! A QEMU that hangs: its monitor answers nothing, nothing is seen of its guest, and the host is not at fault. That is no
//! crash of the guest, and hardly anything brings such a VM back but another QEMU in its place: so it is only judged
//! where [`Policy::unresponsive_for`] says so.

use std::time::Duration;

use super::{
    Act, Cause, Monitor, Testimony, Tick, Watch,
    outcome::convict_suspect,
    window::{has_time, past_grace},
};
use crate::policy::Policy;

/// Takes note of a tick in which nothing was seen of the guest, and the host was not at fault; `before` is since when the
/// monitor had been silent then.
pub(super) fn note(watch: &mut Watch, tick: &Tick, before: Option<Duration>, now: Duration) {
    // What was heard or learned during the tick ended what was before.
    let begin = now.saturating_sub(tick.activity.elapsed).max(watch.liveness.last_life);
    let is_silent = matches!(tick.monitor, Monitor::Unresponsive(_));
    watch.monitor_silent_since = is_silent.then(|| before.unwrap_or(begin));
}

/// Whether the monitor has been silent for `unresponsive_for`, so that only the witnesses' answers are needed.
pub(super) fn hangs(watch: &Watch, tick: &Tick, policy: &Policy, now: Duration) -> bool {
    let long = policy.unresponsive_for;
    !long.is_zero()
        && !watch.state.is_convicted()
        && !has_time(watch, policy, now)
        && past_grace(&watch.boot, policy, now)
        && !tick.undecided
        && watch.storm.is_none()
        // Without its threads' times, it can't be told what the guest does.
        && tick.activity.vcpus.as_ref().is_ok_and(|vcpus| !vcpus.is_empty())
        && watch.monitor_silent_since.is_some_and(|since| now.saturating_sub(since) >= long)
}

/// Convicts a QEMU of hanging, which no witness acquitted or excuses.
pub(super) fn convict(watch: &mut Watch, said: &Testimony, now: Duration) -> Act {
    let since = watch.monitor_silent_since.unwrap_or(now);
    let reason = format!(
        "QEMU's monitor has not answered for {} s, and nothing was seen of its guest; {}",
        now.saturating_sub(since).as_secs(),
        said.summary()
    );
    convict_suspect(watch, Cause::QemuUnresponsive, reason, now)
}
