//! A thousand VMs: what a tick of them costs while they live, and while a fifth of them is silent.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use flatline_tests::daemon::Daemon;
use flatline_tests::interrupt;
use flatline_tests::netns::Netns;

use super::clients;
use super::figures::Rounds;
use super::prices::Price;
use super::readings;
use super::report::Report;
use super::stage::{FLAT_FOR, Fleet, Settings, Stage, StandIn, VCPUS, set_pace, wait_for};
use super::ticks::{self, Cost, Targets, WITH_SCRAPES, WITHOUT};
use crate::process::heading;

pub(crate) const VMS: usize = 1000;
/// Of them, those that fall silent.
const SILENT: usize = 200;
/// As in the configuration's default, and so what there is room for.
const MOST_VMS: usize = 1024;
/// Twice the longest rest of a VM.
const TICKS: u32 = 60;
const FEW_TICKS: u32 = 30;
/// The stand-ins are none that boot: grace would only have all of them looked at when it ends.
pub(crate) const BOOT_GRACE: Duration = Duration::from_secs(2);
/// Until all of them have come to rest after they were found.
pub(crate) const SETTLE: Duration = Duration::from_secs(15);
/// In each tick is a frame, wherever it begins.
pub(crate) const BUSY: Duration = Duration::from_millis(450);
const IDLE: Duration = Duration::from_secs(4);
const NONE: Duration = Duration::ZERO;

pub(crate) const ALIVE_TARGET: f64 = 1.0;
const SILENT_TARGET: f64 = 3.0;
const RESIDENT_TARGET: f64 = 24.0;
const RESIDENT_WITH_QMP_TARGET: f64 = 40.0;

/// CPU time a VM and tick or poll, in us.
#[derive(Debug)]
pub(crate) struct PerVm {
    /// flatline's own, of the whole process.
    pub(crate) flatline: Rounds,
    /// Polling `/proc`.
    pub(crate) proc: Rounds,
}

/// Stand-ins with taps, and their daemon.
struct Scene {
    // Before what it lives in.
    daemon: Daemon,
    _fleets: [Fleet; 2],
    _netns: Netns,
    /// How often most of them show a sign of life.
    pace: PathBuf,
    /// How often those do that are to fall silent.
    pace_of_silent: PathBuf,
}

/// Measures with and without monitors.
pub(crate) fn measure(stage: &Stage<'_>, report: &mut Report) -> Result<PerVm> {
    let scene = Scene::new(stage, false)?;
    let targets = Targets { tick: Some(ALIVE_TARGET), resident: Some(RESIDENT_TARGET) };
    let title = "A tick of 1,000 VMs alive, with taps, without QMP";
    scene.ticks(stage, report, (title, ALIVE), (FEW_TICKS, WITHOUT), targets)?;
    drop(scene);
    let scene = Scene::new(stage, true)?;
    let per_vm = scene.compared(stage, report, TICKS)?;
    scene.set_pace(IDLE, IDLE)?;
    interrupt::sleep(SETTLE)?;
    let title = "A tick of 1,000 VMs, with taps and QMP, each of which sends every four seconds";
    let seldom = (FEW_TICKS, WITHOUT);
    scene.ticks(stage, report, (title, SELDOM), seldom, Targets::default())?;
    scene.silent(stage, report)?;
    Ok(per_vm)
}

/// Measures as much as others are compared with.
pub(crate) fn measure_for_comparison(stage: &Stage<'_>, report: &mut Report) -> Result<PerVm> {
    Scene::new(stage, true)?.compared(stage, report, FEW_TICKS)
}

