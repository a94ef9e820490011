//! All that the loop holds of one VM, and how that becomes a sample and evidence.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use monitor_ebpf::{NetworkCounters, ThreadTime, VmRow};
use tokio::task::JoinHandle;
use tracing::{debug, info};

use super::{memory::MemoryWatch, recordings::Recorder};
use crate::{
    activity::Activity,
    config::Config,
    discover::{self, Vm},
    insight::Insight,
    probe::TapProbe,
    qmp::{QmpHandle, QmpState, RunState},
    sample::{
        Devices, HeartbeatRows, Heartbeats, InFlightAges, LostCompletions, Missing, ProcessState,
        Reading, ThreadTimes, VcpuClocks, VmRows, VmSample, port::PortListener,
    },
    storage::incident::Incident,
    verdict::{Act, Cause, Input, Monitor, Terms, Testimony, Watch},
    witness::Notes,
};

/// The terms on which the VM called `name` is judged.
pub(super) fn terms_for(config: &Config, name: &str) -> Terms {
    Terms { policy: config.policy_for(name), tick: config.sample_interval }
}

/// What one tick reads of the whole host.
pub(super) struct HostSample<'a> {
    pub(super) rows: &'a Reading<VmRows>,
    /// `None` where no iterator reads them.
    pub(super) threads: Option<&'a ThreadTimes>,
    /// What all guests' agents said so far.
    pub(super) heartbeats: &'a dyn Fn() -> Result<&'a HeartbeatRows, &'a Missing>,
    /// They are read for all guests this time.
    pub(super) reads_all_heartbeats: bool,
    /// The ages of what is in flight for the VM in a slot.
    pub(super) in_flight: &'a dyn Fn(u32) -> Option<InFlightAges>,
    /// How its block devices do.
    pub(super) devices: &'a dyn Fn() -> Devices,
}

/// One VM.
#[derive(Debug)]
pub(super) struct WatchedVm {
    pub(super) vm: Arc<Vm>,
    pub(super) terms: Terms,
    pub(super) watch: Watch,
    pub(super) qmp: Option<QmpHandle>,
    pub(super) qmp_state: QmpState,
    pub(super) run_state: Option<RunState>,
    /// Questions for the run state so far, and the last one whose answer counts: answers come from tasks
    /// of their own, and an old one must not replace a newer one.
    pub(super) run_state_asked: u64,
    pub(super) run_state_answered: u64,
    /// Its vCPU threads, as (vCPU index, thread id).
    pub(super) threads: Vec<(u32, u32)>,
    /// Whether those are by QEMU's own account, which is better than threads' names.
    pub(super) threads_from_qmp: bool,
    /// The ids of all its threads when its vCPUs' were last told from the others, and how often that was
    /// done for these.
    pub(super) told_apart: (Vec<u32>, u32),
    /// How many descriptors it had when what it has open was last looked at.
    pub(super) descriptors: Option<u64>,
    /// Looks since the last one in full.
    pub(super) looks: u32,
    /// A look is under way: one that hangs is not followed by others.
    pub(super) looking: bool,
    /// Their clocks, where no iterator reads all threads at once.
    pub(super) clocks: VcpuClocks,
    /// It was said once where it is counted, or why it isn't: before that there is nothing to be read.
    pub(super) is_counted: bool,
    /// The slot it is counted in, or why it isn't.
    pub(super) slot: Result<u32, String>,
    pub(super) taps: Vec<TapProbe>,
    pub(super) lost_completions: LostCompletions,
    /// Its last sample, and when it was taken.
    pub(super) sample: Option<(Duration, VmSample)>,
    pub(super) activity: Option<Activity>,
    pub(super) memory: MemoryWatch,
    /// Whether its registers and its guest's memory can be read.
    pub(super) insight: Insight,
    /// The witnesses' notes; `None` while a round of questions is under way, which has them.
    pub(super) notes: Option<Notes>,
    /// When the last round began of questions that are only asked of suspects.
    pub(super) suspected_at: Option<Duration>,
    /// What the witnesses said last, for people to read.
    pub(super) testimony: Option<Arc<Testimony>>,
    pub(super) case: Option<Case>,
    /// Its agent's port, if it has one.
    pub(super) port: Option<PortListener>,
    /// What was told of its agent, as long as that is so.
    pub(super) told: Option<Incident>,
    /// Restarts that were begun.
    pub(super) restarts: u64,
    /// An earlier daemon restarted it, and may not have told QEMU again what to do at a reset.
    pub(super) put_back: bool,
    pub(super) recorder: Recorder,
    /// The task that waits for the process to end.
    pub(super) end: Option<JoinHandle<()>>,
}

