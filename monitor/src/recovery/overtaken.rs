//! Resets that come while one is being prepared: an operator's, the owner's own (libvirt by `<on_crash>`), or the guest's.
//!
//! One crash gets one restart, whichever makes it. The daemon's loop hears of a reset, and the task that prepares the restart
//! looks before its first step whether there was one; then it takes none, and the guest has its boot to show life in.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use tracing::info;

use super::{Effect, RestartError, Stage, Stand, Supervisor};
use crate::{
    storage::incident::Attempt,
    vm::{Context, WatchedVm},
};
use flatline_detector::verdict::Input;
use flatline_samples::QmpEvent;

const NONE: u8 = 0;
const BY_GUEST: u8 = 1;
const FROM_OUTSIDE: u8 = 2;

/// The first reset of a guest since its restart began to be prepared: shared by the loop and the task.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overtaken(Arc<AtomicU8>);

impl Overtaken {
    /// Takes note of a reset, which the guest made itself or not.
    pub(crate) fn note(&self, by_guest: bool) {
        let by = if by_guest { BY_GUEST } else { FROM_OUTSIDE };
        // One is enough, and nothing else is published by it.
        let _ = self.0.compare_exchange(NONE, by, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Whether there was one; if so, whether the guest made it itself.
    pub(crate) fn by_guest(&self) -> Option<bool> {
        match self.0.load(Ordering::Relaxed) {
            NONE => None,
            by => Some(by == BY_GUEST),
        }
    }

    /// That there was none.
    ///
    /// # Errors
    /// [`RestartError::Overtaken`] if there was.
    pub(super) fn none_yet(&self) -> Result<(), RestartError> {
        match self.by_guest() {
            None => Ok(()),
            Some(_) => Err(RestartError::Overtaken { kept: Box::default() }),
        }
    }
}

impl Supervisor {
    /// A restart that touched nothing ended, and its guest had been reset before: that is its restart. Returns whether it was so.
    pub(super) fn was_overtaken(
        &mut self,
        watched: &mut WatchedVm,
        attempts: &[Attempt],
        error: &mut RestartError,
        context: &Context<'_>,
    ) -> bool {
        let Some(by_guest) = watched.recovery.overtaken.by_guest() else { return false };
        if error.stand() != Stand::Untouched {
            return false;
        }
        let Some(case) = &mut watched.recovery.case else { return false };
        let kept = error.take_kept();
        case.incident.attempts = attempts.to_vec();
        // QEMU never heard of it, so that it counts towards no limit.
        case.incident.attempts.pop_if(|last| last.reset_at.is_none());
        self.store.note_restarts(&case.incident);
        case.incident.was_up = kept.was_up.unwrap_or(case.incident.was_up);
        case.incident.name_evidence(&kept.files);
        case.stage = if by_guest { Stage::ResetItself } else { Stage::ResetByAnother };
        let incident = &case.incident.id;
        info!(vm = watched.vm.name, incident, by_guest, "not restarted: it was reset meanwhile");
        self.write_case(watched, kept.files);
        watched.link.forget_run_state();
        // The detector, which is told of no event while a restart is prepared, takes it in now.
        let event = QmpEvent::Reset { guest: by_guest };
        let input = Input::Event { monitor: watched.link.monitor(), event };
        let act = watched.step(&input, context.now);
        let id = watched.vm.id;
        self.effects.extend([Effect::AskRunState(id), Effect::ForgetBoot(id)]);
        self.act(watched, &act, context);
        self.put_back_later(watched, watched.vm.reboot_action);
        true
    }
}