impl Scene {
    fn new(stage: &Stage<'_>, qmp: bool) -> Result<Self> {
        heading(&format!("starting {VMS} stand-ins{}", if qmp { " with QMP" } else { "" }));
        let netns = Netns::new()?;
        let pace = stage.pace("most", BUSY)?;
        let pace_of_silent = stage.pace("silent", BUSY)?;
        let what = StandIn { netns: Some(&netns), qmp, ..StandIn::default() };
        let start =
            |name, count, pace| stage.start(name, count, StandIn { pace: Some(pace), ..what });
        let mut fleets =
            [start("vm", VMS - SILENT, &pace)?, start("quiet", SILENT, &pace_of_silent)?];
        let daemon = stage.daemon(Settings { boot_grace: BOOT_GRACE, most_vms: MOST_VMS })?;
        wait_for(&daemon, "all of them alive", VMS, |vm| {
            let answers = !qmp || vm["run_state"] == "running";
            let is_counted = !vm["network"].is_null();
            let vcpus = vm["vcpus"].as_array().map(Vec::len);
            vm["state"] == "alive" && answers && is_counted && vcpus == Some(VCPUS)
        })?;
        fleets.iter_mut().try_for_each(Fleet::check)?;
        interrupt::sleep(SETTLE)?;
        Ok(Self { daemon, _fleets: fleets, _netns: netns, pace, pace_of_silent })
    }

    fn set_pace(&self, most: Duration, silent: Duration) -> Result<()> {
        set_pace(&self.pace, most)?;
        set_pace(&self.pace_of_silent, silent)
    }

    /// What others are compared with: CPU time with all of them alive, and that of polling `/proc`.
    fn compared(&self, stage: &Stage<'_>, report: &mut Report, ticks: u32) -> Result<PerVm> {
        let targets =
            Targets { tick: Some(ALIVE_TARGET), resident: Some(RESIDENT_WITH_QMP_TARGET) };
        let title = "A tick of 1,000 VMs alive, with taps and QMP";
        let cost = self.ticks(stage, report, (title, ALIVE), (ticks, WITHOUT), targets)?;
        report.prices.set(Price::Alive, &cost.means);
        report.prices.set(Price::Memory, &cost.resident);
        report.prices.set(Price::KernelMemory, &cost.maps);
        let proc = readings::measure(stage, VMS, report)?;
        let per_vm = |rounds: &Rounds, unit: f64| rounds.times(unit / VMS as f64);
        Ok(PerVm { flatline: per_vm(&cost.means, 1e3), proc: per_vm(&proc, 1e-3) })
    }

    fn silent(&self, stage: &Stage<'_>, report: &mut Report) -> Result<()> {
        self.set_pace(BUSY, NONE)?;
        clients::beside(stage, || {
            interrupt::sleep(FLAT_FOR + SETTLE)?;
            let title = "A tick of 1,000 VMs, 200 of them silent, with a page and Prometheus";
            let targets = Targets { tick: Some(SILENT_TARGET), resident: None };
            let ticks = (TICKS, WITH_SCRAPES);
            let cost = self.ticks(stage, report, (title, SOME_SILENT), ticks, targets)?;
            report.prices.set(Price::SomeSilent, &cost.means);
            Ok(())
        })
    }

    fn ticks(
        &self,
        stage: &Stage<'_>,
        report: &mut Report,
        (title, how): (&str, &'static str),
        ticks: (u32, usize),
        targets: Targets,
    ) -> Result<Cost> {
        heading(title);
        let cost = ticks::measure(stage, &self.daemon, ticks, MOST_VMS)?;
        let alive = ticks::alive(&self.daemon)?;
        cost.tell(report.section(title, "ms", how), targets);
        report.note(format!(
            "{title}: {alive} of {VMS} were judged alive at its end, the others in doubt; the dearest tick took {:.1} ms.",
            cost.dearest()
        ));
        Ok(cost)
    }
}

const ALIVE: &str = "CPU time of a running daemon, second by second. The VMs are stand-ins with four threads, each \
    with a tap of its own on which it sends a frame every 450 ms: each tick shows a sign of life of each. Their taps \
    lie in a network namespace, and have the programs as the daemon attaches them by itself. No page is open, and \
    nothing scrapes.";
const SELDOM: &str = "The same VMs as guests that have next to nothing to do: three of four ticks show no sign of life of \
    them, and are sampled in full.";
const SOME_SILENT: &str = "The same VMs, of which 800 send every 450 ms and 200 nothing at all. These are suspected every \
    ten seconds, asked, and acquitted: their registers are those of an idle Linux. One client asks each second for \
    what the page shows, and one every 15 seconds for the figures, as Prometheus does.";
