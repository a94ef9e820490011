//! Notifications of what happens, to the configured targets (`[[notify]]`): webhooks, Alertmanagers, commands, and always
//! the log.
//!
//! ```text
//!   recovery, ticks ──▶ events (what of it is news) ──▶ Event ──▶ log
//!                                                             ├──▶ queue ──▶ worker ──▶ webhook
//!                                                             ├──▶ queue ──▶ worker ──▶ command
//!                                                             └──▶ alerts ─▶ worker ──▶ Alertmanager
//! ```
//!
//! Producers never block: an event is put into each target's bounded queue, and a task a target takes
//! it from there. What waits is on disk as well, a few seconds later, as long as a target can't be told.

pub(crate) mod alerts;
mod delivery_queue;
pub(crate) mod event;
pub(crate) mod events;
pub(crate) mod http;
mod lasting;
pub(crate) mod payload;
pub(crate) mod queue;
pub(crate) mod signature;
mod spool;
#[cfg(test)]
mod tests;
pub(crate) mod url;
mod worker;

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use crate::{config::Target, metrics::NotificationCounts, recovery};
use event::{Event, EventKind, Severity};
use events::Events;
use flatline_samples::printable;
use spool::{All, Left, Spool};
use worker::Worker;

/// The time that is left for telling once the daemon was told to end.
pub(crate) const END_LIMIT: Duration = Duration::from_secs(3);
/// How often what waits is written down, if it has changed and can't be told.
const KEEP_EVERY: Duration = Duration::from_secs(5);
/// Characters of a host's name.
const HOST_CHARS: usize = 255;

