//! What is served over HTTP: the loop counts its ticks, and leaves what it saw in each for the web server.
//!
//! What is left is copied numbers, since 1,000 VMs are gone through once more a second for it, asked for or not: a client
//! is answered from the last tick, however late the next one is. For the page, which shows more, a tick leaves
//! something only while it has viewers.

use std::{sync::Arc, time::SystemTime};

use axum::Router;
use tokio::sync::watch;

use crate::{
    config::Config,
    history::RateHistory,
    metrics::{Counts, Exposition, IncidentCounts, NotificationCounts, Snapshot},
    storage::incidents::IncidentStore,
    web::{
        self, Site, Sources,
        page_snapshot::{self, Publisher},
    },
};

/// What is counted, what is left, and who serves it.
pub(super) struct MetricsPublisher {
    pub(super) counts: Counts,
    pub(super) incidents: IncidentCounts,
    pub(super) notifications: NotificationCounts,
    pub(super) latest: watch::Sender<Option<Arc<Snapshot>>>,
    pub(super) publisher: Publisher,
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
