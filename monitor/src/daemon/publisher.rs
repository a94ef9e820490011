//! Publisher: hands what the loop sees to Prometheus, the web page, the history of rates, and notifications.
//!
//! Of each VM, the loop copies a few facts when something asks; all else is read and made of them on a thread. Prometheus gets
//! numbers, made when it asks; where the loop is held up, those of the last time. For the page, which shows more, a tick
//! leaves something only while it has viewers.

use std::{sync::Arc, time::SystemTime};

use axum::Router;
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    task::JoinHandle,
};

use super::views::KeptClocks;
use crate::{
    config::Config,
    history::RateHistory,
    metrics::{Counts, Exposition, IncidentCounts, NotificationCounts, Snapshot},
    notify::Notifier,
    recovery::{EventKind, EventSink},
    storage::incidents::IncidentStore,
    web::{self, Site, Sources, page_snapshot},
};

/// See the module.
pub(super) struct Publisher {
    /// The runtime that serves clients, and has threads for the text of their answers.
    pub(super) clients: Handle,
    /// The daemon's own counters.
    pub(super) counts: Counts,
    /// Where the last snapshot is left for Prometheus.
    pub(super) latest: watch::Sender<Option<Arc<Snapshot>>>,
    /// That it asks for another.
    pub(super) wanted: Arc<Notify>,
    /// Where it is left for the page.
    pub(super) page: page_snapshot::Publisher,
    /// The last one for it, while it is being made.
    pub(super) page_in_making: Option<JoinHandle<()>>,
    /// What is not as it should be, for it, and the tick in which that is looked for again.
    pub(super) page_degraded: (u64, Vec<String>),
    /// The clocks of those that it has in sight.
    pub(super) page_clocks: KeptClocks,
    /// The last ticks of all VMs in a few figures each.
    pub(super) history: RateHistory,
    pub(super) notifier: Notifier,
    /// For clients that ask for incidents.
    pub(super) store: Arc<IncidentStore>,
    site: Arc<Site>,
    /// `None` where nothing is to be served over TCP.
    server: Option<web::Server>,
}

impl Publisher {
    /// Publishes from now on, also what recovery says through the sink; clients are served by their own runtime. Call it within a
    /// tokio runtime.
    pub(super) fn start(
        config: &Config,
        store: Arc<IncidentStore>,
        clients: &Handle,
    ) -> (Self, EventSink) {
        let history = RateHistory::new(config.sample_interval);
        let (counts, incidents) = (Counts::default(), IncidentCounts::new(SystemTime::now()));
        let (notifications, latest) = (NotificationCounts::default(), watch::Sender::new(None));
        let (page, subscriber) = page_snapshot::pair();
        let wanted = Arc::new(Notify::new());
        let exposition =
            Exposition::new(latest.subscribe(), &wanted, &counts, &incidents, &notifications);
        let sources = Sources {
            exposition,
            subscriber,
            lines: history.clone(),
            store: store.clone(),
            state_dir: config.paths.state_dir.clone(),
        };
        let site = Site::new(sources, &config.metrics);
        let server = serve(clients, &site, config);
        let notifier = Notifier::start(&config.notify, &config.paths.state_dir, notifications);
        let told = notifier.clone();
        let sink = EventSink::new(move |event| match event.kind {
            EventKind::Recorded => incidents.note(event.incident),
            _ => told.publish_recovery(event),
        });
        let publisher = Self {
            clients: clients.clone(),
            counts,
            latest,
            wanted,
            page,
            page_in_making: None,
            page_degraded: (0, Vec::new()),
            page_clocks: KeptClocks::default(),
            history,
            notifier,
            store,
            site,
            server,
        };
        (publisher, sink)
    }

    /// Goes on as `new` has it, after `old`.
    pub(super) fn reconfigure(&mut self, old: &Config, new: &Config) {
        self.history.set_interval(new.sample_interval);
        if old.notify != new.notify {
            self.notifier.reconfigure(&new.notify);
        }
        if old.metrics != new.metrics {
            // First of all, the old address is free again.
            self.server = None;
            self.server = serve(&self.clients, &self.site, new);
        }
    }

    /// What the Unix socket has beside the loop's routes.
    pub(super) fn socket_routes(&self) -> Router {
        self.site.socket_routes()
    }

    /// What can't be served or told, in sentences.
    pub(super) fn complaints(&self) -> impl Iterator<Item = String> {
        let server = self.server.as_ref().and_then(web::Server::complaint);
        server.into_iter().chain(self.notifier.complaints())
    }
}

/// Serves `site` over TCP, where that is configured, by the runtime of the clients.
fn serve(clients: &Handle, site: &Arc<Site>, config: &Config) -> Option<web::Server> {
    let _within = clients.enter();
    web::Server::start(site, &config.metrics)
}