/// Handle of the notifications; a clone is of the same ones.
#[derive(Clone, Debug)]
pub(crate) struct Notifier(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    host: String,
    began: Instant,
    counts: NotificationCounts,
    events: Mutex<Events>,
    workers: Mutex<Vec<Worker>>,
    spool: Spool,
    keeper: Mutex<Option<AbortOnDropHandle<()>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Notifier {
    /// Tells these targets from now on, beginning with what an earlier daemon left in `state_dir`. Call it within a tokio
    /// runtime.
    pub(crate) fn start(targets: &[Target], state_dir: &Path, counts: NotificationCounts) -> Self {
        let uname = rustix::system::uname();
        let host = printable(&uname.nodename().to_string_lossy(), HOST_CHARS);
        let telling = Self(Arc::new(Inner {
            events: Mutex::new(Events::new(host.clone())),
            host,
            began: Instant::now(),
            counts,
            workers: Mutex::default(),
            spool: Spool::new(state_dir),
            keeper: Mutex::default(),
        }));
        telling.reconfigure(targets);
        telling.take_up_what_was_left();
        telling
    }

    /// Tells these from now on. A target that keeps its name and its kind keeps what waits for it; what waits for one
    /// that is gone is given up.
    pub(crate) fn reconfigure(&self, targets: &[Target]) {
        let mut workers = lock(&self.0.workers);
        let mut before = std::mem::take(&mut *workers);
        for target in targets {
            let known = before.iter().position(|worker| worker.can_go_on_as(target));
            let worker = match known.map(|index| before.swap_remove(index)) {
                Some(worker) => {
                    worker.go_on_as(target.clone());
                    worker
                }
                None => Worker::start(target.clone(), &self.0.host, self.0.began, &self.0.counts),
            };
            workers.push(worker);
        }
        for gone in before {
            let name = gone.name();
            let (left, _) = gone.left();
            if !left.is_empty() {
                let left = left.len();
                warn!(receiver = name, "{left} events that waited for {name} are given up");
            }
            if targets.iter().all(|target| target.name != name) {
                self.0.counts.end(&name);
            }
        }
        let mut keeper = lock(&self.0.keeper);
        if workers.is_empty() {
            *keeper = None;
        } else if keeper.is_none() {
            let task = tokio::spawn(keep(Arc::downgrade(&self.0)));
            *keeper = Some(AbortOnDropHandle::new(task));
        }
    }

    fn take_up_what_was_left(&self) {
        let spool = &self.0.spool;
        let mut left = match spool.read() {
            Ok(left) => left,
            Err(error) => {
                let path = spool.path().display();
                return warn!(
                    "what was to be told before is lost: {path}: {error}; `flatline incidents` has what happened"
                );
            }
        };
        for worker in lock(&self.0.workers).iter() {
            if let Some(Left { lost, events }) = left.remove(&worker.name()) {
                let (name, waiting) = (worker.name(), events.len());
                info!(receiver = name, waiting, "what {name} was not told before is told now");
                worker.restore(events, lost);
            }
        }
        for (name, Left { events, .. }) in left {
            let name = printable(&name, HOST_CHARS);
            let waiting = events.len();
            warn!(
                receiver = name,
                "{waiting} events that waited for {name} are given up: no [[notify]] has this name"
            );
        }
    }

    /// Logs and queues the events that `make` returns.
    pub(crate) fn publish<E>(&self, make: impl FnOnce(&mut Events, SystemTime) -> E)
    where
        E: IntoIterator<Item = Event>,
    {
        // Held until all of them wait in their order.
        let mut events = lock(&self.0.events);
        for event in make(&mut events, SystemTime::now()) {
            log(&event);
            self.0.hand_out(event, true);
        }
    }

    /// Publishes what recovery says, where it is to be told.
    pub(crate) fn publish_recovery(&self, said: recovery::Event<'_>) {
        if said.kind != recovery::EventKind::TakenUp {
            return self.publish(|events, now| events.of_recovery(said, now));
        }
        // An earlier daemon told it, which is no news; its alerts go on.
        let mut events = lock(&self.0.events);
        for event in events.taken_up(said.incident, SystemTime::now()) {
            self.0.hand_out(event, false);
        }
    }

    /// Targets that can't be told, or that lost something, each in a sentence.
    pub(crate) fn complaints(&self) -> Vec<String> {
        lock(&self.0.workers).iter().filter_map(Worker::complaint).collect()
    }

    /// Tells that the daemon ends, waits a little for what can be told still, and keeps the rest.
    pub(crate) async fn finish(&self) {
        self.publish(|events, now| [events.of_host(EventKind::DaemonStopped, String::new(), now)]);
        *lock(&self.0.keeper) = None;
        lock(&self.0.workers).iter().for_each(Worker::retry_now);
        let are_drained = || lock(&self.0.workers).iter().all(Worker::is_drained);
        worker::drain(are_drained, END_LIMIT).await;
        let left = self.0.left();
        lock(&self.0.workers).clear();
        for (name, Left { events, .. }) in &left {
            let waiting = events.len();
            info!(receiver = name, waiting, "{name} is told the rest by the next daemon");
        }
        if let Err(error) = self.0.spool.write(&left) {
            let path = self.0.spool.path().display();
            warn!("what was to be told is lost: {path}: {error}");
        }
    }
}

impl Inner {
    fn hand_out(&self, event: Event, is_news: bool) {
        let event = Arc::new(event);
        lock(&self.workers).iter().for_each(|worker| worker.tell(&event, is_news));
    }

    /// What waits, for each target for which anything does.
    fn left(&self) -> All<Arc<Event>> {
        let workers = lock(&self.workers);
        let all = workers.iter().map(|worker| (worker.name(), worker.left()));
        all.filter(|(_, (events, _))| !events.is_empty())
            .map(|(name, (events, lost))| (name, Left { lost, events }))
            .collect()
    }
}

/// Writes down what waits, and removes it once it was told.
async fn keep(of: std::sync::Weak<Inner>) {
    let mut kept: Vec<String> = Vec::new();
    let mut is_first = true;
    loop {
        sleep(KEEP_EVERY).await;
        let Some(inner) = of.upgrade() else { return };
        let left = inner.left();
        let ids: Vec<String> = left
            .values()
            .flat_map(|left| left.events.iter().map(|event| event.id.clone()))
            .collect();
        // What an earlier daemon left is there until it was told.
        if ids == kept && !is_first {
            continue;
        }
        let spool = inner.spool.clone();
        drop(inner);
        let written = tokio::task::spawn_blocking(move || spool.write(&left)).await;
        match written {
            Ok(Ok(())) => (kept, is_first) = (ids, false),
            Ok(Err(error)) => {
                warn!("what is to be told would be lost with the daemon: {error}; tried again");
            }
            Err(_) => return,
        }
    }
}

/// One line a person can read, with fields for programs: in the journal they are `FLATLINE_EVENT`, `FLATLINE_VM`, ….
fn log(event: &Event) {
    let kind = event.kind.as_str();
    let subject = event.subject.as_ref();
    let vm = subject.map(|subject| subject.vm.as_str());
    let uuid = subject.and_then(|subject| subject.uuid.as_deref());
    let (uid, pid) = (subject.and_then(|subject| subject.uid), subject.map(|subject| subject.pid));
    let (state, cause) = (event.kind.state(), event.cause.as_deref());
    let incident = event.incident.as_ref().map(|incident| &*incident.id);
    let attempt = incident.map(|_| event.attempt);
    let reason = &event.reason;
    let what = kind.replace('-', " ");
    let text = if reason.is_empty() { what } else { format!("{what}: {reason}") };
    if event.kind.severity() == Severity::Info {
        info!(event = kind, vm, uuid, uid, pid, state, cause, incident, attempt, "{text}");
    } else {
        warn!(event = kind, vm, uuid, uid, pid, state, cause, incident, attempt, "{text}");
    }
}
