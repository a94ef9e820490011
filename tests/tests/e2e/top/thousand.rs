//! A thousand VMs on one terminal, and what that takes. The daemon is a fake: this is about the view alone.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{cpu, interrupt::sleep};

use super::{LARGE, SMALL, fake::FakeDaemon, tmux::Tmux};
use crate::rig::binary;

const VMS: u32 = 1000;
/// For how long is measured.
const MEASURED: Duration = Duration::from_secs(4);

pub(super) fn test() -> Result<()> {
    let dir = tempfile::Builder::new().prefix("flatline-test-").tempdir()?;
    let daemon = FakeDaemon::start(dir.path(), VMS)?;
    let tmux = Tmux::start(dir.path(), SMALL)?;
    let top = format!("{} top --config {}", binary()?.display(), daemon.config_path().display());
    tmux.enter(&top)?;
    let screen = tmux.wait_for("its rows", |screen| screen.contains("1000 VMs: "))?;
    ensure!(screen.contains("990 alive, 10 suspect"), "{screen}");
    let rows: Vec<&str> = screen.lines().filter(|line| line.contains("fake-")).collect();
    ensure!(rows.iter().take(10).all(|row| row.contains("suspect")), "{screen}");
    ensure!(rows[10].contains("fake-0000") && rows[10].contains("alive"), "{screen}");

    tmux.press(&["End"])?;
    tmux.wait_for("the last one", |screen| screen.contains(">fake-0999"))?;
    tmux.press(&["PageUp", "Home", "Down"])?;
    tmux.wait_for("the second one", |screen| screen.contains(">fake-0107"))?;
    tmux.press(&["/", "0", "9", "9", "7", "Enter", "Enter"])?;
    // The fake knows no single VM.
    tmux.wait_for("its page", |screen| screen.contains("this VM is gone"))?;
    // Two of them at once are one to a program.
    tmux.press(&["Escape"])?;
    tmux.wait_for("the list", |screen| screen.contains("1 of 1000"))?;
    tmux.press(&["Escape"])?;
    tmux.wait_for("all of them", |screen| {
        screen.contains(">fake-0997") && screen.contains(" fake-0996")
    })?;

    measure(&tmux, &daemon, SMALL)?;
    tmux.resize(LARGE)?;
    tmux.wait_for("a large terminal", |screen| screen.contains("REASON"))?;
    measure(&tmux, &daemon, LARGE)?;
    tmux.press(&["q"])?;
    tmux.wait_for("its end", |screen| !screen.contains("1000 VMs")).map(|_| ())
}

/// Prints what a tick takes; how long that is, is the machine's affair.
fn measure(tmux: &Tmux, daemon: &FakeDaemon, (columns, lines): (u16, u16)) -> Result<()> {
    let pid = tmux.child()?;
    let (begin, asked) = (Instant::now(), daemon.asked());
    let (time, written) = (cpu::process_time(pid)?, written_bytes(pid)?);
    sleep(MEASURED)?;
    let seconds = begin.elapsed().as_secs_f64();
    let busy = (cpu::process_time(pid)? - time).as_secs_f64() / seconds;
    let written = f64::from(u32::try_from(written_bytes(pid)? - written)?) / seconds;
    let asked = daemon.asked() - asked;
    println!(
        "{VMS} VMs of a fake daemon, {columns}x{lines}: {:.1} ms CPU and {:.1} KiB written a second, \
         {:.1} MiB resident",
        busy * 1e3,
        written / 1024.0,
        f64::from(u32::try_from(cpu::resident_bytes(pid)? >> 10)?) / 1024.0,
    );
    // It asks once a second, and not more often because keys are pressed or much is shown.
    ensure!((2..=5).contains(&asked), "asked {asked} times in {seconds} s");
    Ok(())
}

/// What a process wrote to anything.
fn written_bytes(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/io");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = text.lines().find_map(|line| line.strip_prefix("wchar: "));
    Ok(line.with_context(|| format!("{path} has no wchar"))?.trim().parse()?)
}
