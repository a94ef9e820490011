//! `cargo xtask matrix`: plays every scenario with real guests, and writes `docs/verdicts.md`.
//!
//! Each run is a stage of its own: a daemon, a network namespace, guests, one of them a bystander. Several play at
//! once, but no more of them keep a CPU busy than there are CPUs: a guest that is starved by another scenario's
//! would be judged as that.

mod journal;
pub(crate) mod report;
pub(crate) mod schedule;
mod sensors;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use flatline_tests::scenario::{self, Outcome, Programs, Scenario, Stage};
use flatline_tests::{image, interrupt};

use crate::process::{elapsed, heading, workspace_root};
use crate::{build_ebpf, executable, guest, setup, tools};
use journal::{Entry, Journal};
use report::Report;
use schedule::Cpus;

/// What to play.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// How often each scenario is played
    #[arg(
        long,
        default_value_t = 3,
        value_parser = clap::value_parser!(u32).range(1..),
        conflicts_with = "sensors"
    )]
    runs: u32,
    /// Only this scenario (may be repeated); docs/verdicts.md is then left as it is
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Goes on with a matrix that was broken off: what was played of it isn't played again
    #[arg(long, conflicts_with_all = ["only", "sensors"])]
    resume: bool,
    /// Each fault with each sensor taken away instead, once; --only names sensors then
    #[arg(long)]
    sensors: bool,
    /// Only name the scenarios
    #[arg(long, conflicts_with = "sensors")]
    list: bool,
}

/// What the tests play of it: one of each kind that no other end-to-end test has, in two minutes; what takes longest
/// comes first.
const CHOICE: [&str; 9] = [
    "qemu-stopped",
    "disk-hangs",
    "panic-busy",
    "hard-lockup-2-of-2",
    "pvpanic-none",
    "boot-loop",
    "compute-unasked",
    "kvm-cli-hlt-32",
    "kvm-internal-error",
];

impl Options {
    /// Each scenario of the tests' choice, once.
    pub(crate) fn choice() -> Self {
        let only = CHOICE.map(str::to_owned).into();
        Self { runs: 1, only, resume: false, list: false, sensors: false }
    }
}

/// Builds what is missing, plays, and writes.
///
/// # Errors
///
/// If a verdict was not the one that is due, a guest was reset wrongly, something could not be played, or Ctrl-C
/// came.
pub(crate) fn task(options: &Options) -> Result<()> {
    let trials = if options.sensors { sensors::chosen(&options.only)? } else { Vec::new() };
    let mut scenarios = if options.sensors { Vec::new() } else { chosen(&options.only)? };
    if options.list {
        for Scenario { name, what, expected, .. } in &scenarios {
            println!("{name}: {what}. Due: {}.", expected.words());
        }
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() {
        bail!("the matrix needs root, for its network namespaces and to load eBPF programs");
    }
    setup::ensure()?;
    build_ebpf::build()?;
    let daemon = executable::build("the daemon", &["--package", "flatline"])?;
    tools::fetch();
    let programs = Programs { daemon, images: image::build(&guest::build()?, |_| {})? };
    interrupt::install()?;
    if options.sensors {
        return sensors::task(&trials, &programs);
    }
    // Not everywhere, and told apart.
    if scenarios.iter().any(is_under_kvm) && !scenario::kvm_runs(&programs)? {
        heading("KVM runs no boot sector here: what needs it is not played");
        scenarios.retain(|scenario| !is_under_kvm(scenario));
    }
    let media: Vec<_> = scenarios.iter().flat_map(scenario::needs).copied().collect();
    tools::fetch_media(&media);
    scenarios.retain(|scenario| match scenario::lacks(scenario, &programs) {
        Some(why) => {
            heading(&format!("{} is not played: {why}", scenario.name));
            false
        }
        None => true,
    });
    let begin = Instant::now();
    let mut runs: Vec<Scenario> =
        (0..options.runs).flat_map(|_| scenarios.iter().copied()).collect();
    let mut report = Report::new(&scenarios);
    let mut journal = match (&options.only[..], options.resume) {
        ([], resume) => Some(open_journal(&programs.daemon, resume, &mut runs, &mut report)?),
        _ => None,
    };
    heading(&format!("{} runs of {} scenarios", runs.len(), scenarios.len()));
    let cpus = std::thread::available_parallelism()?.get();
    let mut unnoted = Ok(());
    schedule::play(
        &runs,
        schedule::STAGES,
        cpus,
        |scenario, cpus| play(scenario, &programs, cpus),
        |scenario, played| {
            let log = report::log(&played);
            if let (Some(journal), Ok(outcome)) = (&mut journal, &played) {
                let noted = journal.note(scenario.name, outcome);
                unnoted = std::mem::replace(&mut unnoted, Ok(())).and(noted);
            }
            println!("{:>8}  {}{log}", elapsed(begin.elapsed()), report.add(scenario, played));
        },
    );
    unnoted.context("what was played could not be written down, to be resumed")?;
    interrupt::check()?;
    if options.only.is_empty() {
        let path = workspace_root().join("docs/verdicts.md");
        report.write(&path)?;
        heading(&format!("{} has it all", path.display()));
    }
    let failed = report.failures();
    if !failed.is_empty() {
        bail!("not as it is due:\n{failed}");
    }
    heading(&format!("all as it is due, in {}", elapsed(begin.elapsed())));
    Ok(())
}

/// Where it stands what was played; of what is resumed, that is taken off `runs` and added to `report`.
fn open_journal(
    daemon: &Path,
    resume: bool,
    runs: &mut Vec<Scenario>,
    report: &mut Report,
) -> Result<Journal> {
    let path = workspace_root().join("target/matrix.jsonl");
    if !resume {
        return Journal::begin(&path, daemon);
    }
    let (journal, entries) = Journal::resume(&path, daemon)?;
    for Entry { scenario, outcome } in entries {
        if let Some(at) = runs.iter().position(|run| run.name == scenario) {
            report.add(&runs.remove(at), Ok(outcome));
        }
    }
    Ok(journal)
}

fn play(scenario: &Scenario, programs: &Programs, cpus: &Cpus) -> Result<Outcome> {
    // What boots is quiet until its fault.
    let (booting, taken) = if scenario.boots {
        (Some(cpus.boot()), None)
    } else {
        (None, Some(cpus.take(scenario.pins)))
    };
    let stage = Stage::set_up(scenario, programs)?;
    drop(booting);
    let _taken = taken.unwrap_or_else(|| cpus.take(scenario.pins));
    scenario::run(scenario, &stage)
}

fn is_under_kvm(scenario: &Scenario) -> bool {
    scenario::under_kvm().iter().any(|other| other.name == scenario.name)
}

fn chosen(names: &[String]) -> Result<Vec<Scenario>> {
    let mut scenarios = [scenario::all(), scenario::under_kvm()].concat();
    for name in names {
        if !scenarios.iter().any(|scenario| scenario.name == name) {
            bail!("no scenario is called {name}: see `cargo xtask matrix --list`");
        }
    }
    if !names.is_empty() {
        let place = |scenario: &Scenario| names.iter().position(|name| scenario.name == name);
        scenarios.retain(|scenario| place(scenario).is_some());
        // In the order in which they were named.
        scenarios.sort_by_key(place);
    }
    Ok(scenarios)
}
