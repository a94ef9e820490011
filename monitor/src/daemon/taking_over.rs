//! Taking over: what an earlier daemon knew of VMs is believed of those that live still, so that they are read at once.
//!
//! Their counters went on meanwhile. What may have changed (what they have open, and whether the programs are on their taps) is
//! looked at right after the first reading, and none of them is judged before: it could be silent for want of programs.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};
use tracing::{debug, info};

use super::{
    event_loop::EventLoop,
    hotplug::counted,
    watchers::{self, Look},
};
use crate::{bpf::AttachReport, identity::Key, storage::remembered::Remembered, vm::Vms};
use flatline_qemu::discover::{Scope, Vm, VmId};

/// What changes is written down after so long, together with what else changes meanwhile.
const WRITTEN_AFTER: Duration = Duration::from_secs(2);

/// A daemon that starts waits so long for what is remembered.
const RECALLED_WITHIN: Duration = Duration::from_secs(1);

/// What is remembered of VMs beyond this daemon, and what was recalled of an earlier one's.
#[derive(Debug, Default)]
pub(super) struct TakingOver {
    remembered: Option<Remembered>,
    /// Since when something is to be written down.
    changed: Option<Duration>,
    writing: Option<JoinHandle<()>>,
    /// Recalled VMs that were not looked at yet. They are not judged.
    pub(super) unseen: HashSet<VmId>,
    /// The first sweep waits until those were read.
    is_to_sweep: bool,
}

/// Reads what is remembered, beside what else the daemon does to start.
pub(super) fn begin(
    remembered: Option<Remembered>,
    scope: Scope,
) -> (Option<Remembered>, JoinHandle<Vec<Vm>>) {
    let reader = remembered.clone();
    (remembered, spawn_blocking(move || reader.map_or_else(Vec::new, |it| it.recall(&scope))))
}

/// Those that were recalled; none where that takes long, as on a disk that hangs: a sweep finds them.
pub(super) async fn within(recalled: JoinHandle<Vec<Vm>>) -> Vec<Vm> {
    timeout(RECALLED_WITHIN, recalled).await.map_or_else(|_| Vec::new(), Result::unwrap_or_default)
}

impl TakingOver {
    pub(super) fn new(remembered: Option<Remembered>) -> Self {
        Self { remembered, ..Self::default() }
    }

    /// Something is known of VMs that was not, or no longer.
    pub(super) fn has_changed(&mut self, now: Duration) {
        self.changed.get_or_insert(now);
    }

    /// Takes note of where a VM is counted.
    pub(super) fn attached(&mut self, report: &AttachReport) {
        // Before the looks, it is where it was when the earlier daemon ended.
        if !report.is_assumed && !self.is_to_sweep {
            self.unseen.remove(&report.vm);
        }
    }

    /// Has it written down, if that is due.
    pub(super) fn write_in_turn(&mut self, vms: &Vms, now: Duration) {
        let is_due = self.changed.is_some_and(|since| now.saturating_sub(since) >= WRITTEN_AFTER);
        let is_writing = self.writing.as_ref().is_some_and(|writing| !writing.is_finished());
        let Some(remembered) = self.remembered.clone().filter(|_| is_due && !is_writing) else {
            return;
        };
        self.changed = None;
        let vms: Vec<Arc<Vm>> = vms.values().map(|watched| watched.vm.clone()).collect();
        self.writing = Some(spawn_blocking(move || {
            if let Err(error) = remembered.write(&vms) {
                debug!("what is known of VMs is not remembered: {error}");
            }
        }));
    }
}

impl EventLoop {
    /// Takes up those that an earlier daemon knew, or has all processes looked through where it left none. Returns whether
    /// there are some.
    pub(super) fn take_over(&mut self, recalled: Vec<Vm>) -> bool {
        if recalled.is_empty() || !self.sampler.probes.takes_over() {
            self.sweep();
            return false;
        }
        info!("{} VMs are known by an earlier daemon", recalled.len());
        self.sampler.probes.take_up(recalled.iter().map(|vm| (vm.id, counted(vm))).collect());
        self.taking_over.is_to_sweep = true;
        let mut claims = HashSet::new();
        for vm in recalled {
            let (id, claims_another) = (vm.id, !claims.insert(Key::of(&vm)));
            self.taking_over.unseen.insert(id);
            self.take_up(vm);
            if claims_another {
                self.look_for_duplicates(id);
            }
        }
        self.registry.recalled();
        true
    }

    /// Has those that were taken up looked at, and all processes looked through for others, once after the first reading.
    pub(super) fn look_after_first_reading(&mut self) {
        if std::mem::take(&mut self.taking_over.is_to_sweep) {
            let looks: Vec<Look> =
                self.taking_over.unseen.iter().map(|vm| Look::in_full(*vm)).collect();
            watchers::refresh(&looks, Vec::new(), &self.inboxes.messages);
            self.sweep_with(looks.iter().map(|look| look.vm.pid).collect());
        }
    }
}
