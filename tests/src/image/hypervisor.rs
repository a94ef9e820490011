//! A hypervisor for the guest: KVM's modules, and a program that runs a guest of the guest.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command;

/// The program, of which [`build`] makes one that needs no libraries.
pub(super) const SOURCE: &str = include_str!("../hypervisor/hypervisor.c");

/// Where it goes in the guest.
pub(super) const PLACE: &str = "bin/hypervisor";

/// KVM for the emulated SVM, in the order in which they load; a kernel may lack some, or have them built in.
pub(super) const MODULES: [&str; 4] = ["irqbypass", "ccp", "kvm", "kvm-amd"];

/// Builds the program in `dir`, which is made anew, and returns it.
///
/// # Errors
///
/// If gcc or the static C library is missing, or gcc refuses.
pub(super) fn build(dir: &Path) -> Result<Vec<u8>> {
    if dir.exists() {
        std::fs::remove_dir_all(dir)?;
    }
    std::fs::create_dir(dir)?;
    let (source, program) = (dir.join("hypervisor.c"), dir.join("hypervisor"));
    std::fs::write(&source, SOURCE)?;
    let mut gcc = Command::new("gcc");
    gcc.args(["-static", "-s", "-O2", "-Wall", "-Wextra", "-Werror", "-o"]);
    command::run_command(gcc.arg(&program).arg(&source))?;
    std::fs::read(program).context("gcc built no hypervisor")
}
