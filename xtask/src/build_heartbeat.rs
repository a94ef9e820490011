//! `cargo xtask build-heartbeat`: compiles the guests' agent, a static program, for each architecture that this
//! machine can build for, into `target/heartbeat/ARCHITECTURE/flatline-heartbeat`.
//!
//! It has neither the standard library nor one of the system's: of the Rust target only `core` is needed, and any linker will
//! do, such as the one that rustup's toolchains bring. So a machine can always build for itself, and for the other architecture
//! after `rustup target add aarch64-unknown-linux-musl`. Nothing is ever downloaded.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::architecture::Architecture;
use crate::build_ebpf;
use crate::cross::Cross;
use crate::process::{
    self, capture, cargo_command, find_program, heading, is_executable, workspace_root,
};

/// The architectures of guests.
const ARCHITECTURES: [Architecture; 2] = [Architecture::X86_64, Architecture::Aarch64];
const PACKAGE: &str = "flatline-heartbeat";
/// More would be no small program any more.
const MOST_BYTES: u64 = 1 << 20;

/// What a program is built with.
#[derive(Debug)]
struct Way {
    /// The first compiler that has a core library for the target.
    rustc: PathBuf,
    target: String,
    linker: Linker,
}

#[derive(Debug)]
struct Linker {
    path: PathBuf,
    /// As rustc calls its kind.
    flavor: &'static str,
}

/// Builds for each architecture that can be built for; returns the program for this machine's.
///
/// # Errors
///
/// If this machine's own can't be built, or a program isn't static or is too large.
pub(crate) fn build() -> Result<PathBuf> {
    heading("the guests' agent");
    let mut own = None;
    for architecture in ARCHITECTURES {
        match way(architecture) {
            Ok(way) => {
                let program = build_one(architecture, &way)?;
                if architecture == Architecture::OWN {
                    own = Some(program);
                }
            }
            Err(why) => eprintln!("not built for {}: {why}", architecture.name()),
        }
    }
    own.with_context(|| format!("the guests' agent can't be built for {}", std::env::consts::ARCH))
}

/// Builds for another architecture, also with what was fetched for that.
///
/// # Errors
///
/// If the program can't be built, isn't static or is too large.
pub(crate) fn build_for(cross: &Cross) -> Result<PathBuf> {
    heading("the guests' agent");
    let architecture = cross.architecture;
    let way = way(architecture).unwrap_or_else(|_| Way {
        rustc: cross.rustc.clone(),
        target: architecture.target(),
        linker: Linker { path: cross.tool("ld"), flavor: "ld" },
    });
    build_one(architecture, &way)
}

/// How to build for an architecture, or why that can't be done here.
fn way(architecture: Architecture) -> Result<Way, String> {
    let name = architecture.name();
    // The C library that a target is named after is not linked: their core libraries are as good.
    let targets = ["musl", "gnu"].map(|library| format!("{name}-unknown-linux-{library}"));
    let found = targets.iter().find_map(|target| Some((with_core(target)?, target.clone())));
    let (rustc, target) = found.ok_or_else(|| format!("run `rustup target add {}`", targets[0]))?;
    let linker = linker(architecture)
        .ok_or_else(|| format!("there is no rust-lld, no ld.lld and no {name}-linux-gnu-ld"))?;
    Ok(Way { rustc, target, linker })
}

/// LLVM's links for every architecture, GNU's for one.
fn linker(architecture: Architecture) -> Option<Linker> {
    let lld = build_ebpf::compilers().into_iter().find_map(|rustc| {
        let libraries = capture(Command::new(rustc).args(["--print", "target-libdir"]))?;
        // It stands beside the libraries of the compiler's own target.
        Some(Path::new(&libraries).parent()?.join("bin/rust-lld"))
            .filter(|path| is_executable(path))
    });
    let lld = lld.or_else(|| find_program("ld.lld"));
    let gnu = || {
        let is_own = architecture == Architecture::OWN;
        find_program(&format!("{}-linux-gnu-ld", architecture.name()))
            .or_else(|| find_program("ld").filter(|_| is_own))
    };
    lld.map(|path| Linker { path, flavor: "ld.lld" })
        .or_else(|| gnu().map(|path| Linker { path, flavor: "ld" }))
}

