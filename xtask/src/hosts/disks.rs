//! The disks of a host: Debian, what this task brings, and a QEMU of another suite in a root of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use flatline_tests::command;

use crate::apt;
use crate::packages::Packages;
use crate::process::run_quietly;

/// What of Debian a host of virtual machines has, and what the tests' harness runs, beyond Debian's smallest form.
const INCLUDED: &str =
    "qemu-system-x86,iproute2,busybox-static,kmod,procps,bpftool,e2fsprogs,xz-utils";
/// Another with each change of what it is made of.
const EDITION: &str = "debian-1.ext4";
/// Room for the images of guests; what is not written takes none.
const DEBIAN_BYTES: &str = "4G";
/// What no host needs.
const PRUNED: [&str; 4] = ["usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt"];
/// Where what this task brings is found in the host.
pub(super) const PAYLOAD: &str = "/payload";
/// Where the QEMU of another suite is, if there is one.
pub(super) const QEMU_ROOT: &str = "/qemu";

/// The smallest Debian with QEMU, made once in `dir`.
///
/// # Errors
///
/// If it can't be made.
pub(super) fn debian(dir: &Path) -> Result<PathBuf> {
    let image = dir.join(EDITION);
    if image.exists() {
        return Ok(image);
    }
    let place = tempfile::Builder::new().prefix(".debian-").tempdir_in(dir)?;
    let root = place.path().join("root");
    std::fs::create_dir(&root)?;
    apt::debootstrap(&root, INCLUDED)?;
    finish(&root, &image)?;
    Ok(image)
}

/// Makes a disk of such a root, without what no host needs, and with the places where others are mounted.
///
/// # Errors
///
/// If it can't be made.
pub(super) fn finish(root: &Path, image: &Path) -> Result<()> {
    for name in PRUNED {
        let _ = std::fs::remove_dir_all(root.join(name));
    }
    let mounts = [PAYLOAD, QEMU_ROOT, "/proc", "/sys", "/dev", "/run", "/tmp", "/root"];
    for mount_point in mounts {
        std::fs::create_dir_all(root.join(&mount_point[1..]))?;
    }
    make(root, image, DEBIAN_BYTES)
}

/// A suite's QEMU with all that it needs, made once in `dir`.
///
/// # Errors
///
/// If it can't be had.
pub(super) fn qemu(packages: &Packages, suite: &str, dir: &Path) -> Result<PathBuf> {
    let image = dir.join(format!("qemu-{suite}.ext4"));
    if image.exists() {
        return Ok(image);
    }
    let place = tempfile::Builder::new().prefix(".qemu-").tempdir_in(dir)?;
    let root = place.path().join("root");
    packages.unpack_with_all(suite, &[apt::QEMU], &root)?;
    for name in PRUNED {
        let _ = std::fs::remove_dir_all(root.join(name));
    }
    // What is mounted there, and what does that: see `FLATLINE_QEMU_ROOT`.
    for name in ["dev", "proc", "sys", "tmp", "old", &PAYLOAD[1..]] {
        std::fs::create_dir_all(root.join(name))?;
    }
    std::fs::copy(busybox()?, root.join("usr/bin/busybox"))?;
    make(&root, &image, "1G")?;
    Ok(image)
}

/// What this task brings: files under the names that they have there.
///
/// # Errors
///
/// If it can't be made.
pub(super) fn payload(files: &[(String, PathBuf)], image: &Path) -> Result<()> {
    let dir = image.parent().context("an image is in a directory")?;
    let place = tempfile::Builder::new().prefix(".payload-").tempdir_in(dir)?;
    for (name, from) in files {
        let to = place.path().join(name);
        to.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        // With the date, by which the guests' images know the busybox that they were made with.
        command::run("cp", ["--preserve".as_ref(), from.as_os_str(), to.as_os_str()])?;
    }
    let _ = std::fs::remove_file(image);
    make(place.path(), image, "1G")
}

/// This machine's busybox, which is in the guests' images.
///
/// # Errors
///
/// If there is none.
pub(super) fn busybox() -> Result<PathBuf> {
    let paths = ["/usr/bin/busybox", "/bin/busybox"].map(PathBuf::from);
    paths.into_iter().find(|path| path.exists()).context("no busybox: install busybox-static")
}

/// Makes an ext4 image of a directory, which is there as a whole afterwards or not at all.
fn make(root: &Path, image: &Path, size: &str) -> Result<()> {
    let new = image.with_extension("new");
    let _ = std::fs::remove_file(&new);
    let mut command = Command::new("mke2fs");
    command.args(["-q", "-t", "ext4", "-E", "root_owner=0:0", "-d"]).arg(root).arg(&new).arg(size);
    let name = image.file_name().unwrap_or_default().display();
    run_quietly(&format!("the disk {name}"), &mut command)?;
    std::fs::rename(&new, image).with_context(|| format!("cannot make {}", image.display()))
}
