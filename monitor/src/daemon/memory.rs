//! Memory: guests are asked for theirs now and then, and their QEMUs looked at.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;
use tracing::debug;

use super::{Message, engine::Engine, vm::WatchedVm};
use crate::{
    discover::VmId,
    report::view::MemoryView,
    sample::memory::{ASKED_EVERY, Memory, ProcessMemory},
    witness::balloon,
};

/// What is kept of a VM's memory.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    /// As last told.
    pub(super) now: Memory,
    /// That it is thrashing, in words.
    pub(super) thrashing: Option<String>,
    /// It is being asked.
    asking: bool,
}

impl Engine {
    /// Asks those guests whose turn it is, and nobody whose QEMU has something else to do.
    pub(super) fn ask_memory(&mut self) {
        let interval = self.config.sample_interval.as_millis().max(1);
        let every = u64::try_from(ASKED_EVERY.as_millis() / interval).unwrap_or(u64::MAX).max(1);
        let turn = self.ticks % every;
        let is_due = |(id, watched): &(&VmId, &WatchedVm)| {
            u64::from(id.pid) % every == turn && may_be_asked(watched)
        };
        let due: Vec<VmId> = self.vms.iter().filter(is_due).map(|(id, _)| *id).collect();
        for id in due {
            // A socket that others need as well is not used for what nobody judges.
            if self.owners.hears_late(id) {
                continue;
            }
            let Ok(qmp) = self.monitor_of(id) else { continue };
            let Some(watched) = self.vms.get_mut(&id) else { continue };
            watched.memory.asking = true;
            let messages = self.messages.clone();
            tokio::spawn(async move {
                let stats = balloon::statistics(&qmp).await.unwrap_or_else(|error| {
                    debug!("VM {id}: no statistics of its memory: {error}");
                    None
                });
                let _ = messages.send(Message::Memory(id, stats));
            });
        }
    }

    /// A guest was asked.
    pub(super) fn memory_told(&mut self, id: VmId, stats: Option<Value>) {
        let Some(watched) = self.vms.get_mut(&id) else { return };
        let Remembered { now, thrashing, asking } = &mut watched.memory;
        *asking = false;
        let before = *now;
        match stats {
            Some(stats) => now.take_guest(&stats),
            None => now.forget_guest(),
        }
        // One that said nothing new is as it was.
        if now.told_at != before.told_at {
            *thrashing = now.thrashing(&before);
        }
    }

    /// Its QEMU was looked at.
    pub(super) fn memory_taken(&mut self, id: VmId, process: Option<ProcessMemory>) {
        if let Some(watched) = self.vms.get_mut(&id) {
            watched.memory.now.take_qemu(process);
        }
    }

    pub(super) fn memory_view(watched: &WatchedVm) -> MemoryView {
        let Remembered { now, thrashing, asking: _ } = &watched.memory;
        let told_at = now.told_at.map(Duration::from_secs);
        MemoryView {
            total_bytes: now.total,
            used_bytes: now.used(),
            available_bytes: now.available,
            swap_in_bytes: now.swap_in,
            swap_out_bytes: now.swap_out,
            major_faults: now.major_faults,
            as_of: told_at.and_then(|at| UNIX_EPOCH.checked_add(at)),
            qemu_rss_bytes: now.qemu_rss,
            qemu_swap_bytes: now.qemu_swap,
            thrashing: thrashing.clone(),
        }
    }
}

fn may_be_asked(watched: &WatchedVm) -> bool {
    watched.vm.has_balloon
        && !watched.memory.asking
        && watched.notes.is_some()
        && !watched.is_restarting()
        && !watched.watch.is_being_asked()
        && watched.watch.state.cause().is_none()
}
