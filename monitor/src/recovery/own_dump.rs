//! A guest that saves a dump of its own: its crash is an incident from the beginning, though no restart is begun.
//!
//! It is left to its crash kernel for as long as the verdict holds it. If that ends with a reset of the guest's own, it has
//! recovered by itself, and no restart is charged for it; else it is convicted, and restarted for the same incident.

use tracing::info;

use super::{Case, EventKind, Stage, Supervisor};
use crate::{
    storage::incident::{Incident, Outcome},
    vm::{Context, WatchedVm},
};
use flatline_detector::verdict::Cause;

impl Supervisor {
    /// Writes down that a guest panicked which is left to its crash kernel.
    pub(super) fn leave_to_its_dump(&mut self, watched: &mut WatchedVm, context: &Context<'_>) {
        let has_case = watched.recovery.is_restarting()
            || watched.recovery.case.as_ref().is_some_and(|case| case.stage.is_open());
        let watch = &watched.detector.watch;
        let Some(reason) = watch.saves_own_dump().filter(|_| !has_case) else { return };
        let silent = watch.silence.since_life(context.now);
        let incident = self.new_incident(watched, Cause::Panicked, reason.to_owned(), context);
        let incident = Incident { detect_seconds: Some(silent.as_secs_f64()), ..incident };
        info!(vm = watched.vm.name, incident = incident.id, "{}", incident.reason);
        self.writer.events.emit(EventKind::Detected, &incident);
        self.writer.record(&incident);
        let case = Case::new(incident, Stage::WaitingForDump, context.now);
        watched.recovery.case = Some(Box::new(case));
    }

    /// The guest reset itself: if it saved its dump until then, that was the end of it.
    pub(super) fn own_dump_ended(&self, watched: &mut WatchedVm) {
        if let Some(case) = &mut watched.recovery.case
            && case.stage == Stage::WaitingForDump
        {
            case.stage = Stage::ResetItself;
        }
    }

    /// A guest that reset itself, after its dump or before it was restarted, or that another reset, shows life.
    pub(super) fn recovered_by_itself(&mut self, watched: &mut WatchedVm, context: &Context<'_>) {
        let Some(case) = &mut watched.recovery.case else { return };
        case.incident.recovered_at = Some(context.wall);
        let why = match case.stage {
            Stage::ResetByAnother => "another reset it before flatline did",
            _ => "after that it reset itself",
        };
        self.close(watched, Outcome::Recovered, Some(why));
    }
}
