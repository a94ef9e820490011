//! What it costs to record a tick of an idle VM, and how many bytes a ring's records take.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Result;
use clap::Args;
use flatline_detector::{
    activity::{Activity, NetworkActivity, StorageActivity, VcpuActivity},
    policy::{Mode, Policy},
    recording::{Header, Limits, Recording, Ring, file},
    verdict::{Act, DetectionPolicy, Input, Monitor, Tick, Watch},
};
use flatline_samples::{ProcessState, RunState};

use crate::{clock, print};

const SECOND: Duration = Duration::from_secs(1);
/// As much as is kept of a VM by default.
const LIMITS: Limits = Limits {
    longest_segment: Duration::ZERO,
    keep: Duration::from_secs(300),
    most_bytes: Limits::MOST_BYTES,
};

#[derive(Args)]
pub(crate) struct Options {
    /// Ticks of each round
    #[arg(long, default_value_t = 300_000)]
    ticks: u32,
    #[arg(long, default_value_t = 5)]
    rounds: u32,
}

pub(crate) fn measure(options: &Options) -> Result<()> {
    let detection = DetectionPolicy { policy: policy(), tick: SECOND };
    for vcpus in [1, 16] {
        let name = |figure: &str| format!("records/{vcpus}_vcpus/{figure}");
        let inputs: Vec<Input> = (0..7000).map(|second| input(second, vcpus)).collect();
        let mut ring = Ring::new(LIMITS, 0);
        let mut costs = Vec::new();
        for _ in 0..options.rounds {
            ring = Ring::new(LIMITS, 0);
            let judged = judge(&inputs, options.ticks, &detection, None)?;
            costs.push(judge(&inputs, options.ticks, &detection, Some(&mut ring))? - judged);
        }
        print(&name("nanoseconds"), &costs);
        let recording =
            Recording { header: Arc::new(header(&detection)), segments: ring.segments() };
        let in_memory: usize = recording.segments.iter().map(|segment| segment.size()).sum();
        print(&name("bytes_in_memory"), &[as_f64(in_memory)]);
        print(&name("bytes_in_file"), &[as_f64(file::to_bytes(&recording)?.len())]);
    }
    Ok(())
}

/// Nanoseconds that it takes to judge a tick, and to record it where there is a ring.
fn judge(
    inputs: &[Input],
    ticks: u32,
    detection: &DetectionPolicy,
    mut ring: Option<&mut Ring>,
) -> Result<f64> {
    let mut now = SECOND;
    let mut watch = Watch::begin(now, 1000 * SECOND, detection.policy.boot_grace);
    let mut inputs = inputs.iter().cycle();
    clock::per_call(ticks, || {
        let Some(input) = inputs.next() else { return Ok(()) };
        now += SECOND + Duration::from_micros(137);
        if let Some(ring) = &mut ring {
            ring.prepare(&watch, now);
        }
        let act = watch.step(input, detection, now);
        if let Some(ring) = &mut ring {
            ring.note(now, input, &act, None);
        }
        anyhow::ensure!(act == Act::Nothing, "an idle guest had {act:?} done");
        Ok(())
    })
}

/// A second of an idle guest that sends a packet, and whose vCPUs use a little more or less time than before.
fn input(second: u32, vcpus: u32) -> Input {
    let share = |nanos: u32| Duration::from_nanos(nanos.into()).as_secs_f64();
    let vcpu = |index| VcpuActivity {
        index,
        tid: 100_000 + index,
        busy: share(2_400_000 + (second * 7919 + index * 104_729) % 600_000),
        waiting: share(20_000 + second * 31 % 9000),
    };
    let activity = Activity {
        elapsed: SECOND,
        network: Ok(Some(NetworkActivity { guest_packets: 1, ..NetworkActivity::default() })),
        storage: Ok(StorageActivity::default()),
        vcpus: Ok((0..vcpus).map(vcpu).collect()),
        process: ProcessState::Running,
        heartbeat: Ok(None),
    };
    let monitor = Monitor::Answers(RunState::Running);
    Input::Tick(Arc::new(Tick { activity, monitor, calibratable: false, undecided: false }))
}

/// Any policy: an idle guest is alive by all of them.
fn policy() -> Policy {
    Policy {
        mode: Mode::Observe,
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
    }
}

fn header(detection: &DetectionPolicy) -> Header {
    Header {
        flatline: env!("CARGO_PKG_VERSION").to_owned(),
        started: SystemTime::UNIX_EPOCH,
        vm: "bench".to_owned(),
        uuid: None,
        pid: 1,
        start_ticks: 1,
        detection: detection.clone(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "some kilobytes")]
fn as_f64(bytes: usize) -> f64 {
    bytes as f64
}
