//! A simulated VM: what its guest shows in each tick, how it answers, and what the verdict made of it.

use std::{collections::BTreeSet, net::Ipv4Addr, time::Duration};

use crate::{
    activity::{Activity, NetworkActivity, StorageActivity, VcpuActivity},
    config::{Mode, Policy},
    qmp::{QmpEvent, RunState},
    sample::{Missing, ProcessState},
    verdict::{
        Act, ArpAnswer, Cause, Evidence, Monitor, Questions, RegistersFinding, RequestsAnswer,
        State, Testimony, Watch, hear, step,
    },
};

pub(super) const TICK: Duration = Duration::from_secs(1);
pub(super) const FLAT_TICKS: u32 = 10;
pub(super) const GRACE_TICKS: u32 = 60;
pub(super) const HOUR: u32 = 3600;

pub(super) fn policy() -> Policy {
    Policy {
        mode: Mode::Recover,
        flat_for: TICK * FLAT_TICKS,
        unconfirmed_flat_for: TICK * 120,
        boot_grace: TICK * GRACE_TICKS,
        max_restarts: 3,
        window: TICK * HOUR,
    }
}

pub(super) fn address() -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 7)
}

pub(super) fn answered() -> ArpAnswer {
    ArpAnswer::Answered(address())
}

pub(super) fn unanswered() -> ArpAnswer {
    ArpAnswer::Silent { address: address(), probes: 2 }
}

pub(super) fn no_address() -> ArpAnswer {
    ArpAnswer::NotAsked("no address is known".to_owned())
}

pub(super) fn healthy() -> RegistersFinding {
    RegistersFinding::Healthy("vCPU 0 waits with interrupts on".to_owned())
}

pub(super) fn stuck() -> RegistersFinding {
    RegistersFinding::Stuck("vCPU 0 runs with interrupts off at 0x7c01".to_owned())
}

pub(super) fn inconclusive() -> RegistersFinding {
    RegistersFinding::Inconclusive("vCPU 0 runs kernel code".to_owned())
}

pub(super) fn unavailable() -> RegistersFinding {
    RegistersFinding::Unavailable("QEMU told nothing".to_owned())
}

pub(super) fn all_seen() -> RequestsAnswer {
    RequestsAnswer::NotAsked("the host sees its requests".to_owned())
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
    NetworkActivity { guest_packets, packets_to_guest, probe_answers: 0 }
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
    pub(super) arp: ArpAnswer,
    pub(super) registers: RegistersFinding,
    pub(super) requests: RequestsAnswer,
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
            },
            monitor: running(),
            arp: answered(),
            registers: healthy(),
            requests: all_seen(),
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
        (self.arp, self.registers) = (no_address(), RegistersFinding::AllHalted);
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

/// The VM under watch.
pub(super) struct Rig {
    pub(super) now: Duration,
    pub(super) policy: Policy,
    pub(super) watch: Watch,
    pub(super) guest: Guest,
    /// What was asked in the last tick; answered in the next.
    pub(super) asked: Option<Questions>,
    /// Rounds that were answered.
    pub(super) rounds: u32,
    /// All that was to be done, but for nothing and questions.
    pub(super) acts: Vec<(Duration, Act)>,
    /// From which state to which it went.
    pub(super) edges: BTreeSet<(&'static str, &'static str)>,
}

impl Rig {
    /// A daemon that has been up for a while, and finds a QEMU that has been running for `age`.
    pub(super) fn new(age: Duration) -> Self {
        let (now, policy) = (TICK * HOUR, policy());
        Self {
            now,
            watch: Watch::begin(now, age, policy.boot_grace),
            policy,
            guest: Guest::idle(),
            asked: None,
            rounds: 0,
            acts: Vec::new(),
            edges: BTreeSet::new(),
        }
    }

    /// A guest that was up long before the daemon looked, sends packets, and answered ARP.
    pub(super) fn calibrated() -> Self {
        let mut rig = Self::new(TICK * HOUR);
        rig.run(3, |_, _| {});
        assert!(rig.watch.boot.arp_answered, "the calibration was not asked for or not answered");
        rig.guest.sends(1);
        rig.tick();
        rig.guest.sends(0);
        rig
    }

