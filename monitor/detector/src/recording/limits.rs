//! Bounds of a recording's moments and spans, so that no sum of them overflows.
//!
//! The state machine adds to the moments that it remembers. Live ones come from a clock; those of a file may be anything.

use std::time::Duration;

use super::Malformed;
use crate::{
    policy::Policy,
    verdict::{
        Boot, DetectionPolicy, Dump, HeartbeatLoss, HeartbeatState, Input, Liveness, Silence,
        State, Tick, Watch,
    },
};

/// No host runs for so long: a hundred years.
pub(super) const LONGEST: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

/// Refuses moments that can't be.
fn check(moments: impl IntoIterator<Item = Option<Duration>>) -> Result<(), Malformed> {
    match moments.into_iter().flatten().find(|moment| *moment > LONGEST) {
        Some(moment) => Err(Malformed::new(format!(
            "a time of {} s: no host runs for so long",
            moment.as_secs()
        ))),
        None => Ok(()),
    }
}

/// Refuses a moment that can't be.
pub(super) fn moment(moment: Duration) -> Result<(), Malformed> {
    check([Some(moment)])
}

/// Refuses a policy that no configuration gives.
pub(super) fn detection(detection: &DetectionPolicy) -> Result<(), Malformed> {
    let DetectionPolicy { policy, tick } = detection;
    let Policy {
        mode: _,
        flat_for,
        unconfirmed_flat_for,
        unresponsive_for,
        heartbeat_lost_after,
        boot_grace,
        boot_loop_resets: _,
        boot_loop_window,
        max_restarts: _,
        window,
        pause,
        restart_without_heartbeat: _,
    } = policy;
    check([Some(*tick), Some(*flat_for), Some(*unconfirmed_flat_for), Some(*unresponsive_for)])?;
    check([*heartbeat_lost_after])?;
    check([Some(*boot_grace), Some(*boot_loop_window), Some(*window), Some(*pause)])
}

/// Refuses an input that no clock gives.
pub(super) fn input(input: &Input) -> Result<(), Malformed> {
    match input {
        Input::Tick(of) => tick(of),
        Input::Lived { until, beat, tick: of } => {
            check([Some(*until), *beat])?;
            tick(of)
        }
        _ => Ok(()),
    }
}

fn tick(tick: &Tick) -> Result<(), Malformed> {
    let oldest = tick.activity.storage.as_ref().ok().and_then(|storage| storage.oldest);
    let heartbeat = tick.activity.heartbeat.as_ref().ok().and_then(Option::as_ref);
    check([Some(tick.activity.elapsed), oldest, heartbeat.map(|said| said.interval)])
}

/// Refuses a state that no live one can be in.
pub(super) fn watch(watch: &Watch) -> Result<(), Malformed> {
    let Watch {
        state,
        reason: _,
        since,
        liveness,
        boot,
        resets,
        reset_from_outside,
        excuse: _,
        storm: _,
        monitor_silent_since,
        last,
        silence,
    } = watch;
    let Silence { life, since: silent_since, held: silent_held, suspected: _ } = silence;
    let Liveness {
        last_life,
        last_sign: _,
        heard,
        still_since,
        zero_since,
        pinned_since,
        got: _,
        wanted: _,
        ran: _,
    } = liveness;
    let Boot { began, held, first_life, answered: _, calibrated, dump, heartbeat } = boot;
    let dump = dump
        .map(|Dump { since, last_write, quiet_for, unheard: _ }| [since, last_write, quiet_for]);
    let deadline = match state {
        State::Recovering { deadline, .. } => Some(*deadline),
        _ => None,
    };
    check([Some(*since), Some(*last_life), *heard, *still_since, *zero_since, *pinned_since])?;
    check([Some(*began), Some(*held), *first_life, *calibrated, deadline, *reset_from_outside])?;
    check(dump.into_iter().flatten().map(Some))?;
    check([*monitor_silent_since, Some(*life), Some(*silent_since), Some(*silent_held)])?;
    if let Some(heartbeat) = heartbeat {
        let HeartbeatState { boot: _, interval, check: _, beat, heard, leaving, missed } =
            heartbeat;
        let missed = missed.as_ref().map(|HeartbeatLoss { since, .. }| *since);
        check([Some(*interval), *beat, Some(*heard), *leaving, missed])?;
    }
    if resets.len() > Watch::RESETS {
        return Err(Malformed::new("more resets than are ever remembered"));
    }
    check(resets.iter().copied().map(Some))?;
    let Some((at, last)) = last else { return Ok(()) };
    moment(*at)?;
    tick(last)
}
