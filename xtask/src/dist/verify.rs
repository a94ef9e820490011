//! What others say of the packages: systemd of the unit, lintian of the files, and a fresh Debian of their installation.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::directory;
use crate::apt;
use crate::architecture::Architecture;
use crate::cross;
use crate::process::{self, capture, find_program, heading};

/// What of Debian the packages need beyond its smallest form.
const INCLUDED: &str = "systemd,init-system-helpers";

/// Has systemd look at the daemon's unit below `root`, and prints how exposed it finds it.
pub(super) fn unit(root: &Path) -> Result<()> {
    if find_program("systemd-analyze").is_none() {
        println!("systemd-analyze is not there: the unit is not looked at");
        return Ok(());
    }
    let unit = root.join("usr/lib/systemd/system/flatline.service");
    let mut command = Command::new("systemd-analyze");
    command.args(["security", "--offline=true", "--no-pager"]).arg(&unit);
    let answer = capture(&mut command).context("systemd-analyze security failed")?;
    let score = answer.lines().find(|line| line.contains("exposure level"));
    println!("{}", score.context("systemd-analyze names no score")?.trim());
    Ok(())
}

/// Has lintian look at the packages, and installs and removes them in a Debian that was made for that.
pub(super) fn packages(debs: &[PathBuf]) -> Result<()> {
    ensure!(find_program("lintian").is_some(), "lintian is missing: apt-get install lintian");
    heading("lintian");
    let mut command = Command::new("lintian");
    process::run(command.args(["--fail-on", "error", "--tag-display-limit=0"]).args(debs))?;
    heading(&format!("a fresh {}", apt::RELEASE));
    let root = tempfile::Builder::new().prefix("flatline-dist-").tempdir()?;
    apt::debootstrap(root.path(), INCLUDED)?;
    install(debs, root.path())
}

fn install(debs: &[PathBuf], root: &Path) -> Result<()> {
    let mut names = Vec::new();
    for deb in debs {
        let name = deb.file_name().and_then(|name| name.to_str()).context("a nameless package")?;
        std::fs::copy(deb, root.join(name))?;
        names.push(format!("/{name}"));
    }
    let inside = |words: &[&str]| {
        let mut command = Command::new("chroot");
        command.arg(root).args(words).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    heading("installing");
    let mut words = vec!["dpkg", "--install"];
    words.extend(names.iter().map(String::as_str));
    process::run(&mut inside(&words))?;
    for (what, words) in [
        ("the program runs", vec!["flatline", "--version"]),
        (
            "its configuration is sound",
            vec!["flatline", "check-config", "/etc/flatline/flatline.toml"],
        ),
        ("the group is there", vec!["getent", "group", "flatline"]),
        ("the unit is sound", vec!["systemd-analyze", "verify", "--man=no", "flatline.service"]),
        ("it is enabled", vec!["systemctl", "is-enabled", "flatline.service"]),
        ("all files are as they were packed", vec!["dpkg", "--verify", "flatline"]),
        ("it can be installed again", words.clone()),
        ("it can be removed", vec!["dpkg", "--remove", "flatline", "flatline-heartbeat"]),
        ("and purged", vec!["dpkg", "--purge", "flatline", "flatline-heartbeat"]),
    ] {
        println!("{what}:");
        process::run(&mut inside(&words))?;
    }
    let left = [
        "usr/bin/flatline",
        "etc/flatline",
        "var/lib/flatline",
        "etc/systemd/system/multi-user.target.wants/flatline.service",
    ];
    if let Some(left) = left.iter().find(|path| root.join(path).symlink_metadata().is_ok()) {
        bail!("/{left} is left behind, below {}", directory().display());
    }
    println!("nothing is left of it");
    Ok(())
}

/// Unpacks packages of another architecture into an empty root, and looks whether they and their programs are of that. Nothing
/// of them can run here.
pub(super) fn foreign(debs: &[PathBuf], architecture: Architecture) -> Result<()> {
    heading(&format!("an empty root of {}", architecture.debian()));
    let root = tempfile::Builder::new().prefix("flatline-dist-").tempdir()?;
    for name in ["var/lib/dpkg/info", "var/lib/dpkg/updates"] {
        std::fs::create_dir_all(root.path().join(name))?;
    }
    std::fs::write(root.path().join("var/lib/dpkg/status"), "")?;
    for deb in debs {
        let field = capture(Command::new("dpkg-deb").arg("--field").arg(deb).arg("Architecture"));
        ensure!(field.as_deref() == Some(architecture.debian()), "{}: {field:?}", deb.display());
        // Its dependencies are none of an empty root's.
        let mut command = Command::new("dpkg");
        command.arg(format!("--root={}", root.path().display()));
        command.args(["--force-architecture", "--force-depends", "--unpack"]).arg(deb);
        process::run(&mut command)?;
    }
    for entry in std::fs::read_dir(root.path().join("usr/bin")).context("no usr/bin")? {
        let program = entry?.path();
        cross::check(&program, architecture)?;
        println!("{}: a program of {}", program.display(), architecture.name());
    }
    Ok(())
}