    /// A guest that was up long before, and has no address that is known.
    pub(super) fn without_address() -> Self {
        let mut rig = Self::new(TICK * HOUR);
        rig.guest.arp = no_address();
        rig.guest.sends(1);
        rig.tick();
        rig.guest.sends(0);
        rig
    }

    /// One that is suspected, and whose first round has just been asked for.
    pub(super) fn suspect() -> Self {
        let mut rig = Self::without_address();
        rig.run(FLAT_TICKS, |_, _| {});
        assert_eq!((rig.state(), rig.rounds), ("suspect", 0));
        rig
    }

    /// One that was convicted as halted, and still is.
    pub(super) fn crashed() -> Self {
        let mut rig = Self::suspect();
        rig.guest.halt();
        rig.run(3, |_, _| {});
        assert_eq!(rig.watch.state, State::Crashed { cause: Cause::Halted });
        rig
    }

    /// One that was restarted just now.
    pub(super) fn recovering() -> Self {
        let mut rig = Self::crashed();
        rig.restarted();
        rig.acts.clear();
        rig
    }

    pub(super) fn state(&self) -> &'static str {
        self.watch.state.name()
    }

    /// One tick; the questions of the last one are answered.
    pub(super) fn tick(&mut self) -> Act {
        let testimony = self.asked.take().map(|questions| self.answer(questions));
        self.tick_with(testimony.as_ref())
    }

    fn answer(&mut self, questions: Questions) -> Testimony {
        self.rounds += 1;
        Testimony {
            arp: if questions.arp { self.guest.arp.clone() } else { no_address() },
            registers: if questions.registers {
                self.guest.registers.clone()
            } else {
                unavailable()
            },
            requests: self.guest.requests.clone(),
        }
    }

    /// One tick in which this testimony comes in.
    pub(super) fn tick_with(&mut self, testimony: Option<&Testimony>) -> Act {
        self.now += self.guest.activity.elapsed;
        let evidence = Evidence {
            activity: &self.guest.activity,
            monitor: &self.guest.monitor,
            testimony,
            arp_possible: !matches!(self.guest.arp, ArpAnswer::NotAsked(_)),
        };
        let before = self.state();
        let act = step(&mut self.watch, &evidence, &self.policy, TICK, self.now);
        self.edges.insert((before, self.state()));
        self.asked = match act {
            Act::Ask(questions) => Some(questions),
            _ => None,
        };
        self.note(&act);
        act
    }

    fn note(&mut self, act: &Act) {
        if !matches!(act, Act::Nothing | Act::Ask(_)) {
            self.acts.push((self.now, act.clone()));
        }
    }

    /// Ticks so often; `shape` may change the guest before each tick, which it gets the number of.
    pub(super) fn run(&mut self, ticks: u32, mut shape: impl FnMut(u32, &mut Guest)) {
        for n in 0..ticks {
            shape(n, &mut self.guest);
            self.tick();
        }
    }

    /// QEMU tells of an event between two ticks.
    pub(super) fn event(&mut self, event: &QmpEvent) -> Option<Act> {
        let before = self.state();
        let act = hear(&mut self.watch, &self.guest.monitor, Some(event), self.now);
        self.edges.insert((before, self.state()));
        if let Some(act) = &act {
            self.note(act);
        }
        act
    }

    /// Recovery carried out a restart of what was convicted.
    pub(super) fn restarted(&mut self) {
        let before = self.state();
        let cause = self.watch.state.cause().expect("only the convicted are restarted");
        self.watch.restarted(cause, self.policy.boot_grace, self.now);
        self.edges.insert((before, self.state()));
        // An answer about the boot before is thrown away by whoever asks.
        self.asked = None;
    }

    /// The only conviction so far, and when; `None` if there was none.
    pub(super) fn conviction(&self) -> Option<(Duration, Cause)> {
        let mut convictions = self.acts.iter().filter_map(|(when, act)| match act {
            Act::Convict(cause) | Act::NotRecovered(cause) => Some((*when, *cause)),
            _ => None,
        });
        let first = convictions.next();
        assert_eq!(convictions.next(), None, "convicted twice");
        first
    }
}
