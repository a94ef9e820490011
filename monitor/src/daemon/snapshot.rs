//! Snapshots of each tick, published for Prometheus and the web page.

use std::{sync::Arc, time::SystemTime};

use tokio::time::Instant;

use super::event_loop::EventLoop;
use crate::{
    api::view::StatusView,
    metrics::{MapFill, ProgramFigures, Snapshot, VmFigures},
    web::page_snapshot::PageSnapshot,
};

impl EventLoop {
    /// Carries out a tick that was due at `due`, and publishes what it brought.
    pub(super) fn timed_tick(&mut self, due: Instant) {
        let begun = Instant::now();
        self.tick();
        self.publish_page_snapshot();
        let behind = begun.saturating_duration_since(due);
        self.publisher.counts.ticked(behind, begun.elapsed(), self.config.sample_interval);
    }

    /// Publishes the figures for Prometheus.
    pub(super) fn publish_snapshot(&mut self) {
        // Before the first tick there is nothing to be told.
        if self.sampler.ticks > 0 {
            self.look();
            let snapshot = self.snapshot();
            self.publisher.latest.send_replace(Some(Arc::new(snapshot)));
        }
    }

    /// Samples those that rest, to be shown.
    pub(super) fn look(&mut self) {
        let now = self.now();
        self.sampler.look(self.registry.vms.values_mut(), now);
    }

    /// What clients are told of the host and all VMs.
    pub(super) fn status(&self) -> StatusView {
        self.views().status(&self.degraded(), self.clock.uptime())
    }

    /// What is not as it should be, in sentences.
    fn degraded(&self) -> Vec<String> {
        let complaints = self.reloading.complaint.iter().cloned();
        self.views().degraded(complaints.chain(self.publisher.complaints()))
    }

    /// Publishes what the page's viewers look at.
    fn publish_page_snapshot(&mut self) {
        let now = std::time::Instant::now();
        let publisher = &self.publisher.page;
        let interval = self.config.sample_interval;
        let Some(wanted) = publisher.wanted(now, interval) else { return };
        self.look();
        let publisher = &self.publisher.page;
        let of = |pid: &u32| self.registry.vms.values().find(|watched| watched.vm.id.pid == *pid);
        let views = self.views();
        let shown = wanted.iter().filter_map(of);
        publisher.publish(PageSnapshot {
            tick: self.sampler.ticks,
            at: SystemTime::now(),
            published: now,
            interval,
            status: self.status(),
            shown: shown.map(|watched| (watched.vm.id.pid, views.show(watched, None))).collect(),
        });
    }

    fn snapshot(&self) -> Snapshot {
        let programs = self.sampler.health.iter().map(|program| ProgramFigures {
            name: program.program,
            is_attached: program.failure.is_none(),
        });
        let views = self.views();
        let vms: Vec<VmFigures> =
            self.registry.vms.values().map(|watched| views.vm_figures(watched)).collect();
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
}
