//! Debian's packages, unpacked without being installed: none of their scripts run.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command;

/// Downloads a package and unpacks it into `directory`, beside what is there. `options` are apt's own.
///
/// # Errors
///
/// If apt has no such package, or can't reach it: with its words.
pub fn unpack(package: &str, directory: &Path, options: &[&str]) -> Result<()> {
    let parent = directory.parent().context("a package is unpacked below a directory")?;
    std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    let place = tempfile::Builder::new().prefix(".unpacking-").tempdir_in(parent)?;
    let mut download = Command::new("apt-get");
    download.args(["download", "--quiet"]).args(options).arg(package).current_dir(place.path());
    command::run_command(&mut download)?;
    let archive = std::fs::read_dir(place.path())?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get downloaded no {package}"))?;
    let words = ["--extract".as_ref(), archive.as_os_str(), directory.as_os_str()];
    command::run("dpkg-deb", words).map(drop)
}
