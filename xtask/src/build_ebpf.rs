//! `cargo xtask build-ebpf`: compiles the eBPF programs into `target/ebpf/flatline-ebpf.o`, and for
//! `bench` empty ones to measure them against into `target/ebpf/flatline-bench.o`.
//!
//! The programs are built apart from the workspace's other packages, by a toolchain of their own
//! choice: the BPF target has no core library in rustup, so one is either compiled from `rust-src`
//! or was installed by the distribution. [`Toolchain::find`] takes what is there; nothing is ever
//! downloaded (a `rust-toolchain.toml` would make rustup do that).

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::btf_names;
use crate::process::{self, capture, heading, is_executable, workspace_root};

/// The programs' target, and the linker that it takes.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// Of the instruction sets, the one with 32-bit arithmetic, which Linux has had since 5.1: without it the
/// verifier takes the lower half of a pointer for the pointer itself.
const INSTRUCTION_SET: &str = "-Ctarget-cpu=v3";

/// The oldest compiler that the workspace accepts.
const OLDEST: &str = env!("CARGO_PKG_RUST_VERSION");

/// Where the core library for the BPF target comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Core {
    /// Compiled, and installed beside the compiler.
    Installed,
    /// As source (rustup's `rust-src`); cargo compiles it.
    Source,
}

/// A compiler that can build for BPF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Toolchain {
    /// The compiler itself, never rustup's proxy.
    pub(crate) rustc: PathBuf,
    /// Where its libraries are.
    sysroot: PathBuf,
    /// Its version, as in `1.95.0` or `1.97.0-nightly`.
    release: String,
    /// Its LLVM's version.
    llvm: Option<String>,
    core: Core,
}

impl Toolchain {
    /// The first that can build for BPF of: the active toolchain, rustup's nightlies, and every
    /// compiler in `PATH` that isn't rustup's. The error lists each with what it lacks.
    pub(crate) fn find() -> Result<Self, Vec<String>> {
        let mut lacking = Vec::new();
        for rustc in compilers() {
            match Self::inspect(&rustc) {
                Ok(toolchain) => return Ok(toolchain),
                Err(reason) => lacking.push(format!("{}: {reason}", rustc.display())),
            }
        }
        Err(lacking)
    }

    fn inspect(rustc: &Path) -> Result<Self, String> {
        let ask = |arguments: &[&str]| {
            capture(Command::new(rustc).args(arguments)).ok_or("does not run".to_owned())
        };
        let version = ask(&["-vV"])?;
        let release = field(&version, "release: ").unwrap_or_default().to_owned();
        if !at_least(&release, OLDEST) {
            return Err(format!("is {release}; {OLDEST} is the oldest that will do"));
        }
        let sysroot = PathBuf::from(ask(&["--print", "sysroot"])?);
        let libraries = ask(&["--print", "target-libdir", "--target", TARGET])?;
        let core = if holds_core(Path::new(&libraries)) {
            Core::Installed
        } else if sysroot.join("lib/rustlib/src/rust/library/core").is_dir() {
            Core::Source
        } else {
            return Err(format!("has neither rust-src nor a core library for {TARGET}"));
        };
        let llvm = field(&version, "LLVM version: ").map(str::to_owned);
        Ok(Self { rustc: rustc.to_path_buf(), sysroot, release, llvm, core })
    }

    /// Which it is and why it was chosen, in a line.
    pub(crate) fn describe(&self) -> String {
        let why = match self.core {
            Core::Installed => format!("it has a core library for {TARGET}"),
            Core::Source => "it has rust-src, from which cargo builds core".to_owned(),
        };
        format!("rustc {} at {}: {why}", self.release, self.rustc.display())
    }

    /// A program that stands beside the compiler.
    pub(crate) fn sibling(&self, name: &str) -> Option<PathBuf> {
        Some(self.rustc.parent()?.join(name)).filter(|path| is_executable(path))
    }

    /// Gives a cargo command (`build`, `clippy`) the package, the target and the compiler; which of the
    /// package's features and binaries, is the caller's to say.
    ///
    /// `linker` is bpf-linker's path; `None` where nothing is linked.
    pub(crate) fn configure(&self, command: &mut Command, linker: Option<&Path>) -> Result<()> {
        let directory = workspace_root().join("target/ebpf-build");
        let cargo = self.sibling("cargo").unwrap_or_else(process::cargo);
        command
            .args(["--release", "--package", "monitor-ebpf"])
            .args(["--target", TARGET, "--target-dir"])
            .arg(&directory)
            .current_dir(workspace_root())
            .env("CARGO", cargo)
            .env("RUSTC", &self.rustc)
            .env("CARGO_ENCODED_RUSTFLAGS", rustflags(linker))
            // The BPF target is of the third tier: only unstable options reach it.
            .env("RUSTC_BOOTSTRAP", "1")
            // These would be put around or in place of the compiler that was chosen.
            .env_remove("RUSTC_WRAPPER")
            .env_remove("RUSTC_WORKSPACE_WRAPPER")
            .env_remove("RUSTUP_TOOLCHAIN");
        if self.core == Core::Source {
            command.arg("-Zbuild-std=core");
        }
        if let Some(llvm) = self.llvm_library() {
            let links = link_directory(&directory, &llvm)?;
            command.env("LD_LIBRARY_PATH", process::prepended("LD_LIBRARY_PATH", &links)?);
        }
        Ok(())
    }

