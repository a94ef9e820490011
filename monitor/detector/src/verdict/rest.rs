//! Rest of a VM that is alive: for as long as nothing needs to be known of it but that it shows life.
//!
//! Ticks in which it does are not looked at then; a load of the programs' `life` tells that there was life in each. A rest
//! ends with one [`Input::Lived`](super::Input::Lived), before anything else is told: the first tick without life begins
//! with a full sample, so that the vCPUs' level is known all through a silence.

use std::time::Duration;

use super::{
    Act, DetectionPolicy, State, Tick, Watch, heartbeat,
    step::{lives, sign_of_life},
    window::{HELD_UP, begin_anew, longest_tick, past_grace},
};

/// No rest is longer: people who look at a recording see what a guest did in steps of this.
pub const LONGEST_REST: Duration = Duration::from_secs(30);

/// How long a VM may rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rest {
    /// Until then.
    pub until: Duration,
    /// How long its agent's beats may stay away meanwhile; `None`: none are waited for.
    pub beats_within: Option<Duration>,
}

impl Watch {
    /// How long ticks that show life of it, and its agent's beats where it has one, would change nothing of it but when it was
    /// last heard; `None`: its next tick is to be looked at. To be asked after a tick that ended at `now`.
    pub fn may_rest(&self, detection: &DetectionPolicy, now: Duration) -> Option<Rest> {
        let (_, tick) = self.last.as_ref().filter(|(at, _)| *at == now)?;
        let is_plain = self.state == State::Alive
            && self.liveness.heard == Some(now)
            && self.excuse.is_none()
            && self.storm.is_none()
            && self.monitor_silent_since.is_none()
            && self.boot.dump.is_none();
        if !is_plain {
            return None;
        }
        let beats_within = match &self.boot.heartbeat {
            None => None,
            Some(agent) if agent.leaving.is_some() || agent.missed.is_some() => return None,
            Some(agent) => {
                agent.beat.map(|_| agent.patience(detection).saturating_sub(detection.tick))
            }
        };
        let longest = now + LONGEST_REST;
        // The tick in which its witnesses are due is looked at.
        let before = |due: Duration| longest.min(due.saturating_sub(detection.tick));
        let until = match self.boot.calibrated {
            Some(last) if !self.wants_calibration(now) => before(last + super::CALIBRATE_EVERY),
            // No witness can be asked; one may come.
            _ if !tick.calibratable => longest,
            _ if past_grace(&self.boot, &detection.policy, now) => return None,
            _ => before(self.boot.began + self.boot.held + detection.policy.boot_grace),
        };
        (until > now + detection.tick).then_some(Rest { until, beats_within })
    }
}

/// A rest ended at `now`. `until` is when the last tick ended that showed life, `beat` likewise the last that had a beat, and
/// `tick` what moved meanwhile.
pub(super) fn lived(
    watch: &mut Watch,
    until: Duration,
    beat: Option<Duration>,
    tick: &Tick,
    detection: &DetectionPolicy,
    now: Duration,
) -> Act {
    let Tick { activity, .. } = tick;
    heartbeat::note(watch, activity, now);
    heartbeat::beat_at(watch, beat);
    watch.liveness.unseen(activity.elapsed);
    let sign = sign_of_life(activity).unwrap_or_else(|| "guest was seen to live".to_owned());
    // What it did before the boot that its agent told of is none of that boot's.
    let act = lives(watch, sign, until.max(watch.boot.began).min(now));
    if now.saturating_sub(until) > longest_tick(detection) {
        begin_anew(watch, HELD_UP, now);
    }
    act
}
