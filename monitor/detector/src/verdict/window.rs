//! Window of a guest's silence: when it is long enough, which graces come before it, and when it begins anew.

use std::time::Duration;

use super::{Boot, DetectionPolicy, Liveness, State, Tally, Watch};
use crate::policy::Policy;

/// Why a window begins anew after a tick that took too long: what looks like one long silence may be our own.
pub(super) const HELD_UP: &str = "the daemon itself was held up";

/// The longest time that a tick takes, but for a daemon that was held up.
pub(super) fn longest_tick(detection: &DetectionPolicy) -> Duration {
    detection.tick * 3 + Duration::from_secs(1)
}

/// Whether the boot grace is over. A guest that still tests its address for duplicates would take a probe for a conflict
/// (RFC 5227).
pub(super) fn past_grace(boot: &Boot, policy: &Policy, now: Duration) -> bool {
    now.saturating_sub(boot.began).saturating_sub(boot.held) >= policy.boot_grace
}

/// Whether it has shown nothing for as long as a guest may that isn't suspected, or was suspected before. Ticks are never
/// on the dot: what is a hair's breadth too short is long enough.
pub(super) fn is_flat(watch: &Watch, detection: &DetectionPolicy, now: Duration) -> bool {
    watch.silence.suspected
        || watch.silence.length(now) + detection.tick / 2 >= detection.policy.flat_for
}

/// Whether it may still be booting, and has shown no life so far.
pub(super) fn has_grace(watch: &Watch, policy: &Policy, now: Duration) -> bool {
    watch.boot.first_life.is_none() && !past_grace(&watch.boot, policy, now)
}

/// Whether the time is up in which a restarted guest was to show life; one that was reset since has its grace.
pub(super) fn is_due(watch: &Watch, deadline: Duration, policy: &Policy, now: Duration) -> bool {
    now >= deadline && past_grace(&watch.boot, policy, now)
}

/// Whether it is a restarted guest that still has time to show life.
pub(super) fn has_time(watch: &Watch, policy: &Policy, now: Duration) -> bool {
    matches!(watch.state, State::Recovering { deadline, .. } if !is_due(watch, deadline, policy, now))
}

/// Begins the window anew after a time that was not watched: what was seen before says nothing about a silence now, and
/// undoes nothing that was known.
pub(super) fn begin_anew(watch: &mut Watch, why: &str, now: Duration) {
    watch.liveness.begin_anew(now, format!("none since the window began anew: {why}"));
    watch.silence.pause(now);
    watch.monitor_silent_since = None;
    let tally = Tally::default();
    if let State::Recovering { tally: counted, .. } = &mut watch.state {
        *counted = tally;
    } else if matches!(watch.state, State::Suspect { .. }) {
        watch.enter(State::Suspect { tally }, format!("its window began anew: {why}"), now);
    }
}

impl Liveness {
    /// Begins a window anew: nothing that was seen before counts any more, but for what the vCPUs do right now.
    pub(super) fn begin_anew(&mut self, now: Duration, why: String) {
        let Self { heard, still_since, zero_since, pinned_since, got, wanted, .. } = self;
        let begins = |since: &Option<Duration>| since.map(|_| now);
        *self = Self {
            heard: *heard,
            still_since: begins(still_since),
            zero_since: begins(zero_since),
            pinned_since: begins(pinned_since),
            got: *got,
            wanted: *wanted,
            ..Self::begin(now, &why)
        };
    }
}
