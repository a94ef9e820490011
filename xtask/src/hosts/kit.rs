//! What hosts of one architecture have in common: Debian's packages, its disk, and the disk with what is tried, and with what.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use flatline_tests::image;

use super::emulator::Emulator;
use super::{arm, catalogue, disks, machine};
use crate::architecture::Architecture;
use crate::packages::Packages;
use crate::process::{cargo_command, heading};
use crate::{build_ebpf, cross, executable, guest};

/// All that is made once for them.
#[derive(Debug)]
pub(super) struct Kit {
    pub(super) architecture: Architecture,
    pub(super) packages: Packages,
    pub(super) emulator: Emulator,
    /// The disk with Debian.
    pub(super) debian: PathBuf,
    /// The disk that this task brings.
    pub(super) payload: PathBuf,
    /// A static busybox of theirs.
    pub(super) busybox: PathBuf,
    /// The CRC of the daemon's program.
    pub(super) daemon_crc32: u32,
}

/// What the payload is made of.
pub(super) struct Programs {
    pub(super) daemon: PathBuf,
    /// This program, of that architecture.
    pub(super) xtask: PathBuf,
    pub(super) busybox: PathBuf,
    /// More, under the names that they have there.
    pub(super) more: Vec<(String, PathBuf)>,
}

impl Kit {
    /// Builds what is missing, and takes `daemon` if that was built before.
    ///
    /// # Errors
    ///
    /// If something can't be built or fetched.
    pub(super) fn new(
        architecture: Architecture,
        dir: &Path,
        daemon: Option<&Path>,
    ) -> Result<Self> {
        match daemon {
            Some(daemon) => cross::check(daemon, architecture)?,
            None => build_ebpf::build().map(drop)?,
        }
        match architecture {
            Architecture::X86_64 => Self::of_x86(dir, daemon),
            Architecture::Aarch64 => arm::kit(dir, daemon),
        }
    }

    fn of_x86(dir: &Path, daemon: Option<&Path>) -> Result<Self> {
        let daemon = match daemon {
            Some(daemon) => daemon.to_owned(),
            None => executable::build("the daemon", &["--package", "flatline"])?,
        };
        let mut command = cargo_command(["test", "--workspace", "--no-run", "--test", "e2e"]);
        heading("building the end-to-end tests");
        let tests = executable::built(&mut command)?.into_iter().find(|test| test.name == "e2e");
        let tests = tests.context("cargo built no end-to-end tests")?.path;
        let images = guest::build()?;
        image::build(&images, |step| eprintln!("{step}"))?;
        let packages =
            Packages::new(&dir.join("apt"), &catalogue::SUITES, &[Architecture::X86_64])?;
        let emulator = Emulator::find(&packages, dir)?;
        let debian = disks::debian(dir)?;
        let of_guests = ["kernel", "initramfs", "stamp", image::AGENT];
        let of_guests = of_guests.map(|name| (format!("guest/{name}"), images.join(name)));
        let mut more = vec![("e2e".to_owned(), tests)];
        more.extend(of_guests.into_iter().filter(|(_, path)| path.exists()));
        let xtask = std::env::current_exe()?;
        let programs = Programs { daemon, xtask, busybox: disks::busybox()?, more };
        let architecture = Architecture::X86_64;
        let (payload, busybox) = (dir.join("payload.ext4"), programs.busybox.clone());
        let daemon_crc32 = programs.payload(&payload, architecture)?;
        Ok(Self { architecture, packages, emulator, debian, payload, busybox, daemon_crc32 })
    }
}

impl Programs {
    /// Makes the disk with them; returns the CRC of the daemon's.
    ///
    /// # Errors
    ///
    /// If it can't be made.
    pub(super) fn payload(self, payload: &Path, architecture: Architecture) -> Result<u32> {
        let Self { daemon, xtask, busybox, more } = self;
        let daemon_crc32 = crc32fast::hash(&std::fs::read(&daemon)?);
        let script = payload.with_extension("init");
        std::fs::write(&script, machine::script(architecture))?;
        let mut mode = Command::new("chmod");
        crate::process::run(mode.arg("755").arg(&script))?;
        let files =
            [("init", script), ("flatline", daemon), ("xtask", xtask), ("busybox", busybox)];
        let files = files.map(|(name, path)| (name.to_owned(), path));
        let files: Vec<(String, PathBuf)> = files.into_iter().chain(more).collect();
        disks::payload(&files, payload)?;
        Ok(daemon_crc32)
    }
}
