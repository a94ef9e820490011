//! Rest of a VM that is alive: in ticks that show life of it, nothing else of it is looked at.
//!
//! A rest ends with one input of the verdict, which is told before anything else: what moved meanwhile, and when life was
//! last seen ([`Input::Lived`]).

use std::{sync::Arc, time::Duration};

use super::{
    Vms, WatchedVm,
    rests::{self, Course, Place, Rests},
};
use crate::sampler::{HeartbeatReader, LifeReader};
use flatline_detector::{
    activity::Activity,
    verdict::{Act, Input, Tick},
};
use flatline_qemu::discover::VmId;

/// What tells of a sign of life without a system call.
pub(crate) struct Signs {
    pub(crate) life: LifeReader,
    pub(crate) heartbeats: HeartbeatReader,
}

impl rests::Signs for Signs {
    fn life(&self, slot: u32) -> Option<u64> {
        self.life.of(slot)
    }

    fn said(&self, slot: u32) -> Option<u64> {
        self.heartbeats.last_jiffies(slot)
    }

    fn word(&self, vm: VmId, slot: u32) -> Option<(u64, bool)> {
        self.heartbeats.last_said(vm, slot)
    }
}

/// A rest that has begun.
#[derive(Debug)]
pub(crate) struct Resting {
    begun: Duration,
    place: Place,
    /// How far it had come when it ended: in this tick, before the verdict was told of it.
    ended: Option<Course>,
}

impl Resting {
    fn course(&self) -> Course {
        let course = self.ended.or_else(|| self.place.course());
        course.unwrap_or(Course { lived_at: self.begun, said_at: None, is_over: false })
    }
}

impl Vms {
    /// Looks whether there was life since the last tick of each VM that rests. Returns the VMs that don't rest on, in their order.
    pub(crate) fn look_for_life(&mut self, signs: &Signs, now: Duration) -> Vec<VmId> {
        let rests = self.rests().clone();
        let mut ended = Vec::new();
        let mut awake = rests.look(signs, now, &mut |id, course| ended.push((id, course)));
        awake.retain(|id| self.get(id).is_some_and(|watched| !watched.is_resting()));
        for (id, course) in ended {
            let watched = self.get_mut(&id);
            if let Some(resting) = watched.and_then(|watched| watched.resting.as_mut()) {
                resting.ended = Some(course);
                awake.push(id);
            }
        }
        awake.sort_unstable();
        awake.dedup();
        rests.are_awake(&awake);
        awake
    }
}

impl WatchedVm {
    /// Whether only its signs of life are looked at.
    pub(crate) fn is_resting(&self) -> bool {
        self.resting.is_some()
    }

    /// Whether it lived all through a rest whose time is up: nothing but its counters needs to be read of it.
    pub(crate) fn has_rested_out(&self) -> bool {
        let ended = self.resting.as_ref().and_then(|resting| resting.ended);
        ended.is_some_and(|course| course.is_over)
    }

    /// How long it has shown nothing though it could have.
    pub(crate) fn silence(&self, now: Duration) -> Duration {
        match &self.resting {
            Some(resting) => now.saturating_sub(resting.course().lived_at),
            None => self.detector.watch.silence.length(now),
        }
    }

    /// When it was last seen or heard to live, whatever happened since.
    pub(crate) fn last_life(&self) -> Duration {
        let known = self.detector.watch.silence.life;
        self.resting.as_ref().map_or(known, |resting| resting.course().lived_at.max(known))
    }

    /// Lets it rest after a tick after which nothing was to be done, where it may.
    pub(crate) fn lie_down(&mut self, rests: &Rests, signs: &Signs, now: Duration) {
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
        let place = rests.lay_down((self.vm.id, slot), (life, said), rest, now);
        self.resting = Some(Resting { begun: now, place, ended: None });
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
        let Course { lived_at: until, said_at: beat, .. } = resting.course();
        let elapsed = now.saturating_sub(resting.begun);
        let seen = self.sensors.activity_at(now).filter(|activity| activity.elapsed >= elapsed);
        let activity = seen.cloned().unwrap_or_else(|| Activity::unseen(elapsed));
        let monitor = self.link.monitor();
        let tick = Tick { activity, monitor, calibratable: false, undecided: false };
        let lived = Input::Lived { until, beat, tick: Arc::new(tick) };
        self.detector.step(&self.vm, &lived, None, now)
    }
}
