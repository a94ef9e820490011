//! Five thousand VMs: whether what a tick costs grows with their number, and no faster.

use anyhow::Result;
use flatline_tests::interrupt;
use flatline_tests::netns::Netns;

use super::fleet::{ALIVE_TARGET, BOOT_GRACE, BUSY, SETTLE, VMS};
use super::report::Report;
use super::stage::{Settings, Stage, StandIn, wait_for};
use super::ticks::{self, Targets, WITHOUT};
use crate::process::heading;

/// All of them.
const MANY: usize = 5 * VMS;
/// Room for them.
const MOST_VMS: usize = 8192;
const TICKS: u32 = 30;

/// Measures them alive.
pub(crate) fn measure(stage: &Stage<'_>, report: &mut Report) -> Result<()> {
    heading(&format!("starting {MANY} stand-ins"));
    let netns = Netns::new()?;
    let pace = stage.pace("many", BUSY)?;
    let what = StandIn { netns: Some(&netns), pace: Some(&pace), ..StandIn::default() };
    let mut fleet = stage.start("vm", MANY, what)?;
    let daemon = stage.daemon(Settings { boot_grace: BOOT_GRACE, most_vms: MOST_VMS })?;
    wait_for(&daemon, "all of them alive", MANY, |vm| {
        vm["state"] == "alive" && !vm["network"].is_null()
    })?;
    fleet.check()?;
    interrupt::sleep(SETTLE)?;
    heading(TITLE);
    let cost = ticks::measure(stage, &daemon, (TICKS, WITHOUT), MOST_VMS)?;
    let alive = ticks::alive(&daemon)?;
    let targets =
        Targets { tick: Some(ALIVE_TARGET * MANY as f64 / VMS as f64), ..Targets::default() };
    cost.tell(report.section(TITLE, "ms", HOW), targets);
    report.note(format!("{TITLE}: {alive} were judged alive at its end."));
    Ok(())
}

const TITLE: &str = "A tick of 5,000 VMs alive, with taps, without QMP";
const HOW: &str = "As with 1,000; the target is five times as much.";
