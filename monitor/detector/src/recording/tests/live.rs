//! Made-up VMs that are recorded while they are judged.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use flatline_detector::{
    activity::{Activity, NetworkActivity, StorageActivity, VcpuActivity},
    policy::{Mode, Policy},
    recording::{Header, Limits, Recording, Ring, Segment, StateSummary},
    verdict::{
        Act, Answer, DetectionPolicy, Input, Monitor, Questions, Statement, Testimony, Tick, Watch,
    },
};
use flatline_samples::{GuestMemory, Memory, ProcessState, QemuMemory, RunState, Strain};

pub(crate) const SECOND: Duration = Duration::from_secs(1);

pub(crate) fn detection() -> DetectionPolicy {
    // Those of an empty configuration.
    let policy = Policy {
        mode: Mode::Recover,
        flat_for: 10 * SECOND,
        unconfirmed_flat_for: 120 * SECOND,
        unresponsive_for: Duration::ZERO,
        heartbeat_lost_after: None,
        boot_grace: 60 * SECOND,
        boot_loop_resets: 5,
        boot_loop_window: 300 * SECOND,
        max_restarts: 3,
        window: 3600 * SECOND,
        pause: 10 * SECOND,
        restart_without_heartbeat: false,
    };
    DetectionPolicy { policy, tick: SECOND }
}

pub(crate) fn header() -> Header {
    Header {
        flatline: "0.1.0".to_owned(),
        started: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
        vm: "web-1".to_owned(),
        uuid: None,
        pid: 4711,
        start_ticks: 99,
        detection: detection(),
    }
}

/// A second of an idle guest, or of one whose vCPU is `busy`, that sent so many packets.
pub(crate) fn tick(packets: u64, busy: f64) -> Input {
    let vcpu = VcpuActivity { index: 0, tid: 4712, busy, waiting: 0.000_1 };
    Input::Tick(Arc::new(Tick {
        activity: Activity {
            elapsed: SECOND,
            network: Ok(Some(NetworkActivity { guest_packets: packets, ..Default::default() })),
            storage: Ok(StorageActivity::default()),
            vcpus: Ok(vec![vcpu]),
            process: ProcessState::Running,
            heartbeat: Ok(None),
        },
        monitor: Monitor::Answers(RunState::Running),
        calibratable: false,
        undecided: false,
    }))
}

/// What a guest told at that moment, with so many bytes available of 100.
pub(crate) fn memory(told_at: u64, available: u64) -> Memory {
    let guest = GuestMemory {
        told_at,
        total: Some(100),
        available: Some(available),
        ..GuestMemory::default()
    };
    let strain = Strain { available: 0.05, major_faults: 0.5 };
    let qemu = QemuMemory { rss: 4096, swap: Some(0), hugetlb: None };
    Memory { guest: Ok(guest), strain: Some(strain), qemu: Ok(qemu) }
}

fn stuck() -> Input {
    let answer = Answer::Stuck("vCPU 0 in kernel mode, APIC disabled".to_owned());
    let statements = vec![Statement { witness: "registers".into(), answer }];
    Input::Testimony(Arc::new(Testimony { statements }))
}

/// A VM that is recorded, and judged live.
pub(crate) struct Live {
    pub(crate) watch: Watch,
    pub(crate) ring: Ring,
    pub(crate) now: Duration,
    pub(crate) acts: Vec<(Duration, Act)>,
    pub(crate) closed: Vec<Arc<Segment>>,
    /// When the round of questions that is under way ends.
    round_ends: Option<Duration>,
    ticked: Duration,
}

impl Live {
    pub(crate) fn new(limits: Limits) -> Self {
        let now = Duration::from_secs(5);
        let watch = Watch::begin(now, 1000 * SECOND, detection().policy.boot_grace);
        let ring = Ring::new(limits, 0);
        Self {
            watch,
            ring,
            now,
            acts: Vec::new(),
            closed: Vec::new(),
            round_ends: None,
            ticked: now,
        }
    }

    pub(crate) fn tell(&mut self, input: &Input) -> Act {
        self.closed.extend(self.ring.prepare(&self.watch, self.now));
        let before = StateSummary::of(&self.watch);
        let act = self.watch.step(input, &detection(), self.now);
        let decided =
            before != StateSummary::of(&self.watch) || !matches!(act, Act::Nothing | Act::Ask(_));
        let changed = decided.then_some((&self.watch.state, self.watch.reason.as_str()));
        self.ring.note(self.now, input, &act, changed);
        self.acts.push((self.now, act.clone()));
        act
    }

    /// A second passes, at whose end the guest shows this; a suspect is asked round after round, and answers
    /// like one that panicked. Returns early with a conviction.
    pub(crate) fn second(&mut self, packets: u64, busy: f64) -> Act {
        let next = self.ticked.max(self.now - SECOND) + SECOND;
        while let Some(ends) = self.round_ends.take_if(|ends| *ends < next) {
            self.now = ends;
            let act = self.tell(&stuck());
            if matches!(act, Act::Convict(_)) {
                return act;
            }
            self.ask(&act);
        }
        (self.now, self.ticked) = (next, next);
        let act = self.tell(&tick(packets, busy));
        self.ask(&act);
        act
    }

    fn ask(&mut self, act: &Act) {
        if matches!(act, Act::Ask(Questions::All)) {
            self.round_ends.get_or_insert(self.now + Duration::from_millis(300));
        }
    }

    pub(crate) fn recording(&self) -> Recording {
        Recording { header: Arc::new(header()), segments: self.ring.segments() }
    }
}

pub(crate) fn limits() -> Limits {
    let longest_segment = Duration::ZERO;
    Limits { keep: 300 * SECOND, most_bytes: Limits::MOST_BYTES, longest_segment }
}

/// A guest that works for `seconds`, then panics and spins for 40.
pub(crate) fn a_panic_after(seconds: u32) -> Live {
    let mut live = Live::new(limits());
    for second in 0..seconds {
        live.second(u64::from(second % 3), 0.0123);
    }
    for _ in 0..40 {
        live.second(0, 0.99);
    }
    live
}
