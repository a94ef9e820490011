//! Sensors of one VM: where it is counted, which threads are its vCPUs, and what they say from tick to tick.

use std::time::Duration;

use monitor_ebpf::{NetworkCounters, VmRow};
use tokio::task::JoinHandle;

use super::{Looks, MonitorLink, PENDING, Signs, clocks::Clocks, glance::Glance};
use crate::{
    bpf::TapProbe,
    history::TickRates,
    insight::Insight,
    sampler::{
        CounterMaps, Devices, LostCompletions, ProcessReader, ThreadTimes, port::PortListener,
    },
};
use flatline_detector::{activity::Activity, verdict::Monitor};
use flatline_qemu::discover::{self, VmId};
use flatline_samples::{
    Heartbeats, InFlightAges, Missing, ProcessState, Reading, VcpuTime, VmSample,
};

/// What one tick reads of the whole host.
pub(crate) struct HostReadings<'a> {
    pub(crate) counters: &'a CounterMaps,
    /// `None` where no iterator reads them.
    pub(crate) threads: Option<&'a ThreadTimes>,
    /// Makes iterators over single processes; `None` where the kernel has none.
    pub(crate) processes: Option<&'a ProcessReader>,
    /// What guests' agents say.
    pub(crate) signs: &'a Signs,
    /// The ages of what is in flight for the VM in a slot.
    pub(crate) in_flight: &'a dyn Fn(u32) -> Option<InFlightAges>,
    /// How its block devices do.
    pub(crate) devices: &'a dyn Fn() -> Devices,
}

/// What is read of a VM's process.
struct ProcessReading {
    vcpus: Reading<Vec<VcpuTime>>,
    state: ProcessState,
}

/// All that is read of one VM, and what it takes to read it.
#[derive(Debug)]
pub(crate) struct Sensors {
    /// Its vCPU threads, as (vCPU index, thread id).
    pub(crate) threads: Vec<(u32, u32)>,
    /// Whether those are by QEMU's own account, which is better than threads' names.
    pub(crate) threads_from_qmp: bool,
    /// Looks at what it has open and runs.
    pub(crate) looks: Looks,
    clocks: Clocks,
    /// It was said once where it is counted, or why it isn't: before that there is nothing to be read.
    pub(crate) is_counted: bool,
    /// The slot it is counted in, or why it isn't.
    pub(crate) slot: Result<u32, String>,
    pub(crate) taps: Vec<TapProbe>,
    /// How many packets its guest had sent on these when it was last found to have used no address; `None`: it has used one,
    /// or wasn't looked at.
    pub(crate) sent_addressless: Option<u64>,
    pub(super) lost_completions: LostCompletions,
    /// Its last sample, and when it was taken.
    pub(crate) sample: Option<(Duration, VmSample)>,
    pub(crate) activity: Option<Activity>,
    /// What moved up to when it was last looked at to be shown, of a VM that rests.
    shown: Option<Box<Activity>>,
    /// Its counters in the last tick.
    glanced: Option<Glance>,
    /// Its agent's port, if it has one.
    pub(crate) port: Option<PortListener>,
    /// Whether its registers and its guest's memory can be read.
    pub(crate) insight: Insight,
    /// The task that waits for the process to end.
    pub(crate) end: Option<JoinHandle<()>>,
}

impl Sensors {
    /// Of a VM of which nothing was read yet.
    pub(crate) fn new(
        port: Option<PortListener>,
        insight: Insight,
        end: Option<JoinHandle<()>>,
    ) -> Self {
        Self {
            threads: Vec::new(),
            threads_from_qmp: false,
            looks: Looks::default(),
            clocks: Clocks::default(),
            is_counted: false,
            slot: Err(PENDING.to_owned()),
            taps: Vec::new(),
            sent_addressless: None,
            lost_completions: LostCompletions::default(),
            sample: None,
            activity: None,
            shown: None,
            glanced: None,
            port,
            insight,
            end,
        }
    }

