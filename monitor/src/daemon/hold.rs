//! `hold` and `release`: who is left alone on a person's word. Answered when the word is safe on disk.

use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;
use tracing::info;

use super::engine::Engine;
use crate::{
    api::{RefusalKind, Reply, view::HoldView},
    recovery::Stage,
    storage::{
        incident::Outcome,
        ledger::{Hold, Whom},
    },
};
use flatline_detector::verdict::{Input, State};
use flatline_qemu::discover::VmId;

impl Engine {
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
            None => self.ledger.hold(Whom::All, hold),
            Some(_) => {
                chosen.iter().for_each(|(_, key, _)| self.ledger.hold(Whom::Vm(key), hold));
            }
        }
        let names = self.names(vm, chosen);
        info!(?until, "on hold: {}", names.join(", "));
        self.answer_when_safe(HoldView { vms: names, until }, reply);
    }

    /// Takes a hold back, and gives a new start: of a VM, or of all where none is named.
    pub(super) fn release(&mut self, vm: Option<&str>, reply: oneshot::Sender<Reply>) {
        let chosen = match self.chosen(vm) {
            Ok(chosen) => chosen,
            Err(refusal) => return drop(reply.send(refusal)),
        };
        let (now, wall_clock) = (self.now(), SystemTime::now());
        if vm.is_none() {
            self.ledger.release(Whom::All, wall_clock);
        }
        for (id, key, _) in &chosen {
            self.ledger.release(Whom::Vm(key), wall_clock);
            let Some(watched) = self.vms.get_mut(id) else { continue };
            let undone = matches!(
                watched.detector.watch.state,
                State::Crashed { .. } | State::Failed { .. }
            );
            if let Some(case) = watched.recovery.case.as_mut().filter(|_| undone)
                && (matches!(case.stage, Stage::Pausing { .. })
                    || case.incident.outcome.is_some_and(|outcome| outcome != Outcome::Recovered))
            {
                // Judged anew, it is of the same crash.
                case.stage = Stage::Reopened;
                case.since = now;
            }
            if !watched.recovery.is_restarting() {
                watched.step(&Input::Released, now);
            }
        }
        let names = self.names(vm, chosen);
        info!("released: {}", names.join(", "));
        self.answer_when_safe(HoldView { vms: names, until: None }, reply);
    }

    /// A guest crashed that is on hold: that is written down, and nothing else is done.
    pub(super) fn leave_on_hold(&mut self, id: VmId, why: &str) {
        self.close(id, Outcome::Observed, Some(&format!("nothing is touched: {why}")));
        if let Some(case) = self.vms.get_mut(&id).and_then(|watched| watched.recovery.case.as_mut())
        {
            case.stage = Stage::OnHold;
        }
    }

    /// Judges a guest anew that crashed while it was on hold, if it no longer is.
    pub(super) fn end_of_hold(&mut self, id: VmId) {
        let now = self.now();
        let Some(watched) = self.vms.get_mut(&id) else { return };
        if self.ledger.held(watched.key(), SystemTime::now()).is_some() {
            return;
        }
        if let Some(case) = &mut watched.recovery.case {
            case.stage = Stage::Reopened;
            case.since = now;
        }
        let why = "it may be restarted now".to_owned();
        watched.step(&Input::MayBeTouched(why), now);
    }

    fn chosen(&self, vm: Option<&str>) -> Result<Vec<(VmId, String, String)>, Reply> {
        let of = |watched: &crate::vm::WatchedVm| {
            (watched.vm.id, watched.key().to_owned(), watched.vm.name.clone())
        };
        match vm {
            Some(vm) => Ok(vec![of(self.find(vm)?)]),
            None => Ok(self.vms.values().map(of).collect()),
        }
    }

    fn names(&self, vm: Option<&str>, chosen: Vec<(VmId, String, String)>) -> Vec<String> {
        match vm {
            None => vec!["all VMs of this host".to_owned()],
            Some(_) => chosen.into_iter().map(|(_, _, name)| name).collect(),
        }
    }

    fn answer_when_safe(&mut self, view: HoldView, reply: oneshot::Sender<Reply>) {
        let Some(page) = self.ledger.page(SystemTime::now()) else {
            let why = self.ledger.complaint().unwrap_or_default();
            return drop(reply.send(Reply::error(RefusalKind::Internal, why)));
        };
        let (done, written) = oneshot::channel();
        self.writer.write_ledger(page, Some(done));
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