/// A conviction that is being dealt with.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) incident: Incident,
    pub(super) stage: Stage,
    /// When it was convicted, or taken up: whoever lives after that lives after all.
    pub(super) since: Duration,
    /// Why it was convicted, without what came of that.
    pub(super) grounds: String,
    pub(super) tries: Tries,
}

impl Case {
    pub(super) fn new(incident: Incident, stage: Stage, since: Duration) -> Self {
        let grounds = incident.reason.clone();
        Self { incident, stage, since, grounds, tries: Tries::default() }
    }
}

/// Restarts that came to nothing, because QEMU could not be told of them or did not answer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tries {
    in_vain: u32,
    /// Time since the host's start before which there is no other.
    pub(super) not_before: Duration,
    /// QEMU fell silent in one of them: it is told to reset the guest, and asked for nothing else.
    pub(super) is_curt: bool,
}

impl Tries {
    /// After the first such try, and after many: it doubles.
    const PAUSE: Duration = Duration::from_secs(5);
    const LONGEST_PAUSE: Duration = Duration::from_secs(300);

    /// One came to nothing at `now`.
    pub(super) fn fail(&mut self, is_silence: bool, now: Duration) {
        let pause = Self::PAUSE.saturating_mul(2_u32.saturating_pow(self.in_vain));
        self.in_vain = self.in_vain.saturating_add(1);
        self.not_before = now + pause.min(Self::LONGEST_PAUSE);
        self.is_curt |= is_silence;
    }
}

/// How far a case has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// An earlier daemon was ended in the middle of its restart, or QEMU did not answer in the middle of it: what is left of
    /// that is seen from its run state.
    Resuming,
    /// It is to be restarted, but not before this moment.
    Pausing {
        /// Time since the host's start.
        until: Duration,
    },
    /// The restart is under way.
    Restarting,
    /// Restarted; waiting for life.
    AwaitingLife {
        /// When the reset was issued.
        since: SystemTime,
    },
    /// QEMU could not be told; it will be as soon as it listens.
    WaitingForMonitor,
    /// The guest writes its own crash dump; it is restarted once that is done.
    WaitingForDump,
    /// Somebody wants it left alone; once that is over, it is judged anew.
    OnHold,
    /// Nothing was done, or not enough, and it may be convicted once more: of the same crash, if it shows no life before.
    Reopened,
    /// Nothing more is to be done.
    Closed,
}

impl Stage {
    /// Whether another conviction, before the guest showed life, is of the same crash.
    pub(super) fn is_open(self) -> bool {
        match self {
            Self::Resuming
            | Self::Pausing { .. }
            | Self::AwaitingLife { .. }
            | Self::WaitingForMonitor
            | Self::WaitingForDump
            | Self::OnHold
            | Self::Reopened => true,
            Self::Restarting | Self::Closed => false,
        }
    }
}

impl WatchedVm {
    /// The key under which its restarts are counted: its UUID, or its name without one.
    pub(super) fn key(&self) -> &str {
        self.vm.uuid.as_deref().unwrap_or(&self.vm.name)
    }

    /// What QEMU's monitor has to say.
    pub(super) fn monitor(&self) -> Monitor {
        if self.qmp.is_none() {
            return Monitor::Unknown(self.why_no_socket());
        }
        match (&self.qmp_state, &self.run_state) {
            (QmpState::Ready, Some(run_state)) => Monitor::Answers(run_state.clone()),
            (QmpState::Ready | QmpState::Connecting, _) => {
                Monitor::Unknown("QMP is being connected".to_owned())
            }
            (QmpState::Busy, _) => {
                Monitor::Unknown("another client holds the QMP socket".to_owned())
            }
            (QmpState::Unresponsive { .. }, _) => {
                Monitor::Unresponsive("a QMP command got no answer in time".to_owned())
            }
            (QmpState::NotStarted { reason }, _) => Monitor::NotStarted(reason.clone()),
            (QmpState::Refused { reason } | QmpState::Closed { reason }, _) => {
                Monitor::Unknown(reason.clone())
            }
        }
    }

