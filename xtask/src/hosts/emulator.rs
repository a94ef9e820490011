//! The QEMU that emulates hosts: this machine's own, or where that is too old, one of Debian 13 that is unpacked beside.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::apt;
use crate::packages::Packages;
use crate::process::capture;

/// The first QEMU that locks a page of code before it translates it. An older one may keep what a vCPU translated while another
/// one was writing there: a kernel that switches a tracepoint on then runs into its own breakpoint, and panics.
const OLDEST: [u32; 2] = [8, 1];
const PROGRAM: &str = "qemu-system-x86_64";
/// Where a newer one is taken from.
const SUITE: &str = "trixie";
/// Where Debian has a program's loader, libraries and modules, and the firmware of QEMU's machines.
const LOADER: &str = "usr/lib64/ld-linux-x86-64.so.2";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const FIRMWARE: [&str; 3] = ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"];

/// How that QEMU is called.
#[derive(Debug)]
pub(super) enum Emulator {
    /// As any program of this machine's, wherever that is.
    Installed(PathBuf),
    /// By its own loader, with all that it needs below this directory.
    Unpacked(PathBuf),
}

impl Emulator {
    /// Looks at this machine's own, and unpacks another below `dir` if need be.
    ///
    /// # Errors
    ///
    /// If that can't be had.
    pub(super) fn find(packages: &Packages, dir: &Path) -> Result<Self> {
        let version = capture(Command::new(PROGRAM).arg("--version"));
        if version.as_deref().and_then(version_in).is_some_and(|version| version >= OLDEST) {
            return Ok(Self::Installed(PROGRAM.into()));
        }
        let root = dir.join(format!("emulator-{SUITE}"));
        if !root.exists() {
            let place = tempfile::Builder::new().prefix(".emulator-").tempdir_in(dir)?;
            let new = place.path().join("root");
            packages.unpack_with_all(SUITE, &[apt::QEMU], &new)?;
            std::fs::rename(&new, &root)
                .with_context(|| format!("cannot make {}", root.display()))?;
        }
        Ok(Self::Unpacked(root))
    }

    /// What its machine's arguments are added to.
    pub(super) fn command(&self) -> Command {
        let root = match self {
            Self::Installed(program) => return Command::new(program),
            Self::Unpacked(root) => root,
        };
        let mut command = Command::new(root.join(LOADER));
        command.arg("--library-path").arg(root.join(LIBRARIES));
        command.arg(root.join("usr/bin").join(PROGRAM));
        for firmware in FIRMWARE {
            command.args([OsString::from("-L"), root.join(firmware).into()]);
        }
        command.env("QEMU_MODULE_DIR", root.join(LIBRARIES).join("qemu"));
        command
    }
}

/// Major and minor version, in what `--version` prints.
fn version_in(text: &str) -> Option<[u32; 2]> {
    let version = text.lines().next()?.strip_prefix("QEMU emulator version ")?;
    let mut numbers = version.split(|letter: char| !letter.is_ascii_digit());
    Some([numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_compared_by_its_numbers() {
        let of = |text: &str| version_in(&format!("QEMU emulator version {text}\nCopyright"));
        assert_eq!(of("7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)"), Some([7, 2]));
        assert!(of("10.0.6 (Debian)").is_some_and(|version| version >= OLDEST));
        assert!(of("8.0.4").is_some_and(|version| version < OLDEST));
        assert_eq!(version_in("sh: not found"), None);
    }
}
