//! `hold` and `release`: answered when the word is safe on disk.

use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;
use tracing::info;

use super::event_loop::EventLoop;
use crate::{
    api::{RefusalKind, Reply, view::HoldView},
    storage::ledger::{Hold, Whom},
    vm::{Context, WatchedVm},
};
use flatline_qemu::discover::VmId;

impl EventLoop {
    /// Leaves a VM alone, or all where none is named, for `seconds` or until it is released.
    pub(super) fn hold(
        &mut self,
        vm: Option<&str>,
        seconds: Option<u64>,
        reply: oneshot::Sender<Reply>,
    ) {
        let chosen = match self.chosen(vm) {
            Ok(chosen) => chosen,
            Err(refusal) => return drop(reply.send(refusal)),
        };
        let since = SystemTime::now();
        let until = seconds.and_then(|seconds| since.checked_add(Duration::from_secs(seconds)));
        if seconds.is_some() && until.is_none() {
            let why = "no clock goes as far as that";
            return drop(reply.send(Reply::error(RefusalKind::BadRequest, why)));
        }
        let hold = Hold { since, until };
        match vm {
            None => self.recovery.hold(Whom::All, hold),
            Some(_) => {
                chosen.iter().for_each(|(_, key, _)| self.recovery.hold(Whom::Vm(key), hold))
            }
        }
        let names = names(vm, chosen);
        info!(?until, "on hold: {}", names.join(", "));
        self.answer_when_safe(HoldView { vms: names, until }, reply);
    }

    /// Takes a hold back, and gives a new start: of a VM, or of all where none is named.
    pub(super) fn release(&mut self, vm: Option<&str>, reply: oneshot::Sender<Reply>) {
        let chosen = match self.chosen(vm) {
            Ok(chosen) => chosen,
            Err(refusal) => return drop(reply.send(refusal)),
        };
        let now = self.now();
        let context = Context::at(&self.config, now);
        if vm.is_none() {
            self.recovery.release_all(&context);
        }
        for (id, _, _) in &chosen {
            if let Some(watched) = self.registry.vms.get_mut(id) {
                self.recovery.release(watched, &context);
            }
        }
        let names = names(vm, chosen);
        info!("released: {}", names.join(", "));
        self.answer_when_safe(HoldView { vms: names, until: None }, reply);
    }

    fn chosen(&self, vm: Option<&str>) -> Result<Vec<(VmId, String, String)>, Reply> {
        let of = |watched: &WatchedVm| {
            (watched.vm.id, watched.key().to_owned(), watched.vm.name.clone())
        };
        match vm {
            Some(vm) => Ok(vec![of(self.registry.find(vm)?)]),
            None => Ok(self.registry.vms.values().map(of).collect()),
        }
    }

    fn answer_when_safe(&mut self, view: HoldView, reply: oneshot::Sender<Reply>) {
        let written = match self.recovery.write_ledger(SystemTime::now()) {
            Ok(written) => written,
            Err(why) => return drop(reply.send(Reply::error(RefusalKind::Internal, why))),
        };
        tokio::spawn(async move {
            let answer = match written.await {
                Ok(Ok(())) => Reply::ok(&view),
                Ok(Err(why)) => {
                    let why = format!("in force until the daemon ends, as it can't be kept: {why}");
                    Reply::error(RefusalKind::Internal, why)
                }
                Err(_) => Reply::error(RefusalKind::Internal, "the daemon ends"),
            };
            // The client may have gone.
            let _ = reply.send(answer);
        });
    }
}

fn names(vm: Option<&str>, chosen: Vec<(VmId, String, String)>) -> Vec<String> {
    match vm {
        None => vec!["all VMs of this host".to_owned()],
        Some(_) => chosen.into_iter().map(|(_, _, name)| name).collect(),
    }
}
