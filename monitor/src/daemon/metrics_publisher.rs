//! What is served over HTTP: the loop counts its ticks, and leaves what it saw in each for the web server.
//!
//! What is left is copied numbers, since 1,000 VMs are gone through once more a second for it, asked for or not: whoever
//! asks is answered from the last tick, however late the next one is. For the page, which shows more, a tick leaves
//! something only while somebody looks at it.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::Router;
use tokio::{sync::watch, time::Instant};

use super::{engine::Engine, heartbeat_view::HeartbeatSummary};
use crate::{
    config::Config,
    history::RateHistory,
    metrics::{
        Beats, Counts, Exposition, IncidentCounts, MapFill, NotificationCounts, ProgramFigures,
        Snapshot, VmFigures,
    },
    storage::incidents::IncidentStore,
    vm::WatchedVm,
    web::{
        self, Site, Sources,
        page_snapshot::{self, PageSnapshot, Publisher},
    },
};
use flatline_detector::verdict::State;
use flatline_samples::VmSample;

/// What is counted, what is left, and who serves it.
pub(super) struct MetricsPublisher {
    pub(super) counts: Counts,
    pub(super) incidents: IncidentCounts,
    pub(super) notifications: NotificationCounts,
    latest: watch::Sender<Option<Arc<Snapshot>>>,
    publisher: Publisher,
    site: Arc<Site>,
    /// `None` where nothing is to be served over TCP.
    server: Option<web::Server>,
}

impl MetricsPublisher {
    /// Serves them from now on, if that is configured, and the page.
    pub(super) fn start(config: &Config, lines: &RateHistory, store: &Arc<IncidentStore>) -> Self {
        let (counts, incidents) = (Counts::default(), IncidentCounts::new(SystemTime::now()));
        let (notifications, latest) = (NotificationCounts::default(), watch::Sender::new(None));
        let (publisher, subscriber) = page_snapshot::pair();
        let sources = Sources {
            exposition: Exposition::new(latest.subscribe(), &counts, &incidents, &notifications),
            subscriber,
            lines: lines.clone(),
            store: store.clone(),
            state_dir: config.paths.state_dir.clone(),
        };
        let site = Site::new(sources, &config.metrics);
        let server = web::Server::start(&site, &config.metrics);
        Self { counts, incidents, notifications, latest, publisher, site, server }
    }

    /// Serves them where `config` has it, and nowhere else.
    pub(super) fn serve(&mut self, config: &Config) {
        // First of all, the old address is free again.
        self.server = None;
        self.server = web::Server::start(&self.site, &config.metrics);
    }

    /// What the Unix socket has beside the loop's routes.
    pub(super) fn socket_routes(&self) -> Router {
        self.site.socket_routes()
    }

    /// Why they aren't served, where they should be.
    pub(super) fn complaint(&self) -> Option<String> {
        self.server.as_ref().and_then(web::Server::complaint)
    }
}

impl Engine {
    /// A tick that was due at `due`, and what it leaves.
    pub(super) fn timed_tick(&mut self, due: Instant) {
        let begun = Instant::now();
        self.tick();
        let snapshot = self.snapshot();
        self.figures.latest.send_replace(Some(Arc::new(snapshot)));
        self.publish_page_snapshot();
        let behind = begun.saturating_duration_since(due);
        self.figures.counts.ticked(behind, begun.elapsed(), self.config.sample_interval);
    }

    /// Leaves what is looked at.
    fn publish_page_snapshot(&self) {
        let now = std::time::Instant::now();
        let publisher = &self.figures.publisher;
        let interval = self.config.sample_interval;
        let Some(wanted) = publisher.wanted(now, interval) else { return };
        let of = |pid: &u32| self.vms.values().find(|watched| watched.vm.id.pid == *pid);
        let shown = wanted.iter().filter_map(of);
        publisher.publish(PageSnapshot {
            tick: self.ticks,
            at: SystemTime::now(),
            published: now,
            interval,
            status: self.status(),
            shown: shown.map(|watched| (watched.vm.id.pid, self.show(watched, None))).collect(),
        });
    }

    fn snapshot(&self) -> Snapshot {
        let programs = self.health.iter().map(|program| ProgramFigures {
            name: program.program,
            is_attached: program.failure.is_none(),
        });
        let now = self.now();
        let vms: Vec<VmFigures> =
            self.vms.values().map(|watched| self.figures_of(watched, now)).collect();
        let all_taps = || self.vms.values().flat_map(|watched| &watched.sensors.taps);
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
            is_storm: self.storm.is_some(),
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
        let (state, cause, _) = watched.detector.watch.standing();
        VmFigures {
            vm: watched.vm.clone(),
            mode: watched.detector.detection.policy.mode,
            state,
            cause,
            run_state: watched.link.run_state.clone(),
            flat: match watched.detector.watch.state {
                State::Unobservable => None,
                _ => Some(watched.detector.watch.quiet.silence(now)),
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