    /// Reads its threads and the state of its process.
    fn read_process(
        &mut self,
        pid: u32,
        link: &MonitorLink,
        host: &HostReadings<'_>,
    ) -> ProcessReading {
        let own = match host.threads {
            Some(_) => None,
            None => self.clocks.iterate(pid, host.processes),
        };
        let (vcpus, state) = match host.threads.or(own.as_ref()) {
            Some(times) => {
                let (vcpus, state) = times.vcpus_and_state(pid, &self.threads);
                // Iterators tell only of VMs that are counted.
                (vcpus, if state == ProcessState::Gone { process_state(pid) } else { state })
            }
            None => (self.clocks.read_files(pid, &self.threads), process_state(pid)),
        };
        let vcpus = vcpus.map_err(|missing| {
            let why = match link.monitor() {
                Monitor::Unknown(why) | Monitor::Unresponsive(why) | Monitor::NotStarted(why)
                    if self.threads.is_empty() =>
                {
                    why
                }
                _ => return missing,
            };
            // Of threads without names, QEMU alone knows which are vCPUs.
            Missing::new("vCPU time", format!("which threads are its vCPUs is not known: {why}"))
        });
        ProcessReading { vcpus, state }
    }

    /// Takes a sample out of the host's readings.
    fn take_sample(
        &mut self,
        id: VmId,
        process: ProcessReading,
        host: &HostReadings<'_>,
        now: Duration,
    ) -> VmSample {
        let row = match &self.slot {
            Ok(slot) => host.counters.row(id, *slot),
            Err(why) => Err(Missing::new("its row", why.clone())),
        };
        let storage = match &row {
            Ok(row) => Ok(self.lost_completions.settle(row.storage(), host.devices, now)),
            Err(missing) => Err(missing.clone().of("storage")),
        };
        let network = self.network(&row);
        let heartbeats = self.heartbeats(id, &network, host);
        let port = self.port.as_ref();
        let port = port.map_or_else(|| Ok(Heartbeats::default()), PortListener::heartbeats);
        VmSample {
            network,
            sees_to_guest: self.sees_to_guest(),
            heartbeats,
            port,
            storage,
            in_flight: None,
            vcpus: process.vcpus,
            process: process.state,
        }
    }

    /// What its guest's agent said on its cards, where it ever did.
    fn heartbeats(
        &self,
        id: VmId,
        network: &Reading<Option<NetworkCounters>>,
        host: &HostReadings<'_>,
    ) -> Reading<Heartbeats> {
        match network.as_ref().map_err(|missing| missing.clone().of("heartbeats"))? {
            None => Ok(Heartbeats::default()),
            Some(_) => {
                let slot =
                    self.slot.as_ref().map_err(|why| Missing::new("heartbeats", why.clone()))?;
                host.signs.heartbeats.of(id, *slot)
            }
        }
    }

    /// Whether what is sent to the guest is counted on all of its taps.
    pub(super) fn sees_to_guest(&self) -> bool {
        self.taps.iter().all(|probe| probe.unseen.is_none())
    }

    fn network(&self, row: &Reading<VmRow>) -> Reading<Option<NetworkCounters>> {
        if let Some((tap, why)) =
            self.taps.iter().find_map(|probe| Some((&probe.tap, probe.hook.as_ref().err()?)))
        {
            return Err(Missing::new("network", format!("tap {}: {why}", tap.name)));
        }
        match row {
            Err(missing) => Err(missing.clone().of("network")),
            Ok(_) if self.taps.is_empty() => Ok(None),
            Ok(row) => Ok(Some(row.network())),
        }
    }

    /// Samples, and notes what moved since the last sample.
    pub(crate) fn observe(
        &mut self,
        id: VmId,
        link: &MonitorLink,
        host: &HostReadings<'_>,
        now: Duration,
    ) {
        if self.is_counted {
            let process = self.read_process(id.pid, link, host);
            self.observe_with(id, process, host, now);
        }
    }

    /// Likewise of one that is known to have lived up to now, without a system call: its vCPUs' level is not read.
    pub(crate) fn observe_counters(&mut self, id: VmId, host: &HostReadings<'_>, now: Duration) {
        if self.is_counted {
            let vcpus = Err(Missing::new("vCPU time", "it was not sampled"));
            let process = ProcessReading { vcpus, state: ProcessState::Running };
            self.observe_with(id, process, host, now);
        }
    }

    fn observe_with(
        &mut self,
        id: VmId,
        process: ProcessReading,
        host: &HostReadings<'_>,
        now: Duration,
    ) {
        let sample = self.sample_since(id, process, host, now);
        self.activity = self.since(&sample, now);
        self.sample = Some((now, sample));
        self.shown = None;
    }

    /// What its counters say of the tick that ends at `now`; unknown is what can't be read, and its vCPUs' level.
    pub(crate) fn glance(&mut self, id: VmId, counters: &CounterMaps, now: Duration) -> TickRates {
        let Some(glance) = self.glance_at(id, counters, now) else {
            self.glanced = None;
            return TickRates::UNKNOWN;
        };
        let before = self.glanced.replace(glance);
        before.map_or(TickRates::UNKNOWN, |before| glance.since(&before))
    }

