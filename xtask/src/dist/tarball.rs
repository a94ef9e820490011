//! A tarball for hosts without dpkg: the same files, to be unpacked below `/usr/local`, with a static program.
//!
//! The daemon is built for a musl target where the compiler has one, and else with glibc's static libraries, which it can do
//! without a loss: it asks no name service (users are read from `/etc/passwd`), and opens no library.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::platform::Platform;
use super::table::Package;
use super::{afresh, directory, stage, staged};
use crate::architecture::Architecture;
use crate::build_heartbeat;
use crate::process::{self, capture, cargo_command, heading, workspace_root};

/// Debian's place for a package's files, and theirs below `/usr/local`.
const PLACES: [(&str, &str); 4] = [
    ("usr/bin", "bin"),
    ("usr/lib", "lib"),
    ("usr/share", "share"),
    // Not in place: an upgrade would overwrite what the administrator wrote.
    ("etc/flatline", "share/flatline/etc"),
];
/// Debian's packages have them in `copyright`, which is not for others.
const LICENCES: [&str; 2] = ["LICENSE-APACHE", "LICENSE-MIT"];
/// Units that have a path of their program in them.
const UNITS: &str = "lib/systemd/system";

/// Builds the static program, and returns the tarball.
pub(super) fn build(platform: &Platform) -> Result<PathBuf> {
    let program = platform.static_daemon()?;
    heading("tarball");
    let package = Package::read("flatline")?;
    let tree = staged("static");
    stage::stage(&package, &program, &tree, &platform.tool("strip"))?;
    let architecture = platform.architecture.name();
    let name = format!("flatline-{}-{architecture}-linux", package.version);
    let root = staged("tarball").join(&name);
    afresh(&root)?;
    for (from, to) in PLACES {
        let to = root.join(to);
        fs::create_dir_all(to.parent().context("a nameless directory")?)?;
        fs::rename(tree.join(from), &to).with_context(|| format!("no {from}"))?;
    }
    fs::remove_dir_all(&tree)?;
    for entry in fs::read_dir(root.join(UNITS))? {
        let unit = entry?.path();
        let text = fs::read_to_string(&unit)?;
        let text = text.replace("/usr/bin/flatline", "/usr/local/bin/flatline");
        fs::write(&unit, text.replace("file:/usr/share", "file:/usr/local/share"))?;
    }
    agents(&root.join("share/flatline/heartbeat"))?;
    for licence in LICENCES {
        fs::copy(workspace_root().join(licence), root.join("share/doc/flatline").join(licence))
            .with_context(|| format!("no {licence}"))?;
    }
    let file = directory().join(format!("{name}.tar.gz"));
    pack(&root, &file)?;
    Ok(file)
}

/// The guests' agent, for each architecture that it was built for, with its unit.
fn agents(directory: &Path) -> Result<()> {
    let built = workspace_root().join("target/heartbeat");
    for entry in fs::read_dir(&built).with_context(|| format!("no {}", built.display()))? {
        let architecture = entry?;
        let program = architecture.path().join("flatline-heartbeat");
        if program.is_file() {
            let to = directory.join(architecture.file_name());
            fs::create_dir_all(&to)?;
            fs::copy(program, to.join("flatline-heartbeat"))?;
        }
    }
    let unit = workspace_root().join("heartbeat/flatline-heartbeat.service");
    fs::copy(unit, directory.join("flatline-heartbeat.service")).map(|_| ())?;
    Ok(())
}

/// Root's, in order and with one time, so that the same files make the same tarball.
fn pack(root: &Path, file: &Path) -> Result<()> {
    let time = capture(git().args(["log", "-1", "--format=%ct"]));
    let time = time.filter(|time| !time.is_empty()).unwrap_or_else(|| "0".to_owned());
    let mut command = Command::new("tar");
    command
        .args(["--create", "--auto-compress", "--sort=name", "--owner=0", "--group=0"])
        .args(["--numeric-owner", "--mode=u+w,go-w,a+rX"])
        .arg(format!("--mtime=@{time}"))
        .arg("--file")
        .arg(file)
        .arg("--directory")
        .arg(root.parent().context("a nameless directory")?)
        .arg(root.file_name().context("a nameless directory")?);
    process::run(&mut command)
}

/// git at the workspace, which knows when its last change was.
fn git() -> Command {
    let mut command = Command::new("git");
    command.current_dir(workspace_root());
    command
}

/// This machine's own.
///
/// # Errors
///
/// If it can't be built, is not static or does not run.
pub(super) fn static_program() -> Result<PathBuf> {
    let target = target();
    heading(&format!("the daemon as a static program, for {target}"));
    // A directory of its own: with other flags, everything would be built again here and there.
    let directory = workspace_root().join("target/static");
    let mut command = cargo_command(["build", "--release", "--package", "flatline"]);
    command.args(["--target", &target, "--target-dir"]).arg(&directory);
    command.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    process::run(&mut command)?;
    let program = directory.join(target).join("release/flatline");
    needs_no_loader(&program)?;
    let version = capture(Command::new(&program).arg("--version"));
    version.with_context(|| format!("{} does not run", program.display()))?;
    Ok(program)
}

/// That a program is static.
///
/// # Errors
///
/// If it is not, or can't be read.
pub(super) fn needs_no_loader(program: &Path) -> Result<()> {
    let bytes = fs::read(program).with_context(|| format!("no {}", program.display()))?;
    if !build_heartbeat::is_static(&bytes) {
        bail!("{} needs a loader", program.display());
    }
    Ok(())
}

/// musl's, if cargo's compiler has a standard library for it, or else this machine's own.
fn target() -> String {
    let name = |library| format!("{}-unknown-linux-{library}", Architecture::OWN.name());
    let musl = name("musl");
    let mut command = Command::new("rustc");
    command.current_dir(workspace_root()).args(["--print", "target-libdir", "--target", &musl]);
    let libraries = capture(&mut command).map(PathBuf::from);
    let has_std = libraries.and_then(|path| fs::read_dir(path).ok()).is_some_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libstd-"))
    });
    if has_std { musl } else { name("gnu") }
}
