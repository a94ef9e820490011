//! Snapshots of each tick, published for Prometheus and the web page.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use tokio::time::Instant;

use super::{
    clients::Clients,
    event_loop::EventLoop,
    views::{Teller, VmFacts},
};
use crate::{
    api::view::{HostView, ShowView, StatusView},
    metrics::{IN_FLIGHT, MapFill, ProgramFigures, Snapshot},
    web::page_snapshot::{InSight, PageSnapshot},
};
use flatline_qemu::discover::VmId;

/// Ticks between two looks, for the page, at what is not as it should be: all VMs are gone through for it.
const DEGRADED_EVERY: u64 = 5;

/// What `status` is made of, beside the loop.
pub(super) struct Status {
    host: HostView,
    facts: Vec<VmFacts>,
    teller: Teller,
}

impl Status {
    /// As clients have it.
    pub(super) fn view(mut self) -> StatusView {
        StatusView { vms: self.teller.views(&mut self.facts), host: self.host }
    }
}

impl EventLoop {
    /// Carries out a tick that was due at `due`, in which clients have their turns, and publishes what it brought.
    pub(super) fn timed_tick(&mut self, due: Instant, clients: &mut Clients) {
        let begun = Instant::now();
        self.tick(clients);
        self.publish_page_snapshot();
        let behind = begun.saturating_duration_since(due);
        self.publisher.counts.ticked(behind, begun.elapsed(), self.config.sample_interval);
    }

    /// Has the figures for Prometheus published.
    pub(super) fn publish_snapshot(&mut self) {
        // Before the first tick there is nothing to be told.
        if self.sampler.ticks > 0 {
            let (snapshot, mut facts, teller) =
                (self.snapshot(), self.views().all_facts(), self.teller());
            let latest = self.publisher.latest.clone();
            self.publisher.clients.spawn_blocking(move || {
                let snapshot = snapshot.with(teller.figures(&mut facts));
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
        let Some(wanted) = self.publisher.page.wanted(now, interval) else {
            self.publisher.page_clocks.close();
            return;
        };
        if self.publisher.page_in_making.as_ref().is_some_and(|making| !making.is_finished()) {
            return;
        }
        let drawn: Vec<VmId> = if wanted.draws_all() {
            self.registry.chosen(None)
        } else {
            wanted.drawn().flat_map(|pid| self.registry.ids_of(pid)).collect()
        };
        self.complete_history(drawn);
        let shown = self.shown(&wanted.shown);
        let tick = self.sampler.ticks;
        if tick >= self.publisher.page_degraded.0 {
            self.publisher.page_degraded = (tick + DEGRADED_EVERY, self.degraded());
        }
        let views = self.views();
        if wanted.rows {
            views.update_rows(&self.publisher.page.rows);
        }
        let host = views.host(&self.publisher.page_degraded.1, self.clock.uptime());
        let in_sight = match &wanted.in_sight {
            InSight::All => views.all_facts(),
            InSight::Of(pids) => views.facts_of(pids.iter().copied()),
        };
        let all = wanted.all.then(|| views.all_facts());
        let (teller, page) = (views.teller, self.publisher.page.clone());
        let clocks = self.publisher.page_clocks.clone();
        self.publisher.page_in_making = Some(self.publisher.clients.spawn_blocking(move || {
            let vms = all.map(|mut facts| teller.views(&mut facts));
            let figures = teller.figures_in_sight(&in_sight, &clocks);
            page.publish(PageSnapshot {
                tick,
                at,
                published: now,
                interval,
                host,
                vms,
                has_rows: wanted.rows,
                figures,
                shown,
            });
        }));
    }

    /// All that is known of the VMs with these pids, by pid.
    fn shown(&mut self, pids: &[u32]) -> BTreeMap<u32, Option<ShowView>> {
        let now = self.now();
        let ids: Vec<VmId> = pids.iter().flat_map(|pid| self.registry.ids_of(*pid)).collect();
        let wanted = self.registry.vms.iter_mut().filter(|(id, _)| ids.contains(id));
        self.sampler.look(wanted.map(|(_, watched)| watched), now);
        let views = self.views();
        let show = |pid: &u32| {
            let newest = self.registry.ids_of(*pid).last();
            let watched = newest.and_then(|id| self.registry.vms.get(&id));
            (*pid, watched.map(|watched| views.show(watched, None)))
        };
        pids.iter().map(show).collect()
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
                fill("taps", count(taps), sizes.taps()),
                fill(IN_FLIGHT, 0, sizes.requests()),
            ],
            uncounted_taps,
            most_vms: usize::try_from(sizes.max_vms).unwrap_or(usize::MAX),
            vms: Vec::new(),
        }
    }
}
