//! The other ways to know how a VM does, for comparison.

use std::path::Path;

use anyhow::Result;
use flatline_tests::boot_sector::BootSector;
use flatline_tests::guest::{GuestConfig, GuestKind, private_qemu};

use super::domstats;
use super::figures::Rounds;
use super::fleet::PerVm;
use super::report::{Report, Target};
use super::stage::Stage;
use crate::process::heading;

const ROUNDS: &str = "9";
const QUESTIONS: &str = "500";

/// Puts them beside flatline's own CPU time.
pub(crate) fn measure(
    stage: &Stage<'_>,
    dir: &Path,
    per_vm: &PerVm,
    report: &mut Report,
) -> Result<()> {
    heading("other ways");
    let (qmp, answered) = qmp(stage, dir)?;
    let domstats = domstats::measure(dir);
    let own = per_vm.flatline.median();
    let section = report.section("A VM and poll, by flatline and by others", "us", POLLING);
    section.value("flatline, a tick of 1,000 divided by 1,000", &per_vm.flatline, None, "");
    let libvirt = domstats.as_ref().ok().map(|domstats| &domstats.cpu);
    for (what, rounds, target, remedy) in [
        ("`/proc`: `stat`, `io` and four `schedstat`", Some(&per_vm.proc), 25.0, PROC_TIMES),
        ("QMP: `query-status`, client and QEMU", Some(&qmp), 25.0, QMP_TIMES),
        ("libvirt: `domstats`, client and libvirtd", libvirt, 1000.0, LIBVIRT_TIMES),
    ] {
        let Some(rounds) = rounds else { continue };
        section.value(what, rounds, None, "");
        let times = rounds.times(1.0 / own);
        let what = format!("{what}: times as much as flatline");
        section.in_unit(&what, &times, "times", Some(Target::at_least(target)), remedy);
    }
    section.value("QMP: until the answer is there", &answered, None, "");
    match &domstats {
        Ok(domstats) => {
            section.value("libvirt: until the answer is there", &domstats.elapsed, None, "");
        }
        Err(error) => report.note(format!(
            "libvirt's `domstats` was not measured: {error:#}. On another machine, 30 domains took 0.13 s of \
             time through `virsh domstats`, 4.3 ms each."
        )),
    }
    Ok(())
}

/// One real QEMU, asked again and again: us a question of CPU time, of both ends, and until the answer.
fn qmp(stage: &Stage<'_>, dir: &Path) -> Result<(Rounds, Rounds)> {
    let place = dir.join("real");
    std::fs::create_dir_all(&place)?;
    let qemu = private_qemu(&place)?;
    let kind = GuestKind::BootSector(BootSector::StiHlt);
    let guest = GuestConfig::new("asked", kind, &qemu, &place).start()?;
    let (socket, pid) = (guest.qmp_path().display().to_string(), guest.pid().to_string());
    let arguments = ["--socket", &socket, "--pid", &pid, "--rounds", ROUNDS];
    let figures = stage.measure("qmp", &[&arguments[..], &["--questions", QUESTIONS]].concat())?;
    let cpu = figures.rounds("qmp/client")?.plus(&figures.rounds("qmp/qemu")?)?;
    Ok((cpu.times(1e-3), figures.rounds("qmp/elapsed")?.times(1e-3)))
}

const POLLING: &str = "CPU time. flatline's has everything in it that the daemon does while all of 1,000 VMs with taps and \
    QMP are alive. libvirt's is that of a libvirtd and of a client that stays connected and asks for all that is told \
    (`domstats`), of ten real domains; what their QEMUs take to answer is not in it.";
const PROC_TIMES: &str = "Opening and reading six files is what the kernel takes for it.";
const QMP_TIMES: &str =
    "Most of the time until an answer comes is waiting, and little is CPU time.";
const LIBVIRT_TIMES: &str =
    "What libvirt takes is mostly its own way to the QEMU's monitor and back.";
