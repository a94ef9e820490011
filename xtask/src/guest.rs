//! `cargo xtask guest`: builds the kernel and the initramfs of the tests' guests.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use flatline_tests::image;

use crate::process::{elapsed, heading, workspace_root};
use crate::{build_heartbeat, setup};

/// Where the images are.
pub(crate) fn directory() -> PathBuf {
    workspace_root().join("target/guest")
}

/// Builds the images, as far as they aren't there yet; returns their directory.
pub(crate) fn build() -> Result<PathBuf> {
    let directory = directory();
    put_agent(&directory)?;
    heading("guest images");
    let started = Instant::now();
    let progress = |step: &str| eprintln!("{:>8}  {step}", elapsed(started.elapsed()));
    image::build(&directory, progress)
        .with_context(|| format!("could not build the guest images in {}", directory.display()))?;
    Ok(directory)
}

/// Puts flatline's agent where the images' recipe looks for it.
fn put_agent(directory: &Path) -> Result<()> {
    let agent = build_heartbeat::build()?;
    std::fs::create_dir_all(directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let place = directory.join(image::AGENT);
    // Whole, or not there: others may build images at the same time.
    let new = directory.join(format!("{}.{}", image::AGENT, std::process::id()));
    std::fs::copy(&agent, &new).with_context(|| format!("cannot copy {}", agent.display()))?;
    std::fs::rename(&new, &place).with_context(|| format!("cannot write {}", place.display()))?;
    Ok(())
}

/// Builds the images and prints where they are.
pub(crate) fn task() -> Result<()> {
    setup::ensure()?;
    println!("{}", build()?.display());
    Ok(())
}
