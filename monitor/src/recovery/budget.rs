//! Budgets: which restarts of a VM count towards its limit, and whether another one may be begun. What the host allows is
//! shared out in `places`.

use std::time::SystemTime;

use tracing::info;

use super::{Circumstances, Clearance, Supervisor, clearance};
use crate::{
    identity::Key,
    vm::{Context, WatchedVm},
};
use flatline_detector::policy::Policy;

impl Supervisor {
    /// Whether a VM may be restarted now, as far as that is its own matter.
    pub(super) fn clearance(&self, watched: &WatchedVm, context: &Context<'_>) -> Clearance {
        self.clearance_for(&watched.key, &watched.detector.detection.policy, context)
    }

    /// The same of a VM whose restarts are counted under `key`.
    pub(super) fn clearance_for(
        &self,
        key: &Key,
        policy: &Policy,
        context: &Context<'_>,
    ) -> Clearance {
        let now = context.wall;
        let held = self.ledger.held(key, now);
        clearance(&Circumstances {
            policy,
            held: held.as_deref(),
            restarts: &self.restarts_of(key, policy, now),
            now,
        })
    }

    /// When the VM was restarted, or its guest reset itself, as far as that counts towards its limit now.
    pub(crate) fn restarts_in_window(
        &self,
        watched: &WatchedVm,
        now: SystemTime,
    ) -> Vec<SystemTime> {
        self.restarts_of(&watched.key, &watched.detector.detection.policy, now)
    }

    fn restarts_of(&self, key: &Key, policy: &Policy, now: SystemTime) -> Vec<SystemTime> {
        let window = now.checked_sub(policy.window);
        let since = self.ledger.counts_from(key);
        let since = since.max(window.unwrap_or(SystemTime::UNIX_EPOCH));
        let mut times = self.store.restarts_since(Some(key), since);
        times.extend(self.ledger.resets_since(key, since));
        times.sort_unstable();
        times
    }

    /// Several QEMUs of one user claim to be this VM: from now on its restarts are counted by process, also those for what it
    /// crashed of last.
    pub(crate) fn count_by_process(&self, watched: &mut WatchedVm) {
        let id = watched.vm.id;
        let process = *watched.key.process.get_or_insert_with(|| id.into());
        if let Some(case) = &mut watched.recovery.case {
            case.incident.counted_for.get_or_insert(process);
            self.store.note_restarts(&case.incident);
        }
    }

    /// The guest reset itself, which counts towards its limit like a restart, and outlives this daemon.
    pub(super) fn guest_reset(
        &mut self,
        watched: &mut WatchedVm,
        times: usize,
        context: &Context<'_>,
    ) {
        self.own_dump_ended(watched);
        info!(vm = watched.vm.name, times, "the guest reset itself");
        self.ledger.note_reset(&watched.key, context.wall);
        if let Some(page) = self.ledger.page(context.wall) {
            self.writer.write_ledger(page, None);
        }
    }
}