/// A compiler that has a core library for a target.
fn with_core(target: &str) -> Option<PathBuf> {
    build_ebpf::compilers().into_iter().find(|rustc| {
        let libraries =
            capture(Command::new(rustc).args(["--print", "target-libdir", "--target", target]));
        libraries.is_some_and(|libraries| build_ebpf::holds_core(Path::new(&libraries)))
    })
}

fn build_one(architecture: Architecture, way: &Way) -> Result<PathBuf> {
    let directory = workspace_root().join("target/heartbeat-build");
    let Way { rustc, target, linker } = way;
    let linker_path = linker.path.to_str().context("the linker's path is no text")?;
    // No loader is there to move it elsewhere.
    let mut flags = vec!["-Ctarget-feature=+crt-static", "-Crelocation-model=static"];
    let linker_flags =
        [format!("-Clinker={linker_path}"), format!("-Clinker-flavor={}", linker.flavor)];
    flags.extend(linker_flags.iter().map(String::as_str));
    if target.ends_with("musl") {
        // It begins by itself, and not by what comes with this target.
        flags.push("-Clink-self-contained=no");
    }
    let mut command = cargo_command(["build", "--profile", "agent", "--package", PACKAGE]);
    command
        .args(["--features", "program", "--target", target, "--target-dir"])
        .arg(&directory)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env("RUSTC", rustc)
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTUP_TOOLCHAIN");
    process::run(&mut command)?;
    let built = directory.join(target).join("agent").join(PACKAGE);
    let program = workspace_root().join("target/heartbeat").join(architecture.name()).join(PACKAGE);
    let bytes = std::fs::read(&built).with_context(|| format!("no {}", built.display()))?;
    if !is_static(&bytes) {
        bail!("{} needs a loader, which no guest may have", built.display());
    }
    let size = u64::try_from(bytes.len())?;
    ensure!(size < MOST_BYTES, "{} has {size} bytes", built.display());
    put(&built, &program).with_context(|| format!("cannot write {}", program.display()))?;
    println!("{}: static, {} KiB, for {target}", program.display(), size.div_ceil(1024));
    Ok(program)
}

/// Copies it whole, or not at all: others may look at the same time.
fn put(from: &Path, to: &Path) -> std::io::Result<()> {
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let part = to.with_extension(std::process::id().to_string());
    std::fs::copy(from, &part)?;
    std::fs::rename(&part, to)
}

/// Whether an ELF file of 64 bits, with its numbers in little-endian order, names no loader: it has no program header of
/// the type `PT_INTERP` (elf(5)).
pub(crate) fn is_static(elf: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, bytes: usize| {
        let mut value = [0; 8];
        value.get_mut(..bytes)?.copy_from_slice(elf.get(at..at.checked_add(bytes)?)?);
        Some(u64::from_le_bytes(value))
    };
    let table = || Some((number(32, 8)?, number(54, 2)?, number(56, 2)?));
    let Some((begin, size, count)) = table().filter(|_| elf.starts_with(b"\x7fELF\x02\x01")) else {
        return false;
    };
    (0..count).all(|index| {
        let at = size.checked_mul(index).and_then(|offset| begin.checked_add(offset));
        let kind = at.and_then(|at| number(usize::try_from(at).ok()?, 4));
        kind.is_some_and(|kind| kind != u64::from(PT_INTERP))
    })
}

#[cfg(test)]
mod tests {
    use super::is_static;

    #[test]
    fn a_program_that_names_a_loader_is_not_static() {
        let mut elf = vec![0; 64 + 2 * 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = 2;
        assert!(is_static(&elf));
        elf[64 + 56] = 3;
        assert!(!is_static(&elf));
        assert!(!is_static(&elf[..100]) && !is_static(b"#!/bin/sh"));
        let this = std::fs::read(std::env::current_exe().expect("it runs")).expect("it is there");
        assert!(!is_static(&this));
    }
}
