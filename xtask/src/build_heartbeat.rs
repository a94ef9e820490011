//! `cargo xtask build-heartbeat`: compiles the guests' agent, a static program, for each architecture that this
//! machine can build for, into `target/heartbeat/ARCHITECTURE/flatline-heartbeat`.
//!
//! It has no standard library: of the Rust target only `core` is needed, and of the system a C library that can be linked
//! in. musl comes with rustup's targets (`rustup target add x86_64-unknown-linux-musl`) and makes the smallest program; the
//! C library of the distribution does as well. Nothing is ever downloaded.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::build_ebpf;
use crate::process::{self, capture, cargo_command, find_program, heading, workspace_root};

/// The architectures of guests, by Rust's names for them.
const ARCHITECTURES: [&str; 2] = ["x86_64", "aarch64"];
const PACKAGE: &str = "flatline-heartbeat";
/// More would be no small program any more.
const MOST_BYTES: u64 = 1 << 20;

/// What a program is built with.
#[derive(Debug)]
struct Way {
    /// The first compiler that has a core library for the target.
    rustc: PathBuf,
    target: String,
    /// The C compiler that links; `None`: the target's own.
    linker: Option<PathBuf>,
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
                if architecture == std::env::consts::ARCH {
                    own = Some(program);
                }
            }
            Err(why) => eprintln!("not built for {architecture}: {why}"),
        }
    }
    own.with_context(|| format!("the guests' agent can't be built for {}", std::env::consts::ARCH))
}

/// How to build for an architecture, or why that can't be done here.
fn way(architecture: &str) -> Result<Way, String> {
    let musl = format!("{architecture}-unknown-linux-musl");
    if let Some(rustc) = with_core(&musl) {
        // Its C library comes with it, and so does what begins a program; only a linker is wanted.
        return Ok(Way { rustc, target: musl, linker: None });
    }
    let target = format!("{architecture}-unknown-linux-gnu");
    let rustc = with_core(&target).ok_or_else(|| format!("run `rustup target add {musl}`"))?;
    if architecture == std::env::consts::ARCH {
        return Ok(Way { rustc, target, linker: None });
    }
    let name = format!("{architecture}-linux-gnu-gcc");
    let linker = find_program(&name).ok_or_else(|| format!("there is no {name}"))?;
    Ok(Way { rustc, target, linker: Some(linker) })
}

/// A compiler that has a core library for a target.
fn with_core(target: &str) -> Option<PathBuf> {
    build_ebpf::compilers().into_iter().find(|rustc| {
        let libraries =
            capture(Command::new(rustc).args(["--print", "target-libdir", "--target", target]));
        libraries.is_some_and(|libraries| build_ebpf::holds_core(Path::new(&libraries)))
    })
}

fn build_one(architecture: &str, way: &Way) -> Result<PathBuf> {
    let directory = workspace_root().join("target/heartbeat-build");
    let Way { rustc, target, linker } = way;
    let mut command = cargo_command(["build", "--profile", "agent", "--package", PACKAGE]);
    command
        .args(["--features", "program", "--target", target, "--target-dir"])
        .arg(&directory)
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            ["-Ctarget-feature=+crt-static", "-Crelocation-model=static"].join("\u{1f}"),
        );
    command
        .env("RUSTC", rustc)
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTUP_TOOLCHAIN");
    if let Some(linker) = linker {
        let variable = target.to_uppercase().replace('-', "_");
        command.env(format!("CARGO_TARGET_{variable}_LINKER"), linker);
    }
    process::run(&mut command)?;
    let built = directory.join(target).join("agent").join(PACKAGE);
    let program = workspace_root().join("target/heartbeat").join(architecture).join(PACKAGE);
    let bytes = std::fs::read(&built).with_context(|| format!("no {}", built.display()))?;
    if !is_static(&bytes) {
        bail!("{} needs a loader, which no guest may have", built.display());
    }
    let size = u64::try_from(bytes.len())?;
    ensure!(size < MOST_BYTES, "{} has {size} bytes", built.display());
    if let Some(parent) = program.parent() {
        std::fs::create_dir_all(parent)
            .with_context(|| format!("cannot make {}", parent.display()))?;
    }
    std::fs::copy(&built, &program)
        .with_context(|| format!("cannot write {}", program.display()))?;
    println!("{}: static, {} KiB, for {target}", program.display(), size.div_ceil(1024));
    Ok(program)
}

/// Whether an ELF file of 64 bits, with its numbers in little-endian order, names no loader: it has no program header of
/// the type `PT_INTERP` (elf(5)).
fn is_static(elf: &[u8]) -> bool {
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
