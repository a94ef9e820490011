//! `cargo xtask lint`: formatting, clippy and rustdoc, with warnings as errors.
//!
//! The eBPF programs are judged for their own target, by the clippy that belongs to the compiler
//! that builds them: only that one can read its core library. Where there is none, they are judged
//! for the host's target, and that is said.

use std::process::Command;

use anyhow::{Result, bail};

use crate::build_ebpf::{self, Toolchain};
use crate::process::{self, capture, cargo_command, heading};
use crate::setup;

/// Those of the programs' package that its binaries need.
const FEATURES: &str = "programs,bench";

/// `cargo xtask lint`.
pub(crate) fn task() -> Result<()> {
    setup::ensure_with_optional()?;
    // The daemon's package holds the object, and isn't compiled without it.
    build_ebpf::build()?;
    check_all()
}

/// Runs every check, also after one has failed; an error names the failed ones. The object must be
/// there.
pub(crate) fn check_all() -> Result<()> {
    let mut failed = Vec::new();
    let mut check = |name: &'static str, result: Result<()>| {
        if let Err(error) = result {
            eprintln!("{error:#}");
            failed.push(name);
        }
    };
    heading("checking the formatting");
    check("formatting", process::run(&mut cargo_command(["fmt", "--all", "--check"])));
    heading("clippy");
    let host = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    check("clippy", process::run(&mut cargo_command(host)));
    // Not among all targets, since it is run by its name alone.
    let end_to_end = ["clippy", "--workspace", "--test", "e2e", "--", "-D", "warnings"];
    check("clippy for the end-to-end tests", process::run(&mut cargo_command(end_to_end)));
    // Without the standard library nothing catches a panic, which only this profile takes.
    let agent = ["clippy", "--profile", "agent", "--package", "flatline-heartbeat"];
    let its = ["--features", "program", "--bins", "--", "-D", "warnings"];
    check(
        "clippy for the guests' agent",
        process::run(&mut cargo_command(agent.iter().chain(&its))),
    );
    check("clippy for the eBPF programs", programs());
    check("the documentation", documentation());
    if !failed.is_empty() {
        bail!("lint failed: {}", failed.join(", "));
    }
    Ok(())
}

/// Links of the code's documentation, of private items as well: most of it is read in the code.
fn documentation() -> Result<()> {
    heading("documentation");
    let mut command =
        cargo_command(["doc", "--workspace", "--no-deps", "--document-private-items"]);
    let flags = ["-Dwarnings", "-Arustdoc::private_intra_doc_links"];
    process::run(command.env("CARGO_ENCODED_RUSTDOCFLAGS", flags.join("\u{1f}")))
}

fn programs() -> Result<()> {
    let usable = Toolchain::find().map_err(|lacking| lacking.join("; "));
    let usable =
        usable.and_then(|toolchain| bpf_clippy(&toolchain).map(|clippy| (toolchain, clippy)));
    match usable {
        Ok((toolchain, mut clippy)) => {
            heading("clippy for the eBPF programs");
            clippy.arg("clippy");
            toolchain.configure(&mut clippy, None)?;
            clippy.args(["--features", FEATURES, "--lib", "--bins"]);
            process::run(clippy.args(["--", "-D", "warnings"]))
        }
        Err(reason) => {
            heading(&format!("skipped: clippy for {}: {reason}", build_ebpf::TARGET));
            heading("clippy for the eBPF programs, for the host's target instead");
            let package = ["clippy", "-p", "monitor-ebpf", "--features", FEATURES];
            let rest = ["--bins", "--", "-D", "warnings"];
            process::run(&mut cargo_command(package.into_iter().chain(rest)))
        }
    }
}

/// The `cargo-clippy` that belongs to this compiler, or why there is none.
pub(crate) fn bpf_clippy(toolchain: &Toolchain) -> Result<Command, String> {
    let beside = |name| toolchain.sibling(name);
    let (Some(cargo_clippy), Some(driver)) = (beside("cargo-clippy"), beside("clippy-driver"))
    else {
        return Err(format!("no clippy stands beside {}", toolchain.rustc.display()));
    };
    // clippy is a compiler too, and reads no other build's core library.
    let version = |command: &mut Command| capture(command.arg("-vV"));
    let theirs = version(Command::new(&driver).arg("--rustc"));
    if theirs.is_none() || theirs != version(&mut Command::new(&toolchain.rustc)) {
        return Err(format!("{} is of another build than the compiler", driver.display()));
    }
    Ok(Command::new(cargo_clippy))
}
