//! The figures for Prometheus: what is known of all VMs, as OpenMetrics text.
//!
//! The loop makes a [`Snapshot`] when one is asked for, once a second at most, which is copied numbers and nothing else; all
//! text is made here, outside of the loop, once for all who ask for the same snapshot.
//! Counters of the daemon itself live here between ticks ([`Counts`]).
//!
//! How many series there may be is bounded: by the VMs that are counted (`probes.max_vms`), by the vCPUs of each, by
//! words that are this program's own (states, causes, programs), by the number of targets that are told, and by the length of names. A figure that couldn't be
//! read has no series.

mod counts;
mod families;
mod host;
mod incidents;
mod notifications;
mod process;
mod series;
mod snapshot;
#[cfg(test)]
mod tests;
mod vms;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, prometheus_text, text},
    registry::Registry,
};
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

use crate::single_flight::SingleFlight;
pub(crate) use counts::Counts;
pub(crate) use incidents::IncidentCounts;
pub(crate) use notifications::{NotificationCounts, Told};
use series::SeriesText;
pub(crate) use snapshot::{Beats, IN_FLIGHT, MapFill, ProgramFigures, Snapshot, VmFigures};

/// What the last tick saw; `None` before the first one.
pub(crate) type Latest = watch::Receiver<Option<Arc<Snapshot>>>;

/// How the figures are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' own text format 0.0.4, for clients that know nothing else.
    PrometheusText,
}

impl Format {
    /// The one for a client that accepts this: OpenMetrics, unless another one is named and it isn't.
    pub(crate) fn accepted(accept: Option<&str>) -> Self {
        let names = |media_type| accept.is_some_and(|accept| accept.contains(media_type));
        if names("text/plain") && !names("application/openmetrics-text") {
            Self::PrometheusText
        } else {
            Self::OpenMetrics
        }
    }

    /// Its `Content-Type`.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::PrometheusText => prometheus_text::CONTENT_TYPE,
        }
    }
}

/// A snapshot that is younger is not made anew, however many clients ask.
const YOUNG_FOR: Duration = Duration::from_millis(900);
/// What stands at the end of a text in OpenMetrics, after all families.
const END: &str = "# EOF\n";
/// How long the loop may take to make one: less than a scrape that comes often may take.
const FRESH_WITHIN: Duration = Duration::from_millis(200);

/// Makes the text, once for each snapshot and format.
pub(crate) struct Exposition {
    registry: Arc<Registry>,
    latest: Latest,
    wanted: Arc<Notify>,
    open_metrics: SingleFlight<Of, Bytes>,
    prometheus_text: SingleFlight<Of, Bytes>,
    /// How long a text is expected to be: a little longer than the last one.
    bytes: Arc<AtomicUsize>,
}

/// Which snapshot a text is of; as long as one is kept, no other is in its place.
struct Of(Arc<Snapshot>);

impl PartialEq for Of {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Exposition {
    /// Of snapshots, each of which is published after it was `wanted`, and of what the daemon counted.
    pub(crate) fn new(
        latest: Latest,
        wanted: &Arc<Notify>,
        counts: &Counts,
        incidents: &IncidentCounts,
        notifications: &NotificationCounts,
    ) -> Self {
        let mut registry = Registry::default();
        process::register(&mut registry, incidents.since());
        let own = registry.sub_registry_with_prefix("flatline");
        counts.register(own);
        incidents.register(own);
        notifications.register(own);
        own.register_collector(Box::new(LastTick(latest.clone())));
        Self {
            registry: Arc::new(registry),
            latest,
            wanted: wanted.clone(),
            open_metrics: SingleFlight::default(),
            prometheus_text: SingleFlight::default(),
            bytes: Arc::default(),
        }
    }

    /// The text, of a snapshot that is hardly older than the question; of the last one where the loop is held up. `None` before
    /// the first tick.
    pub(crate) async fn text(&self, format: Format) -> Option<Bytes> {
        let snapshot = self.fresh().await?;
        let made = match format {
            Format::OpenMetrics => &self.open_metrics,
            Format::PrometheusText => &self.prometheus_text,
        };
        let registry = Arc::clone(&self.registry);
        let (of, expected) = (Of(Arc::clone(&snapshot)), Arc::clone(&self.bytes));
        let make = move || {
            let mut text = String::with_capacity(expected.load(Ordering::Relaxed));
            // Writing to a string can't fail.
            let _ = match format {
                Format::OpenMetrics => text::encode(&mut text, &registry),
                Format::PrometheusText => prometheus_text::encode(&mut text, &registry),
            };
            let end = if text.ends_with(END) { END } else { "" };
            text.truncate(text.len() - end.len());
            let mut text = vms::written(&snapshot, SeriesText::after(text, format));
            text.push_str(end);
            expected.store(text.len() + text.len() / 16, Ordering::Relaxed);
            Ok(Bytes::from(text))
        };
        made.get(of, make).await.ok()
    }

    async fn fresh(&self) -> Option<Arc<Snapshot>> {
        let mut latest = self.latest.clone();
        let is_young =
            |snapshot: &Arc<Snapshot>| snapshot.at.elapsed().is_ok_and(|age| age < YOUNG_FOR);
        if !latest.borrow_and_update().as_ref().is_some_and(is_young) {
            self.wanted.notify_one();
            // An older one is better than none.
            let _ = timeout(FRESH_WITHIN, latest.changed()).await;
        }
        latest.borrow().clone()
    }
}

impl fmt::Debug for Exposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exposition").finish_non_exhaustive()
    }
}

/// Reads the newest snapshot whenever the text is made.
#[derive(Debug)]
struct LastTick(Latest);

impl Collector for LastTick {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let snapshot = self.0.borrow().clone();
        let Some(snapshot) = snapshot else { return Ok(()) };
        host::encode(&snapshot, &mut encoder)
    }
}
