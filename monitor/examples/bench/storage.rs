//! What a request to the block layer pays for flatline's programs, beside empty ones on the same hooks.
//!
//! Tracing programs can't be run by themselves, so the kernel's own statistics of each are taken, under a
//! load that runs meanwhile. Taking them costs some 20 ns a run, in both alike.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use aya::{
    Btf,
    programs::BtfTracePoint,
    sys::{Stats, enable_stats},
};
use clap::Args;
use flatline::parts::CounterMaps;

use crate::{
    kernel::{self, Runs},
    print,
};

/// Ours, the empty one on the same hook, and the hook.
const PAIRS: [(&str, &str, &str); 3] = [
    ("block_submitted", "empty_submitted", "block_bio_queue"),
    ("block_request_completed", "empty_request", "block_rq_complete"),
    ("block_bio_completed", "empty_bio", "block_bio_complete"),
];

#[derive(Args)]
pub(crate) struct Options {
    /// The empty programs
    #[arg(long)]
    object: PathBuf,
    /// What the figures' names begin with
    #[arg(long)]
    label: String,
    #[arg(long)]
    rounds: u32,
    /// Length of a round
    #[arg(long)]
    milliseconds: u64,
}

pub(crate) fn measure(bpffs: &Path, options: &Options) -> Result<()> {
    let btf = Btf::from_sys_fs()?;
    let mut object = kernel::load(&options.object)?;
    let mut pairs = Vec::new();
    for (ours, empty, hook) in PAIRS {
        let program = object.program_mut(empty).with_context(|| format!("no {empty}"))?;
        let program: &mut BtfTracePoint = program.try_into()?;
        program.load(hook, &btf)?;
        program.attach()?;
        let floor = program.fd()?.try_clone()?;
        pairs.push((kernel::pinned_program(bpffs, &format!("-{ours}"))?, floor));
    }
    let counters = CounterMaps::open(bpffs)?;
    // Off again when this is dropped.
    let _statistics = enable_stats(Stats::RunTime)?;
    let read = || -> Result<Vec<(Runs, Runs)>> {
        pairs.iter().map(|(ours, floor)| Ok((Runs::of(ours)?, Runs::of(floor)?))).collect()
    };
    let mut ours = [const { Vec::new() }; 3];
    let mut floors = [const { Vec::new() }; 3];
    let (mut counted, mut events) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        let before = (read()?, submitted(&counters));
        std::thread::sleep(Duration::from_millis(options.milliseconds));
        let after = (read()?, submitted(&counters));
        for (at, (now, then)) in after.0.iter().zip(&before.0).enumerate() {
            ours[at].extend(now.0.since(then.0).mean());
            floors[at].extend(now.1.since(then.1).mean());
        }
        let runs = after.0[0].0.since(before.0[0].0).count;
        events.push(f64::from(u32::try_from(runs)?));
        counted.push(f64::from(u32::try_from(after.1 - before.1)?));
    }
    for ((name, floor, _), (ours, floors)) in PAIRS.iter().zip(ours.iter().zip(&floors)) {
        print(&format!("{}/{name}", options.label), ours);
        print(&format!("{}/{floor}", options.label), floors);
    }
    print(&format!("{}/events", options.label), &events);
    print(&format!("{}/counted", options.label), &counted);
    Ok(())
}

/// Requests that were counted for any VM. The few that this runs beside have the first slots.
fn submitted(counters: &CounterMaps) -> u64 {
    counters.rows().take(8).map(|row| row.storage().submitted()).sum()
}
