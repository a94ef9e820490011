//! `cargo xtask test`: lint, the unit tests, and the end-to-end tests with real guests; with `--everything` a choice of the
//! matrix, a short soak and fuzzing as well.
//!
//! All that is tested is built once, by one command of cargo: the daemon of the packages and of the end-to-end tests is the
//! one that the workspace's tests have built, of the dev profile. The matrix and the soak are played with a release build.
//!
//! The runners write to the terminal themselves; their closing lines are passed on as they are. A failure in one part doesn't
//! keep the next from running: one run tells everything that is wrong.

mod beside;
mod parts;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use crate::process::{self, cargo_command, heading};
use crate::{build_ebpf, build_heartbeat, dist, executable, fuzz, lint, matrix, setup, soak};
use beside::Beside;
pub(crate) use beside::{PREPARE, prepare};
use parts::Parts;

/// What to run.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Only the unit tests: no lint, no guests
    #[arg(long)]
    quick: bool,
    /// Leave out formatting, clippy and rustdoc
    #[arg(long)]
    no_lint: bool,
    /// Also a choice of the matrix, a short soak, and some seconds of fuzzing a target
    #[arg(long, conflicts_with_all = ["quick", "filter", "runner"])]
    everything: bool,
    /// Only tests whose name contains this
    filter: Option<String>,
    /// Options for the end-to-end tests' runner
    #[arg(last = true)]
    runner: Vec<String>,
}

/// Runs them all, and prints what each part took.
///
/// # Errors
///
/// If a part failed: which ones.
pub(crate) fn task(options: &Options) -> Result<()> {
    let mut parts = Parts::new();
    run(options, &mut parts);
    parts.end()
}

/// Without the object nothing is built, and without the build nothing is run.
fn run(options: &Options, parts: &mut Parts) -> Option<()> {
    let lints = !options.quick && !options.no_lint;
    let set_up = if lints { setup::ensure_with_optional } else { setup::ensure };
    parts.run("setup", set_up)?;
    parts.run("eBPF programs", build_ebpf::build)?;
    // Begun before all that compiles, and done before the first test, whose times it would disturb.
    let beside = if options.quick { None } else { Some(Beside::start()) };
    if lints {
        parts.run("lint", lint::check_all);
    }
    let daemon = parts.run("build", || build(options));
    let images = beside.map(|beside| parts.run("images, tools (beside)", || beside?.finish()));
    parts.run("unit tests", || unit_tests(options));
    let (daemon, images) = (daemon?, images??);
    let packages = parts.run("packages", || dist::debian(&daemon, &build_heartbeat::build()?));
    let packages = packages.unwrap_or_default();
    parts.run("end-to-end tests", || end_to_end_tests(options, &daemon, &images, &packages));
    if options.everything {
        parts.run("matrix", || matrix::task(&matrix::Options::choice()));
        parts.run("soak", || soak::task(&soak::Options::short()));
        parts.run("fuzzing", || fuzz::task(&fuzz::Options::short()));
    }
    Some(())
}

/// Builds all tests, and the programs that they run. Returns the daemon's.
fn build(options: &Options) -> Result<PathBuf> {
    heading("building the daemon and all tests");
    let mut command = cargo_command(["test", "--workspace", "--no-run", "--lib", "--bins"]);
    // By its pattern, since the end-to-end tests' target is none of those that `--tests` means.
    command.args(if options.quick { ["--tests"].as_slice() } else { &["--test", "*"] });
    let built = executable::built(&mut command)?;
    let daemon = built.into_iter().find(|built| built.name == "flatline" && !built.is_test);
    daemon.map(|daemon| daemon.path).context("cargo built no flatline")
}

fn unit_tests(options: &Options) -> Result<()> {
    heading("unit tests");
    // `--no-fail-fast`: every package's tests, also after one has failed.
    let mut command = cargo_command(["test", "--workspace", "--no-fail-fast"]);
    command.args(["--lib", "--bins", "--tests"]).args(&options.filter);
    process::run(&mut command)
}

fn end_to_end_tests(
    options: &Options,
    daemon: &Path,
    images: &Path,
    packages: &[PathBuf],
) -> Result<()> {
    heading("end-to-end tests");
    let packages = std::env::join_paths(packages).context("a package's path has a colon")?;
    // Of the whole workspace, as they were built: one package alone has other features, and all is built once more.
    let mut command = cargo_command(["test", "--workspace", "--test", "e2e"]);
    command.args(&options.filter).arg("--").args(&options.runner);
    command.env("FLATLINE_BINARY", daemon).env("FLATLINE_GUEST_DIR", images);
    command.env("FLATLINE_PACKAGES", packages);
    process::run(&mut command)
}
