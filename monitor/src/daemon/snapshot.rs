//! Snapshots of each tick, published for Prometheus and the web page.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use tokio::{task::spawn_blocking, time::Instant};

use super::{
    event_loop::EventLoop,
    views::{Teller, VmFacts},
};
use crate::{
    api::view::{HostView, ShowView, StatusView},
    metrics::{IN_FLIGHT, MapFill, ProgramFigures, Snapshot},
    vm::WatchedVm,
    web::page_snapshot::PageSnapshot,
};

/// What `status` is made of, beside the loop.
pub(super) struct Status {
    host: HostView,
    facts: Vec<VmFacts>,
    teller: Teller,
}

impl Status {
    /// As clients have it.
    pub(super) fn view(self) -> StatusView {
        StatusView { vms: self.teller.views(&self.facts), host: self.host }
    }
}

impl EventLoop {
    /// Carries out a tick that was due at `due`, and publishes what it brought.
    pub(super) fn timed_tick(&mut self, due: Instant) {
        let begun = Instant::now();
        self.tick();
        self.publish_page_snapshot();
        let behind = begun.saturating_duration_since(due);
        self.publisher.counts.ticked(behind, begun.elapsed(), self.config.sample_interval);
    }

    /// Has the figures for Prometheus published.
    pub(super) fn publish_snapshot(&mut self) {
        // Before the first tick there is nothing to be told.
        if self.sampler.ticks > 0 {
            let (snapshot, facts, teller) =
                (self.snapshot(), self.views().all_facts(), self.teller());
            let latest = self.publisher.latest.clone();
            spawn_blocking(move || {
                let snapshot = snapshot.with(teller.figures(&facts));
                latest.send_replace(Some(Arc::new(snapshot)));
            });
        }
    }

    /// What clients are told of the host and all VMs.
    pub(super) fn status(&self) -> Status {
        let views = self.views();
        let host = views.host(&self.degraded(), self.clock.uptime());
        Status { host, facts: views.all_facts(), teller: views.teller }
    }

    /// What is not as it should be, in sentences.
    fn degraded(&self) -> Vec<String> {
        let complaints = self.reloading.complaint.iter().cloned();
        self.views().degraded(complaints.chain(self.publisher.complaints()))
    }

    /// Has published what the page's viewers look at, unless the last tick's is still being made.
    fn publish_page_snapshot(&mut self) {
        let (now, at) = (std::time::Instant::now(), SystemTime::now());
        let interval = self.config.sample_interval;
        let Some(wanted) = self.publisher.page.wanted(now, interval) else { return };
        if self.publisher.page_in_making.as_ref().is_some_and(|making| !making.is_finished()) {
            return;
        }
        self.complete_history(|_| true);
        let shown = self.shown(&wanted);
        let (tick, status, page) = (self.sampler.ticks, self.status(), self.publisher.page.clone());
        self.publisher.page_in_making = Some(spawn_blocking(move || {
            let status = status.view();
            page.publish(PageSnapshot { tick, at, published: now, interval, status, shown });
        }));
    }

    /// All that is known of the VMs with these pids, by pid.
    fn shown(&mut self, pids: &[u32]) -> BTreeMap<u32, ShowView> {
        let now = self.now();
        let wanted = |vm: &&mut WatchedVm| pids.contains(&vm.vm.id.pid);
        self.sampler.look(self.registry.vms.values_mut().filter(wanted), now);
        let views = self.views();
        let vms = self.registry.vms.values().filter(|watched| pids.contains(&watched.vm.id.pid));
        vms.map(|watched| (watched.vm.id.pid, views.show(watched, None))).collect()
    }

    fn snapshot(&self) -> Snapshot {
        let programs = self.sampler.health.iter().map(|program| ProgramFigures {
            name: program.program,
            is_attached: program.failure.is_none(),
        });
        let all_taps = || self.registry.vms.values().flat_map(|watched| &watched.sensors.taps);
        let uncounted_taps = all_taps().filter(|tap| tap.hook.is_err()).count();
        let taps = all_taps().count() - uncounted_taps;
        let counted = self.registry.vms.values().filter(|watched| watched.sensors.slot.is_ok());
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
                fill("vms", count(counted.count()), sizes.max_vms),
                fill("taps", count(taps), sizes.max_taps),
                fill(IN_FLIGHT, 0, sizes.max_in_flight),
            ],
            uncounted_taps,
            most_vms: usize::try_from(sizes.max_vms).unwrap_or(usize::MAX),
            vms: Vec::new(),
        }
    }
}
