//! The host itself: what keeps a healthy QEMU from running its guest.
//!
//! | seen | from | excuses |
//! |---|---|---|
//! | a thread of QEMU in uninterruptible sleep, in four looks of two rounds | `task/*/stat`, `wchan` | yes: its storage hangs, or the kernel |
//! | a frozen cgroup | `freezer.state`, `cgroup.events` | yes |
//! | a CPU quota that withholds `QUOTA_SHARE` of what was demanded | `cpu.stat` | yes, as starved |
//! | CPUs that the host's own hypervisor withholds | `/proc/stat` | above `STEAL_SHARE`, as starved |
//! | stalls for memory or I/O | `memory.pressure`, `io.pressure` of its cgroup | `full avg10` above `PRESSURE_PERCENT` |
//!
//! A thread that waits for its disk is in D as well, for a moment; a suspect completes no request, so that one
//! which stays there waits for something that doesn't come. Any of QEMU's threads counts: without
//! `debug-threads=on` they all have one name.
//!
//! A quota alone is no excuse: a guest that spins in its panic is throttled in each period and for as long as
//! the quota has it, and must not be held for that. Only where next to nothing is left do answers come late.
//!
//! The whole host's pressure is not looked at where the cgroup's can be: on an idle host, one process that copies
//! a file makes `full` of I/O nearly 100 %, and a dead guest beside it would be held for as long. Hosts without
//! the second version of cgroups have no other figure for memory, and for I/O none is taken.
//!
//! What can't be read is left out, and no excuse. One round costs two looks at each of QEMU's threads, and a
//! dozen small files; nothing of it touches a disk.

mod cgroup;
mod threads;

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{Note, ProbeContext, Witness, of_suspects};
use cgroup::{Cgroups, Quota};
use flatline_detector::verdict::Answer;
use flatline_qemu::blocking::{UnderWay, within};
use threads::Hanging;

/// The row in the table.
pub(super) const WITNESS: Witness = Witness {
    name: "host",
    looks_for: "QEMU's threads hung, frozen, throttled or starved",
    asked_in: of_suspects,
    only_excuses: true,
    ask: |context, note| Box::pin(ask(context, note)),
};

/// How long a round waits. Not measured: the looks are 200 ms apart, and the rest takes a few.
const READ_WITHIN: Duration = Duration::from_millis(500);
/// An older look belongs to another suspicion.
const RECENT: Duration = Duration::from_secs(10);
/// Figures of a shorter time are mostly rounding: the kernel counts CPU time in ticks of 1 to 10 ms.
const LEAST_ELAPSED: Duration = Duration::from_millis(400);
/// The share of the demanded time that a quota withholds where its guest can't be expected to answer. Not
/// measured: with a tenth of a CPU and the usual period of 100 ms, an answer is late by 90 ms.
const QUOTA_SHARE: f64 = 0.9;
/// The share of the CPU time that the host demands of its own hypervisor and doesn't get. Not measured: half of
/// it slows everything down to a half at least.
const STEAL_SHARE: f64 = 0.5;
/// Below so many ticks a second of demand, steal is noise. Not measured: a quarter of a CPU at 100 ticks a second.
const LEAST_DEMAND: f64 = 25.0;
/// The share of time in which all tasks that had something to do were stalled. Not measured: far above what a
/// host that swaps in earnest shows now and then.
const PRESSURE_PERCENT: f64 = 60.0;
/// Each file is read up to here.
const MOST_BYTES: u64 = 16 << 10;
/// Most files are shorter: read into as much room at once, each takes one call, and one more to see its end.
const MOST_ARE_SHORTER_BYTES: usize = 4 << 10;

