//! The Linux guest with a crash kernel: Debian's own, loaded at its start, which saves a dump to the first disk and resets the
//! machine.
//!
//! `crashkernel=` on the guest's command line makes room for it. With `flatline.crash=slow` there, the crash kernel takes its
//! time to boot; with `flatline.crash=hang`, it boots, and then does nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::{INIT, Images, MODULES, find_busybox, initramfs, kernel, locked};
use crate::command;
use crate::cpio::Archive;

/// What the guest's kernel sets aside for the crash kernel, ..
pub const ROOM: &str = "crashkernel=192M";
/// .. and the memory that it has with that.
pub const MEMORY_MIB: u32 = 512;
/// What is built, in files; the first runs before the guest's own.
const SOURCES: [&str; 3] = [
    include_str!("../kdump/first-init.sh"),
    include_str!("../kdump/crash-init.sh"),
    include_str!("../kdump/load.c"),
];
/// All that the crash kernel needs of [`MODULES`]: its disk.
const CRASH_MODULES: usize = 6;

/// Builds the images in `cache_dir` on top of a guest's, or finds them there. Other builds of the same time wait.
///
/// # Errors
///
/// If Debian's kernel can't be had, gcc or the static C library is missing, or `cache_dir` cannot be written.
pub fn build(base: &Images, cache_dir: &Path) -> Result<Images> {
    let (cache_dir, _lock) = locked(cache_dir)?;
    let (added, whole) = (cache_dir.join("added"), cache_dir.join("initramfs"));
    let stamp = cache_dir.join("stamp");
    let recipe = [SOURCES.concat(), INIT.to_owned()].concat();
    if !std::fs::read_to_string(&stamp).is_ok_and(|built| built == recipe) {
        std::fs::write(&added, addition(&cache_dir)?).context("cannot write what is added")?;
        // Last, so that an interrupted build is taken up again.
        std::fs::write(&stamp, recipe).context("cannot write the stamp")?;
    }
    // A kernel unpacks one archive after the other, and a file that comes again is written anew.
    let bytes = [std::fs::read(&base.initramfs)?, std::fs::read(&added)?].concat();
    if !std::fs::read(&whole).is_ok_and(|built| built == bytes) {
        // Guests may be reading the one that is there.
        let new = cache_dir.join("initramfs.new");
        std::fs::write(&new, bytes).context("cannot write the initramfs")?;
        std::fs::rename(new, &whole)?;
    }
    Ok(Images { initramfs: whole, hypervisor: None, ..base.clone() })
}

/// What a guest has more than others.
fn addition(cache_dir: &Path) -> Result<Vec<u8>> {
    let place = tempfile::Builder::new().prefix(".building-").tempdir_in(cache_dir)?;
    let kernel = kernel::find(place.path(), &mut |_| {})?;
    let [first, crash, _] = SOURCES;
    let modules = &MODULES[..CRASH_MODULES];
    let crash = initramfs(crash, &find_busybox()?, &kernel.modules, modules, None)?;
    let mut archive = Archive::default();
    archive.directory("kdump");
    archive.file("kdump/kernel", 0o644, &std::fs::read(&kernel.image)?);
    archive.file("kdump/initramfs", 0o644, &crash.finish());
    archive.file("kdump/load", 0o755, &loader(place.path())?);
    archive.file("guest-init", 0o755, INIT.as_bytes());
    archive.file("init", 0o755, first.as_bytes());
    Ok(archive.finish())
}

fn loader(place: &Path) -> Result<Vec<u8>> {
    let (source, program): (PathBuf, PathBuf) = (place.join("load.c"), place.join("load"));
    std::fs::write(&source, SOURCES[2])?;
    let mut gcc = Command::new("gcc");
    gcc.args(["-static", "-s", "-O2", "-Wall", "-Wextra", "-Werror", "-o"]);
    command::run_command(gcc.arg(&program).arg(&source))?;
    std::fs::read(program).context("gcc built no loader")
}
