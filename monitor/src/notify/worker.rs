//! The task of one target: takes what waits for it, one after the other, and tells it.
//!
//! A target that is slow, down or unwilling holds up only itself: what waits does so in a bounded queue, and a producer
//! only takes a lock that is never held across an await.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::Value;
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, error, info, warn};

use super::{
    delivery_queue::{DeliveryQueue, Job},
    event::Event,
    http::{self, Client},
    payload,
    queue::Next,
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

/// Why an attempt to tell it failed.
struct Failure {
    words: String,
    is_final: bool,
    asked_pause: Option<Duration>,
}

/// What a target's task shares with the producers.
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
    queue: DeliveryQueue,
    /// Why the last attempt failed, until one succeeds.
    complaint: Option<String>,
    /// It was said that events are lost, since the last delivery.
    said_lost: bool,
}

/// A target's task, which ends with it.
#[derive(Debug)]
pub(super) struct Worker {
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
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
                "events are lost that were to be told to {name}: only {queue} may wait (notify.queue), for {keep} each \
                 (notify.keep); `flatline incidents` has what happened"
            );
        }
    }

    /// What is to be done next.
    fn next(&self) -> Next<(Arc<Target>, Job)> {
        let now = self.now();
        let mut state = self.state();
        let (job, expired) = state.queue.next(now, SystemTime::now());
        self.note_lost(&mut state, expired, Told::Expired);
        self.counts.waiting(&state.target.name, state.queue.len());
        job.map(|job| (Arc::clone(&state.target), job))
    }

    /// What came of a job.
    fn done(&self, target: &Target, result: Result<(), Failure>) {
        let now = self.now();
        let mut state = self.state();
        let (name, before) = (&target.name, state.queue.pacing().failures());
        let told = match &result {
            Ok(()) => Told::Delivered,
            Err(failure) if failure.is_final => Told::Refused,
            Err(_) => Told::Failed,
        };
        self.counts.note(name, told, 1);
        match result {
            Ok(()) => {
                state.queue.delivered(now);
                state.said_lost = false;
                if state.complaint.take().is_some() {
                    info!(receiver = name, "{name} is told again");
                }
            }
            Err(Failure { words, is_final, asked_pause }) => {
                let pause = state.queue.failed(is_final, asked_pause, now);
                let waiting = state.queue.len();
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
        self.counts.waiting(name, state.queue.len());
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
        let queue = DeliveryQueue::new(&target, host);
        let state = State { target: Arc::new(target), queue, complaint: None, said_lost: false };
        let shared = Arc::new(Shared {
            host: host.to_owned(),
            began,
            counts: counts.clone(),
            state: Mutex::new(state),
            wake: Notify::new(),
        });
        let task = AbortOnDropHandle::new(tokio::spawn(work(Arc::clone(&shared))));
        Self { shared, _task: task }
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
        let lost = state.queue.set_bounds(&target);
        state.target = Arc::new(target);
        self.shared.note_lost(&mut state, lost, Told::Dropped);
        drop(state);
        self.shared.wake.notify_one();
    }

    /// Has the event told, if the target wants it. One that is no news only counts for what is wrong now.
    pub(super) fn tell(&self, event: &Arc<Event>, is_news: bool) {
        let now = self.shared.now();
        let mut state = self.shared.state();
        let target = Arc::clone(&state.target);
        let Some(lost) = state.queue.take(event, &target, is_news, now) else { return };
        self.shared.note_lost(&mut state, lost, Told::Dropped);
        self.shared.counts.waiting(&target.name, state.queue.len());
        drop(state);
        self.shared.wake.notify_one();
    }

    /// What waits for it, and how many were lost before; alerts are found anew.
    pub(super) fn left(&self) -> (Vec<Arc<Event>>, u64) {
        let queue = &self.shared.state().queue;
        (queue.events(), queue.lost())
    }

    /// Takes up what an earlier daemon had left.
    pub(super) fn restore(&self, events: Vec<Event>, lost: u64) {
        let now = self.shared.now();
        self.shared.state().queue.restore(events, lost, now);
        self.shared.wake.notify_one();
    }

    /// Tries at once, once more.
    pub(super) fn retry_now(&self) {
        self.shared.state().queue.pacing().retry_now();
        self.shared.wake.notify_one();
    }

    /// Whether nothing can be done for it now: all is told, or it has to wait.
    pub(super) fn is_drained(&self) -> bool {
        let now = self.shared.now();
        self.shared.state().queue.is_drained(now)
    }

    /// What is wrong with it, if anything is.
    pub(super) fn complaint(&self) -> Option<String> {
        let state = self.shared.state();
        let (name, waiting, lost) = (&state.target.name, state.queue.len(), state.queue.lost());
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
            Next::Deliver((target, job)) => {
                let result = attempt(&mut client, &target, &shared.host, job).await;
                shared.done(&target, result);
            }
            Next::Nothing => shared.wake.notified().await,
            Next::Wait(until) => {
                let pause = until.saturating_sub(shared.now());
                // The first of both: what is new may be due at once.
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
