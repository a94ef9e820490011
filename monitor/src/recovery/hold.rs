//! Holds: VMs that are left alone on a person's word, which counts from when it is given and is to be safe on disk.

use std::time::SystemTime;

use tokio::sync::oneshot;

use super::{Stage, Supervisor};
use crate::{
    identity::Key,
    storage::{
        incident::Outcome,
        ledger::{Hold, HoldScope},
    },
    vm::{Context, WatchedVm},
};
use flatline_detector::verdict::{Input, State};

/// Tells once whether a page of the ledger is safe on disk, or why it isn't.
type Safe = oneshot::Receiver<Result<(), String>>;

impl Supervisor {
    /// Why the VM is to be left alone, if it is.
    pub(crate) fn held(&self, key: &Key, now: SystemTime) -> Option<String> {
        self.ledger.held(key, now)
    }

    /// Leaves a VM alone, or all.
    pub(crate) fn hold(&mut self, scope: HoldScope<'_>, hold: Hold) {
        self.ledger.hold(scope, hold);
    }

    /// Takes a hold of all VMs back.
    pub(crate) fn release_all(&mut self, context: &Context<'_>) {
        self.ledger.release(HoldScope::All, context.wall);
    }

    /// Takes a hold back, and gives a VM a new start.
    pub(crate) fn release(&mut self, watched: &mut WatchedVm, context: &Context<'_>) {
        self.ledger.release(HoldScope::Vm(&watched.key), context.wall);
        let undone =
            matches!(watched.detector.watch.state, State::Crashed { .. } | State::Failed { .. });
        if let Some(case) = watched.recovery.case.as_mut().filter(|_| undone)
            && (matches!(case.stage, Stage::Pausing { .. } | Stage::AwaitingPlace)
                || case.incident.outcome.is_some_and(|outcome| outcome != Outcome::Recovered))
        {
            // Judged anew, it is of the same crash.
            case.stage = Stage::Reopened;
            case.since = context.now;
        }
        if !watched.recovery.is_restarting() {
            watched.step(&Input::Released, context.now);
        }
    }

    /// Has the ledger written down.
    ///
    /// # Errors
    /// Why the one on disk must not be replaced.
    pub(crate) fn write_ledger(&mut self, now: SystemTime) -> Result<Safe, String> {
        let Some(page) = self.ledger.page(now) else {
            return Err(self.ledger.complaint().unwrap_or_default().to_owned());
        };
        let (done, written) = oneshot::channel();
        self.writer.write_ledger(page, Some(done));
        Ok(written)
    }

    /// A guest crashed that is on hold: that is written down, and nothing else is done.
    pub(super) fn leave_on_hold(&mut self, watched: &mut WatchedVm, why: &str) {
        self.close(watched, Outcome::Observed, Some(&format!("nothing is touched: {why}")));
        if let Some(case) = &mut watched.recovery.case {
            case.stage = Stage::OnHold;
        }
    }

    /// Judges a guest anew that crashed while it was on hold, if it no longer is.
    pub(super) fn end_hold(&self, watched: &mut WatchedVm, context: &Context<'_>) {
        if self.ledger.held(&watched.key, context.wall).is_some() {
            return;
        }
        if let Some(case) = &mut watched.recovery.case {
            case.stage = Stage::Reopened;
            case.since = context.now;
        }
        let why = "it may be restarted now".to_owned();
        watched.step(&Input::MayBeTouched(why), context.now);
    }

    /// From now on it is restarted where it was only observed: a guest that is dead still is judged anew, as after a hold.
    pub(crate) fn may_be_touched(&self, watched: &mut WatchedVm) {
        let is_crashed = watched.is_crashed();
        if let Some(case) = &mut watched.recovery.case
            && case.incident.outcome == Some(Outcome::Observed)
            && is_crashed
        {
            case.stage = Stage::OnHold;
        }
    }
}
