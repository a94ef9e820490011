//! Sight of one VM: what it takes to read its figures without it, so that they are read beside the loop.

use std::time::Duration;

use super::{Sensors, WatchedVm};
use crate::sampler::LostCompletions;
use flatline_samples::{Heartbeats, InFlightAges, VcpuTime, VmSample};

/// See the module.
#[derive(Debug)]
pub(crate) struct Sight {
    /// The slot it is counted in; `None` where it isn't, and before it was sampled once.
    pub(crate) slot: Option<u32>,
    /// It has taps, and all of them are counted.
    pub(crate) has_network: bool,
    /// Packets to the guest are counted on all of them.
    pub(crate) sees_to_guest: bool,
    pub(crate) lost_completions: LostCompletions,
    /// The ages of what is in flight, where nothing completed during the last tick.
    pub(crate) in_flight: Option<InFlightAges>,
    /// Its vCPU threads, as (vCPU index, thread id).
    pub(crate) threads: Vec<(u32, u32)>,
    pub(crate) level: Level,
    /// What its guest's agent said on its port, if it has one.
    pub(crate) port: Option<Heartbeats>,
}

/// How much its vCPUs run.
#[derive(Debug)]
pub(crate) enum Level {
    /// In the last tick: by thread id, the share of the time.
    OfTick(Vec<(u32, f64)>),
    /// As little or much as they used since then, when they had used so much.
    Since(Duration, Vec<VcpuTime>),
    /// It was not read yet, or can't be.
    Unknown,
}

impl WatchedVm {
    /// What it takes to read its figures without it.
    pub(crate) fn sight(&self) -> Sight {
        self.sensors.sight(self.is_resting())
    }
}

impl Sensors {
    fn sight(&self, is_resting: bool) -> Sight {
        let sample = self.sample.as_ref();
        let vcpus =
            |(at, sample): &(Duration, VmSample)| Some((*at, sample.vcpus.as_ref().ok()?.clone()));
        let of_tick = || {
            let vcpus = self.activity.as_ref()?.vcpus.as_ref().ok()?;
            Some(vcpus.iter().map(|vcpu| (vcpu.tid, vcpu.busy)).collect())
        };
        let level = if is_resting {
            sample.and_then(vcpus).map(|(at, times)| Level::Since(at, times))
        } else {
            of_tick().map(Level::OfTick)
        };
        Sight {
            slot: sample.and_then(|_| self.slot.as_ref().ok().copied()),
            has_network: !self.taps.is_empty() && self.taps.iter().all(|tap| tap.hook.is_ok()),
            sees_to_guest: self.sees_to_guest(),
            lost_completions: self.lost_completions,
            in_flight: sample.and_then(|(_, sample)| sample.in_flight).filter(|_| !is_resting),
            threads: sample.map_or(Vec::new(), |_| self.threads.clone()),
            level: level.unwrap_or(Level::Unknown),
            port: self.port.as_ref().and_then(|port| port.heartbeats().ok()),
        }
    }
}