    /// Its counters at `now`: those of its sample, where one was taken then.
    fn glance_at(&self, id: VmId, counters: &CounterMaps, now: Duration) -> Option<Glance> {
        let (network, storage) = match &self.sample {
            Some((at, sample)) if *at == now => {
                (sample.network.as_ref().ok().copied().flatten(), *sample.storage.as_ref().ok()?)
            }
            _ => {
                let slot = *self.slot.as_ref().ok().filter(|_| self.is_counted)?;
                let row = counters.row(id, slot);
                let storage = row.as_ref().ok()?.storage();
                (self.network(&row).ok().flatten(), self.lost_completions.without_lost(storage))
            }
        };
        Some(Glance {
            at: now,
            sent: network.map(|network| {
                network
                    .guest_tx_packets
                    .saturating_sub(network.probe_answers)
                    .saturating_sub(network.heartbeats)
            }),
            received: network
                .filter(|_| self.sees_to_guest())
                .map(|network| network.guest_rx_packets),
            answers: network.map(|network| network.probe_answers),
            completed: storage.completed_ops,
            in_flight: storage.in_flight(),
        })
    }

    /// Samples to show what it does, and leaves what the verdict is told as it is.
    pub(crate) fn look(
        &mut self,
        id: VmId,
        link: &MonitorLink,
        host: &HostReadings<'_>,
        now: Duration,
    ) {
        if self.is_counted {
            let process = self.read_process(id.pid, link, host);
            let sample = self.sample_since(id, process, host, now);
            self.shown = self.since(&sample, now).map(Box::new);
        }
    }

    /// A sample, with the ages of what is in flight where nothing completed since the last one.
    fn sample_since(
        &mut self,
        id: VmId,
        process: ProcessReading,
        host: &HostReadings<'_>,
        now: Duration,
    ) -> VmSample {
        let mut sample = self.take_sample(id, process, host, now);
        if let (Ok(slot), Some((_, previous))) = (&self.slot, &self.sample)
            && stands_still(previous, &sample)
        {
            sample.in_flight = (host.in_flight)(*slot);
        }
        sample
    }

    /// What moved since the last sample that the verdict was told of.
    fn since(&self, sample: &VmSample, now: Duration) -> Option<Activity> {
        let (then, previous) = self.sample.as_ref()?;
        Some(Activity::between(previous, sample, now.saturating_sub(*then)))
    }

    /// What moved up to `now`, if it was sampled then.
    pub(crate) fn activity_at(&self, now: Duration) -> Option<&Activity> {
        let is_now = self.sample.as_ref().is_some_and(|(at, _)| *at == now);
        self.activity.as_ref().filter(|_| is_now)
    }

    /// What moved up to the newest sample that there is of it.
    pub(crate) fn newest_activity(&self) -> Option<&Activity> {
        self.shown.as_deref().or(self.activity.as_ref())
    }

    /// Takes these for its taps.
    pub(crate) fn set_taps(&mut self, taps: Vec<TapProbe>) {
        self.sent_addressless = None;
        self.taps = taps;
    }

    /// How many packets its guest had sent at its last sample, of whatever kind; `None` where that isn't known.
    pub(crate) fn sent(&self) -> Option<u64> {
        let (_, sample) = self.sample.as_ref()?;
        Some(sample.network.as_ref().ok()?.as_ref()?.guest_tx_packets)
    }

    /// Takes these for its vCPUs' threads.
    pub(crate) fn set_threads(&mut self, threads: Vec<(u32, u32)>) {
        self.close_clocks();
        self.threads = threads;
    }

    /// Lets go of its threads' clocks; they are opened again when they are read.
    pub(crate) fn close_clocks(&mut self) {
        self.clocks = Clocks::default();
    }

    /// Whether its threads can be read without opening anything.
    pub(crate) fn has_open_clocks(&self) -> bool {
        self.clocks.are_open()
    }
}

fn process_state(pid: u32) -> ProcessState {
    discover::process_state(pid).map_or(ProcessState::Gone, ProcessState::from_letter)
}

/// Whether requests are in flight, and none completed since the last sample.
fn stands_still(previous: &VmSample, sample: &VmSample) -> bool {
    match (&previous.storage, &sample.storage) {
        (Ok(before), Ok(now)) => {
            now.tracked_ops > now.completed_ops && now.completed_ops == before.completed_ops
        }
        _ => false,
    }
}
