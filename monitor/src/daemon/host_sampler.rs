//! Host sampler: looks for a sign of life of each VM once a tick, and samples those in full that show none, or may not rest.

use std::{
    cell::{OnceCell, RefCell},
    collections::HashMap,
    path::Path,
    sync::Arc,
    time::Duration,
};

use aya::maps::MapError;
use tracing::{debug, info, warn};

use super::{kernel_clock::KernelClock, kvm_turns::KvmTurns};
use crate::{
    bpf::{ProbeThread, ProgramHealth, STARTS, THREADS},
    sampler::{
        CounterMaps, DeviceWatch, HeartbeatReader, LifeReader, ProcessReader, ThreadReader,
        ThreadTimes,
    },
    vm::{HostReadings, Signs, Vms, WatchedVm},
};
use flatline_qemu::discover::{Accelerator, VmId};

/// Passing a thread of the host in the iterator over all, in ns (`docs/costs.md`, divided by the threads there, of which each
/// stand-in has five), against what one VM costs by itself, on Linux 6.18: an iterator over its threads, each thread in that, and
/// making it; or, where there can be none, the state of its process, a thread's time from its own file, and opening that.
const PASSED_THREAD_NS: u64 = 600;
const ITERATOR_NS: u64 = 3_000;
const ITERATED_THREAD_NS: u64 = 400;
const MAKING_ITERATOR_NS: u64 = 1_200;
const PROCESS_NS: u64 = 6_600;
const CLOCK_NS: u64 = 1_500;
const OPENING_NS: u64 = 2_500;

/// What it costs to read VMs' threads one by one, in ns.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ThreadCost(u64);

impl ThreadCost {
    /// A VM with so many threads, which are read by an iterator of its own.
    fn add_iterator(&mut self, threads: usize, is_made: bool) {
        let making = if is_made { 0 } else { MAKING_ITERATOR_NS };
        self.0 += making + ITERATOR_NS + ITERATED_THREAD_NS * Self::number(threads);
    }

    /// A VM with so many threads, whose clocks are kept open.
    fn add(&mut self, threads: usize) {
        self.0 += PROCESS_NS + CLOCK_NS * Self::number(threads);
    }

    /// A VM with so many threads, whose clocks are to be opened.
    pub(super) fn add_unopened(&mut self, threads: usize) {
        self.0 += (OPENING_NS + CLOCK_NS) * Self::number(threads);
    }

    fn number(threads: usize) -> u64 {
        u64::try_from(threads).unwrap_or(u64::MAX)
    }

    /// Whether to read all threads of the host at once costs less.
    pub(super) fn prefers_iterator(self) -> bool {
        // The kernel's number of processes is that of threads.
        self.0 >= PASSED_THREAD_NS * u64::from(rustix::system::sysinfo().procs)
    }
}

