//! `cargo xtask test`: lint, the unit tests, and the end-to-end tests with real guests; with `--everything` a choice of the
//! matrix, a short soak and fuzzing as well.
//!
//! All that is tested is built once, by one command of cargo: the daemon of the packages and of the end-to-end tests is the
//! one that the workspace's tests have built, of the dev profile. The matrix and the soak are played with a release build.
//!
//! The runners write to the terminal themselves; their closing lines are passed on as they are. A failure in one part doesn't
//! keep the next from running: one run tells everything that is wrong.

mod beside;
mod changed;
mod parts;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::executable::{self, Executable};
use crate::process::{self, cargo_command, heading};
use crate::{build_ebpf, build_heartbeat, dist, fuzz, lint, matrix, setup, soak};
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
    /// Only what a change touches since this branch left REVISION, by a table: an answer within minutes
    #[arg(
        long,
        value_name = "REVISION",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "main",
        conflicts_with_all = ["quick", "everything", "filter"]
    )]
    changed: Option<String>,
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
    let changed = match &options.changed {
        Some(revision) => Some(parts.run("what changed", || changed::files(revision))?),
        None => None,
    };
    let subjects = changed.as_ref().map(|files| changed::subjects(files));
    let has_guests = !options.quick && subjects.as_ref().is_none_or(|some| !some.is_empty());
    let lints = !options.quick && !options.no_lint;
    let set_up = if lints { setup::ensure_with_optional } else { setup::ensure };
    parts.run("setup", set_up)?;
    parts.run("eBPF programs", build_ebpf::build)?;
    // Begun before all that compiles, and done before the first test, whose times it would disturb.
    let beside = has_guests.then(Beside::start);
    if lints {
        parts.run("lint", lint::check_all);
    }
    let built = parts.run("build", || build(has_guests));
    let images = beside.map(|beside| parts.run("images, tools (beside)", || beside?.finish()));
    parts.run("unit tests", || match (&changed, &built) {
        (Some(files), Some(built)) => unit_tests_of(files, built),
        (Some(_), None) => bail!("not run: their build failed"),
        (None, _) => unit_tests(options),
    });
    let (built, images) = (built?, images??);
    let packaged = || dist::debian(&built.daemon, &build_heartbeat::build()?);
    let packages = parts.run("packages", packaged).unwrap_or_default();
    parts.run("end-to-end tests", || {
        let mut command = end_to_end_tests(options, &built.daemon, &images, &packages)?;
        if let Some(subjects) = subjects {
            let names = Vec::from_iter(subjects).join(",");
            heading(&format!("of the subjects {names}"));
            command.env("FLATLINE_SUBJECTS", names);
        }
        process::run(&mut command)
    });
    if options.everything {
        parts.run("matrix", || matrix::task(&matrix::Options::choice()));
        parts.run("soak", || soak::task(&soak::Options::short()));
        parts.run("fuzzing", || fuzz::task(&fuzz::Options::short()));
    }
    Some(())
}

/// What the workspace's tests consist of.
struct Built {
    /// The daemon under test.
    daemon: PathBuf,
    /// The runners of unit tests.
    unit_tests: Vec<Executable>,
}

/// Builds all tests, with or without those `end_to_end`, and the programs that they run.
fn build(end_to_end: bool) -> Result<Built> {
    heading("building the daemon and all tests");
    let mut command = cargo_command(["test", "--workspace", "--no-run", "--lib", "--bins"]);
    // By its pattern, since the end-to-end tests' target is none of those that `--tests` means.
    command.args(if end_to_end { &["--test", "*"] } else { ["--tests"].as_slice() });
    let (mut unit_tests, programs): (Vec<_>, Vec<_>) =
        executable::built(&mut command)?.into_iter().partition(|built| built.is_test);
    unit_tests.retain(|test| test.name != "e2e");
    let daemon = programs.into_iter().find(|program| program.name == "flatline");
    let daemon = daemon.context("cargo built no flatline")?.path;
    Ok(Built { daemon, unit_tests })
}

fn unit_tests(options: &Options) -> Result<()> {
    heading("unit tests");
    // `--no-fail-fast`: every package's tests, also after one has failed.
    let mut command = cargo_command(["test", "--workspace", "--no-fail-fast"]);
    command.args(["--lib", "--bins", "--tests"]).args(&options.filter);
    process::run(&mut command)
}

/// Runs those of the packages that the files belong to. cargo would build them once more: of some packages alone, the
/// features are others.
fn unit_tests_of(files: &[String], built: &Built) -> Result<()> {
    let root = process::workspace_root();
    let packages: Vec<_> =
        built.unit_tests.iter().filter_map(|test| test.package.strip_prefix(&root).ok()).collect();
    let changed: Vec<_> =
        files.iter().filter_map(|file| changed::package_of(Path::new(file), &packages)).collect();
    let mut failed = Vec::new();
    for test in &built.unit_tests {
        if changed.iter().any(|package| test.package == root.join(package)) {
            heading(&format!("unit tests: {}", test.path.display()));
            // As cargo does.
            let mut command = Command::new(&test.path);
            command.current_dir(&test.package).env("CARGO_MANIFEST_DIR", &test.package);
            failed.extend(process::run(&mut command).err().map(|error| format!("{error:#}")));
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// What runs them.
fn end_to_end_tests(
    options: &Options,
    daemon: &Path,
    images: &Path,
    packages: &[PathBuf],
) -> Result<Command> {
    heading("end-to-end tests");
    let packages = std::env::join_paths(packages).context("a package's path has a colon")?;
    // Of the whole workspace, as they were built: one package alone has other features, and all is built once more.
    let mut command = cargo_command(["test", "--workspace", "--test", "e2e"]);
    command.args(&options.filter).arg("--").args(&options.runner);
    command.env("FLATLINE_BINARY", daemon).env("FLATLINE_GUEST_DIR", images);
    command.env("FLATLINE_PACKAGES", packages);
    Ok(command)
}