    /// Why no socket of its monitor is used.
    fn why_no_socket(&self) -> String {
        match self.vm.unused_monitors.first() {
            Some(why) if self.vm.qmp_sockets.is_empty() => why.clone(),
            _ => "no QMP socket is known".to_owned(),
        }
    }

    /// Takes a sample out of the host's readings.
    fn take_sample(&mut self, host: &HostSample<'_>, now: Duration) -> VmSample {
        let row = match (&self.slot, host.rows) {
            (Ok(slot), Ok(rows)) => rows.of(self.vm.id, *slot),
            (Ok(_), Err(missing)) => Err(missing.clone()),
            (Err(why), _) => Err(Missing::new("its row", why.clone())),
        };
        let pid = self.vm.id.pid;
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
            let why = match self.monitor() {
                Monitor::Unknown(why) | Monitor::Unresponsive(why) | Monitor::NotStarted(why)
                    if self.threads.is_empty() =>
                {
                    why
                }
                _ => return missing,
            };
            // Of threads without names, QEMU alone knows which are whose.
            Missing::new("vCPU time", format!("which threads are its vCPUs is not known: {why}"))
        });
        let storage = row
            .clone()
            .map(|row| self.lost_completions.settle(row.storage, host.devices, now))
            .map_err(|missing| missing.of("storage"));
        let network = self.network(&row);
        let heartbeats = self.heartbeats(&network, host);
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
        network: &Reading<Option<NetworkCounters>>,
        host: &HostSample<'_>,
    ) -> Reading<Heartbeats> {
        let network = network.as_ref().map_err(|missing| missing.clone().of("heartbeats"))?;
        let Some(heard) = network.map(|network| network.heartbeats) else {
            return Ok(Heartbeats::default());
        };
        let slot = self.slot.as_ref().map_err(|why| Missing::new("heartbeats", why.clone()))?;
        let read = || (host.heartbeats)().map_err(Clone::clone)?.of(self.vm.id, *slot);
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
            // Nobody is judged by those, and by the others only when they are counted.
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
    pub(super) fn threads_to_tell_apart(&mut self, all: Option<&[ThreadTime]>) -> bool {
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
    pub(super) fn observe(&mut self, host: &HostSample<'_>, now: Duration) {
        if !self.is_counted {
            return;
        }
        let mut sample = self.take_sample(host, now);
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

    /// Tells the verdict something, and says what is to be done.
    pub(super) fn feed(&mut self, input: &Input, now: Duration) -> Act {
        self.feed_saying(input, None, now)
    }

    /// The same, with a reason for people instead of the verdict's own: it is told of no more than it judges by.
    pub(super) fn feed_saying(
        &mut self,
        input: &Input,
        reason: Option<String>,
        now: Duration,
    ) -> Act {
        let before = self.watch.standing().0;
        let act = self.recorder.take(&mut self.watch, input, &self.terms, now);
        if let Some(reason) = reason {
            self.watch.reason = reason;
        }
        let (after, cause, reason) = self.watch.standing();
        if before != after {
            let routine = |name| matches!(name, "alive" | "suspect" | "starting");
            if routine(before) && routine(after) {
                debug!(vm = self.vm.name, "{before} -> {after}: {reason}");
            } else {
                let (uuid, pid) = (self.vm.uuid.as_deref(), self.vm.id.pid);
                let cause = cause.map(Cause::as_str);
                info!(
                    vm = self.vm.name,
                    uuid,
                    pid,
                    state = after,
                    cause,
                    "{before} -> {after}: {reason}"
                );
            }
        }
        act
    }

    /// Whether QEMU is being told to restart the guest just now.
    pub(super) fn is_restarting(&self) -> bool {
        self.case.as_ref().is_some_and(|case| case.stage == Stage::Restarting)
    }

    /// Whether it may have been told so, and what came of it is not known yet.
    pub(super) fn is_resuming(&self) -> bool {
        self.case.as_ref().is_some_and(|case| case.stage == Stage::Resuming)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_tries_came_to_nothing_the_longer_it_is_until_the_next() {
        let (mut tries, now) = (Tries::default(), Duration::from_secs(1000));
        assert!(tries.not_before.is_zero() && !tries.is_curt);
        let mut pauses = Vec::new();
        for number in 0..40 {
            tries.fail(number == 1, now);
            assert_eq!(tries.is_curt, number >= 1);
            pauses.push((tries.not_before - now).as_secs());
        }
        assert_eq!(pauses[..8], [5, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(pauses[39], 300);
    }
}
