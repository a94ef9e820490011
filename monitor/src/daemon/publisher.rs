//! Publisher: who is shown or told what the loop sees: Prometheus, the page, the history of rates, notifications.

use std::sync::Arc;

use super::metrics_publisher::MetricsPublisher;
use crate::{
    config::Config, history::RateHistory, notify::Notifier, storage::incidents::IncidentStore,
};

/// See the module.
pub(super) struct Publisher {
    pub(super) metrics: MetricsPublisher,
    /// The last ticks of all VMs in a few figures each.
    pub(super) history: RateHistory,
    pub(super) notifier: Notifier,
    /// For clients who ask for incidents.
    pub(super) store: Arc<IncidentStore>,
}

impl Publisher {
    /// Publishes from now on. Call it within a tokio runtime.
    pub(super) fn start(config: &Config, store: Arc<IncidentStore>) -> Self {
        let history = RateHistory::new(config.sample_interval);
        let metrics = MetricsPublisher::start(config, &history, &store);
        let counts = metrics.notifications.clone();
        let notifier = Notifier::start(&config.notify, &config.paths.state_dir, counts);
        Self { metrics, history, notifier, store }
    }

    /// Goes on as `new` has it, after `old`.
    pub(super) fn reconfigure(&mut self, old: &Config, new: &Config) {
        self.history.set_interval(new.sample_interval);
        if old.notify != new.notify {
            self.notifier.reconfigure(&new.notify);
        }
        if old.metrics != new.metrics {
            self.metrics.serve(new);
        }
    }
}
