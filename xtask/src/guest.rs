//! `cargo xtask guest`: builds the kernel and the initramfs of the tests' guests.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::process::{elapsed, heading, workspace_root};
use crate::setup;

/// Builds the images, as far as they aren't there yet; returns their directory.
pub(crate) fn build() -> Result<PathBuf> {
    let directory = workspace_root().join("target/guest");
    heading("guest images");
    let started = Instant::now();
    let progress = |step: &str| eprintln!("{:>8}  {step}", elapsed(started.elapsed()));
    flatline_tests::image::build(&directory, progress)
        .with_context(|| format!("could not build the guest images in {}", directory.display()))?;
    Ok(directory)
}

/// Builds the images and prints where they are.
pub(crate) fn task() -> Result<()> {
    setup::ensure()?;
    println!("{}", build()?.display());
    Ok(())
}
