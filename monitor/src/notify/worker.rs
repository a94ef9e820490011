//! The task of one target: takes what waits for it, one after the other, and tells it.
//!
//! A target that is slow, down or unwilling holds up nobody but itself: what waits does so in a bounded queue, and whoever
//! puts something in only takes a lock that is never held across an await.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::Value;
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tracing::{debug, error, info, warn};

use super::{
    alerts::{self, Alerts},
    event::Event,
    http::{self, Client},
    payload,
    queue::{self, Queue},
};
use crate::{
    config::{Destination, Target},
    metrics::{NotificationCounts, Told},
};
use flatline_qemu::{
    program::{Program, run},
    text::error_chain,
};
use flatline_samples::printable;

/// Below an Alertmanager's URL.
const ALERTS_PATH: &str = "/api/v2/alerts";
/// Characters of what went wrong.
const WORDS_CHARS: usize = 800;

/// What waits for a target.
#[derive(Debug)]
pub(super) enum DeliveryQueue {
    /// Events in their order.
    Events(Queue<Arc<Event>>),
    /// What is wrong now.
    Alerts(Alerts),
}

/// What is to be told now.
enum Job {
    Event(Arc<Event>, u64),
    Alerts(Vec<Value>),
}

/// Why it wasn't.
struct Failure {
    words: String,
    is_final: bool,
    asked_pause: Option<Duration>,
}

/// What a target's task shares with whoever tells it something.
#[derive(Debug)]
struct Shared {
    host: String,
    began: Instant,
    counts: NotificationCounts,
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug)]
struct State {
    target: Arc<Target>,
    lane: DeliveryQueue,
    /// Why the last attempt failed, until one succeeds.
    complaint: Option<String>,
    /// It was said that events are lost, since the last delivery.
    said_lost: bool,
}

/// A target's task, which ends with it.
#[derive(Debug)]
pub(super) struct Worker {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl DeliveryQueue {
    fn new(target: &Target, host: &str) -> Self {
        let most = usize::try_from(target.queue).unwrap_or(usize::MAX);
        match &target.to {
            Destination::Alertmanager(_) => Self::Alerts(Alerts::new(host.to_owned(), most)),
            Destination::Webhook { .. } | Destination::Command(_) => {
                Self::Events(Queue::new(most, target.keep))
            }
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Events(queue) => queue.len(),
            Self::Alerts(alerts) => alerts.news(),
        }
    }

    fn lost(&self) -> u64 {
        match self {
            Self::Events(queue) => queue.lost(),
            Self::Alerts(alerts) => alerts.lost(),
        }
    }

