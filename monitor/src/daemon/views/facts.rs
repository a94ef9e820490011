//! Facts of one VM: what the loop copies of it, so that what is told of 1,000 VMs is made beside the loop. A text of them all
//! takes longer than a tick has.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::Views;
use crate::vm::{MemoryTold, Sight, WatchedVm};
use flatline_detector::{
    policy::Mode,
    verdict::{Cause, State},
};
use flatline_qemu::discover::{Vm, VmId};
use flatline_samples::RunState;

/// See the module.
#[derive(Debug)]
pub(in crate::daemon) struct VmFacts {
    pub(super) vm: Arc<Vm>,
    pub(super) mode: Mode,
    pub(super) run_state: Option<RunState>,
    pub(super) state: &'static str,
    pub(super) cause: Option<Cause>,
    pub(super) reason: String,
    /// When it entered that state.
    pub(super) since: SystemTime,
    /// Time since the last sign of life, where that is known.
    pub(super) flat: Option<Duration>,
    /// Why it is to be left alone, if it is.
    pub(super) hold: Option<String>,
    /// Restarts that this daemon began.
    pub(super) restarts: u64,
    /// Restarts that count towards its limit.
    pub(super) restarts_in_window: usize,
    /// Resets of the guest's own that count towards that of a boot loop.
    pub(super) guest_resets_in_window: usize,
    pub(super) memory: MemoryTold,
    /// It has a row that it is counted in.
    pub(super) is_counted: bool,
    pub(super) sight: Sight,
}

impl Views<'_> {
    /// What is copied of a VM.
    pub(in crate::daemon) fn facts(&self, watched: &WatchedVm) -> VmFacts {
        let (state, cause, reason) = watched.detector.watch.shown_state();
        let restarts = self.recovery.restarts_in_window(watched, self.context.wall);
        VmFacts {
            vm: watched.vm.clone(),
            mode: watched.detector.detection.policy.mode,
            run_state: watched.link.run_state.clone(),
            state,
            cause,
            reason: reason.to_owned(),
            since: self.context.wall_clock(watched.detector.watch.since),
            flat: self.flat(watched),
            hold: self.recovery.held(&watched.key, self.context.wall),
            restarts: watched.recovery.restarts,
            restarts_in_window: restarts.len(),
            guest_resets_in_window: self.guest_resets_in_window(watched),
            memory: watched.memory.told().clone(),
            is_counted: watched.sensors.slot.is_ok(),
            sight: watched.sight(),
        }
    }

    /// What is copied of all VMs.
    pub(in crate::daemon) fn all_facts(&self) -> Vec<VmFacts> {
        self.registry.vms.values().map(|watched| self.facts(watched)).collect()
    }

    /// What is copied of those with these pids.
    pub(in crate::daemon) fn facts_of(&self, pids: impl Iterator<Item = u32>) -> Vec<VmFacts> {
        let vms = pids.flat_map(|pid| self.registry.vms.tree().range(VmId::of_pid(pid)));
        vms.map(|(_, watched)| self.facts(watched)).collect()
    }

    /// Time since the last sign of life; `None` where that can't be told.
    fn flat(&self, watched: &WatchedVm) -> Option<Duration> {
        let is_seen = watched.detector.watch.state != State::Unobservable;
        is_seen.then(|| watched.silence(self.context.now))
    }

    /// How often the guest was reset by itself within `boot_loop_window`; a burst counts once.
    fn guest_resets_in_window(&self, watched: &WatchedVm) -> usize {
        let (now, window) = (self.context.now, watched.detector.detection.policy.boot_loop_window);
        watched.detector.watch.resets.iter().filter(|at| now.saturating_sub(**at) < window).count()
    }
}
