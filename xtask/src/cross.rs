//! What programs for another architecture are built with: a compiler that has its standard library, and a C compiler, which
//! also links.
//!
//! Both are taken where the machine has them: after `rustup target add aarch64-unknown-linux-gnu`, and from a distribution's
//! packages. On Debian what is missing is fetched and unpacked below `target/cross`, and nothing is installed: the standard
//! library of exactly the version of the installed `rustc-web`, whose compiler then takes it from there, and GCC.

mod debian;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::architecture::Architecture;
use crate::build_ebpf;
use crate::executable;
use crate::process::{capture, cargo_command, find_program, heading, workspace_root};

/// What builds for an architecture that is not this machine's.
#[derive(Clone, Debug)]
pub(crate) struct Cross {
    /// The programs' architecture.
    pub(crate) architecture: Architecture,
    /// A compiler that finds that architecture's standard library by itself.
    pub(crate) rustc: PathBuf,
    binutils: Binutils,
}

/// GCC and what it stands on, by the names that they have after the architecture's.
#[derive(Clone, Debug)]
struct Binutils {
    directory: PathBuf,
    prefix: String,
}

impl Binutils {
    fn program(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{}{name}", self.prefix))
    }
}

impl Cross {
    /// Finds it, or fetches what is missing.
    ///
    /// # Errors
    ///
    /// If there is none and it can't be fetched: with what to install.
    pub(crate) fn new(architecture: Architecture) -> Result<Self> {
        let target = architecture.target();
        let rustc = match compiler(&target) {
            Some(rustc) => rustc,
            None => debian::compiler(architecture, &directory()).with_context(|| {
                format!("no compiler here has {target}'s standard library: `rustup target add {target}` brings it")
            })?,
        };
        let prefix = format!("{}-linux-gnu-", architecture.name());
        let binutils = match installed(&prefix) {
            Some(directory) => Binutils { directory, prefix },
            None => {
                let directory = debian::binutils(architecture, &directory()).with_context(|| {
                    let (name, debian) = (architecture.name(), architecture.debian());
                    format!("no {prefix}gcc with its C library: install gcc-{name}-linux-gnu and libc6-dev-{debian}-cross, as Debian calls them")
                })?;
                Binutils { directory, prefix }
            }
        };
        heading(&format!(
            "for {target}: {}, {}",
            rustc.display(),
            binutils.program("gcc").display()
        ));
        Ok(Self { architecture, rustc, binutils })
    }

    /// Builds a package's programs; `arguments` are cargo's, which choose it and the profile. `flags` are the compiler's own.
    /// Returns the program of that name.
    ///
    /// # Errors
    ///
    /// If they can't be built, or have none of that name.
    pub(crate) fn build(
        &self,
        program: &str,
        arguments: &[&str],
        flags: &[&str],
    ) -> Result<PathBuf> {
        let target = self.architecture.target();
        heading(&format!("building {program} for {target}"));
        let mut command = cargo_command(["build"].iter().chain(arguments));
        let name = target.replace('-', "_");
        command
            .args(["--target", &target, "--target-dir"])
            .arg(directory().join("build"))
            .env("RUSTC", &self.rustc)
            .env(format!("CARGO_TARGET_{}_LINKER", name.to_uppercase()), self.tool("gcc"))
            .env(format!("CC_{name}"), self.tool("gcc"))
            .env(format!("AR_{name}"), self.tool("ar"))
            // Those of a target alone: this machine's build scripts are built without.
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
            // These would be put around or in place of the compiler that was chosen.
            .env_remove("RUSTC_WRAPPER")
            .env_remove("RUSTC_WORKSPACE_WRAPPER")
            .env_remove("RUSTUP_TOOLCHAIN");
        let built = executable::built(&mut command)?;
        let built = built.into_iter().find(|each| each.name == program);
        let path = built.with_context(|| format!("cargo built no {program}"))?.path;
        check(&path, self.architecture)?;
        Ok(path)
    }

    /// One of `gcc`, `ar`, `ld`, `strip` and `readelf`.
    pub(crate) fn tool(&self, name: &str) -> PathBuf {
        self.binutils.program(name)
    }
}

/// Where all of it goes that is fetched, and what is built with it.
fn directory() -> PathBuf {
    workspace_root().join("target/cross")
}

/// A compiler of this machine's that has a standard library for the target.
fn compiler(target: &str) -> Option<PathBuf> {
    build_ebpf::compilers().into_iter().find(|rustc| {
        let libraries =
            capture(Command::new(rustc).args(["--print", "target-libdir", "--target", target]));
        libraries.is_some_and(|libraries| holds_std(Path::new(&libraries)))
    })
}

fn holds_std(directory: &Path) -> bool {
    directory.read_dir().is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.starts_with("libstd-") && name.ends_with(".rlib")
        })
    })
}

/// Where this machine's own GCC for the architecture is, if it also has the C library that programs are linked to.
fn installed(prefix: &str) -> Option<PathBuf> {
    let gcc = find_program(&format!("{prefix}gcc"))?;
    let library = capture(Command::new(&gcc).arg("-print-file-name=libc.a"))?;
    // Of what it doesn't have it prints the name alone.
    Path::new(&library).is_absolute().then(|| gcc.parent().map(Path::to_owned))?
}

/// That a program is of the architecture, by its ELF header.
///
/// # Errors
///
/// If it is of another, or can't be read.
pub(crate) fn check(program: &Path, architecture: Architecture) -> Result<()> {
    let bytes = std::fs::read(program).with_context(|| format!("no {}", program.display()))?;
    let is_elf = bytes.starts_with(b"\x7fELF\x02\x01");
    if !is_elf || bytes.get(18..20) != Some(&architecture.elf_machine().to_le_bytes()) {
        bail!("{} is no program of {}", program.display(), architecture.name());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_of_another_architecture_is_refused() {
        let this = std::env::current_exe().unwrap();
        check(&this, Architecture::OWN).unwrap();
        let other = match Architecture::OWN {
            Architecture::X86_64 => Architecture::Aarch64,
            Architecture::Aarch64 => Architecture::X86_64,
        };
        assert!(check(&this, other).is_err());
        assert!(check(Path::new("/etc/passwd"), Architecture::OWN).is_err());
    }
}
