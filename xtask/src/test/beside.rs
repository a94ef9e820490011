//! What the end-to-end tests need from elsewhere: fetched and made beside the compiling, since it waits for the network most
//! of its time.
//!
//! It is a process of its own, this program with another task, so that what it says can be kept apart.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use tempfile::NamedTempFile;

use crate::process::workspace_root;
use crate::{guest, tools};

/// The task's name on the command line.
pub(crate) const PREPARE: &str = "prepare-tests";

/// That process, and what it has said so far.
#[derive(Debug)]
pub(super) struct Beside {
    process: Child,
    said: NamedTempFile,
}

/// `cargo xtask prepare-tests`: the programs of others, and the guests' images.
///
/// # Errors
///
/// If the images can't be built. A program that can't be had is said, and its tests say *ignored*.
pub(crate) fn prepare() -> Result<()> {
    tools::fetch();
    guest::build().map(|_| ())
}

impl Beside {
    /// Starts it.
    ///
    /// # Errors
    ///
    /// If this program can't be started once more.
    pub(super) fn start() -> Result<Self> {
        let said = NamedTempFile::new().context("no temporary file")?;
        // One open file, so that what is written to either comes behind what was written before.
        let stdout = said.reopen()?;
        let stderr = stdout.try_clone()?;
        let program = std::env::current_exe().context("this program's file is unknown")?;
        let process = Command::new(program)
            .arg(PREPARE)
            .current_dir(workspace_root())
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .context("could not start this program once more")?;
        Ok(Self { process, said })
    }

    /// Waits for its end, and prints what it said. Returns the images' directory.
    ///
    /// # Errors
    ///
    /// If it failed.
    pub(super) fn finish(mut self) -> Result<PathBuf> {
        let status = self.process.wait().context("could not wait")?;
        let said = fs::read(self.said.path()).context("what it said is gone")?;
        eprint!("{}", String::from_utf8_lossy(&said));
        if !status.success() {
            bail!("`cargo xtask {PREPARE}` failed: {status}");
        }
        Ok(guest::directory())
    }
}
