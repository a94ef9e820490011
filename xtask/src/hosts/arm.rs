//! What hosts of 64-bit Arm are made of. None of it runs on this machine: packages are unpacked, and programs built for that
//! architecture with [`cross`](crate::cross).

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flatline_tests::image::arm64::{self, Parts};
use flatline_tests::tools::QEMU_AARCH64;

use super::catalogue::{SUITES, arm::KERNELS};
use super::emulator::Emulator;
use super::kit::{Kit, Programs};
use super::{disks, inside, kernel};
use crate::architecture::Architecture;
use crate::cross::Cross;
use crate::packages::Packages;
use crate::process::heading;
use crate::{apt, build_heartbeat, tools};

const ARCHITECTURE: Architecture = Architecture::Aarch64;
/// Debian as a host of virtual machines needs it: what [`disks::debian`] has by debootstrap, which would run programs of that
/// architecture.
const INCLUDED: [&str; 27] = [
    "qemu-system-arm",
    "base-files",
    "base-passwd",
    "bash",
    "bpftool",
    "busybox-static",
    "coreutils",
    "dash",
    "diffutils",
    "dpkg",
    "e2fsprogs",
    "findutils",
    "gawk",
    "grep",
    "gzip",
    "hostname",
    "iproute2",
    "kmod",
    "libc-bin",
    "login",
    "mount",
    "passwd",
    "procps",
    "sed",
    "tar",
    "util-linux",
    "xz-utils",
];
/// Another with each change of what it is made of.
const EDITION: &str = "debian-arm64-1.ext4";
/// Where busybox is in its package, from Debian 13 on and before.
const BUSYBOX: [&str; 2] = ["usr/bin/busybox", "bin/busybox"];

/// Builds what is missing, and takes `daemon` if that was built before.
///
/// # Errors
///
/// If something can't be built for that architecture, or fetched.
pub(super) fn kit(dir: &Path, daemon: Option<&Path>) -> Result<Kit> {
    let cross = Cross::new(ARCHITECTURE)?;
    let daemon = match daemon {
        Some(daemon) => daemon.to_owned(),
        None => cross.build("flatline", &["--release", "--package", "flatline"], &[])?,
    };
    let xtask = cross.build("xtask", &["--package", "xtask"], &[])?;
    let agent = build_heartbeat::build_for(&cross)?;
    tools::fetch();
    let emulator = Emulator::Installed(QEMU_AARCH64.needed().map_err(anyhow::Error::msg)?);
    let packages = Packages::new(&dir.join("apt-arm64"), &SUITES, &[ARCHITECTURE])?;
    let debian = debian(&packages, dir)?;
    let parts = dir.join("arm64");
    let package = parts.join("busybox-static");
    if !package.exists() {
        packages.unpack("busybox-static", &package)?;
    }
    let busybox = BUSYBOX.map(|path| package.join(path)).into_iter().find(|path| path.exists());
    let busybox = busybox.context("busybox-static holds no busybox")?;
    let mut more = Vec::new();
    for version in KERNELS {
        let images = guest(&packages, version, &busybox, &agent, &parts)?;
        let place = inside::images_of(version);
        for name in ["kernel", "initramfs"] {
            more.push((format!("{place}/{name}"), images.join(name)));
        }
    }
    let payload = dir.join("payload-arm64.ext4");
    let programs = Programs { daemon, xtask, busybox: busybox.clone(), more };
    let daemon_crc32 = programs.payload(&payload, ARCHITECTURE)?;
    let architecture = ARCHITECTURE;
    Ok(Kit { architecture, packages, emulator, debian, payload, busybox, daemon_crc32 })
}

/// The disk, made once in `dir`. No package's scripts have run in it.
fn debian(packages: &Packages, dir: &Path) -> Result<PathBuf> {
    let image = dir.join(EDITION);
    if image.exists() {
        return Ok(image);
    }
    let place = tempfile::Builder::new().prefix(".debian-").tempdir_in(dir)?;
    let root = place.path().join("root");
    packages.unpack_with_all(apt::RELEASE, &INCLUDED, &root)?;
    // What those scripts would have made.
    for (link, to) in [("bin/sh", "dash"), ("bin/awk", "gawk")] {
        let link = root.join("usr").join(link);
        if link.symlink_metadata().is_err() {
            symlink(to, link)?;
        }
    }
    for name in ["passwd", "group"] {
        let from = root.join("usr/share/base-passwd").join(format!("{name}.master"));
        std::fs::copy(from, root.join("etc").join(name))
            .with_context(|| format!("base-passwd has no {name}"))?;
    }
    disks::finish(&root, &image)?;
    Ok(image)
}

/// A guest's images, made once for each kernel and agent below `parts`.
fn guest(
    packages: &Packages,
    version: &str,
    busybox: &Path,
    agent: &Path,
    parts: &Path,
) -> Result<PathBuf> {
    let kernel = packages.kernel(version)?;
    let changing = [arm64::init().into_bytes(), std::fs::read(agent)?].concat();
    let images = parts.join(format!("{}-{:08x}", kernel.version, crc32fast::hash(&changing)));
    if images.exists() {
        return Ok(images);
    }
    heading(&format!("a guest of Linux {}", kernel.version));
    let place = tempfile::Builder::new().prefix(".guest-").tempdir_in(parts)?;
    let unpacked = kernel::unpacked(packages, &kernel, place.path())?;
    let (kernel, modules) = (&unpacked.image, &unpacked.modules);
    let parts = Parts { kernel, modules, busybox, agent: Some(agent) };
    let made = place.path().join("images");
    parts.build(&made)?;
    std::fs::rename(made, &images)?;
    Ok(images)
}
