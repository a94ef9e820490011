//! `cargo xtask demo`: three real guests on real taps, one crash, one recovery, shown as they happen.
//!
//! The demo claims nothing that it didn't see: each of its sentences is either measured on the guests'
//! consoles, on QMP and on flatline's own answers, or the demo ends with an error. It touches neither
//! the host's network nor an installed flatline, and looks afterwards whether it left anything.

mod play;
mod screen;
mod stage;
mod traces;

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use flatline_tests::{image, interrupt};

use crate::process::{cargo_command, display, heading};
use crate::{build_ebpf, guest, setup};
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
    let binary = build_daemon()?;
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
        "Nobody touched the other two, which ran on for {:.0} s. The demo took {:.0} s.",
        undisturbed.as_secs_f64(),
        begin.elapsed().as_secs_f64()
    ));
}

/// Builds the daemon with cargo's own progress. Returns the executable's path, as cargo tells it:
/// its target directory may be configured anywhere.
fn build_daemon() -> Result<PathBuf> {
    heading("building the daemon");
    let mut command = cargo_command(["build", "--release", "--package", "flatline"]);
    command.arg("--message-format=json-render-diagnostics");
    let line = display(&command);
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("could not start `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}` failed: {}", output.status);
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    executable(&messages).with_context(|| format!("`{line}` named no executable"))
}

/// The executable that cargo's messages, one JSON object a line, name.
fn executable(messages: &str) -> Option<PathBuf> {
    let mut executables = messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    });
    executables.next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_the_one_that_cargo_names() {
        let messages = "{\"reason\":\"compiler-artifact\",\"executable\":null}\nwarning: no JSON\n\
            {\"reason\":\"compiler-artifact\",\"executable\":\"/t/release/flatline\"}\n\
            {\"reason\":\"build-finished\",\"success\":true}\n";
        assert_eq!(executable(messages), Some(PathBuf::from("/t/release/flatline")));
    }
}
