//! The guest's own kernel module, which stops CPUs on command: built against the headers of its kernel.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::kernel::Kernel;
use crate::command;

/// The files of `tests/src/lockup`, and their content.
pub(super) const SOURCES: [(&str, &str); 2] = [
    ("Makefile", include_str!("../lockup/Makefile")),
    ("lockup.c", include_str!("../lockup/lockup.c")),
];

/// Builds the module in `dir`, which is made anew, and returns it.
///
/// # Errors
///
/// If the kernel's headers, make or gcc are missing, or gcc refuses.
pub(super) fn build(kernel: &Kernel, dir: &Path) -> Result<Vec<u8>> {
    let headers = kernel.headers.as_ref();
    let headers = headers.with_context(|| format!("Linux {} has no headers", kernel.version))?;
    if dir.exists() {
        std::fs::remove_dir_all(dir)?;
    }
    std::fs::create_dir(dir)?;
    for (name, content) in SOURCES {
        std::fs::write(dir.join(name), content)?;
    }
    let mut make = Command::new("make");
    make.arg("-C").arg(headers).arg(format!("M={}", dir.display())).arg("modules");
    // Of a make or a cargo that runs us; kbuild would take them for its own.
    for variable in ["MAKEFLAGS", "MFLAGS", "CFLAGS", "ARCH", "CROSS_COMPILE"] {
        make.env_remove(variable);
    }
    command::run_command(&mut make)?;
    std::fs::read(dir.join("lockup.ko")).context("make built no lockup.ko")
}
