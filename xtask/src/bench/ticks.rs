//! What a running daemon costs: CPU time tick by tick, its memory, and the kernel's for it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flatline_tests::daemon::Daemon;
use flatline_tests::{cpu, interrupt};
use serde_json::{Value, json};

use super::figures::{Figures, Rounds};
use super::report::{Section, Target};
use super::stage::Stage;

/// The daemon's default `sample_interval`.
const TICK: Duration = Duration::from_secs(1);
/// Ticks of a mean where Prometheus scrapes: one scrape in each.
pub(crate) const WITH_SCRAPES: usize = 15;
/// Ticks of a mean elsewhere.
pub(crate) const WITHOUT: usize = 10;
const KIB: f64 = 1024.0;
/// The maps in which only VMs have rows; in the others are taps, requests, and what is of the same size on every host.
const OF_VMS: [&str; 6] = ["vms", "life", "kvm", "heartbeats", "slots", "files"];

/// What was measured.
#[derive(Debug)]
pub(crate) struct Cost {
    /// Of the loop's thread, in ms a tick.
    own: Rounds,
    /// Of the whole process, in ms a tick.
    all: Rounds,
    /// Likewise, means of several ticks.
    pub(crate) means: Rounds,
    /// How many ticks a mean is of.
    window: usize,
    /// Resident memory at the end, in MiB.
    pub(crate) resident: Rounds,
    /// Memory of the maps at the end, in MiB.
    pub(crate) maps: Rounds,
    /// The same for each VM that there is room for, in bytes.
    maps_for_each: Rounds,
    /// Likewise without those maps that are of a size of their own.
    rows_for_each: Rounds,
}

/// What a figure should come to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Targets {
    /// Means, in ms a tick.
    pub(crate) tick: Option<f64>,
    /// In MiB.
    pub(crate) resident: Option<f64>,
}

/// Measures for so many ticks, of which each mean has `window`. The daemon has room for `most_vms`.
pub(crate) fn measure(
    stage: &Stage<'_>,
    daemon: &Daemon,
    (ticks, window): (u32, usize),
    most_vms: usize,
) -> Result<Cost> {
    let pid = daemon.pid().context("the daemon has ended")?;
    let (mut all, mut own) = (Vec::new(), Vec::new());
    let mut before = (cpu::process_time(pid)?, cpu::main_thread_time(pid)?);
    let begin = Instant::now();
    for tick in 1..=ticks {
        interrupt::sleep((begin + TICK * tick).saturating_duration_since(Instant::now()))?;
        let now = (cpu::process_time(pid)?, cpu::main_thread_time(pid)?);
        all.push((now.0 - before.0).as_secs_f64() * 1e3);
        own.push((now.1 - before.1).as_secs_f64() * 1e3);
        before = now;
    }
    let resident = cpu::resident_bytes(pid)? as f64 / KIB / KIB;
    let memory = stage.measure("maps", &["--pid", &pid.to_string()])?;
    let maps = memory.rounds("maps/total")?;
    let rows = memory.below("maps/").into_iter().filter(|(name, _)| OF_VMS.contains(name));
    let rows = Rounds::new(vec![rows.map(|(_, bytes)| bytes.median()).sum()])?;
    let means = all.chunks_exact(window).map(|some| some.iter().sum::<f64>() / window as f64);
    Ok(Cost {
        means: Rounds::new(means.collect())?,
        own: Rounds::new(own)?,
        all: Rounds::new(all)?,
        window,
        resident: Rounds::new(vec![resident])?,
        maps_for_each: maps.times(1.0 / most_vms as f64),
        rows_for_each: rows.times(1.0 / most_vms as f64),
        maps: maps.times(1.0 / KIB / KIB),
    })
}

/// How many VMs are judged alive.
///
/// # Errors
/// If one is in a state that no healthy VM may come to.
pub(crate) fn alive(daemon: &Daemon) -> Result<usize> {
    let status = daemon.status()?;
    let vms = status["vms"].as_array().context("status has no vms")?;
    for vm in vms {
        let is_healthy = matches!(state(vm), "alive" | "suspect" | "starting");
        ensure!(is_healthy, "{}: {}: {}", vm["name"], state(vm), vm["reason"]);
    }
    Ok(vms.iter().filter(|vm| state(vm) == "alive").count())
}

