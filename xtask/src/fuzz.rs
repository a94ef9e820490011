//! `cargo xtask fuzz`: lets libFuzzer look for bytes that make a parser panic, hang or eat memory.
//!
//! The targets are the files of `fuzz/fuzz_targets`, each of one line, since what they call stands in the
//! `fuzzing` modules of the daemon and its crates, where the unit tests try it as well. A new one is a function and a row
//! there, a file and a `[[bin]]` here, and a few small inputs in `fuzz/corpus-seeds/NAME` to begin with.
//!
//! cargo-fuzz needs rustup's nightly, and libFuzzer a C++ compiler: without them this is skipped, and
//! says so. No sanitizer is asked for: the parsers have no `unsafe` for it to watch, and a nightly without
//! `rust-src` can't build a standard library for one. What was found and found out is in `target/fuzz`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::build_ebpf;
use crate::process::{
    self, capture, cargo_bin, find_program, heading, run_quietly, workspace_root,
};
use crate::setup;

const CARGO_FUZZ: &str = "0.13.2";
/// The longest input in bytes: longer ones are slow to vary, and every length has its own unit test.
const LONGEST_BYTES: u32 = 16 << 10;
/// An input that takes so many seconds hangs.
const HANGS_AFTER: u32 = 10;
/// Memory in MiB that no input may make a parser take.
const MOST_MIB: u32 = 1_024;

/// How long each target is tried in `cargo xtask test --everything`.
const SHORT_SECONDS: u32 = 5;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How long each target is tried
    #[arg(long, default_value_t = 20)]
    seconds: u32,
    /// Only targets whose name contains this
    filter: Option<String>,
}

impl Options {
    /// What the tests have time for: each target.
    pub(crate) fn short() -> Self {
        Self { seconds: SHORT_SECONDS, filter: None }
    }
}

/// Tries every target; an error names those that something was found for.
pub(crate) fn task(options: &Options) -> Result<()> {
    setup::ensure()?;
    // The daemon's package holds the object, and isn't compiled without it.
    build_ebpf::build()?;
    if let Err(reason) = ready() {
        heading(&format!("skipped: fuzzing: {reason}"));
        return Ok(());
    }
    let chosen = |name: &String| options.filter.as_ref().is_none_or(|part| name.contains(part));
    let targets: Vec<String> = targets()?.into_iter().filter(chosen).collect();
    if targets.is_empty() {
        bail!("no fuzz target is called so");
    }
    heading("building the fuzz targets");
    process::run(&mut fuzz("build", &[]))?;
    let mut failed = Vec::new();
    for target in targets {
        heading(&format!("fuzzing {target} for {} s", options.seconds));
        if let Err(error) = try_target(&target, options.seconds) {
            eprintln!("{error:#}");
            failed.push(target);
        }
    }
    if !failed.is_empty() {
        bail!("something was found for: {} (see target/fuzz/found)", failed.join(", "));
    }
    Ok(())
}

/// Whether there is all that it takes; cargo-fuzz is installed where it is missing.
fn ready() -> Result<(), String> {
    if find_program("rustup").is_none() {
        return Err("there is no rustup, whose nightly is needed".to_owned());
    }
    if capture(Command::new("rustup").args(["run", "nightly", "rustc", "-V"])).is_none() {
        return Err("rustup has no nightly: `rustup toolchain install nightly`".to_owned());
    }
    if ["c++", "g++", "clang++"].iter().all(|name| find_program(name).is_none()) {
        return Err("there is no C++ compiler for libFuzzer".to_owned());
    }
    if find_program("cargo-fuzz").is_none() {
        let mut install = process::cargo_command(["install", "cargo-fuzz", "--locked"]);
        install.args(["--version", CARGO_FUZZ]);
        run_quietly("installing cargo-fuzz", &mut install)
            .map_err(|error| format!("cargo-fuzz can't be installed: {error}"))?;
    }
    Ok(())
}

/// The names of all targets.
fn targets() -> Result<Vec<String>> {
    let folder = workspace_root().join("fuzz/fuzz_targets");
    let entries = folder.read_dir().with_context(|| format!("could not list {}", folder.display()));
    let mut names = Vec::new();
    for entry in entries? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn try_target(target: &str, seconds: u32) -> Result<()> {
    let root = workspace_root();
    let corpus = root.join("target/fuzz/corpus").join(target);
    let found = root.join("target/fuzz/found").join(target);
    for folder in [&corpus, &found] {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("could not make {}", folder.display()))?;
    }
    let seeds = root.join("fuzz/corpus-seeds").join(target);
    let limits = [
        format!("-max_total_time={seconds}"),
        format!("-max_len={LONGEST_BYTES}"),
        format!("-timeout={HANGS_AFTER}"),
        format!("-rss_limit_mb={MOST_MIB}"),
        format!("-artifact_prefix={}/", found.display()),
        "-verbosity=0".to_owned(),
        "-print_funcs=0".to_owned(),
        "-print_final_stats=1".to_owned(),
    ];
    // What is learned goes into the first, and the second is only read.
    let mut command = fuzz("run", &[Path::new(target), &corpus, &seeds]);
    process::run(command.arg("--").args(limits))
}

fn fuzz(task: &str, rest: &[&Path]) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", "cargo", "fuzz", task, "--fuzz-dir", "fuzz"]);
    command.args(["--sanitizer", "none", "--target-dir", "target/fuzz"]).args(rest);
    command.current_dir(workspace_root());
    // Those of the cargo that runs this task would win over rustup's choice.
    command.env_remove("CARGO").env_remove("RUSTUP_TOOLCHAIN").env_remove("RUSTC");
    if let Some(bin) = cargo_bin() {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let all = std::iter::once(bin).chain(std::env::split_paths(&path));
        if let Ok(path) = std::env::join_paths(all) {
            command.env("PATH", path);
        }
    }
    command
}
