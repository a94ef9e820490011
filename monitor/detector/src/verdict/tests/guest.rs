//! A guest as its host sees it, and what its witnesses say.

use super::rig::TICK;
use crate::{
    activity::{Activity, NetworkActivity, StorageActivity, VcpuActivity},
    verdict::{Answer, Monitor, Questions, Statement, Testimony},
};
use flatline_samples::{Missing, ProcessState, QmpEvent, RunState};

pub(super) fn answered() -> Answer {
    Answer::Lives("192.0.2.7 answers".to_owned())
}

pub(super) fn unanswered() -> Answer {
    Answer::Silent("192.0.2.7 left 2 probes unanswered".to_owned())
}

pub(super) fn no_address() -> Answer {
    Answer::NotAsked("no address is known".to_owned())
}

pub(super) fn healthy() -> Answer {
    Answer::Lives("vCPU 0 waits with interrupts on".to_owned())
}

pub(super) fn stuck() -> Answer {
    Answer::Stuck("vCPU 0 runs with interrupts off at 0x7c01".to_owned())
}

pub(super) fn motionless() -> Answer {
    Answer::Motionless("vCPU 0 runs with interrupts off at 0x7c01, with nothing pending".to_owned())
}

pub(super) fn inconclusive() -> Answer {
    Answer::Neither("vCPU 0 runs kernel code".to_owned())
}

pub(super) fn unavailable() -> Answer {
    Answer::NotAsked("QEMU told nothing".to_owned())
}

pub(super) fn unresponsive() -> Answer {
    Answer::Unresponsive("no answer within 5 s".to_owned())
}

pub(super) fn all_seen() -> Answer {
    Answer::NotAsked("the host sees its requests".to_owned())
}

pub(super) fn nothing_to_excuse() -> Answer {
    Answer::Nothing("nobody else is at work on it".to_owned())
}

pub(super) fn excused() -> Answer {
    Answer::Excuse("a backup job has stopped it".to_owned())
}

pub(super) fn up() -> Answer {
    Answer::Nothing("an operating system's code is running".to_owned())
}

pub(super) fn in_its_firmware() -> Answer {
    Answer::NotUp("its firmware or boot loader runs, at 0xfff0".to_owned())
}

pub(super) fn panicked_event(action: &str) -> QmpEvent {
    QmpEvent::GuestPanicked { action: action.to_owned() }
}

pub(super) fn running() -> Monitor {
    Monitor::Answers(RunState::Running)
}

pub(super) fn busy_monitor() -> Monitor {
    Monitor::Unknown("another client holds the QMP socket".to_owned())
}

pub(super) fn missing(what: &'static str) -> Missing {
    Missing::new(what, "its program is not attached")
}

pub(super) fn packets(guest_packets: u64, packets_to_guest: u64) -> NetworkActivity {
    NetworkActivity { guest_packets, packets_to_guest: Some(packets_to_guest), probe_answers: 0 }
}

/// vCPUs that run and wait for these shares of the time.
pub(super) fn vcpus(shares: &[(f64, f64)]) -> Vec<VcpuActivity> {
    (0..)
        .zip(shares)
        .map(|(index, (busy, waiting))| VcpuActivity {
            index,
            tid: 100 + index,
            busy: *busy,
            waiting: *waiting,
        })
        .collect()
}

/// What is seen of a VM in a tick, and what its witnesses say if they are asked.
#[derive(Clone, Debug)]
pub(super) struct Guest {
    pub(super) activity: Activity,
    pub(super) monitor: Monitor,
    /// Has to be calibrated, and disturbs a guest that boots.
    pub(super) arp: Answer,
    pub(super) registers: Answer,
    pub(super) requests: Answer,
    /// Whether another client is at work on it.
    pub(super) jobs: Answer,
    /// How far a restarted guest has come.
    pub(super) stage: Answer,
}

impl Guest {
    /// Idle, silent and healthy: 2.4 ms/s, answers ARP.
    pub(super) fn idle() -> Self {
        Self {
            activity: Activity {
                elapsed: TICK,
                network: Ok(Some(NetworkActivity::default())),
                storage: Ok(StorageActivity::default()),
                vcpus: Ok(vcpus(&[(0.0024, 0.0)])),
                process: ProcessState::Running,
                heartbeat: Ok(None),
            },
            monitor: running(),
            arp: answered(),
            registers: healthy(),
            requests: all_seen(),
            jobs: nothing_to_excuse(),
            stage: up(),
        }
    }

    /// What its witnesses say in a round.
    pub(super) fn testimony(&self, questions: Questions) -> Testimony {
        let of_suspects =
            matches!(questions, Questions::DuringBoot | Questions::All | Questions::Recovering);
        let rows = [
            ("ARP", &self.arp, !matches!(questions, Questions::DuringBoot | Questions::IsItUp)),
            ("registers", &self.registers, of_suspects),
            ("QEMU's block layer", &self.requests, of_suspects),
            ("jobs", &self.jobs, of_suspects),
            (
                "boot stage",
                &self.stage,
                matches!(questions, Questions::IsItUp | Questions::Recovering),
            ),
        ];
        let asked = rows.into_iter().filter(|(_, _, asked)| *asked);
        let statement = |witness: &'static str, answer: &Answer| Statement {
            witness: witness.into(),
            answer: answer.clone(),
        };
        Testimony {
            statements: asked.map(|(witness, answer, _)| statement(witness, answer)).collect(),
        }
    }

    pub(super) fn level(&mut self, shares: &[(f64, f64)]) {
        self.activity.vcpus = Ok(vcpus(shares));
    }

    pub(super) fn sends(&mut self, guest_packets: u64) {
        self.activity.network = Ok(Some(packets(guest_packets, 0)));
    }

    /// Every vCPU halted with interrupts off.
    pub(super) fn halt(&mut self) {
        self.sends(0);
        self.level(&[(0.0003, 0.0)]);
        (self.arp, self.registers) = (no_address(), Answer::Halted);
    }

    /// One vCPU spins, the other was parked.
    pub(super) fn spin(&mut self) {
        self.sends(0);
        self.level(&[(0.93, 0.05), (0.0, 0.0)]);
        (self.arp, self.registers) = (no_address(), stuck());
    }

    /// Answers nothing, at a level and with registers that say nothing.
    pub(super) fn fall_silent(&mut self) {
        self.sends(0);
        self.level(&[(0.4, 0.0)]);
        (self.arp, self.registers) = (unanswered(), inconclusive());
    }
}
