//! Journal of one restart: always a step ahead of it, and safe on disk before that step is taken, if the disk is quick.

use std::{sync::Arc, time::SystemTime};

use super::{EventKind, Journal, Supervisor, incident_writer::IncidentWriter, places::Place};
use crate::{
    rfc3339,
    storage::{
        incident::{Attempt, Incident},
        incidents::IncidentStore,
    },
};
use flatline_qemu::qmp::RunState;

/// The record of one restart, which is always a step ahead of it.
pub(crate) struct RestartJournal {
    writer: IncidentWriter,
    store: Arc<IncidentStore>,
    incident: Incident,
    /// Which restart it is, in words.
    limit: String,
    /// Its place among the host's restarts, until it counts by its record.
    place: Option<Place>,
}

impl RestartJournal {
    /// All restarts of its incident so far.
    pub(crate) fn attempts(self) -> Vec<Attempt> {
        self.incident.attempts
    }
}

impl Journal for RestartJournal {
    async fn begun(&mut self, run_state: &RunState, steps: Vec<String>) {
        // One of which QEMU never heard is begun anew.
        self.incident.attempts.pop_if(|last| last.reset_at.is_none());
        let begun_at = SystemTime::now();
        self.incident.attempts.push(Attempt {
            begun_at,
            run_state: run_state.to_string(),
            steps,
            limit: self.limit.clone(),
            reset_at: None,
        });
        // It counts, whatever the disk does.
        self.store.note_restarts(&self.incident);
        if let Some(place) = self.place.take() {
            place.begun(begun_at);
        }
        self.writer.events.emit(EventKind::RestartBegun, &self.incident);
        self.writer.make_safe(&self.incident).await;
    }

    async fn told(&mut self, at: SystemTime) {
        if let Some(attempt) = self.incident.attempts.last_mut() {
            attempt.reset_at = Some(at);
        }
        self.writer.events.emit(EventKind::Restarted, &self.incident);
        self.writer.make_safe(&self.incident).await;
    }
}

impl std::fmt::Debug for RestartJournal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let begun = self.incident.attempts.last().map(|last| rfc3339::format(last.begun_at));
        f.debug_struct("RestartJournal")
            .field("incident", &self.incident.id)
            .field("begun", &begun)
            .finish()
    }
}

impl Supervisor {
    /// The journal of a restart for `incident`, which is the one that `limit` says.
    pub(super) fn journal(
        &self,
        incident: &Incident,
        limit: String,
        place: Option<Place>,
    ) -> RestartJournal {
        let (writer, store) = (self.writer.clone(), self.store.clone());
        RestartJournal { writer, store, incident: incident.clone(), limit, place }
    }
}
