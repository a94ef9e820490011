//! Guests that their owner has locked: a backup, a migration or a rollback of it is under way. They are left alone until that
//! is over, and then judged anew, since what looked like a crash may have been its effect.

use std::time::Duration;

use tracing::info;

use super::{Stage, Supervisor};
use crate::{
    storage::incident::Outcome,
    vm::{Context, WatchedVm},
};
use flatline_detector::verdict::Input;

/// From one look at a lock to the next. A look is one read of a file that its owner has in memory.
pub(super) const LOOKED_AT_EVERY: Duration = Duration::from_secs(10);

impl Supervisor {
    /// A restart found the guest locked, and touched nothing: it is told once, and looked at again.
    pub(super) fn leave_locked(
        &mut self,
        watched: &mut WatchedVm,
        why: String,
        context: &Context<'_>,
    ) {
        // It was none.
        watched.recovery.restarts = watched.recovery.restarts.saturating_sub(1);
        let Some(case) = &mut watched.recovery.case else { return };
        let until = context.now + LOOKED_AT_EVERY;
        let told = format!("not restarted: {why}");
        if case.locked.as_ref() == Some(&why) {
            case.stage = Stage::Pausing { until };
            case.incident.outcome = Some(Outcome::Refused);
            case.incident.reason = format!("{}; {told}", case.grounds);
            return;
        }
        info!(vm = watched.vm.name, incident = case.incident.id, "{told}");
        case.locked = Some(why);
        self.refuse(watched, &told, Stage::Pausing { until });
    }

    /// It is locked no more, and was not touched: what it was convicted of is judged anew.
    pub(super) fn end_lock(&mut self, watched: &mut WatchedVm, context: &Context<'_>) {
        watched.recovery.restarts = watched.recovery.restarts.saturating_sub(1);
        let Some(case) = &mut watched.recovery.case else { return };
        info!(vm = watched.vm.name, incident = case.incident.id, "its owner has unlocked it");
        case.locked = None;
        case.stage = Stage::Reopened;
        case.since = context.now;
        watched.step(&Input::MayBeTouched("its owner has unlocked it".to_owned()), context.now);
    }
}
