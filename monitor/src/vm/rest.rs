//! Rest of a VM that is alive: in ticks that show life of it, nothing else of it is looked at.
//!
//! A rest ends with one input of the verdict, which is told before anything else: what moved meanwhile, and when life was
//! last seen ([`Input::Lived`]).

use std::{sync::Arc, time::Duration};

use super::WatchedVm;
use crate::sampler::{HeartbeatReader, LifeReader};
use flatline_detector::{
    activity::Activity,
    verdict::{Act, Input, Rest, Tick},
};
use flatline_qemu::discover::Vm;

/// What tells of a sign of life without a system call.
pub(crate) struct Signs {
    pub(crate) life: LifeReader,
    pub(crate) heartbeats: HeartbeatReader,
}

/// A rest that has begun.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resting {
    rest: Rest,
    begun: Duration,
    /// When the last tick ended that showed life.
    lived_at: Duration,
    /// When the last tick ended in which its agent's heart beat.
    beat_at: Option<Duration>,
    /// Where it is counted: another slot ends the rest.
    slot: u32,
    /// What the programs said of it last, in the kernel's ticks.
    life: u64,
    said: u64,
    /// It lived in each tick up to its end, which is now.
    is_over: bool,
}

impl Resting {
    /// Looks whether there was life since the last tick. Returns whether the rest goes on.
    fn goes_on(&mut self, vm: &Vm, signs: &Signs, now: Duration) -> bool {
        let Some(life) = signs.life.of(self.slot) else { return false };
        let lives = life != self.life;
        self.life = life;
        if lives {
            self.lived_at = now;
        }
        if signs.heartbeats.last_jiffies(self.slot) != Some(self.said) {
            let Some((said, is_beat)) = signs.heartbeats.last_said(vm.id, self.slot) else {
                return false;
            };
            self.said = said;
            self.beat_at = Some(now);
            // The first word of an agent, or one of its end: that is for the verdict.
            if !is_beat || self.rest.beats_within.is_none() {
                return false;
            }
        }
        let away = now.saturating_sub(self.beat_at.unwrap_or(self.begun));
        if !lives || self.rest.beats_within.is_some_and(|within| away >= within) {
            return false;
        }
        self.is_over = now >= self.rest.until;
        !self.is_over
    }
}

impl WatchedVm {
    /// Whether only its signs of life are looked at.
    pub(crate) fn is_resting(&self) -> bool {
        self.resting.is_some()
    }

    /// Whether it lived all through a rest whose time is up: nothing but its counters needs to be read of it.
    pub(crate) fn has_rested_out(&self) -> bool {
        self.resting.is_some_and(|resting| resting.is_over)
    }

    /// Whether it rests on in the tick that ends at `now`.
    pub(crate) fn rests_on(&mut self, signs: &Signs, now: Duration) -> bool {
        match &mut self.resting {
            Some(resting) => resting.goes_on(&self.vm, signs, now),
            None => false,
        }
    }

    /// How long it has shown nothing though it could have.
    pub(crate) fn silence(&self, now: Duration) -> Duration {
        match &self.resting {
            Some(resting) => now.saturating_sub(resting.lived_at),
            None => self.detector.watch.silence.length(now),
        }
    }

    /// When it was last seen or heard to live, whatever happened since.
    pub(crate) fn last_life(&self) -> Duration {
        let known = self.detector.watch.silence.life;
        self.resting.map_or(known, |resting| resting.lived_at.max(known))
    }

    /// Lets it rest after a tick after which nothing was to be done, where it may.
    pub(crate) fn lie_down(&mut self, signs: &Signs, now: Duration) {
        let is_free = !self.recovery.has_case_to_do()
            && self.detector.notes.is_some()
            && self.sensors.port.is_none();
        let Ok(slot) = self.sensors.slot else { return };
        let rest = self.detector.watch.may_rest(&self.detector.detection, now);
        let said = signs.heartbeats.last_said(self.vm.id, slot);
        let (true, Some(rest), Some(life), Some((said, _))) =
            (is_free, rest, signs.life.of(slot), said)
        else {
            return;
        };
        self.sensors.close_clocks();
        self.resting = Some(Resting {
            rest,
            begun: now,
            lived_at: now,
            beat_at: None,
            slot,
            life,
            said,
            is_over: false,
        });
    }

    /// Ends its rest before the verdict is told something else; what it was not sampled for is not known.
    pub(super) fn wake_for(&mut self, input: &Input, now: Duration) {
        if !matches!(input, Input::Memory(_)) {
            self.wake(now);
        }
    }

    /// Ends its rest, of which the last sample tells what moved.
    pub(crate) fn wake(&mut self, now: Duration) -> Act {
        let Some(resting) = self.resting.take() else { return Act::Nothing };
        let elapsed = now.saturating_sub(resting.begun);
        let seen = self.sensors.activity_at(now).filter(|activity| activity.elapsed >= elapsed);
        let activity = seen.cloned().unwrap_or_else(|| Activity::unseen(elapsed));
        let monitor = self.link.monitor();
        let tick = Tick { activity, monitor, calibratable: false, undecided: false };
        let Resting { lived_at: until, beat_at: beat, .. } = resting;
        let lived = Input::Lived { until, beat, tick: Arc::new(tick) };
        self.detector.step(&self.vm, &lived, None, now)
    }
}
