//! `cargo xtask dist`: what others install, in `target/dist`: Debian packages of the daemon and of the guests' agent, and a
//! tarball with a static program for other distributions.
//!
//! What a package has in it stands in its `Cargo.toml`, in the table that cargo-deb reads, so that `cargo deb --no-build` makes
//! the same. It is not used here because the tests install these packages: building cargo-deb takes a fresh machine longer than
//! all other packaging together, and what is needed of it is to copy files.

mod deb;
mod libraries;
mod platform;
mod stage;
mod table;
mod tarball;
mod verify;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;
use flatline_tests::boot_sector::BootSector;

use crate::architecture::Architecture;
use crate::process::{self, cargo_command, heading, workspace_root};
use crate::{build_ebpf, build_heartbeat, executable, setup};
use platform::Platform;
use table::Package;

/// The daemon's package, and its program.
const DAEMON: &str = "flatline";

/// What to make.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Only the Debian packages: no second build of the daemon as a static program
    #[arg(long)]
    debian: bool,
    /// Also install the packages in a fresh Debian, as root, and have lintian and systemd look at them; of another
    /// architecture, unpack them in an empty root
    #[arg(long)]
    verify: bool,
    /// For this target instead of this machine's own: x86_64-unknown-linux-gnu or aarch64-unknown-linux-gnu
    #[arg(long, value_name = "TRIPLE", value_parser = Architecture::of_target)]
    target: Option<Architecture>,
}

/// Makes what the options ask for, and says where it is.
pub(crate) fn task(options: &Options) -> Result<()> {
    setup::ensure()?;
    let platform = Platform::new(options.target.unwrap_or(Architecture::OWN))?;
    let debs = if platform.is_own() { packages()? } else { foreign(&platform)? };
    for deb in &debs {
        told(deb)?;
    }
    if !options.debian {
        told(&tarball::build(&platform)?)?;
    }
    verify::unit(&staged(DAEMON))?;
    match (options.verify, platform.is_own()) {
        (false, _) => Ok(()),
        (true, true) => verify::packages(&debs),
        (true, false) => verify::foreign(&debs, platform.architecture),
    }
}

/// Builds the programs for this machine, and the Debian packages with them.
///
/// # Errors
///
/// As [`debian`], and if one of them can't be built.
pub(crate) fn packages() -> Result<Vec<PathBuf>> {
    build_ebpf::build()?;
    debian(&Platform::own().daemon()?, &build_heartbeat::build()?)
}

/// The same for another architecture. The documents are what the daemon says here, of whichever profile.
fn foreign(platform: &Platform) -> Result<Vec<PathBuf>> {
    build_ebpf::build()?;
    heading("building the daemon that prints its documents");
    let built = executable::built(&mut cargo_command(["build", "--package", DAEMON]))?;
    let own = built.into_iter().find(|each| each.name == DAEMON && !each.is_test);
    let (daemon, agent) = (platform.daemon()?, platform.agent()?);
    heading("Debian packages");
    documents(&own.context("cargo built no daemon")?.path)?;
    packed(platform, &daemon, &agent)
}

/// The Debian packages, from programs of this machine's that are there: the daemon's is asked for its pages.
///
/// # Errors
///
/// If a file of a package's table is missing, or the tools of dpkg-dev are.
pub(crate) fn debian(daemon: &Path, agent: &Path) -> Result<Vec<PathBuf>> {
    heading("Debian packages");
    documents(daemon)?;
    packed(&Platform::own(), daemon, agent)
}

/// The packages of these programs; the documents are there.
fn packed(platform: &Platform, daemon: &Path, agent: &Path) -> Result<Vec<PathBuf>> {
    let mut debs = Vec::new();
    for (name, program) in [(DAEMON, daemon), ("flatline-heartbeat", agent)] {
        let package = Package::read(name)?;
        let root = staged(name);
        stage::stage(&package, program, &root, &platform.tool("strip"))?;
        debs.push(deb::build(&package, &root, platform)?);
    }
    Ok(debs)
}

/// Where all of it goes.
fn directory() -> PathBuf {
    workspace_root().join("target/dist")
}

/// The files of a package, as they are installed.
fn staged(name: &str) -> PathBuf {
    directory().join("stage").join(name)
}

/// Man pages, completions, the practice guest, and the agent's unit as it is for packages.
fn documents(daemon: &Path) -> Result<()> {
    let documents = directory().join("documents");
    afresh(&documents)?;
    process::run(Command::new(daemon).arg("documents").arg(&documents))?;
    // It reads its disk until something comes over its serial line, and then halts for good.
    BootSector::OnCommand.write(&documents.join("practice.img"))?;
    let unit = "heartbeat/flatline-heartbeat.service";
    let text = std::fs::read_to_string(workspace_root().join(unit)).context(unit)?;
    // Its first lines tell how to install it by hand.
    let text = text.split_once("\n\n").map_or(&*text, |(_, rest)| rest);
    let path = documents.join("flatline-heartbeat.service");
    std::fs::write(&path, text.replace("/usr/local/bin/", "/usr/bin/"))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Makes the directory, without what an earlier run left in it.
fn afresh(directory: &Path) -> Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", directory.display()));
        }
        Ok(()) | Err(_) => {}
    }
    std::fs::create_dir_all(directory)
        .with_context(|| format!("cannot make {}", directory.display()))
}

fn told(file: &Path) -> Result<()> {
    let bytes = file.metadata().with_context(|| format!("no {}", file.display()))?.len();
    println!("{} ({} KiB)", file.display(), bytes.div_ceil(1024));
    Ok(())
}
