//! `cargo xtask test`: lint, the unit tests, the end-to-end tests with real guests, a choice of
//! the matrix, and a short soak.
//!
//! The runners write to the terminal themselves; their closing lines are passed on as they are. A
//! failure in one part doesn't keep the next from running: one run tells everything that is wrong.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::process::{self, capture, cargo_command, heading, workspace_root};
use crate::{build_ebpf, build_heartbeat, dist, guest, lint, matrix, setup, soak, tools};

/// What to run.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Only the unit tests: no lint, no guests
    #[arg(long)]
    quick: bool,
    /// Leave out formatting and clippy
    #[arg(long)]
    no_lint: bool,
    /// Only tests whose name contains this
    filter: Option<String>,
    /// Options for the end-to-end tests' runner
    #[arg(last = true)]
    runner: Vec<String>,
}

/// Runs them all; an error names the failed parts.
pub(crate) fn task(options: &Options) -> Result<()> {
    let lints = !options.quick && !options.no_lint;
    if lints {
        setup::ensure_with_optional()?;
    } else {
        setup::ensure()?;
    }
    build_ebpf::build()?;
    let mut failed = Vec::new();
    let mut part = |name: &'static str, result: Result<()>| {
        if let Err(error) = result {
            eprintln!("{error:#}");
            failed.push(name);
        }
    };
    if lints {
        part("lint", lint::check_all());
    }
    part("unit tests", unit_tests(options));
    if !options.quick {
        part("end-to-end tests", end_to_end_tests(options));
    }
    if !options.quick && options.filter.is_none() && options.runner.is_empty() {
        part("matrix", matrix::task(&matrix::Options::choice()));
        part("soak", soak::task(&soak::Options::short()));
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn unit_tests(options: &Options) -> Result<()> {
    heading("unit tests");
    // `--no-fail-fast`: every package's tests, also after one has failed.
    let mut command = cargo_command(["test", "--workspace", "--no-fail-fast"]);
    command.args(&options.filter);
    process::run(&mut command)
}

fn end_to_end_tests(options: &Options) -> Result<()> {
    heading("building the daemon");
    process::run(&mut cargo_command(["build", "--release", "--package", "flatline"]))?;
    let binary = target_directory()?.join("release/flatline");
    let images = guest::build()?;
    tools::fetch();
    let packages = dist::debian(&binary, &build_heartbeat::build()?)?;
    let packages = std::env::join_paths(packages).context("a package's path has a colon")?;
    heading("end-to-end tests");
    // Of the whole workspace, as before: one package alone has other features, and all is built once more.
    let mut command = cargo_command(["test", "--workspace", "--test", "e2e"]);
    command.args(&options.filter).arg("--").args(&options.runner);
    command.env("FLATLINE_BINARY", binary).env("FLATLINE_GUEST_DIR", images);
    command.env("FLATLINE_PACKAGES", packages);
    process::run(&mut command)
}

/// Where cargo puts what it builds: `CARGO_TARGET_DIR` and its configuration may say elsewhere.
fn target_directory() -> Result<PathBuf> {
    let mut command = cargo_command(["metadata", "--no-deps", "--format-version=1"]);
    let metadata = capture(&mut command).context("cargo metadata failed")?;
    let metadata: serde_json::Value =
        serde_json::from_str(&metadata).context("cargo metadata is no JSON")?;
    let directory = metadata["target_directory"].as_str();
    Ok(directory.map_or_else(|| workspace_root().join("target"), PathBuf::from))
}
