//! Requests of clients: each is answered from what the loop knows, or handed to a thread that may wait.

use tokio::task::spawn_blocking;

use super::event_loop::EventLoop;
use crate::{
    api::{ControlRequest, Reply, Request},
    storage::incident::IncidentsView,
};

impl EventLoop {
    /// Answers a client's request.
    pub(super) fn on_request(&mut self, request: ControlRequest) {
        let reply = match request.request {
            Request::Status => {
                let status = self.status();
                // To put 1,000 VMs as JSON takes as long as a tick does.
                spawn_blocking(move || {
                    // The client may have gone, here and below.
                    let _ = request.reply.send(Reply::ok(&status));
                });
                return;
            }
            Request::Show { vm } => match self.registry.find(&vm) {
                Ok(watched) => Reply::ok(&self.show(watched, self.history(watched))),
                Err(reply) => reply,
            },
            Request::Lines { vm } => {
                if let Some(Err(reply)) = vm.as_deref().map(|vm| self.registry.find(vm)) {
                    let _ = request.reply.send(reply);
                    return;
                }
                let lines = self.publisher.history.clone();
                // The text of 1,000 VMs takes longer than a tick has.
                spawn_blocking(move || {
                    let _ = request.reply.send(Reply::ok(&lines.view(vm.as_deref())));
                });
                return;
            }
            Request::Evidence { id, file, offset } => {
                return self.evidence(id, file, offset, request.reply);
            }
            Request::Hold { vm, seconds } => {
                return self.hold(vm.as_deref(), seconds, request.reply);
            }
            Request::Release { vm } => return self.release(vm.as_deref(), request.reply),
            Request::Record { vm } => return self.record(vm.as_deref(), request.reply),
            Request::Incidents { vm } => {
                // A VM that is gone keeps its incidents, so that its name need not be found here.
                let names = vm.map(|wanted| match self.registry.find(&wanted) {
                    Ok(found) => (found.vm.name.clone(), found.vm.uuid.clone()),
                    Err(_) => (wanted.clone(), Some(wanted)),
                });
                let store = self.publisher.store.clone();
                spawn_blocking(move || {
                    let (mut incidents, complaints) = store.all();
                    if let Some((name, uuid)) = names {
                        incidents.retain(|incident| {
                            incident.vm == name || uuid.is_some() && incident.uuid == uuid
                        });
                    }
                    let _ = request.reply.send(Reply::ok(&IncidentsView { incidents, complaints }));
                });
                return;
            }
        };
        let _ = request.reply.send(reply);
    }
}
