//! The other ways to know how a VM does, for comparison.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Result, ensure};
use flatline_tests::boot_sector::BootSector;
use flatline_tests::guest::{GuestConfig, GuestKind, private_qemu};

use super::figures::Rounds;
use super::fleet::PerVm;
use super::report::{Report, Target};
use super::stage::Stage;
use crate::process::{capture, find_program, heading};

const ROUNDS: &str = "9";
const QUESTIONS: &str = "500";
const DOMSTATS_ROUNDS: usize = 5;

/// Puts them beside flatline's own CPU time.
pub(crate) fn measure(
    stage: &Stage<'_>,
    dir: &Path,
    per_vm: &PerVm,
    report: &mut Report,
) -> Result<()> {
    heading("other ways");
    let (qmp, answered) = qmp(stage, dir)?;
    let domstats = domstats();
    let own = per_vm.flatline.median();
    let section = report.section("A VM and poll, by flatline and by others", "us", POLLING);
    section.value("flatline, a tick of 1,000 divided by 1,000", &per_vm.flatline, None, "");
    for (what, rounds, target) in [
        ("`/proc`: `stat`, `io` and four `schedstat`", Some(&per_vm.proc), 1.0),
        ("QMP: `query-status`, client and QEMU", Some(&qmp), 50.0),
        ("libvirt: `virsh domstats`, until it answers", domstats.as_ref().ok(), 500.0),
    ] {
        let Some(rounds) = rounds else { continue };
        section.value(what, rounds, None, "");
        let times = rounds.times(1.0 / own);
        let what = format!("{what}: times as much as flatline");
        section.in_unit(&what, &times, "times", Some(Target::at_least(target)), TIMES);
    }
    section.value("QMP: until the answer is there", &answered, None, "");
    if let Err(error) = &domstats {
        report.note(format!(
            "libvirt's `domstats` was not measured: {error:#}. On another machine, 30 domains took 0.13 s of \
             time through `virsh domstats`, 4.3 ms each."
        ));
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

/// us a domain, if there are any; or why it isn't measured.
fn domstats() -> Result<Rounds> {
    let virsh = find_program("virsh");
    let Some(virsh) = virsh else { anyhow::bail!("virsh isn't installed") };
    let list = capture(Command::new(&virsh).args(["list", "--name"])).unwrap_or_default();
    let domains = list.lines().filter(|line| !line.is_empty()).count();
    ensure!(domains != 0, "libvirt runs no domain");
    let mut rounds = Vec::new();
    for _ in 0..DOMSTATS_ROUNDS {
        let begin = Instant::now();
        let status = Command::new(&virsh)
            .args(["domstats", "--list-running"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        ensure!(status.success(), "virsh domstats: {status}");
        let domains = f64::from(u32::try_from(domains)?);
        rounds.push(begin.elapsed().as_secs_f64() * 1e6 / domains);
    }
    Rounds::new(rounds)
}

const POLLING: &str = "CPU time. flatline's has everything in it that the daemon does: reading, judging, and looking \
    through `/proc` every tenth tick.";
const TIMES: &str = "Most of the time until an answer comes is waiting, and little is CPU time. Fifty times less of \
    that is less than the kernel alone takes to hand out the times of one VM's threads.";
