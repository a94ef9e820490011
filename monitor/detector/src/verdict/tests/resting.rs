//! What the daemon does of a VM that may rest: it looks at none of its ticks until one shows no life.

use std::{sync::Arc, time::Duration};

use super::rig::Rig;
use crate::{
    activity::{Activity, HeartbeatActivity},
    verdict::{Act, Input, Rest, Tick, step::sign_of_life},
};

/// A rest that has begun.
#[derive(Clone, Debug)]
pub(super) struct Resting {
    rest: Rest,
    begun: Duration,
    lived_at: Duration,
    beat_at: Option<Duration>,
    /// What moved since it begun.
    activity: Option<Activity>,
    /// It lived in each tick up to its end.
    is_over: bool,
}

impl Resting {
    fn new(rest: Rest, now: Duration) -> Self {
        Self { rest, begun: now, lived_at: now, beat_at: None, activity: None, is_over: false }
    }

    /// Takes a tick in, and says whether the VM may rest on.
    fn goes_on(&mut self, tick: &Tick, now: Duration) -> bool {
        let life = sign_of_life(&tick.activity).is_some();
        let said = tick.activity.heartbeat.as_ref().ok().and_then(Option::as_ref);
        let is_beat = |said: &HeartbeatActivity| said.beats > 0 && !said.failed && !said.leaving;
        if life {
            self.lived_at = now;
        }
        if said.is_some_and(is_beat) {
            self.beat_at = Some(now);
        }
        self.add(&tick.activity);
        let away = now.saturating_sub(self.beat_at.unwrap_or(self.begun));
        let goes_on = life
            && said.is_none_or(is_beat)
            && self.rest.beats_within.is_none_or(|within| away < within);
        self.is_over = goes_on && now >= self.rest.until;
        goes_on && !self.is_over
    }

    /// As if the two samples were further apart.
    fn add(&mut self, now: &Activity) {
        let Some(sum) = &mut self.activity else {
            self.activity = Some(now.clone());
            return;
        };
        let before = std::mem::replace(sum, now.clone());
        sum.elapsed += before.elapsed;
        if let (Ok(Some(sum)), Ok(Some(before))) = (&mut sum.network, &before.network) {
            sum.guest_packets += before.guest_packets;
            sum.probe_answers += before.probe_answers;
        }
        if let (Ok(sum), Ok(before)) = (&mut sum.storage, &before.storage) {
            sum.submitted += before.submitted;
            sum.completed += before.completed;
        }
        if let (Ok(sum), Ok(Some(before))) = (&mut sum.heartbeat, before.heartbeat) {
            match sum {
                Some(sum) => sum.beats += before.beats,
                None => *sum = Some(before),
            }
        }
    }
}

impl Rig {
    /// A tick of a VM that rests; `None` where it is to be looked at.
    pub(super) fn rest_on(&mut self, tick: &Tick) -> Option<Act> {
        let now = self.now;
        let resting = self.resting.as_mut()?;
        if resting.goes_on(tick, now) {
            return Some(Act::Nothing);
        }
        let rests_on = resting.is_over && !(tick.calibratable && self.watch.wants_calibration(now));
        let act = self.wake();
        if rests_on && act == Act::Nothing {
            self.lie_down();
        }
        Some(act)
    }

    /// After a tick after which nothing was to be done.
    pub(super) fn lie_down(&mut self) {
        let rest = self.watch.may_rest(&self.detection, self.now);
        self.resting = rest.map(|rest| Resting::new(rest, self.now));
    }

    /// Ends a rest, if there is one.
    pub(super) fn wake(&mut self) -> Act {
        match self.resting.take() {
            Some(Resting { lived_at, beat_at, activity: Some(activity), .. }) => {
                let monitor = self.guest.monitor.clone();
                let tick = Tick { activity, monitor, calibratable: false, undecided: false };
                self.take(&Input::Lived { until: lived_at, beat: beat_at, tick: Arc::new(tick) })
            }
            Some(Resting { activity: None, .. }) | None => Act::Nothing,
        }
    }
}