    fn failures(&self) -> u32 {
        match self {
            Self::Events(queue) => queue.failures(),
            Self::Alerts(alerts) => alerts.failures(),
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Notes what was lost, and says so once.
    fn note_lost(&self, state: &mut State, lost: u64, how: Told) {
        if lost == 0 {
            return;
        }
        let name = &state.target.name;
        self.counts.note(name, how, lost);
        if !std::mem::replace(&mut state.said_lost, true) {
            let (queue, keep) = (state.target.queue, humantime::format_duration(state.target.keep));
            error!(
                receiver = name,
                "events are lost that were to be told to {name}: only {queue} may wait (tell.queue), for {keep} each \
                 (tell.keep); `flatline incidents` has what happened"
            );
        }
    }

    /// What is to be done next: a job, or a pause.
    fn next(&self) -> Result<(Arc<Target>, Job), Option<Duration>> {
        let now = self.now();
        let mut state = self.state();
        let (job, expired) = match &mut state.lane {
            DeliveryQueue::Events(queue) => {
                let (next, expired) = queue.next(now);
                let job = match next {
                    queue::Next::Deliver(event, lost) => Ok(Job::Event(event, lost)),
                    queue::Next::Wait(until) => Err(Some(until.saturating_sub(now))),
                    queue::Next::Nothing => Err(None),
                };
                (job, expired)
            }
            DeliveryQueue::Alerts(alerts) => {
                let job = match alerts.next(now, SystemTime::now()) {
                    alerts::Next::Send(batch) => Ok(Job::Alerts(batch)),
                    alerts::Next::Wait(until) => Err(Some(until.saturating_sub(now))),
                    alerts::Next::Nothing => Err(None),
                };
                (job, 0)
            }
        };
        self.note_lost(&mut state, expired, Told::Expired);
        self.counts.waiting(&state.target.name, state.lane.len());
        job.map(|job| (Arc::clone(&state.target), job))
    }

    /// What came of a job.
    fn done(&self, target: &Target, result: Result<(), Failure>) {
        let now = self.now();
        let mut state = self.state();
        let (name, before) = (&target.name, state.lane.failures());
        let told = match &result {
            Ok(()) => Told::Delivered,
            Err(failure) if failure.is_final => Told::Refused,
            Err(_) => Told::Failed,
        };
        self.counts.note(name, told, 1);
        match result {
            Ok(()) => {
                match &mut state.lane {
                    DeliveryQueue::Events(queue) => queue.delivered(),
                    DeliveryQueue::Alerts(alerts) => alerts.delivered(now),
                }
                state.said_lost = false;
                if state.complaint.take().is_some() {
                    info!(receiver = name, "{name} is told again");
                }
            }
            Err(Failure { words, is_final, asked_pause }) => {
                let pause = match &mut state.lane {
                    DeliveryQueue::Events(queue) if is_final => {
                        queue.refused();
                        None
                    }
                    DeliveryQueue::Events(queue) => Some(queue.failed(asked_pause, now)),
                    // What is wrong now is told again, however often that is refused.
                    DeliveryQueue::Alerts(alerts) => Some(alerts.failed(asked_pause, now)),
                };
                let waiting = state.lane.len();
                match pause {
                    None => error!(
                        receiver = name,
                        "an event is lost that was to be told to {name}: {words}"
                    ),
                    Some(pause) if before == 0 => warn!(
                        receiver = name,
                        waiting, "{name} is not told: {words}; tried again in {pause:?}, and so on"
                    ),
                    Some(pause) => debug!(receiver = name, waiting, ?pause, "{words}"),
                }
                state.complaint = Some(words);
            }
        }
        self.counts.waiting(name, state.lane.len());
    }
}

impl Worker {
    /// Tells `target`, of the host called so, from now on. Call it within a tokio runtime.
    pub(super) fn start(
        target: Target,
        host: &str,
        began: Instant,
        counts: &NotificationCounts,
    ) -> Self {
        counts.begin(&target.name);
        let lane = DeliveryQueue::new(&target, host);
        let state = State { target: Arc::new(target), lane, complaint: None, said_lost: false };
        let shared = Arc::new(Shared {
            host: host.to_owned(),
            began,
            counts: counts.clone(),
            state: Mutex::new(state),
            wake: Notify::new(),
        });
        let task = tokio::spawn(work(Arc::clone(&shared)));
        Self { shared, task }
    }

    pub(super) fn name(&self) -> String {
        self.shared.state().target.name.clone()
    }

    /// Whether it may go on with `target` as what it is told now.
    pub(super) fn can_go_on_as(&self, target: &Target) -> bool {
        let state = self.shared.state();
        state.target.name == target.name
            && std::mem::discriminant(&state.target.to) == std::mem::discriminant(&target.to)
    }

    /// Goes on with what waits, on other terms.
    pub(super) fn go_on_as(&self, target: Target) {
        let mut state = self.shared.state();
        if *state.target == target {
            return;
        }
        let most = usize::try_from(target.queue).unwrap_or(usize::MAX);
        let lost = match &mut state.lane {
            DeliveryQueue::Events(queue) => {
                queue.retry_now();
                queue.set_bounds(most, target.keep)
            }
            DeliveryQueue::Alerts(alerts) => {
                alerts.retry_now();
                alerts.set_bound(most)
            }
        };
        state.target = Arc::new(target);
        self.shared.note_lost(&mut state, lost, Told::Dropped);
        drop(state);
        self.shared.wake.notify_one();
    }

    /// Has the event told, if the target wants it. One that `is_news` to nobody only counts for what is wrong now.
    pub(super) fn tell(&self, event: &Arc<Event>, is_news: bool) {
        let now = self.shared.now();
        let mut state = self.shared.state();
        let target = Arc::clone(&state.target);
        let lost = match &mut state.lane {
            DeliveryQueue::Events(queue) if is_news && target.wants(event) => {
                queue.push(Arc::clone(event), now)
            }
            DeliveryQueue::Alerts(alerts)
                if Alerts::concerns(event.kind) && target.is_about_its_own(event) =>
            {
                alerts.take(event, target.wants(event))
            }
            DeliveryQueue::Events(_) | DeliveryQueue::Alerts(_) => return,
        };
        self.shared.note_lost(&mut state, lost, Told::Dropped);
        self.shared.counts.waiting(&target.name, state.lane.len());
        drop(state);
        self.shared.wake.notify_one();
    }

    /// What waits for it, and how many were lost before; alerts are found anew.
    pub(super) fn left(&self) -> (Vec<Arc<Event>>, u64) {
        match &self.shared.state().lane {
            DeliveryQueue::Events(queue) => (queue.all().cloned().collect(), queue.lost()),
            DeliveryQueue::Alerts(alerts) => (Vec::new(), alerts.lost()),
        }
    }

    /// Takes up what an earlier daemon had left.
    pub(super) fn restore(&self, events: Vec<Event>, lost: u64) {
        let now = self.shared.now();
        if let DeliveryQueue::Events(queue) = &mut self.shared.state().lane {
            queue.restore(events.into_iter().map(Arc::new).collect(), lost, now);
        }
        self.shared.wake.notify_one();
    }

    /// Tries at once, once more.
    pub(super) fn retry_now(&self) {
        match &mut self.shared.state().lane {
            DeliveryQueue::Events(queue) => queue.retry_now(),
            DeliveryQueue::Alerts(alerts) => alerts.retry_now(),
        }
        self.shared.wake.notify_one();
    }

    /// Whether nothing can be done for it now: all is told, or it has to wait.
    pub(super) fn is_drained(&self) -> bool {
        let now = self.shared.now();
        match &self.shared.state().lane {
            DeliveryQueue::Events(queue) => queue.is_drained(now),
            DeliveryQueue::Alerts(alerts) => alerts.is_drained(now),
        }
    }

    /// What is wrong with it, if anything is.
    pub(super) fn complaint(&self) -> Option<String> {
        let state = self.shared.state();
        let (name, waiting, lost) = (&state.target.name, state.lane.len(), state.lane.lost());
        let lost =
            if lost > 0 { format!("; {lost} events are lost for it") } else { String::new() };
        match &state.complaint {
            Some(why) => Some(format!("{name} is not told ({waiting} wait): {why}{lost}")),
            None if !lost.is_empty() => Some(format!("{name} is told{lost}")),
            None => None,
        }
    }
}

async fn work(shared: Arc<Shared>) {
    let mut client = Client::default();
    loop {
        match shared.next() {
            Ok((target, job)) => {
                let result = attempt(&mut client, &target, &shared.host, job).await;
                shared.done(&target, result);
            }
            Err(None) => shared.wake.notified().await,
            Err(Some(pause)) => {
                // Whichever comes first: what is new may be due at once.
                let _ = timeout(pause, shared.wake.notified()).await;
            }
        }
    }
}

async fn attempt(
    client: &mut Client,
    target: &Target,
    host: &str,
    job: Job,
) -> Result<(), Failure> {
    let posted = match (&target.to, job) {
        (Destination::Command(words), Job::Event(event, lost)) => {
            let environment = payload::environment(&event, host, lost);
            let program = Program { words: words.clone() };
            let ran = run(&program, &environment, target.limit).await;
            return ran.map(drop).map_err(|error| {
                let words = printable(&error_chain(&error), WORDS_CHARS);
                Failure { words, is_final: false, asked_pause: None }
            });
        }
        (Destination::Webhook { url, secret }, Job::Event(event, lost)) => {
            let body = payload::body(&event, host, lost);
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let mut headers =
                vec![("webhook-id", event.id.clone()), ("webhook-timestamp", now.to_string())];
            if let Some(secret) = secret {
                headers.push(("webhook-signature", secret.sign(&event.id, now, &body)));
            }
            client.post(url, &headers, body, target.limit).await
        }
        (Destination::Alertmanager(url), Job::Alerts(batch)) => {
            let body = Value::Array(batch).to_string();
            client.post(&url.join(ALERTS_PATH), &[], body, target.limit).await
        }
        // A target keeps its kind as long as its queue.
        (Destination::Alertmanager(_), Job::Event(..))
        | (Destination::Webhook { .. } | Destination::Command(_), Job::Alerts(_)) => return Ok(()),
    };
    posted.map_err(|error| Failure {
        words: http::words(&error),
        is_final: error.is_final(),
        asked_pause: error.asked_pause(),
    })
}

/// Waits until nothing can be done for any of them, but no longer than `limit`.
pub(super) async fn drain(workers: impl Fn() -> bool, limit: Duration) {
    let until = Instant::now() + limit;
    while !workers() && Instant::now() < until {
        sleep(Duration::from_millis(10)).await;
    }
}