    /// The LLVM that the compiler itself uses or, where that one is linked in, one of the same major
    /// version that the active toolchain brings.
    fn llvm_library(&self) -> Option<PathBuf> {
        let major = self.llvm.as_deref()?.split('.').next()?;
        let multiarch = format!("lib/{}-linux-gnu", std::env::consts::ARCH);
        let own = ["lib", &multiarch, "lib64"].map(|directory| self.sysroot.join(directory));
        let active = process::cargo().ancestors().nth(2).map(|sysroot| sysroot.join("lib"));
        own.into_iter().chain(active).find_map(|directory| {
            let names = directory.read_dir().ok()?.flatten().map(|entry| entry.path());
            names.filter(|path| is_llvm(path, major)).min()
        })
    }
}

/// Makes a directory in which nothing stands but the compiler's own LLVM.
///
/// bpf-linker takes the first file called `libLLVM*` in the directories of `LD_LIBRARY_PATH` and
/// beside those of `PATH`, whatever its version; another major version than the compiler's cannot
/// read what the compiler wrote.
fn link_directory(target_directory: &Path, llvm: &Path) -> Result<PathBuf> {
    let directory = target_directory.join("llvm");
    let link = directory.join("libLLVM.so");
    if std::fs::read_link(&link).is_ok_and(|old| old == llvm) {
        return Ok(directory);
    }
    let make = || {
        std::fs::create_dir_all(&directory)?;
        if link.is_symlink() {
            std::fs::remove_file(&link)?;
        }
        std::os::unix::fs::symlink(llvm, &link)
    };
    make().with_context(|| format!("could not link {} to {}", link.display(), llvm.display()))?;
    Ok(directory)
}

/// Whether this is `libLLVM.so.22.1…` or `libLLVM-22….so`, for the major version 22.
fn is_llvm(path: &Path, major: &str) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let version = name.strip_prefix("libLLVM.so.").or_else(|| name.strip_prefix("libLLVM-"));
    version.is_some_and(|version| {
        version.split(|c: char| !c.is_ascii_digit()).next().is_some_and(|first| first == major)
    })
}

/// The compilers to try, best first, each once.
pub(crate) fn compilers() -> Vec<PathBuf> {
    let beside = process::cargo().parent().map(|directory| directory.join("rustc"));
    let active = beside.filter(|rustc| is_executable(rustc) && !is_proxy(rustc));
    let rustup = process::find_program("rustup");
    let listed =
        rustup.and_then(|rustup| capture(Command::new(rustup).args(["toolchain", "list", "-v"])));
    let nightlies = nightlies(&listed.unwrap_or_default());
    let in_path = process::search_path().into_iter().map(|directory| directory.join("rustc"));
    let system = [PathBuf::from("/usr/bin/rustc")];
    let mut compilers: Vec<PathBuf> = Vec::new();
    for rustc in active.into_iter().chain(nightlies).chain(in_path).chain(system) {
        let known = || compilers.iter().any(|other| same_file(other, &rustc));
        if is_executable(&rustc) && !is_proxy(&rustc) && !known() {
            compilers.push(rustc);
        }
    }
    compilers
}

/// rustup's proxies stand in one directory with rustup; asking one might make it download.
fn is_proxy(rustc: &Path) -> bool {
    rustc.parent().is_some_and(|directory| directory.join("rustup").exists())
}

fn same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// The compilers of the nightly toolchains in what `rustup toolchain list -v` prints.
fn nightlies(list: &str) -> Vec<PathBuf> {
    let nightly = list.lines().filter(|line| line.starts_with("nightly"));
    // A line is `NAME [(active, default)] PATH`.
    let paths = nightly.filter_map(|line| line.find('/').map(|at| line[at..].trim()));
    paths.map(|path| Path::new(path).join("bin/rustc")).collect()
}

pub(crate) fn holds_core(directory: &Path) -> bool {
    directory.read_dir().is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.starts_with("libcore-") && name.ends_with(".rlib")
        })
    })
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name))
}

/// Compares the first two numbers of two versions; one that has none is too old.
fn at_least(release: &str, oldest: &str) -> bool {
    let numbers = |version: &str| {
        let mut parts = version.split('.').map(|part| part.parse::<u32>().ok());
        Some((parts.next()??, parts.next()??))
    };
    matches!((numbers(release), numbers(oldest)), (Some(have), Some(want)) if have >= want)
}

