//! Running the small system tools that the harness stands on.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// Runs a program to its end and returns what it printed.
///
/// # Errors
///
/// If it cannot be started, or ends with another status than 0: then with what it said on stderr.
pub fn run<S: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = S>,
) -> Result<Vec<u8>> {
    run_command(Command::new(program).args(arguments))
}

/// As [`run`], for a command that was prepared by the caller.
///
/// # Errors
///
/// As [`run`].
pub fn run_command(command: &mut Command) -> Result<Vec<u8>> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}
