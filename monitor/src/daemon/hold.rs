//! Requests to hold and release VMs: answered when that is safe on disk.

use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;
use tracing::info;

use super::{event_loop::EventLoop, requests::answer};
use crate::{
    api::{RefusalKind, Reply, view::HoldView},
    storage::ledger::{Hold, HoldScope},
    vm::{Context, WatchedVm},
};

impl EventLoop {
    /// Leaves a VM alone, or all where none is named, for `seconds` or until it is released.
    pub(super) fn hold(
        &mut self,
        vm: Option<&str>,
        seconds: Option<u64>,
        reply: oneshot::Sender<Reply>,
    ) {
        let only = match vm.map(|vm| self.registry.find(vm)).transpose() {
            Ok(only) => only,
            Err(refusal) => return answer(reply, refusal),
        };
        let since = SystemTime::now();
        let until = seconds.and_then(|seconds| since.checked_add(Duration::from_secs(seconds)));
        if seconds.is_some() && until.is_none() {
            let why = "no clock goes as far as that";
            return answer(reply, Reply::error(RefusalKind::BadRequest, why));
        }
        let scope = only.map_or(HoldScope::All, |watched| HoldScope::Vm(&watched.key));
        self.recovery.hold(scope, Hold { since, until });
        let name = name(only);
        info!(?until, "on hold: {name}");
        self.answer_when_safe(HoldView { vms: vec![name], until }, reply);
    }

    /// Takes a hold back, and gives a new start: of a VM, or of all where none is named.
    pub(super) fn release(&mut self, vm: Option<&str>, reply: oneshot::Sender<Reply>) {
        let (only, name) = match vm.map(|vm| self.registry.find(vm)).transpose() {
            Ok(only) => (only.map(|watched| watched.vm.id), name(only)),
            Err(refusal) => return answer(reply, refusal),
        };
        self.wake_chosen(only);
        let context = Context::at(&self.config, self.clock.now());
        if only.is_none() {
            self.recovery.release_all(&context);
        }
        for (id, watched) in self.registry.vms.iter_mut() {
            if only.is_none_or(|only| only == *id) {
                self.recovery.release(watched, &context);
            }
        }
        info!("released: {name}");
        self.answer_when_safe(HoldView { vms: vec![name], until: None }, reply);
    }

    fn answer_when_safe(&mut self, view: HoldView, reply: oneshot::Sender<Reply>) {
        let written = match self.recovery.write_ledger(SystemTime::now()) {
            Ok(written) => written,
            Err(why) => return answer(reply, Reply::error(RefusalKind::Internal, why)),
        };
        tokio::spawn(async move {
            let view = match written.await {
                Ok(Ok(())) => Reply::ok(&view),
                Ok(Err(why)) => {
                    let why = format!("in force until the daemon ends, as it can't be kept: {why}");
                    Reply::error(RefusalKind::Internal, why)
                }
                Err(_) => Reply::error(RefusalKind::Internal, "the daemon ends"),
            };
            answer(reply, view);
        });
    }
}

fn name(only: Option<&WatchedVm>) -> String {
    only.map_or("all VMs of this host".to_owned(), |watched| watched.vm.name.clone())
}