/// The compiler's options, in the form of `CARGO_ENCODED_RUSTFLAGS`, which outdoes every other way
/// to set them and doesn't split at spaces.
fn rustflags(linker: Option<&Path>) -> OsString {
    // The kernel takes the object's BTF only from full debug information.
    let mut flags: Vec<OsString> =
        ["-Cdebuginfo=2", "-Clink-arg=--btf", INSTRUCTION_SET].map(Into::into).into();
    // Whose registers hold a program's arguments: it runs on the machine that it is built on.
    flags.push(format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH).into());
    if let Some(linker) = linker {
        let mut flag = OsString::from("-Clinker=");
        flag.push(linker);
        flags.push(flag);
    }
    flags.join(std::ffi::OsStr::new("\x1f"))
}

/// Builds the programs; returns where the object is.
pub(crate) fn build() -> Result<PathBuf> {
    build_object("the eBPF programs", "flatline-ebpf", "programs")
}

/// Builds the empty programs; returns where the object is.
pub(crate) fn build_empty() -> Result<PathBuf> {
    build_object("empty eBPF programs", "flatline-bench", "bench")
}

/// Builds one binary of the package, `what` in words, with the one feature that it needs.
///
/// The object is replaced only by a different one: its time of change would otherwise make cargo
/// build the daemon anew each time.
fn build_object(what: &str, binary: &str, feature: &str) -> Result<PathBuf> {
    let toolchain = Toolchain::find().map_err(|lacking| {
        anyhow::anyhow!(
            "no compiler here can build for BPF (`cargo xtask setup` tells what to install):\n  {}",
            lacking.join("\n  ")
        )
    })?;
    let linker = process::find_program("bpf-linker")
        .context("bpf-linker is missing: run `cargo xtask setup`")?;
    heading(&format!("building {what} ({})", toolchain.describe()));
    let mut command = Command::new(toolchain.sibling("cargo").unwrap_or_else(process::cargo));
    command.args(["build", "--bin", binary, "--features", feature]);
    toolchain.configure(&mut command, Some(&linker))?;
    process::run(&mut command)?;

    let root = workspace_root();
    let built = root.join("target/ebpf-build").join(TARGET).join("release").join(binary);
    let object = root.join("target/ebpf").join(format!("{binary}.o"));
    let mut elf =
        std::fs::read(&built).with_context(|| format!("could not read {}", built.display()))?;
    btf_names::sanitize(&mut elf)?;
    write_if_changed(&elf, &object)?;
    Ok(object)
}

/// Writes through a file beside the destination, so that no one ever reads half an object.
fn write_if_changed(new: &[u8], to: &Path) -> Result<()> {
    if std::fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    let part = to.with_extension(format!("o.{}", std::process::id()));
    let write = || {
        to.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        std::fs::write(&part, new)?;
        std::fs::rename(&part, to)
    };
    write().with_context(|| format!("could not write {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nightlies_are_found_in_rustups_list_and_stable_ones_are_not() {
        let list = "stable-x86_64-unknown-linux-gnu (active, default) /r/toolchains/stable\n\
                    nightly-x86_64-unknown-linux-gnu /r/my toolchains/nightly\n";
        assert_eq!(nightlies(list), [PathBuf::from("/r/my toolchains/nightly/bin/rustc")]);
        assert!(nightlies("no installed toolchains\n").is_empty());
    }

    #[test]
    fn a_compiler_that_is_too_old_will_not_do() {
        assert!(at_least("1.95.0", "1.95"));
        assert!(at_least("1.100.0-nightly", "1.95"));
        assert!(at_least("2.0.0", "1.95"));
        assert!(!at_least("1.85.1", "1.95"));
        assert!(!at_least("", "1.95"));
    }

    #[test]
    fn llvm_is_told_by_its_major_version() {
        let is_22 = |name: &str| is_llvm(Path::new(name), "22");
        assert!(is_22("/x/libLLVM.so.22.1-rust-1.95.0-stable"));
        assert!(is_22("/x/libLLVM-22.so"));
        assert!(!is_22("/x/libLLVM-14.0.6.so.1"));
        assert!(!is_22("/x/libLLVM-2.so"));
        assert!(!is_22("/x/libLLVMCore.a"));
    }

    #[test]
    fn a_linker_with_a_space_in_its_path_stays_one_option() {
        let flags = rustflags(Some(Path::new("/a b/bpf-linker")));
        let flags = flags.to_string_lossy().into_owned();
        assert!(flags.split('\x1f').any(|flag| flag == "-Clinker=/a b/bpf-linker"), "{flags}");
    }

    #[test]
    fn an_object_that_did_not_change_is_left_alone() {
        let directory = std::env::temp_dir().join(format!("xtask-copy-{}", std::process::id()));
        let to = directory.join("deeper/to.o");
        write_if_changed(b"one", &to).expect("written");
        let first = to.metadata().and_then(|meta| meta.modified()).expect("a time");
        std::thread::sleep(std::time::Duration::from_millis(20));
        write_if_changed(b"one", &to).expect("nothing to do");
        assert_eq!(first, to.metadata().and_then(|meta| meta.modified()).expect("a time"));
        write_if_changed(b"two", &to).expect("written");
        assert_eq!(std::fs::read_to_string(&to).expect("read"), "two");
        std::fs::remove_dir_all(&directory).expect("removed");
    }
}
