//! QEMU's executable: a copy for each test, and what it does not find from there by itself.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

/// Where distributions keep QEMU's firmware. A QEMU that runs from elsewhere does not find it by
/// itself.
const FIRMWARE_DIRECTORIES: [&str; 3] =
    ["/usr/share/qemu", "/usr/share/seabios", "/usr/lib/ipxe/qemu"];

/// Where they keep its loadable modules (Debian's TCG is one); the same holds for them.
const MODULE_DIRECTORIES: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/qemu",
    "/usr/lib/aarch64-linux-gnu/qemu",
    "/usr/lib64/qemu",
    "/usr/lib/qemu",
];
/// The QEMU of guests of this machine's own kind, and Debian's package of it.
const OWN_QEMU: (&str, &str) = if cfg!(target_arch = "aarch64") {
    ("qemu-system-aarch64", "qemu-system-arm")
} else {
    ("qemu-system-x86_64", "qemu-system-x86")
};

/// The command of a QEMU in `directory`, which finds its firmware and modules there; the rest is the caller's to say.
pub fn qemu_command(executable: &Path, directory: &Path) -> Command {
    let mut command = Command::new(executable);
    command.current_dir(directory);
    for firmware in firmware_directories() {
        command.args(["-L", firmware]);
    }
    set_module_directory(&mut command);
    command
}

/// Those of QEMU's firmware that this host has.
pub(super) fn firmware_directories() -> impl Iterator<Item = &'static str> {
    FIRMWARE_DIRECTORIES.into_iter().filter(|path| Path::new(path).is_dir())
}

/// Tells QEMU where its modules are.
pub(super) fn set_module_directory(command: &mut Command) {
    if let Some(modules) = MODULE_DIRECTORIES.into_iter().find(|path| Path::new(path).is_dir()) {
        command.env("QEMU_MODULE_DIR", modules);
    }
}

/// Names the root that QEMUs run in, as in a container: a directory on which a file system is mounted, with what QEMU needs,
/// busybox, an empty `old`, and mount points for [`SHARED`].
pub const ROOT_VARIABLE: &str = "FLATLINE_QEMU_ROOT";
/// What that root has of the tests' own, at the same places.
const SHARED: &str = "dev proc sys tmp payload";
/// Becomes QEMU, in a mount namespace of its own.
const ENTER: &str = "set -e
root=$1
shift
for each in $0; do mount --rbind /$each $root/$each; done
cd $root
pivot_root . old
exec /bin/busybox sh -c 'busybox umount -l /old; exec \"$@\"' sh \"$@\"";

/// What to put before QEMU's command to have it run in the root that the environment names; nothing without one. It keeps
/// its process.
pub(super) fn enter_root() -> Vec<OsString> {
    let Some(root) = std::env::var_os(ROOT_VARIABLE) else { return Vec::new() };
    let words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", ENTER, SHARED];
    words.into_iter().map(OsString::from).chain([root]).collect()
}

/// Puts a QEMU of one's own into `dir`, and returns its path: a daemon that allows only this
/// executable sees no other test's guests. `FLATLINE_QEMU` names another than Debian's.
///
/// # Errors
///
/// If there is no QEMU, or `dir` cannot be written.
pub fn private_qemu(dir: &Path) -> Result<PathBuf> {
    let (name, package) = OWN_QEMU;
    let source = std::env::var_os("FLATLINE_QEMU")
        .map_or_else(|| Path::new("/usr/bin").join(name), PathBuf::from);
    let target = private_copy(&source, name, dir);
    target.with_context(|| format!("no {}: install {package}", source.display()))
}

/// What asks the QEMU of [`private_qemu`] in `dir`, where it would run, for its version.
///
/// # Errors
///
/// As [`private_qemu`].
pub fn version_command(dir: &Path) -> Result<Command> {
    let words: Vec<OsString> =
        enter_root().into_iter().chain([private_qemu(dir)?.into(), "--version".into()]).collect();
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    Ok(command)
}

/// The same of any QEMU, under the name `name`.
///
/// # Errors
///
/// If there is no such program, or `dir` cannot be written.
pub fn private_copy(source: &Path, name: &str, dir: &Path) -> Result<PathBuf> {
    // A link to a symbolic link would run under the name that this points to.
    let source = std::fs::canonicalize(source)?;
    let target = std::path::absolute(dir)?.join(name);
    if target.exists() {
        return Ok(target);
    }
    // A hard link does not work across file systems.
    std::fs::hard_link(&source, &target)
        .or_else(|_| std::fs::copy(&source, &target).map(|_| ()))
        .with_context(|| format!("cannot make {}", target.display()))?;
    Ok(target)
}
