//! Sensors of one VM: where it is counted, which threads are its vCPUs, and what they say from tick to tick.

use std::time::Duration;

use monitor_ebpf::{NetworkCounters, ThreadTime, VmRow};
use tokio::task::JoinHandle;

use super::{MonitorLink, PENDING};
use crate::{
    bpf::TapProbe,
    insight::Insight,
    sampler::{
        Devices, HeartbeatRows, LostCompletions, ThreadTimes, VcpuClocks, VmRows,
        port::PortListener,
    },
};
use flatline_detector::{activity::Activity, verdict::Monitor};
use flatline_qemu::discover::{self, VmId};
use flatline_samples::{Heartbeats, InFlightAges, Missing, ProcessState, Reading, VmSample};

/// What one tick reads of the whole host.
pub(crate) struct HostReadings<'a> {
    pub(crate) rows: &'a Reading<VmRows>,
    /// `None` where no iterator reads them.
    pub(crate) threads: Option<&'a ThreadTimes>,
    /// What all guests' agents said so far.
    pub(crate) heartbeats: &'a dyn Fn() -> Result<&'a HeartbeatRows, &'a Missing>,
    /// They are read for all guests this time.
    pub(crate) reads_all_heartbeats: bool,
    /// The ages of what is in flight for the VM in a slot.
    pub(crate) in_flight: &'a dyn Fn(u32) -> Option<InFlightAges>,
    /// How its block devices do.
    pub(crate) devices: &'a dyn Fn() -> Devices,
}

/// All that is read of one VM, and what it takes to read it.
#[derive(Debug)]
pub(crate) struct Sensors {
    /// Its vCPU threads, as (vCPU index, thread id).
    pub(crate) threads: Vec<(u32, u32)>,
    /// Whether those are by QEMU's own account, which is better than threads' names.
    pub(crate) threads_from_qmp: bool,
    /// The ids of all its threads when its vCPUs' were last told from the others, and how often that was
    /// done for these.
    told_apart: (Vec<u32>, u32),
    /// How many descriptors it had when what it has open was last looked at.
    pub(crate) descriptors: Option<u64>,
    /// Looks since the last one in full.
    pub(crate) looks: u32,
    /// A look is under way: one that hangs is not followed by others.
    pub(crate) looking: bool,
    /// Their clocks, where no iterator reads all threads at once.
    pub(crate) clocks: VcpuClocks,
    /// It was said once where it is counted, or why it isn't: before that there is nothing to be read.
    pub(crate) is_counted: bool,
    /// The slot it is counted in, or why it isn't.
    pub(crate) slot: Result<u32, String>,
    pub(crate) taps: Vec<TapProbe>,
    lost_completions: LostCompletions,
    /// Its last sample, and when it was taken.
    pub(crate) sample: Option<(Duration, VmSample)>,
    pub(crate) activity: Option<Activity>,
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
            told_apart: (Vec::new(), 0),
            descriptors: None,
            looks: 0,
            looking: false,
            clocks: VcpuClocks::default(),
            is_counted: false,
            slot: Err(PENDING.to_owned()),
            taps: Vec::new(),
            lost_completions: LostCompletions::default(),
            sample: None,
            activity: None,
            port,
            insight,
            end,
        }
    }

    /// Takes a sample out of the host's readings.
    fn take_sample(
        &mut self,
        id: VmId,
        link: &MonitorLink,
        host: &HostReadings<'_>,
        now: Duration,
    ) -> VmSample {
        let row = match (&self.slot, host.rows) {
            (Ok(slot), Ok(rows)) => rows.of(id, *slot),
            (Ok(_), Err(missing)) => Err(missing.clone()),
            (Err(why), _) => Err(Missing::new("its row", why.clone())),
        };
        let pid = id.pid;
        let (vcpus, process) = match host.threads {
            Some(times) => {
                // The iterator tells only of VMs that are counted.
                let process = match times.process(pid) {
                    ProcessState::Gone => process_state(pid),
                    state => state,
                };
                (times.vcpus(pid, &self.threads), process)
            }
            None => (self.clocks.read(), process_state(pid)),
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
        let storage = row
            .clone()
            .map(|row| self.lost_completions.settle(row.storage, host.devices, now))
            .map_err(|missing| missing.of("storage"));
        let network = self.network(&row);
        let heartbeats = self.heartbeats(id, &network, host);
        let port = self.port.as_ref();
        let port = port.map_or_else(|| Ok(Heartbeats::default()), PortListener::heartbeats);
        let sees_to_guest = self.taps.iter().all(|probe| probe.unseen.is_none());
        VmSample {
            network,
            sees_to_guest,
            heartbeats,
            port,
            storage,
            in_flight: None,
            vcpus,
            process,
        }
    }

    /// Read only where something was said since the last sample, and now and then for what isn't counted with the
    /// packets: malformed frames.
    fn heartbeats(
        &self,
        id: VmId,
        network: &Reading<Option<NetworkCounters>>,
        host: &HostReadings<'_>,
    ) -> Reading<Heartbeats> {
        let network = network.as_ref().map_err(|missing| missing.clone().of("heartbeats"))?;
        let Some(heard) = network.map(|network| network.heartbeats) else {
            return Ok(Heartbeats::default());
        };
        let slot = self.slot.as_ref().map_err(|why| Missing::new("heartbeats", why.clone()))?;
        let read = || (host.heartbeats)().map_err(Clone::clone)?.of(id, *slot);
        let known = match &self.sample {
            Some((_, VmSample { network: Ok(Some(before)), heartbeats: Ok(known), .. }))
                if before.heartbeats == heard =>
            {
                Some(known.clone())
            }
            _ if heard == 0 => Some(Heartbeats::default()),
            _ => None,
        };
        match known {
            // No VM is judged by those, and by the others only when they are counted.
            Some(known) if host.reads_all_heartbeats => Ok(match read() {
                Ok(Heartbeats { malformed, .. }) => Heartbeats { malformed, ..known },
                Err(_) => known,
            }),
            Some(known) => Ok(known),
            None => read(),
        }
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
            Ok(row) => Ok(Some(row.network)),
        }
    }

    /// Whether its vCPUs' threads are to be told from `all` of its threads once more: a vCPU that was plugged
    /// in or out is a thread more or less. `None` where nothing tells which threads there are.
    pub(crate) fn threads_to_tell_apart(&mut self, all: Option<&[ThreadTime]>) -> bool {
        let Some(all) = all else { return true };
        let (known, times) = &mut self.told_apart;
        if !all.iter().map(|thread| thread.tid).eq(known.iter().copied()) {
            *known = all.iter().map(|thread| thread.tid).collect();
            *times = 0;
        }
        // Twice: a thread gets its name a moment after it began.
        let enough = *times >= 2 && !self.threads.is_empty();
        *times = times.saturating_add(1);
        !enough
    }

    /// Samples, and notes what moved since the last sample.
    pub(crate) fn observe(
        &mut self,
        id: VmId,
        link: &MonitorLink,
        host: &HostReadings<'_>,
        now: Duration,
    ) {
        if !self.is_counted {
            return;
        }
        let mut sample = self.take_sample(id, link, host, now);
        if let (Ok(slot), Some((_, previous))) = (&self.slot, &self.sample)
            && stands_still(previous, &sample)
        {
            sample.in_flight = (host.in_flight)(*slot);
        }
        self.activity = self.sample.as_ref().map(|(then, previous)| {
            Activity::between(previous, &sample, now.saturating_sub(*then))
        });
        self.sample = Some((now, sample));
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
