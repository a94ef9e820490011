//! `cargo xtask demo`: three real guests on real taps, one crash, one recovery, shown as they happen.
//!
//! The demo claims nothing that it didn't see: each of its sentences is either measured on the guests'
//! consoles, on QMP and on flatline's own answers, or the demo ends with an error. It touches neither
//! the host's network nor an installed flatline, and looks afterwards whether it left anything.

mod play;
mod screen;
mod stage;
mod traces;

use std::time::Instant;

use anyhow::{Result, bail};
use flatline_tests::{image, interrupt};

use crate::{build_ebpf, executable, guest, setup};
use play::Measured;
use screen::Screen;
use stage::Stage;
use traces::Traces;

/// What the names of the demo's taps begin with; a whole name has room for 15 bytes.
const TAP: &str = "demo-";

/// Builds what is missing, and plays.
///
/// # Errors
///
/// If anything did not happen as it should, or something was left behind; also after Ctrl-C.
pub(crate) fn task() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the demo needs root, for its network namespace and to load eBPF programs");
    }
    setup::ensure()?;
    build_ebpf::build()?;
    let binary = executable::build("the daemon", &["--package", "flatline"])?;
    let images = image::build(&guest::build()?, |_| {})?;

    interrupt::install()?;
    let mut screen = Screen::new();
    let begin = Instant::now();
    let dir = tempfile::Builder::new().prefix("flatline-demo-").tempdir()?;
    let mut traces = Traces::new(dir.path())?;
    let played = Stage::set_up(dir.path(), binary, &images, &mut screen, &mut traces)
        .and_then(|mut stage| stage.play(&mut screen, &mut traces));
    screen.step("Cleaning up: guests, daemon, network. This is what was looked for afterwards:");
    drop(dir);
    let clean = traces.verify(&mut screen);
    clean?;
    // A client that Ctrl-C reached too failed in its own words.
    if interrupt::interrupted() {
        bail!("interrupted");
    }
    let measured = played?;
    summary(&mut screen, &measured, begin);
    Ok(())
}

fn summary(screen: &mut Screen, measured: &Measured, begin: Instant) {
    let Measured { verdict, reset, back, alive, undisturbed } = measured;
    screen.step("In short, counted from the kernel panic:");
    for (seconds, what) in [
        (verdict, "flatline's verdict: crashed"),
        (reset, "QEMU reset the guest"),
        (back, "the guest's Linux took commands again"),
        (alive, "flatline saw it alive again"),
    ] {
        screen.say(&format!("{:>7.1} s  {what}", seconds.as_secs_f64()));
    }
    screen.say(&format!(
        "Nothing touched the other two, which ran on for {:.0} s. The demo took {:.0} s.",
        undisturbed.as_secs_f64(),
        begin.elapsed().as_secs_f64()
    ));
}