/// See the module.
pub(super) struct HostSampler {
    pub(super) counters: Arc<CounterMaps>,
    /// Signs of life, and what guests' agents say.
    pub(super) signs: Arc<Signs>,
    /// Reads all threads' times at once; `None` where no program could be had for it.
    pub(super) threads: Option<ThreadReader>,
    /// Reads one VM's; `None` where the kernel has no iterator over one process.
    processes: Option<ProcessReader>,
    pub(super) health: Vec<ProgramHealth>,
    pub(super) probes: ProbeThread,
    pub(super) ticks: u64,
    pub(super) clock: KernelClock,
    devices: DeviceWatch,
    pub(super) kvm_turns: KvmTurns,
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
        let maps = || -> Result<_, MapError> {
            let signs = Signs {
                life: LifeReader::open(bpffs_dir)?,
                heartbeats: HeartbeatReader::open(bpffs_dir)?,
            };
            Ok((CounterMaps::open(bpffs_dir)?, signs))
        };
        let (counters, signs) = match maps() {
            Ok(maps) => maps,
            Err(error) => return Err(Box::new((error, probes))),
        };
        let is_there =
            |program: &ProgramHealth| program.program == THREADS && program.failure.is_none();
        let threads =
            health.iter().any(is_there).then(|| ThreadReader::new(bpffs_dir.join(THREADS)));
        let processes = threads.as_ref().and_then(|_| {
            let opened = ProcessReader::open(&bpffs_dir.join(THREADS));
            opened.inspect_err(|error| info!("no iterator over one process: {error}")).ok()
        });
        Ok(Self {
            counters: Arc::new(counters),
            signs: Arc::new(signs),
            threads,
            processes,
            health,
            probes,
            ticks: 0,
            clock: KernelClock::default(),
            devices: DeviceWatch::default(),
            kvm_turns: KvmTurns::default(),
        })
    }

    /// Whether the kernel tells of processes that execute something.
    pub(super) fn hears_of_starts(&self) -> bool {
        let is_there =
            |program: &ProgramHealth| program.program == STARTS && program.failure.is_none();
        self.health.iter().any(is_there)
    }

    /// Samples all VMs but those that rest on, and returns which.
    pub(super) fn observe(&mut self, vms: &mut Vms, now: Duration) -> Vec<VmId> {
        self.ticks += 1;
        let awake = vms.look_for_life(&self.signs, now);
        let in_full = awake.iter().filter_map(|id| vms.get(id)).filter(|vm| !vm.has_rested_out());
        let threads = self.threads_for(in_full, now);
        self.read(threads.as_ref(), now, |host| {
            for id in &awake {
                if let Some(watched) = vms.get_mut(id) {
                    watched.observe(host, now);
                }
            }
        });
        awake
    }

    /// Samples one VM that rests, whose rest is to end.
    pub(super) fn observe_one(&mut self, watched: &mut WatchedVm, now: Duration) {
        self.read(None, now, |host| watched.observe(host, now));
    }

    /// Samples those that rest, to be shown.
    pub(super) fn look<'a>(&mut self, vms: impl Iterator<Item = &'a mut WatchedVm>, now: Duration) {
        let mut resting: Vec<&mut WatchedVm> = vms.filter(|vm| vm.is_resting()).collect();
        let threads = self.threads_for(resting.iter().map(|watched| &**watched), now);
        self.read(threads.as_ref(), now, |host| {
            resting.iter_mut().for_each(|watched| watched.look(host, now));
        });
    }

    /// Hands on what is read of the host.
    fn read(
        &mut self,
        threads: Option<&ThreadTimes>,
        now: Duration,
        sample: impl FnOnce(&HostReadings<'_>),
    ) {
        let jiffies = self.clock.at(now);
        // For the first VM that seems to be stalled, for all.
        let ages = OnceCell::new();
        let in_flight = |slot: u32| {
            let ages = ages.get_or_init(|| match jiffies {
                Some(jiffies) => self.counters.in_flight(jiffies),
                // Nothing else tells the kernel's ticks.
                None => HashMap::new(),
            });
            ages.get(&slot).copied()
        };
        let standing = OnceCell::new();
        let devices = RefCell::new(&mut self.devices);
        let devices = || *standing.get_or_init(|| devices.borrow_mut().look(now));
        sample(&HostReadings {
            counters: &self.counters,
            threads,
            processes: self.processes.as_ref(),
            signs: &self.signs,
            in_flight: &in_flight,
            devices: &devices,
        });
    }

    /// All threads' times in one reading, where that is the cheaper way to those of `vms`, or the kernel's ticks are to be
    /// read with them; `None` where each VM's are to be read by themselves.
    fn threads_for<'a>(
        &mut self,
        vms: impl Iterator<Item = &'a WatchedVm>,
        now: Duration,
    ) -> Option<ThreadTimes> {
        let mut cost = ThreadCost::default();
        for WatchedVm { sensors, .. } in vms {
            match &self.processes {
                Some(_) => cost.add_iterator(sensors.threads.len(), sensors.has_open_clocks()),
                None => cost.add(sensors.threads.len()),
            }
        }
        let knows_ticks = self.clock.at(now).is_some();
        if knows_ticks && !cost.prefers_iterator() { None } else { self.read_threads(now) }
    }

    fn read_threads(&mut self, now: Duration) -> Option<ThreadTimes> {
        let read = self.threads.as_ref()?.read();
        let failure = read.as_ref().err().map(ToString::to_string);
        for program in self.health.iter_mut().filter(|program| program.program == THREADS) {
            match (&program.failure, &failure) {
                (None, Some(why)) => {
                    warn!("{why}; each VM's times are read from /proc until it can be read")
                }
                (Some(_), None) => info!("the iterator over threads can be read again"),
                (None, None) | (Some(_), Some(_)) => {}
            }
            program.failure.clone_from(&failure);
        }
        let threads = read.ok()?;
        self.clock.set(now, threads.jiffies());
        Some(threads)
    }

    /// Has KVM's tracepoints count a suspect that a round of questions did not acquit.
    pub(super) fn suspect_of_kvm(&mut self, watched: &WatchedVm, now: Duration) {
        let is_asked_on = watched.detector.watch.is_being_asked();
        if watched.vm.accelerator == Accelerator::Kvm
            && is_asked_on
            && self.kvm_turns.add(watched.vm.id, watched.vm.origin.uid)
        {
            self.count_kvm(now);
        }
    }

    /// Has them leave those alone that are asked no more.
    pub(super) fn leave_kvm(&mut self, vms: &Vms, now: Duration) {
        let is_asked = |watched: &WatchedVm| watched.detector.watch.is_being_asked();
        self.kvm_turns.keep(|id| vms.get(&id).is_some_and(is_asked));
        self.count_kvm(now);
    }

    fn count_kvm(&mut self, now: Duration) {
        if let Some(suspects) = self.kvm_turns.hand_out(now) {
            self.probes.count_kvm(suspects);
        }
    }

    /// Forgets what was learned of the boot before: the guest has to test each address anew, and what it told of its memory was
    /// another boot's.
    pub(super) fn forget_boot(&self, watched: &mut WatchedVm) {
        watched.memory.forget_guest();
        // Of one that counts for another VM, they are that one's.
        for probe in watched.sensors.taps.iter().filter(|probe| probe.hook.is_ok()) {
            if let Err(error) = self.counters.forget_addresses(&probe.tap) {
                debug!(vm = watched.vm.name, "its addresses could not be forgotten: {error}");
            }
        }
    }
}
