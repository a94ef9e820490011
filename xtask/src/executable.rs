//! Builds programs of the workspace for other tasks to run.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::process::{cargo_command, display, heading};

/// A program that cargo built, or found built.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Executable {
    /// Its target's name in the package's `Cargo.toml`.
    pub(crate) name: String,
    /// Whether it is a test runner: a package's own, or an integration test's.
    pub(crate) is_test: bool,
    /// Its file. The target directory may be configured anywhere.
    pub(crate) path: PathBuf,
    /// The directory of its package.
    pub(crate) package: PathBuf,
}

/// Builds `what` for release, with cargo's own progress: `arguments` choose the package, and one binary or example of
/// it. Returns the executable's path.
pub(crate) fn build(what: &str, arguments: &[&str]) -> Result<PathBuf> {
    heading(&format!("building {what}"));
    let mut command = cargo_command(["build", "--release"].iter().chain(arguments));
    let executable = built(&mut command)?.pop();
    executable.map(|executable| executable.path).context("cargo named no executable")
}

/// Runs a command of cargo that builds, and returns all executables that it names.
///
/// # Errors
///
/// If it can't be run, or fails.
pub(crate) fn built(command: &mut Command) -> Result<Vec<Executable>> {
    command.arg("--message-format=json-render-diagnostics");
    let line = display(command);
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("could not start `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}` failed: {}", output.status);
    }
    Ok(named(&String::from_utf8_lossy(&output.stdout)))
}

/// The executables in cargo's messages, one JSON object a line.
fn named(messages: &str) -> Vec<Executable> {
    let executables = messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let path = PathBuf::from(message["executable"].as_str()?);
        Some(Executable {
            name: message["target"]["name"].as_str()?.to_owned(),
            is_test: message["profile"]["test"].as_bool()?,
            path,
            package: Path::new(message["manifest_path"].as_str()?).parent()?.to_owned(),
        })
    });
    executables.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_those_that_cargo_names() {
        let messages = "{\"reason\":\"compiler-artifact\",\"executable\":null}\nwarning: no JSON\n\
            {\"reason\":\"compiler-artifact\",\"executable\":\"/t/debug/flatline\",\
            \"manifest_path\":\"/w/monitor/Cargo.toml\",\"target\":{\"name\":\"flatline\"},\
            \"profile\":{\"test\":false}}\n\
            {\"reason\":\"build-finished\",\"success\":true}\n";
        let flatline = Executable {
            name: "flatline".to_owned(),
            is_test: false,
            path: "/t/debug/flatline".into(),
            package: "/w/monitor".into(),
        };
        assert_eq!(named(messages), [flatline]);
    }
}
