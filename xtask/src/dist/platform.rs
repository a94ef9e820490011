//! What packages are for: this machine's architecture, or another, with what its programs are built with.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::{DAEMON, tarball};
use crate::architecture::Architecture;
use crate::cross::Cross;
use crate::process::capture;
use crate::{build_heartbeat, executable};

/// How the daemon is built.
const RELEASE: [&str; 3] = ["--release", "--package", DAEMON];

/// An architecture, and its tools.
#[derive(Debug)]
pub(super) struct Platform {
    pub(super) architecture: Architecture,
    /// None for this machine's own.
    cross: Option<Cross>,
}

impl Platform {
    /// This machine's.
    pub(super) fn own() -> Self {
        Self { architecture: Architecture::OWN, cross: None }
    }

    /// Any, with what it takes to build for it.
    ///
    /// # Errors
    ///
    /// As [`Cross::new`].
    pub(super) fn new(architecture: Architecture) -> Result<Self> {
        let is_own = architecture == Architecture::OWN;
        let cross = (!is_own).then(|| Cross::new(architecture)).transpose()?;
        Ok(Self { architecture, cross })
    }

    /// Whether its programs run here.
    pub(super) fn is_own(&self) -> bool {
        self.cross.is_none()
    }

    /// The daemon.
    ///
    /// # Errors
    ///
    /// If it can't be built.
    pub(super) fn daemon(&self) -> Result<PathBuf> {
        match &self.cross {
            Some(cross) => cross.build(DAEMON, &RELEASE, &[]),
            None => executable::build("the daemon", &RELEASE[1..]),
        }
    }

    /// The same as a static program. For another architecture it has glibc's libraries: Debian has no musl for that.
    ///
    /// # Errors
    ///
    /// If it can't be built, or is not static.
    pub(super) fn static_daemon(&self) -> Result<PathBuf> {
        let Some(cross) = &self.cross else { return tarball::static_program() };
        let program = cross.build(DAEMON, &RELEASE, &["-Ctarget-feature=+crt-static"])?;
        tarball::needs_no_loader(&program)?;
        Ok(program)
    }

    /// The guests' agent.
    ///
    /// # Errors
    ///
    /// If it can't be built.
    pub(super) fn agent(&self) -> Result<PathBuf> {
        self.cross.as_ref().map_or_else(build_heartbeat::build, build_heartbeat::build_for)
    }

    /// One of binutils' programs, for its files.
    pub(super) fn tool(&self, name: &str) -> PathBuf {
        self.cross.as_ref().map_or_else(|| name.into(), |cross| cross.tool(name))
    }

    /// Its name in packages.
    ///
    /// # Errors
    ///
    /// Without dpkg, which has this machine's.
    pub(super) fn debian_architecture(&self) -> Result<String> {
        if !self.is_own() {
            return Ok(self.architecture.debian().to_owned());
        }
        capture(Command::new("dpkg").arg("--print-architecture"))
            .context("dpkg names no architecture")
    }
}
