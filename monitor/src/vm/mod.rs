//! A VM that is watched: what is held of it from when its QEMU was found until that is gone.
//!
//! Six parts, each of which another subsystem works on: its identity, the link to its monitor, its sensors, its detector,
//! what recovery remembers of it, and its memory. No part knows another one, or the daemon's loop.

mod clocks;
mod detector;
mod glance;
mod looks;
mod memory;
mod monitor_link;
mod recorder;
mod rest;
mod rests;
mod sensors;
mod sight;
mod vms;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

pub(crate) use detector::{Detector, detection_policy};
pub(crate) use looks::Looks;
pub(crate) use memory::{MemoryRead, MemoryTold, MemoryWatch, QemuReading};
pub(crate) use monitor_link::MonitorLink;
pub(crate) use recorder::{RECORDING, Recorder};
pub(crate) use rest::{Resting, Signs};
pub(crate) use sensors::{HostReadings, Sensors};
pub(crate) use sight::{Level, Sight};
pub(crate) use vms::Vms;

use crate::{
    config::Config, history::TickRates, identity::Key, recovery::RecoveryState,
    sampler::CounterMaps,
};
use flatline_detector::verdict::{Act, Input, State};
use flatline_qemu::discover::{Origin, Vm};

/// Why nothing is counted of what was found just now.
pub(crate) const PENDING: &str = "its programs are being attached";

/// What every subsystem is told beside the VM that it works on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context<'a> {
    pub(crate) config: &'a Config,
    /// Time since the host's start: the only clock of the verdict. Since the daemon's own start, no VM could be
    /// older than that.
    pub(crate) now: Duration,
    /// The same moment by the wall clock.
    pub(crate) wall: SystemTime,
}

impl<'a> Context<'a> {
    /// At `now`, which is this very moment.
    pub(crate) fn at(config: &'a Config, now: Duration) -> Self {
        Self { config, now, wall: SystemTime::now() }
    }

    /// The wall-clock time of a moment.
    pub(crate) fn wall_clock(&self, moment: Duration) -> SystemTime {
        self.wall - self.now.saturating_sub(moment)
    }
}

/// One VM.
#[derive(Debug)]
pub(crate) struct WatchedVm {
    /// Its identity: its process, name, UUID and owner, and what it has.
    pub(crate) vm: Arc<Vm>,
    /// What it is known by beyond its QEMU's end.
    pub(crate) key: Key,
    pub(crate) link: MonitorLink,
    pub(crate) sensors: Sensors,
    pub(crate) detector: Detector,
    pub(crate) recovery: RecoveryState,
    pub(crate) memory: MemoryWatch,
    /// Its rest, while there is nothing to be known of it but that it lives.
    pub(crate) resting: Option<Resting>,
}

impl WatchedVm {
    /// Takes note of whose its QEMU is by now. Returns whether that has changed, and its key with it.
    pub(crate) fn belongs_to(&mut self, origin: Origin) -> bool {
        // A copy of all is made only where something changes.
        if self.vm.origin.uid != 0 || origin.uid == 0 {
            return false;
        }
        let has_become = Arc::make_mut(&mut self.vm).origin.become_of(origin);
        self.key.uid = Some(self.vm.origin.uid);
        has_become
    }

    /// Tells the detector something, and says what is to be done.
    pub(crate) fn step(&mut self, input: &Input, now: Duration) -> Act {
        self.step_saying(input, None, now)
    }

    /// The same, with a reason for people instead of the verdict's own: it is told of no more than it judges by.
    pub(crate) fn step_saying(
        &mut self,
        input: &Input,
        reason: Option<String>,
        now: Duration,
    ) -> Act {
        self.wake_for(input, now);
        self.detector.step(&self.vm, input, reason, now)
    }

    /// Whether its conviction still stands.
    pub(crate) fn is_crashed(&self) -> bool {
        matches!(self.detector.watch.state, State::Crashed { .. })
    }

    /// Samples, and notes what moved since the last sample; of one that has rested out only what its counters say.
    pub(crate) fn observe(&mut self, host: &HostReadings<'_>, now: Duration) {
        if self.has_rested_out() {
            self.sensors.observe_counters(self.vm.id, host, now);
        } else {
            self.sensors.observe(self.vm.id, &self.link, host, now);
        }
    }

    /// The rates of the tick that ends at `now`; the vCPUs' level where it was sampled in that tick.
    pub(crate) fn rates(&mut self, counters: &CounterMaps, now: Duration) -> TickRates {
        let rates = self.sensors.glance(self.vm.id, counters, now);
        match self.sensors.activity_at(now) {
            Some(activity) => rates.with_level_of(activity),
            None => rates,
        }
    }

    /// Samples one that rests, to be shown: the verdict is told nothing of it.
    pub(crate) fn look(&mut self, host: &HostReadings<'_>, now: Duration) {
        if self.is_resting() {
            self.sensors.look(self.vm.id, &self.link, host, now);
        }
    }
}
