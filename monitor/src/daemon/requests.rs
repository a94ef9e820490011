//! Requests of clients: each is answered from what the loop knows, or handed to a thread that may wait.

use tokio::sync::oneshot;

use super::{clients::Clients, event_loop::EventLoop, selection::IncidentFilter};
use crate::{
    api::{ControlRequest, RefusalKind, Reply, Request},
    storage::{evidence, incident::IncidentsView, incidents::IncidentStore},
    vm::WatchedVm,
};
use flatline_detector::recording::Recording;
use flatline_qemu::text::error_chain;

impl EventLoop {
    /// Answers a client's request.
    pub(super) fn on_request(&mut self, request: ControlRequest) {
        let ControlRequest { request, reply } = request;
        match request {
            Request::Status => self.answer_status(reply),
            Request::Show { vm } => answer(reply, self.show(&vm)),
            Request::Lines { vm } => {
                let only = match vm.map(|vm| self.registry.select(&vm)).transpose() {
                    Ok(only) => only,
                    Err(refusal) => return answer(reply, refusal),
                };
                self.complete_history(self.registry.chosen(only));
                let history = self.publisher.history.clone();
                // The text of 1,000 VMs takes longer than a tick has.
                self.answer_from_thread(reply, move || Reply::ok(&history.view(only)));
            }
            Request::Evidence { id, file, offset } => {
                let state_dir = self.config.paths.state_dir.clone();
                self.answer_from_thread(reply, move || {
                    match evidence::read(&state_dir, &id, &file, offset) {
                        Ok(view) => Reply::ok(&view),
                        Err(error @ evidence::ReadError::Nothing { .. }) => {
                            Reply::error(RefusalKind::Nothing, error.to_string())
                        }
                        Err(error) => Reply::error(RefusalKind::Internal, error_chain(&error)),
                    }
                });
            }
            Request::Hold { vm, seconds } => self.hold(vm.as_deref(), seconds, reply),
            Request::Release { vm } => self.release(vm.as_deref(), reply),
            Request::Record { vm } => self.record(vm.as_deref(), reply),
            Request::Incidents { vm } => {
                let wanted = vm.map(|vm| self.registry.incidents_of(&vm));
                let store = self.publisher.store.clone();
                self.answer_from_thread(reply, move || {
                    Reply::ok(&incidents(&store, wanted.as_ref()))
                });
            }
        }
    }

    /// Within a tick: answers a client that asks for a status, if it is its turn.
    pub(super) fn answer_in_turn(&self, clients: &mut Clients) {
        if let Some(reply) = clients.status_in_turn() {
            self.answer_status(reply);
        }
    }

    fn answer_status(&self, reply: oneshot::Sender<Reply>) {
        let status = self.status();
        self.answer_from_thread(reply, move || Reply::ok(&status.view()));
    }

    /// Answers a client on a thread that may wait.
    fn answer_from_thread(
        &self,
        reply: oneshot::Sender<Reply>,
        make: impl FnOnce() -> Reply + Send + 'static,
    ) {
        self.publisher.clients.spawn_blocking(move || answer(reply, make()));
    }

    fn show(&mut self, vm: &str) -> Reply {
        let id = match self.registry.select(vm) {
            Ok(id) => id,
            Err(refusal) => return refusal,
        };
        self.wake(id);
        self.complete_history([id]);
        match self.registry.find(vm) {
            Ok(watched) => {
                let recent = self.publisher.history.recent(watched.vm.id);
                let recorder = &watched.detector.recorder;
                let history = recorder.history(self.now(), recent.as_ref());
                Reply::ok(&self.views().show(watched, history))
            }
            Err(refusal) => refusal,
        }
    }

    /// Has recordings of a VM, or of all, written to files, and answers with their names.
    fn record(&mut self, vm: Option<&str>, reply: oneshot::Sender<Reply>) {
        let only = match vm.map(|vm| self.registry.select(vm)).transpose() {
            Ok(only) => only,
            Err(refusal) => return answer(reply, refusal),
        };
        self.wake_chosen(only);
        let is_chosen = |watched: &&WatchedVm| only.is_none_or(|only| watched.vm.id == only);
        let chosen: Vec<&WatchedVm> = self.registry.vms.values().filter(is_chosen).collect();
        let recording = |watched: &&WatchedVm| {
            Some((watched.vm.origin.uid, watched.detector.recorder.recording()?))
        };
        let recordings: Vec<(u32, Recording)> = chosen.iter().filter_map(recording).collect();
        if recordings.is_empty() && !chosen.is_empty() {
            let why = "nothing is recorded yet, or recorder.keep is 0s";
            return answer(reply, Reply::error(RefusalKind::Nothing, why));
        }
        self.disk.archive.save(recordings, reply);
    }
}

/// The incidents in `store`: all, or those that are wanted.
fn incidents(store: &IncidentStore, wanted: Option<&IncidentFilter>) -> IncidentsView {
    let (mut incidents, complaints) = store.all();
    if let Some(wanted) = wanted {
        incidents.retain(|incident| wanted.has(incident));
    }
    IncidentsView { incidents, complaints }
}

/// Answers a client, which may have gone.
pub(super) fn answer(reply: oneshot::Sender<Reply>, answer: Reply) {
    let _ = reply.send(answer);
}
