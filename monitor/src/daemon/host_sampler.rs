//! Host sampler: reads all counters and all threads once a tick, and hands each VM its share.

use std::{cell::OnceCell, collections::HashMap, path::Path, sync::Arc, time::Duration};

use aya::maps::MapError;
use tracing::{debug, info, warn};

use crate::{
    bpf::{ProbeThread, ProgramHealth, THREADS},
    sampler::{
        CounterMaps, DeviceWatch, HeartbeatReader, ThreadReader, ThreadTimes, VcpuClocks, ticks,
    },
    vm::{HostReadings, Vms, WatchedVm},
};
use flatline_qemu::discover::Accelerator;

/// Ticks between two readings of what all guests' agents said, whichever said something meanwhile.
const ALL_HEARTBEATS_EVERY: u64 = 10;

/// See the module.
pub(super) struct HostSampler {
    pub(super) counters: Arc<CounterMaps>,
    /// What guests' agents say.
    pub(super) heartbeats: HeartbeatReader,
    /// Reads all threads' times at once; `None` where no program could be had for it.
    threads: Option<ThreadReader>,
    /// It can't be read, or there is none: each VM's threads have clocks of their own.
    pub(super) has_clocks: bool,
    pub(super) health: Vec<ProgramHealth>,
    pub(super) probes: ProbeThread,
    pub(super) ticks: u64,
    /// When the last reading began, and the kernel's ticks then.
    jiffies: Option<(Duration, u64)>,
    devices: DeviceWatch,
}

impl HostSampler {
    /// Opens the maps that `probes` pinned.
    ///
    /// # Errors
    /// The maps can't be opened, and these are the programs, to be taken down.
    pub(super) fn open(
        bpffs_dir: &Path,
        probes: ProbeThread,
        health: Vec<ProgramHealth>,
    ) -> Result<Self, Box<(MapError, ProbeThread)>> {
        let maps = CounterMaps::open(bpffs_dir)
            .and_then(|counters| Ok((counters, HeartbeatReader::open(bpffs_dir)?)));
        let (counters, heartbeats) = match maps {
            Ok(maps) => maps,
            Err(error) => return Err(Box::new((error, probes))),
        };
        let is_there =
            |program: &ProgramHealth| program.program == THREADS && program.failure.is_none();
        let threads =
            health.iter().any(is_there).then(|| ThreadReader::new(bpffs_dir.join(THREADS)));
        Ok(Self {
            counters: Arc::new(counters),
            heartbeats,
            has_clocks: threads.is_none(),
            threads,
            health,
            probes,
            ticks: 0,
            jiffies: None,
            devices: DeviceWatch::default(),
        })
    }

    /// Samples all VMs; returns all threads' times, where they were read in one reading.
    pub(super) fn observe(&mut self, vms: &mut Vms, now: Duration) -> Option<ThreadTimes> {
        self.ticks += 1;
        let slots = vms.values().filter_map(|watched| watched.sensors.slot.as_ref().ok());
        let slots = slots.max().map_or(0, |highest| highest + 1);
        let rows = self.counters.rows(slots);
        let threads = self.read_threads(vms);
        self.jiffies = threads.as_ref().map(|threads| (now, threads.jiffies()));
        // For the first guest whose agent said anything, for all.
        let beats = OnceCell::new();
        let heartbeats = || beats.get_or_init(|| self.heartbeats.rows(slots)).as_ref();
        // For the first VM that seems to be stalled, for all.
        let ages = OnceCell::new();
        let in_flight = |slot: u32| {
            let ages = ages.get_or_init(|| match &threads {
                Some(threads) => self.counters.in_flight(threads.jiffies()).unwrap_or_default(),
                // Nothing else tells the kernel's ticks.
                None => HashMap::new(),
            });
            ages.get(&slot).copied()
        };
        let standing = OnceCell::new();
        let devices = || *standing.get_or_init(|| self.devices.look(now));
        let host = HostReadings {
            rows: &rows,
            threads: threads.as_ref(),
            heartbeats: &heartbeats,
            reads_all_heartbeats: self.ticks.is_multiple_of(ALL_HEARTBEATS_EVERY),
            in_flight: &in_flight,
            devices: &devices,
        };
        for watched in vms.values_mut() {
            watched.observe(&host, now);
        }
        threads
    }

    /// All threads' times, in one reading; `None` where each VM's have to be read from its own clocks: always, or as
    /// long as the iterator can't be read.
    fn read_threads(&mut self, vms: &mut Vms) -> Option<ThreadTimes> {
        let read = self.threads.as_ref()?.read();
        let failure = read.as_ref().err().map(ToString::to_string);
        if failure.is_some() != self.has_clocks {
            self.has_clocks = failure.is_some();
            match &failure {
                Some(why) => {
                    warn!("{why}; each VM's times are read from /proc until it can be read")
                }
                None => info!("the iterator over threads can be read again"),
            }
            for (id, watched) in vms {
                watched.sensors.clocks = VcpuClocks::default();
                if failure.is_some() {
                    // Should that fail, its threads are looked for once more.
                    match VcpuClocks::open(id.pid, &watched.sensors.threads) {
                        Ok(clocks) => watched.sensors.clocks = clocks,
                        Err(_) => watched.sensors.threads.clear(),
                    }
                }
            }
            for program in self.health.iter_mut().filter(|program| program.program == THREADS) {
                program.failure.clone_from(&failure);
            }
        }
        read.ok()
    }

    /// Seconds since a moment in the kernel's ticks; `None` for the tick 0, which is never, and where nothing
    /// tells which tick it is.
    pub(super) fn since_jiffies(&self, moment: u64, now: Duration) -> Option<f64> {
        let (read, jiffies) = self.jiffies.filter(|_| moment != 0)?;
        let age = ticks(jiffies.saturating_sub(moment)) + now.saturating_sub(read);
        Some(age.as_secs_f64())
    }

    /// Attaches KVM's tracepoints while it runs a suspect, and only then.
    pub(super) fn watch_kvm(&self, vms: &Vms) {
        let suspects = vms.values().any(|watched| {
            watched.vm.accelerator == Accelerator::Kvm && watched.detector.watch.is_being_asked()
        });
        if suspects != self.probes.kvm_is_attached() {
            self.probes.kvm(suspects);
        }
    }

    /// Forgets what was learned of the boot before: the guest has to test each address anew, and what it told of its memory was
    /// another boot's.
    pub(super) fn forget_boot(&self, watched: &mut WatchedVm) {
        watched.memory.forget_guest();
        for probe in &watched.sensors.taps {
            if let Err(error) = self.counters.forget_addresses(&probe.tap) {
                debug!(vm = watched.vm.name, "its addresses could not be forgotten: {error}");
            }
        }
    }
}
