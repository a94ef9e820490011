//! What waits for one target: events in their order, or what is wrong now. Pure: times come in.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde_json::Value;

use super::{
    alerts::Alerts,
    event::Event,
    queue::{Next, Pacing, Queue},
};
use crate::config::{Destination, Target};

/// What waits for a target.
#[derive(Debug)]
pub(super) enum DeliveryQueue {
    /// Events in their order, for webhooks and commands.
    Events(Queue<Arc<Event>>),
    /// What is wrong now, for an Alertmanager.
    Alerts(Alerts),
}

/// What is to be delivered now.
pub(super) enum Job {
    /// An event, and how many were lost before it.
    Event(Arc<Event>, u64),
    /// All alerts, as Alertmanager takes them.
    Alerts(Vec<Value>),
}

fn capacity(target: &Target) -> usize {
    usize::try_from(target.queue).unwrap_or(usize::MAX)
}

impl DeliveryQueue {
    /// An empty one for `target`, of the host called so.
    pub(super) fn new(target: &Target, host: &str) -> Self {
        match &target.to {
            Destination::Alertmanager(_) => {
                Self::Alerts(Alerts::new(host.to_owned(), capacity(target)))
            }
            Destination::Webhook { .. } | Destination::Command(_) => {
                Self::Events(Queue::new(capacity(target), target.keep))
            }
        }
    }

    /// Has the bounds of `target`, and tries at once. Returns how many are lost by that.
    pub(super) fn set_bounds(&mut self, target: &Target) -> u64 {
        self.pacing().retry_now();
        match self {
            Self::Events(queue) => queue.set_bounds(capacity(target), target.keep),
            Self::Alerts(alerts) => alerts.set_bound(capacity(target)),
        }
    }

    /// Takes an event in, if it concerns `target`. Returns how many are lost by that; `None`: it does not concern it.
    pub(super) fn take(
        &mut self,
        event: &Arc<Event>,
        target: &Target,
        is_news: bool,
        now: Duration,
    ) -> Option<u64> {
        match self {
            Self::Events(queue) if is_news && target.wants(event) => {
                Some(queue.push(Arc::clone(event), now))
            }
            Self::Alerts(alerts)
                if Alerts::concerns(event.kind) && target.is_about_its_own(event) =>
            {
                Some(alerts.take(event, target.wants(event)))
            }
            Self::Events(_) | Self::Alerts(_) => None,
        }
    }

    /// What is to be delivered at `now`, which is `wall`; and how many had waited for too long.
    pub(super) fn next(&mut self, now: Duration, wall: SystemTime) -> (Next<Job>, u64) {
        match self {
            Self::Events(queue) => {
                let (next, expired) = queue.next(now);
                (next.map(|(event, lost)| Job::Event(event, lost)), expired)
            }
            Self::Alerts(alerts) => (alerts.next(now, wall).map(Job::Alerts), 0),
        }
    }

    /// What was under way was delivered.
    pub(super) fn delivered(&mut self, now: Duration) {
        match self {
            Self::Events(queue) => queue.delivered(),
            Self::Alerts(alerts) => alerts.delivered(now),
        }
    }

    /// It was not, and the receiver may have `asked` for a pause. Returns the pause; `None`: it is lost, since the
    /// refusal is final. What is wrong now is told again, however often that is refused.
    pub(super) fn failed(
        &mut self,
        is_final: bool,
        asked: Option<Duration>,
        now: Duration,
    ) -> Option<Duration> {
        match self {
            Self::Events(queue) if is_final => {
                queue.refused();
                None
            }
            Self::Events(queue) => Some(queue.failed(asked, now)),
            Self::Alerts(alerts) => Some(alerts.failed(asked, now)),
        }
    }

    /// The events that wait; alerts are found anew by the next daemon.
    pub(super) fn events(&self) -> Vec<Arc<Event>> {
        match self {
            Self::Events(queue) => queue.all().cloned().collect(),
            Self::Alerts(_) => Vec::new(),
        }
    }

    /// Takes up what waited with an earlier daemon, and what that one had lost.
    pub(super) fn restore(&mut self, events: Vec<Event>, lost: u64, now: Duration) {
        if let Self::Events(queue) = self {
            queue.restore(events.into_iter().map(Arc::new).collect(), lost, now);
        }
    }

    /// When to try again.
    pub(super) fn pacing(&mut self) -> &mut Pacing {
        match self {
            Self::Events(queue) => &mut queue.pacing,
            Self::Alerts(alerts) => &mut alerts.pacing,
        }
    }

    /// Whether nothing can be done now: all is delivered, or has to wait.
    pub(super) fn is_drained(&self, now: Duration) -> bool {
        match self {
            Self::Events(queue) => queue.is_drained(now),
            Self::Alerts(alerts) => alerts.is_drained(now),
        }
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Events(queue) => queue.len(),
            Self::Alerts(alerts) => alerts.news(),
        }
    }

    /// How many were lost of which nothing was told so far.
    pub(super) fn lost(&self) -> u64 {
        match self {
            Self::Events(queue) => queue.lost(),
            Self::Alerts(alerts) => alerts.lost(),
        }
    }
}
