//! Builds a program of the workspace for other tasks to run.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::process::{cargo_command, display, heading};

/// Builds `what` with cargo's own progress: `arguments` choose the package, and one binary or example of
/// it. Returns the executable's path, as cargo tells it: its target directory may be configured anywhere.
pub(crate) fn build(what: &str, arguments: &[&str]) -> Result<PathBuf> {
    heading(&format!("building {what}"));
    let mut command = cargo_command(["build", "--release"].iter().chain(arguments));
    command.arg("--message-format=json-render-diagnostics");
    let line = display(&command);
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("could not start `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}` failed: {}", output.status);
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    named(&messages).with_context(|| format!("`{line}` named no executable"))
}

/// The executable that cargo's messages, one JSON object a line, name.
fn named(messages: &str) -> Option<PathBuf> {
    let mut executables = messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    });
    executables.next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_the_one_that_cargo_names() {
        let messages = "{\"reason\":\"compiler-artifact\",\"executable\":null}\nwarning: no JSON\n\
            {\"reason\":\"compiler-artifact\",\"executable\":\"/t/release/flatline\"}\n\
            {\"reason\":\"build-finished\",\"success\":true}\n";
        assert_eq!(named(messages), Some(PathBuf::from("/t/release/flatline")));
    }
}