fn state(vm: &Value) -> &str {
    vm["state"].as_str().unwrap_or_default()
}

impl Cost {
    /// Adds all of it to a section whose unit is ms.
    pub(crate) fn tell(&self, section: &mut Section, targets: Targets) {
        let most = |most: Option<f64>| most.map(Target::at_most);
        section.value("the loop's thread, a tick", &self.own, None, "");
        section.value("the whole process, a tick", &self.all, None, "");
        let what = format!("the whole process, means of {} ticks", self.window);
        section.value(&what, &self.means, most(targets.tick), TICK_REMEDY);
        let resident = most(targets.resident);
        section.in_unit("resident memory", &self.resident, "MiB", resident, MEMORY_REMEDY);
        self.tell_memory(section, "");
    }

    /// Adds the maps' memory; `of` says whose.
    pub(crate) fn tell_memory(&self, section: &mut Section, of: &str) {
        let what = format!("the maps' memory, in the kernel{of}");
        section.in_unit(&what, &self.maps, "MiB", None, "");
        let what = format!("the same for each VM that there is room for{of}");
        let target = Some(Target::at_most(KIB));
        section.in_unit(&what, &self.maps_for_each, "bytes", target, MAPS_REMEDY);
        let what = format!("of that, in maps whose size is that of the VMs{of}");
        section.in_unit(&what, &self.rows_for_each, "bytes", None, "");
    }

    /// The tick that took longest, in ms.
    pub(crate) fn dearest(&self) -> f64 {
        self.all.most()
    }

    /// As JSON lines, which [`Self::parse`] takes: for a machine inside of this one.
    pub(crate) fn print(&self, prefix: &str) {
        for (name, rounds) in self.named() {
            println!("{}", json!({"name": format!("{prefix}/{name}"), "rounds": rounds.values()}));
        }
    }

    fn named(&self) -> [(&'static str, &Rounds); 7] {
        [
            ("own", &self.own),
            ("all", &self.all),
            ("means", &self.means),
            ("resident", &self.resident),
            ("maps", &self.maps),
            ("maps_for_each", &self.maps_for_each),
            ("rows_for_each", &self.rows_for_each),
        ]
    }

    /// What [`Self::print`] printed, of means of `window` ticks.
    pub(crate) fn parse(figures: &Figures, prefix: &str, window: usize) -> Result<Self> {
        let rounds = |name: &str| figures.rounds(&format!("{prefix}/{name}"));
        Ok(Self {
            own: rounds("own")?,
            all: rounds("all")?,
            means: rounds("means")?,
            window,
            resident: rounds("resident")?,
            maps: rounds("maps")?,
            maps_for_each: rounds("maps_for_each")?,
            rows_for_each: rounds("rows_for_each")?,
        })
    }
}

const TICK_REMEDY: &str = "A tick is a line of the cache for each VM that shows life. What is above that while all do: 33 VMs \
    whose rest is over are judged, and 100 looked at for the history of rates, each some microseconds where no cache holds \
    it; 17 are looked at in `/proc`, all of which is gone through once a minute; the kernel adds up the packets of all \
    interfaces every twenty ticks; and threads wake for these. One that shows none is sampled in full; its threads' \
    times come from a walk over all threads of the host; and one that stays silent is suspected every ten seconds, which \
    takes some forty microseconds each time where its registers acquit it.";
const MEMORY_REMEDY: &str = "About half is what is resident of the program and its libraries, whose pages the host's cache has \
    in any case; the other half is some 12 KiB for each VM, and 6 more where it has a monitor.";
const MAPS_REMEDY: &str = "All maps are in it. A VM's row takes 384 bytes, what its agent says 112, its place among pids 64, \
    room for two taps 96, for eight requests in flight 136, and for four files 64, with 72 more for each file that is open. \
    What is of the same size on every host (suspects under KVM, filters, events, executables, the programs' log) is some \
    112 KiB.";
