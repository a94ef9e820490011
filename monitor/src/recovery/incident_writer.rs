//! Writer of incidents and the ledger, on a thread of its own, in order: a stalled disk must not stall the watching.

use std::{
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use tokio::sync::oneshot;
use tracing::error;

use crate::{
    recovery::{EventKind, EventSink, Files},
    storage::{incident::Incident, incidents::IncidentStore, ledger::Page},
    vm::RECORDING,
};
use flatline_detector::{recording::Recording, recording::file};
use flatline_qemu::text::error_chain;

/// How long a restart waits for its record to be safe: a disk that stalls must not keep a guest from being restarted.
const SAFE_WITHIN: Duration = Duration::from_secs(1);

/// What is to be written.
enum Job {
    Incident {
        incident: Box<Incident>,
        evidence: Files,
        recording: Option<Recording>,
    },
    Ledger(Page),
    /// Nothing more: what comes later is not written.
    End,
}

/// A job, and where to tell what came of it: an error in words.
type Order = (Job, Option<oneshot::Sender<Result<(), String>>>);

/// The way to the thread.
#[derive(Clone, Debug)]
pub(crate) struct IncidentWriter {
    orders: mpsc::Sender<Order>,
    /// What happened is said here, by the loop and by restarts that are under way.
    pub(crate) events: EventSink,
}

impl IncidentWriter {
    /// The thread ends after [`IncidentWriter::end`], and has written all by then.
    pub(crate) fn start(
        store: Arc<IncidentStore>,
        events: EventSink,
    ) -> (Self, Option<JoinHandle<()>>) {
        let (orders, inbox) = mpsc::channel::<Order>();
        let write = move || {
            for (job, done) in inbox {
                let written = match job {
                    Job::Incident { incident, evidence, recording } => {
                        write_incident(&store, &incident, evidence, recording)
                    }
                    Job::Ledger(page) => page.write().map_err(|error| error_chain(&error)),
                    Job::End => break,
                };
                if let Err(why) = &written {
                    error!(
                        "{why}; mend the disk under paths.state_dir, what follows is written there again"
                    );
                }
                // The order may not be waited for any more.
                done.map(|done| done.send(written));
            }
        };
        let thread = std::thread::Builder::new().name("incidents".to_owned()).spawn(write);
        let thread = thread
            .inspect_err(|error| {
                error!(
                    "incidents can't be written: no thread: {error}; raise the limit of tasks and restart the daemon"
                );
            })
            .ok();
        (Self { orders, events }, thread)
    }

    /// A writer without a thread: what would be written is heard as [`EventKind::Recorded`].
    #[cfg(test)]
    pub(super) fn without_a_disk(events: EventSink) -> (Self, impl Sized) {
        let (orders, inbox) = mpsc::channel();
        (Self { orders, events }, inbox)
    }

    pub(crate) fn write(&self, incident: &Incident, evidence: Files, recording: Option<Recording>) {
        let incident = Box::new(incident.clone());
        self.order(Job::Incident { incident, evidence, recording }, None);
    }

    /// Writes an incident without further evidence.
    pub(super) fn record(&self, incident: &Incident) {
        self.write(incident, Vec::new(), None);
    }

    /// Says what happened, and writes the incident down as it stands with it.
    pub(super) fn say(&self, kind: EventKind, incident: &Incident) {
        self.events.emit(kind, incident);
        self.record(incident);
    }

    /// Writes the ledger; what came of it is told to `done`.
    pub(crate) fn write_ledger(
        &self,
        page: Page,
        done: Option<oneshot::Sender<Result<(), String>>>,
    ) {
        self.order(Job::Ledger(page), done);
    }

    /// Writes `incident`, and waits until it is safe, but not for long.
    pub(super) async fn make_safe(&self, incident: &Incident) {
        let (done, written) = oneshot::channel();
        let incident = Box::new(incident.clone());
        let id = incident.id.clone();
        self.order(Job::Incident { incident, evidence: Vec::new(), recording: None }, Some(done));
        if tokio::time::timeout(SAFE_WITHIN, written).await.is_err() {
            let within = SAFE_WITHIN.as_secs();
            error!(incident = id, "not safe on disk within {within} s; its restart goes on");
        }
    }

    /// Ends the thread, though others, such as a restart that is under way, still have a way to it.
    pub(crate) fn end(&self) {
        self.order(Job::End, None);
    }

    fn order(&self, job: Job, done: Option<oneshot::Sender<Result<(), String>>>) {
        if let Job::Incident { incident, .. } = &job {
            self.events.emit(EventKind::Recorded, incident);
            if incident.is_only_counted {
                done.map(|done| done.send(Ok(())));
                return;
            }
        }
        if self.orders.send((job, done)).is_err() {
            error!("an incident is not written: the writing thread has ended; restart the daemon");
        }
    }
}

/// All of it that can be; the first thing that could not be written.
fn write_incident(
    store: &IncidentStore,
    incident: &Incident,
    mut evidence: Files,
    recording: Option<Recording>,
) -> Result<(), String> {
    let of_it = |error: String| format!("incident {}: {error}", incident.id);
    let mut written = Ok(());
    match recording.as_ref().map(file::to_bytes) {
        Some(Ok(bytes)) => evidence.push((RECORDING, bytes)),
        Some(Err(error)) => written = Err(of_it(format!("{RECORDING}: {error}"))),
        None => {}
    }
    for (name, content) in evidence {
        if let Err(error) = store.add_evidence(&incident.id, name, &content) {
            written = written.and(Err(of_it(error_chain(&error))));
        }
    }
    written.and(store.put(incident).map_err(|error| of_it(error_chain(&error))))
}
