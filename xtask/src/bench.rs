//! `cargo xtask bench`: measures what flatline costs, and writes `docs/costs.md`.
//!
//! Everything is measured on a real daemon, in directories, a bpffs and a network namespace of its own: its
//! programs as it loaded them, its readers, its process. Where a figure has a floor, both are measured in
//! one run. To compare two machines, or two versions, run this on each.

mod clients;
mod domstats;
mod events;
mod figures;
mod fleet;
mod many;
mod page;
mod polling;
mod possible_cpus;
mod prices;
mod readings;
mod records;
mod report;
mod stage;
mod starts;
mod suspects;
mod ticks;

use std::time::Instant;

use anyhow::{Result, bail, ensure};
use flatline_tests::interrupt;

use crate::process::{elapsed, heading, workspace_root};
use crate::{build_ebpf, executable, setup};
pub(crate) use possible_cpus::{INSIDE, inside};
use report::Report;
use stage::{Programs, Stage};

/// A part of what is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// A packet, and a block I/O
    Events,
    /// Reading, and a tick, of a thousand VMs
    Fleet,
    /// A tick of five thousand VMs
    Many,
    /// A tick on a machine with 128 possible CPUs
    Cpus,
    /// Recording what is judged
    Records,
    /// Many suspects at once
    Suspects,
    /// Starting, and after a kill
    Starts,
    /// What others take for a VM
    Polling,
}

/// Builds what is missing, measures, and writes.
///
/// # Errors
///
/// If anything can't be measured, or Ctrl-C came. A target that is missed is no error.
pub(crate) fn task(only: Option<Part>) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("measuring needs root, for its network namespace and to load eBPF programs");
    }
    setup::ensure()?;
    build_ebpf::build()?;
    let empty = build_ebpf::build_empty()?;
    let build = executable::build;
    let programs = Programs {
        empty,
        daemon: build("the daemon", &["--package", "flatline"])?,
        bench: build("what measures", &["--package", "flatline", "--example", "bench"])?,
        stand_in: build("stand-ins", &["--package", "flatline-tests", "--bin", "stand-in"])?,
    };
    interrupt::install()?;
    let begin = Instant::now();
    let load = load_average()?;
    let dir = tempfile::Builder::new().prefix("flatline-bench-").tempdir()?;
    let report = measure(&programs, dir.path(), only);
    drop(dir);
    let mut report = report?;
    report.note(format!(
        "Before it began, {load:.2} threads wanted to run, on average over a minute, and {:.2} at its end. What \
         else runs on the machine makes times longer, and caches colder.",
        load_average()?
    ));
    print!("{}{}", report.news(), report.prices().unwrap_or_default());
    let failed = report.failed();
    let missed = report.missed();
    if !missed.is_empty() {
        println!("Missed:\n\n{missed}");
    }
    let took = elapsed(begin.elapsed());
    if only.is_some() {
        heading(&format!("measured in {took}"));
    } else {
        let path = workspace_root().join("docs/costs.md");
        report.write(&path)?;
        heading(&format!("measured in {took}; {} has it all", path.display()));
    }
    ensure!(failed.is_empty(), "not measured: {}", failed.join(", "));
    Ok(())
}

/// Threads that want to run, on average over the last minute.
fn load_average() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    Ok(text.split_ascii_whitespace().next().unwrap_or_default().parse()?)
}

fn measure(programs: &Programs, dir: &std::path::Path, only: Option<Part>) -> Result<Report> {
    let mut report = Report::default();
    let stage = Stage::new(programs, dir)?;
    let is_wanted = |part| only.is_none_or(|only| only == part);
    let mut attempt = |part, measure: &dyn Fn(&mut Report) -> Result<()>| -> Result<()> {
        if !is_wanted(part) {
            return Ok(());
        }
        // What took half an hour before is not given up for one part that fails.
        if let Err(error) = measure(&mut report) {
            interrupt::check()?;
            report.fail(&format!("{part:?}"), &error);
        }
        // Nor for a machine that gives up.
        print!("{}", report.news());
        Ok(())
    };
    attempt(Part::Events, &|report| events::measure(&stage, report))?;
    attempt(Part::Fleet, &|report| {
        let per_vm = fleet::measure(&stage, report)?;
        // What others take for a VM is compared with what flatline takes.
        if is_wanted(Part::Polling) {
            polling::measure(&stage, dir, &per_vm, report)
        } else {
            Ok(())
        }
    })?;
    if only == Some(Part::Polling) {
        attempt(Part::Polling, &|report| {
            let per_vm = fleet::measure_for_comparison(&stage, report)?;
            polling::measure(&stage, dir, &per_vm, report)
        })?;
    }
    attempt(Part::Many, &|report| many::measure(&stage, report))?;
    attempt(Part::Cpus, &|report| possible_cpus::measure(&stage, dir, report))?;
    attempt(Part::Records, &|report| records::measure(&stage, report))?;
    attempt(Part::Suspects, &|report| suspects::measure(&stage, dir, report))?;
    attempt(Part::Starts, &|report| starts::measure(&stage, report))?;
    Ok(report)
}
