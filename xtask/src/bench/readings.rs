//! What one reading of many VMs costs, by flatline's own readers and by the ways that it doesn't go.

use anyhow::{Error, Result};

use super::figures::Rounds;
use super::report::{Report, Target};
use super::stage::{Stage, VCPUS};
use crate::process::heading;

/// Threads of other processes, for one of the figures.
const STRANGERS: usize = 5000;
const ROUNDS: &str = "21";

const ROWS_TARGET: Target = Target::at_most(100.0);

/// Measures beside a daemon that counts `vms` stand-ins. Returns what polling `/proc` takes for all, in ns.
pub(crate) fn measure(stage: &Stage<'_>, vms: usize, report: &mut Report) -> Result<Rounds> {
    heading("readings");
    let [vms, vcpus, strangers] = [vms, VCPUS, STRANGERS].map(|count| count.to_string());
    let (executable, object) = (stage.executable(), stage.programs.empty.display().to_string());
    let of = ["--executable", &executable, "--vms", &vms, "--vcpus", &vcpus];
    let beside = ["--object", &object, "--strangers", &strangers, "--rounds", ROUNDS];
    let figures = stage.measure("reading", &[&of[..], &beside].concat())?;
    let microseconds = |name: &str| Ok::<_, Error>(figures.rounds(name)?.times(1e-3));
    let section = report.section("One reading of 1,000 VMs with 4,000 vCPU threads", "us", HOW);
    let rows = microseconds("reading/rows")?;
    section.value("all counters, `CounterMaps`", &rows, Some(ROWS_TARGET), ROWS);
    let empty = microseconds("reading/threads/empty")?;
    section.floor("empty iterator over all threads of the host", &empty);
    let iterator = microseconds("reading/threads/iterator")?;
    section.over(
        "threads' times, pinned iterator (where many are sampled)",
        &iterator,
        &empty,
        None,
        "",
    )?;
    for (name, what) in [
        ("threads/own", "threads' times and states, an iterator for each VM (where few are)"),
        ("threads/kept_open", "threads' times, `schedstat` kept open (before Linux 6.1)"),
        ("threads/reopened", "threads' times, `schedstat` opened each time"),
        ("threads/iterator_crowded", "pinned iterator, with 5,000 threads of other processes"),
        ("proc", "`/proc` polled: `stat`, `io` and each `schedstat`"),
    ] {
        section.value(what, &microseconds(&format!("reading/{name}"))?, None, "");
    }
    figures.rounds("reading/proc")
}

const HOW: &str = "CPU time of the thread that reads, by flatline's own code. The VMs are stand-ins: a \
    process with four idle threads and QEMU's command line, since a thousand QEMUs don't fit here. In a tick, none of \
    this is read of a VM that shows life.";
const ROWS: &str = "The counters are memory that the programs and the daemon share: each VM has a row for each of a few \
    lanes, and reading one is loads alone, of lines that the programs have just written.";
