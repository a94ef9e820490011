//! Teller: reads the figures of VMs from memory that the programs share, and makes what is told of them of these and of the
//! facts that the loop copied. It has nothing of the loop's, and may take its time.

use std::{sync::Arc, time::Duration};

use monitor_ebpf::{NetworkCounters, StorageCounters};
use tokio::sync::mpsc::UnboundedSender;

use super::VmFacts;
use crate::{
    config::Config,
    daemon::{host_sampler::ThreadCost, kernel_clock::KernelClock, message::Message},
    sampler::{CounterMaps, ThreadReader, ThreadTimes, VcpuClocks, memory::MemoryReader},
    vm::{Level, Sight, Signs},
};
use flatline_qemu::discover::VmId;
use flatline_samples::{Heartbeats, VcpuTime};

/// Readings that the loop takes in at once: between two such, it does other things.
const TAKEN_IN_TOGETHER: usize = 64;

/// See the module.
pub(in crate::daemon) struct Teller {
    pub(in crate::daemon) config: Arc<Config>,
    pub(in crate::daemon) counters: Arc<CounterMaps>,
    pub(in crate::daemon) signs: Arc<Signs>,
    pub(in crate::daemon) threads: Option<ThreadReader>,
    pub(in crate::daemon) clock: KernelClock,
    /// Where the loop takes in what was read of VMs because a client asked.
    pub(in crate::daemon) messages: UnboundedSender<Message>,
    /// Time since the host's start at which the facts were so.
    pub(in crate::daemon) now: Duration,
}

/// What was read of one VM; `None` is what can't be.
pub(super) struct Read {
    pub(super) network: Option<NetworkCounters>,
    pub(super) storage: Option<StorageCounters>,
    pub(super) vcpus: Option<Vec<VcpuTime>>,
    /// What its guest's agent said on its cards and on its port.
    pub(super) said: Vec<Heartbeats>,
}

impl Teller {
    /// Reads the memory of those QEMUs of which that waits for a client that asks, and has the loop take it in.
    pub(super) fn read_memory(&self, vms: &mut [VmFacts]) {
        let reader = MemoryReader::default();
        for some in vms.chunks_mut(TAKEN_IN_TOGETHER) {
            let read = |VmFacts { vm, memory, .. }: &mut VmFacts| {
                Some((vm.id, memory.read_if_due(vm, &reader, self.now)?))
            };
            let read: Vec<_> = some.iter_mut().filter_map(read).collect();
            if !read.is_empty() {
                // The loop may have ended.
                let _ = self.messages.send(Message::Memory(read));
            }
        }
    }

    /// Reads all threads at once where that costs less than those of these VMs one by one.
    pub(super) fn read_threads(&self, vms: &[VmFacts]) -> Option<ThreadTimes> {
        let mut cost = ThreadCost::default();
        vms.iter().for_each(|facts| cost.add_unopened(facts.sight.threads.len()));
        let reader = self.threads.as_ref().filter(|_| cost.prefers_iterator())?;
        reader.read().ok()
    }

    /// What its guest stored so far; `None` where that can't be read.
    pub(super) fn storage(&self, facts: &VmFacts) -> Option<StorageCounters> {
        let (id, sight) = (facts.vm.id, &facts.sight);
        let row = self.counters.row(id, sight.slot?).ok()?;
        Some(sight.lost_completions.without_lost(row.storage()))
    }

    /// Reads one VM's figures.
    pub(super) fn read(&self, facts: &VmFacts, threads: Option<&ThreadTimes>) -> Read {
        let (id, sight) = (facts.vm.id, &facts.sight);
        let row = sight.slot.and_then(|slot| self.counters.row(id, slot).ok());
        let on_cards = sight.slot.and_then(|slot| self.signs.heartbeats.of(id, slot).ok());
        Read {
            network: row.as_ref().filter(|_| sight.has_network).map(|row| row.network()),
            storage: row.map(|row| sight.lost_completions.without_lost(row.storage())),
            vcpus: vcpus(id, sight, threads),
            said: on_cards.into_iter().chain(sight.port.clone()).collect(),
        }
    }

    /// Share of the time in which a vCPU ran, which has this time now.
    pub(super) fn busy(&self, level: &Level, now: &VcpuTime) -> Option<f64> {
        match level {
            Level::OfTick(shares) => {
                shares.iter().find(|(tid, _)| *tid == now.tid).map(|(_, busy)| *busy)
            }
            Level::Since(at, before) => {
                let before = before.iter().find(|before| before.tid == now.tid)?;
                let ran = Duration::from_nanos(now.run_ns.checked_sub(before.run_ns)?);
                let elapsed = self.now.saturating_sub(*at);
                (!elapsed.is_zero()).then(|| ran.div_duration_f64(elapsed).min(1.0))
            }
            Level::Unknown => None,
        }
    }

    /// Seconds since a moment in the kernel's ticks; `None` where that can't be told.
    pub(super) fn since_jiffies(&self, moment: u64) -> Option<f64> {
        self.clock.since(moment, self.now)
    }
}

/// The times of a VM's vCPUs now: of all threads' `threads`, or from clocks that are opened for it.
pub(super) fn vcpus(
    id: VmId,
    sight: &Sight,
    threads: Option<&ThreadTimes>,
) -> Option<Vec<VcpuTime>> {
    match threads {
        Some(times) => times.vcpus(id.pid, &sight.threads).ok(),
        None => VcpuClocks::open(id.pid, &sight.threads).ok()?.read().ok(),
    }
}
