//! All that the loop holds of one VM, and how that becomes a sample and evidence.

use std::{
    net::Ipv4Addr,
    time::{Duration, SystemTime},
};

use monitor_ebpf::VmRow;
use tokio::task::JoinHandle;

use crate::{
    activity::Activity,
    config::Policy,
    discover::{self, Vm},
    probe::TapProbe,
    qmp::{QmpHandle, QmpState, RunState},
    report::incident::Incident,
    sample::{
        CounterMaps, LostCompletions, Missing, ProcessState, Reading, VcpuClocks, VmSample,
        no_device_has_requests,
    },
    verdict::{ArpAnswer, Monitor, Testimony, Watch},
    witness::{PROBES_PER_ROUND, Round},
};

/// One VM.
#[derive(Debug)]
pub(super) struct WatchedVm {
    pub(super) vm: Vm,
    pub(super) policy: Policy,
    pub(super) watch: Watch,
    pub(super) qmp: Option<QmpHandle>,
    pub(super) qmp_state: QmpState,
    pub(super) run_state: Option<RunState>,
    /// Questions for the run state so far, and the last one whose answer counts: answers come from tasks
    /// of their own, and an old one must not replace a newer one.
    pub(super) run_state_asked: u64,
    pub(super) run_state_answered: u64,
    pub(super) clocks: VcpuClocks,
    /// Whether the clocks are by QEMU's own account, which is better than threads' names.
    pub(super) clocks_from_qmp: bool,
    /// Why its row can't be read, as long as that is so.
    pub(super) row: Result<(), String>,
    pub(super) taps: Vec<TapProbe>,
    pub(super) lost_completions: LostCompletions,
    /// Its last sample, and when it was taken.
    pub(super) sample: Option<(Duration, VmSample)>,
    pub(super) activity: Option<Activity>,
    /// The round of questions that is under way.
    pub(super) asking: Option<Asking>,
    pub(super) testimony: Option<Testimony>,
    /// What the witnesses said last, for people to read.
    pub(super) last_testimony: Option<Testimony>,
    pub(super) case: Option<Case>,
    /// The task that waits for the process to end.
    pub(super) end: Option<JoinHandle<()>>,
}

/// A round that is under way.
#[derive(Clone, Debug)]
pub(super) struct Asking {
    /// When the boot began that is being asked about; an answer from another one says nothing.
    pub(super) boot_began: Duration,
    /// What is probed, or why nothing is.
    pub(super) probed: Result<Probed, String>,
}

/// An address that is being probed.
#[derive(Clone, Debug)]
pub(super) struct Probed {
    pub(super) address: Ipv4Addr,
    /// Answers counted before the probes were sent.
    pub(super) answers_before: u64,
}

/// A conviction that is being dealt with.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) incident: Incident,
    pub(super) stage: Stage,
}

/// How far a case has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The restart is under way.
    Restarting,
    /// Restarted; waiting for life.
    AwaitingLife {
        /// When the reset was issued.
        since: SystemTime,
    },
    /// QEMU could not be told; it will be as soon as it listens.
    WaitingForMonitor,
    /// Nothing more is to be done.
    Closed,
}

impl WatchedVm {
    /// The key under which its restarts are counted: its UUID, or its name without one.
    pub(super) fn key(&self) -> &str {
        self.vm.uuid.as_deref().unwrap_or(&self.vm.name)
    }

    /// What QEMU's monitor has to say.
    pub(super) fn monitor(&self) -> Monitor {
        if self.qmp.is_none() {
            return Monitor::Unknown("no QMP socket is known".to_owned());
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
            (QmpState::Refused { reason } | QmpState::Closed { reason }, _) => {
                Monitor::Unknown(reason.clone())
            }
        }
    }

    /// Takes a sample. Cheap enough for the loop: two look-ups and a read for each vCPU.
    fn take_sample(&mut self, counters: &CounterMaps, now: Duration) -> VmSample {
        let row = match &self.row {
            Ok(()) => counters.vm(self.vm.id.pid),
            Err(why) => Err(Missing::new("its row", why.clone())),
        };
        let letter = discover::process_state(self.vm.id.pid);
        VmSample {
            network: self.network(&row),
            storage: row
                .map(|row| self.lost_completions.settle(row.storage, no_device_has_requests, now))
                .map_err(|missing| missing.of("storage")),
            vcpus: self.clocks.read(),
            process: letter.map_or(ProcessState::Gone, ProcessState::from_letter),
        }
    }

    fn network(&self, row: &Reading<VmRow>) -> Reading<Option<monitor_ebpf::NetworkCounters>> {
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

    /// Samples, and notes what moved since the last sample.
    pub(super) fn observe(&mut self, counters: &CounterMaps, now: Duration) {
        let sample = self.take_sample(counters, now);
        self.activity = self.sample.as_ref().map(|(then, previous)| {
            Activity::between(previous, &sample, now.saturating_sub(*then))
        });
        self.sample = Some((now, sample));
    }

    /// Turns the round that just ended into testimony. `None` for one about an earlier boot.
    pub(super) fn testify(&mut self, round: Round, counters: &CounterMaps) -> Option<Testimony> {
        let asking = self.asking.take()?;
        if asking.boot_began != self.watch.boot.began {
            return None;
        }
        let answers_now = counters.vm(self.vm.id.pid).map(|row| row.network.probe_answers);
        let arp = match (asking.probed, round.probed, answers_now) {
            (Err(why), _, _) | (_, Err(why), _) => ArpAnswer::NotAsked(why),
            (_, _, Err(missing)) => ArpAnswer::NotAsked(missing.to_string()),
            (Ok(Probed { address, answers_before }), Ok(()), Ok(answers)) => {
                if answers > answers_before {
                    ArpAnswer::Answered(address)
                } else {
                    ArpAnswer::Silent { address, probes: PROBES_PER_ROUND }
                }
            }
        };
        Some(Testimony { arp, registers: round.registers })
    }

    /// Whether QEMU is being told to restart the guest just now.
    pub(super) fn is_restarting(&self) -> bool {
        self.case.as_ref().is_some_and(|case| case.stage == Stage::Restarting)
    }
}
