//! Snapshots that a tick leaves for Prometheus and the page.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use super::{event_loop::EventLoop, heartbeat_view::HeartbeatSummary};
use crate::{
    metrics::{Beats, MapFill, ProgramFigures, Snapshot, VmFigures},
    vm::WatchedVm,
    web::page_snapshot::PageSnapshot,
};
use flatline_detector::verdict::State;
use flatline_samples::VmSample;

impl EventLoop {
    /// A tick that was due at `due`, and what it leaves.
    pub(super) fn timed_tick(&mut self, due: Instant) {
        let begun = Instant::now();
        self.tick();
        let snapshot = self.snapshot();
        self.publisher.metrics.latest.send_replace(Some(Arc::new(snapshot)));
        self.publish_page_snapshot();
        let behind = begun.saturating_duration_since(due);
        self.publisher.metrics.counts.ticked(behind, begun.elapsed(), self.config.sample_interval);
    }

    /// Leaves what is looked at.
    fn publish_page_snapshot(&self) {
        let now = std::time::Instant::now();
        let publisher = &self.publisher.metrics.publisher;
        let interval = self.config.sample_interval;
        let Some(wanted) = publisher.wanted(now, interval) else { return };
        let of = |pid: &u32| self.registry.vms.values().find(|watched| watched.vm.id.pid == *pid);
        let shown = wanted.iter().filter_map(of);
        publisher.publish(PageSnapshot {
            tick: self.sampler.ticks,
            at: SystemTime::now(),
            published: now,
            interval,
            status: self.status(),
            shown: shown.map(|watched| (watched.vm.id.pid, self.show(watched, None))).collect(),
        });
    }

    fn snapshot(&self) -> Snapshot {
        let programs = self.sampler.health.iter().map(|program| ProgramFigures {
            name: program.program,
            is_attached: program.failure.is_none(),
        });
        let now = self.now();
        let vms: Vec<VmFigures> =
            self.registry.vms.values().map(|watched| self.figures_of(watched, now)).collect();
        let all_taps = || self.registry.vms.values().flat_map(|watched| &watched.sensors.taps);
        let uncounted_taps = all_taps().filter(|tap| tap.hook.is_err()).count();
        let taps = all_taps().count() - uncounted_taps;
        let in_flight: u64 = vms.iter().filter_map(VmFigures::in_flight).sum();
        let counted = vms.iter().filter(|figures| figures.is_counted).count();
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let sizes = &self.config.probes;
        let fill = |map, used, of: u32| MapFill { map, used, of: of.into() };
        Snapshot {
            at: SystemTime::now(),
            mode: self.config.mode,
            is_storm: self.registry.storm.is_some(),
            is_degraded: !self.degraded().is_empty(),
            programs: programs.collect(),
            maps: vec![
                fill("vms", count(counted), sizes.max_vms),
                fill("taps", count(taps), sizes.max_taps),
                fill("in_flight", in_flight, sizes.max_in_flight),
            ],
            uncounted_taps,
            most_vms: usize::try_from(sizes.max_vms).unwrap_or(usize::MAX),
            vms,
        }
    }

    fn figures_of(&self, watched: &WatchedVm, now: Duration) -> VmFigures {
        let sample = watched.sensors.sample.as_ref().map(|(_, sample)| sample);
        let (state, cause, _) = watched.detector.watch.shown_state();
        VmFigures {
            vm: watched.vm.clone(),
            mode: watched.detector.detection.policy.mode,
            state,
            cause,
            run_state: watched.link.run_state.clone(),
            flat: match watched.detector.watch.state {
                State::Unobservable => None,
                _ => Some(watched.detector.watch.silence.length(now)),
            },
            is_held: self.recovery.held(watched.key(), SystemTime::now()).is_some(),
            is_counted: watched.sensors.slot.is_ok(),
            restarts: watched.recovery.restarts,
            guest_resets_in_window: self.guest_resets_in_window(watched),
            network: sample.and_then(|sample| sample.network.as_ref().ok().copied().flatten()),
            sees_to_guest: sample.is_some_and(|sample| sample.sees_to_guest),
            storage: sample.and_then(|sample| sample.storage.as_ref().ok().copied()),
            oldest_in_flight: sample
                .and_then(|sample| sample.in_flight)
                .filter(|ages| ages.requests > 0)
                .map(|ages| ages.oldest),
            heartbeats: sample.and_then(|sample| self.beats(sample)),
            memory: watched.memory.latest(),
            vcpus: sample.and_then(|sample| sample.vcpus.as_ref().ok().cloned()),
        }
    }

    /// `None` for a guest whose agent never said anything.
    fn beats(&self, sample: &VmSample) -> Option<Beats> {
        let ways = [&sample.heartbeats, &sample.port];
        let heard = ways.into_iter().filter_map(|way| way.as_ref().ok());
        let HeartbeatSummary { beats, failures, malformed, last } = self.heart(heard)?;
        Some(Beats { beats, failures, malformed, last_seconds: last.and_then(|(_, age)| age) })
    }
}