/// What one round saw.
#[derive(Debug)]
struct HostSnapshot {
    at: Instant,
    hanging: BTreeMap<u32, Hanging>,
    frozen: bool,
    cpu: Option<CpuTime>,
    quotas: BTreeMap<PathBuf, Quota>,
    /// Of which resource, and its `full avg10` in percent.
    pressure: Vec<(&'static str, f64)>,
}

/// The host's CPU time, in ticks since its boot.
#[derive(Clone, Copy, Debug, PartialEq)]
struct CpuTime {
    demanded: u64,
    stolen: u64,
}

#[derive(Default)]
struct HostMemory {
    under_way: UnderWay<HostSnapshot>,
    last: Option<HostSnapshot>,
}

async fn ask(context: &ProbeContext, note: &mut Note) -> Result<Answer, String> {
    let HostMemory { mut under_way, last } = note.take().unwrap_or_default();
    let pid = context.vm.id.pid;
    let Some(now) = within(READ_WITHIN, &mut under_way, move || look(pid)).await else {
        note.put(HostMemory { under_way, last });
        return Err("looking at QEMU's threads takes too long".to_owned());
    };
    let answer = judge(last.as_ref(), &now);
    note.put(HostMemory { under_way, last: Some(now) });
    Ok(answer)
}

/// Looks at everything. Takes as long as [`threads::hanging`] does, and blocks.
fn look(pid: u32) -> HostSnapshot {
    let hanging = threads::hanging(pid);
    let cgroups = Cgroups::of(pid);
    let of_cgroup = cgroups.pressure();
    let pressure = if of_cgroup.is_empty() {
        host_memory().map(|percent| ("memory", percent)).into_iter().collect()
    } else {
        of_cgroup
    };
    HostSnapshot {
        at: Instant::now(),
        hanging,
        frozen: cgroups.is_frozen(),
        cpu: read(Path::new("/proc/stat")).and_then(|text| cpu_time(&text)),
        quotas: cgroups.quotas(),
        pressure,
    }
}

/// Whether everything on the host stalls for memory.
pub(crate) fn memory_stalls() -> bool {
    host_memory().is_some_and(|full| full > PRESSURE_PERCENT)
}

/// For how much of the time everything on the host stalled for memory, in percent.
fn host_memory() -> Option<f64> {
    full_avg10(&read(Path::new("/proc/pressure/memory"))?)
}

/// What the last two looks say.
fn judge(before: Option<&HostSnapshot>, now: &HostSnapshot) -> Answer {
    if now.frozen {
        return Answer::Excuse("QEMU's cgroup is frozen".to_owned());
    }
    if let Some((what, percent)) = now.pressure.iter().find(|(_, full)| *full > PRESSURE_PERCENT) {
        return Answer::Excuse(format!(
            "everything stalls on the host's {what} ({percent:.0} % of the time)"
        ));
    }
    let elapsed = |before: &&HostSnapshot| now.at.saturating_duration_since(before.at);
    let recent = |before: &&HostSnapshot| (LEAST_ELAPSED..=RECENT).contains(&elapsed(before));
    let Some(before) = before.filter(recent) else {
        return Answer::Nothing("looked at for the first time in this silence".to_owned());
    };
    let seconds = elapsed(&before).as_secs_f64();
    let stays = now.hanging.iter().find(|(tid, _)| before.hanging.contains_key(*tid));
    if let Some((_, hanging)) = stays {
        return Answer::Excuse(format!("QEMU's {hanging}: its storage or the host hangs"));
    }
    let throttled = now.quotas.iter().find_map(|(path, quota)| {
        let share = quota.withheld_since(before.quotas.get(path)?, seconds)?;
        (share > QUOTA_SHARE).then_some(share)
    });
    if let Some(share) = throttled {
        let percent = share * 100.0;
        return Answer::Starved(format!(
            "it is throttled by its CPU quota, for {percent:.0} % of what it wants"
        ));
    }
    let stolen =
        before.cpu.zip(now.cpu).and_then(|(before, now)| now.stolen_since(before, seconds));
    if let Some(share) = stolen.filter(|share| *share > STEAL_SHARE) {
        let percent = share * 100.0;
        return Answer::Starved(format!(
            "the host is itself a guest that is starved ({percent:.0} % stolen)"
        ));
    }
    Answer::Nothing("the host lets it run".to_owned())
}

impl CpuTime {
    /// The share of the demanded time that was stolen; `None` if next to nothing was demanded.
    fn stolen_since(self, before: Self, seconds: f64) -> Option<f64> {
        let demanded = ratio(self.demanded.checked_sub(before.demanded)?);
        let stolen = ratio(self.stolen.checked_sub(before.stolen)?);
        (demanded >= LEAST_DEMAND * seconds).then(|| stolen / demanded)
    }
}

/// For shares, which need not be exact.
#[expect(clippy::cast_precision_loss, reason = "a share of counters is no exact figure")]
fn ratio(count: u64) -> f64 {
    count as f64
}

/// The first line of `/proc/stat`. What guests used is within `user` and `nice` (proc(5)).
fn cpu_time(stat: &str) -> Option<CpuTime> {
    let fields: Vec<u64> = stat
        .lines()
        .next()?
        .strip_prefix("cpu ")?
        .split_ascii_whitespace()
        .map_while(|field| field.parse().ok())
        .collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, stolen, ..] = fields[..] else {
        return None;
    };
    let demanded = [user, nice, system, irq, softirq, stolen];
    Some(CpuTime {
        demanded: demanded.iter().fold(0, |sum, part| sum.saturating_add(*part)),
        stolen,
    })
}

/// The `avg10` of the line `full` of a pressure file, in percent.
fn full_avg10(pressure: &str) -> Option<f64> {
    let full = pressure.lines().find_map(|line| line.strip_prefix("full "))?;
    full.split_ascii_whitespace().find_map(|field| field.strip_prefix("avg10="))?.parse().ok()
}

/// A small file of the kernel's, if it can be read.
pub(super) fn read(path: &Path) -> Option<String> {
    let mut bytes = Vec::with_capacity(MOST_ARE_SHORTER_BYTES);
    File::open(path).ok()?.take(MOST_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests;
