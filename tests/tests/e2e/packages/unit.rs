//! What systemd says of the unit, without running it.

use std::{os::unix::fs::PermissionsExt as _, process::Command};

use anyhow::{Context as _, Result, ensure};

use super::{unit, values};

/// On systemd's scale from 0 to 10 of what a service could do: what docs/packages.md says.
const MOST_EXPOSED: f64 = 6.3;

pub(super) fn test() -> Result<Option<String>> {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        return Ok(Some("systemd-analyze is not installed".to_owned()));
    }
    let dir = tempfile::tempdir()?;
    // A program must be there for systemd to find nothing wrong.
    let program = dir.path().join("flatline");
    std::fs::write(&program, "")?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
    let text = unit()?;
    let installed = "/usr/bin/flatline";
    ensure!(values(&text, "ExecStart") == [format!("{installed} run")], "{text}");
    let path = dir.path().join("flatline.service");
    std::fs::write(&path, text.replace(installed, &program.display().to_string()))?;
    let verified =
        Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path).output()?;
    let complaints = String::from_utf8_lossy(&verified.stderr);
    ensure!(verified.status.success() && complaints.is_empty(), "{verified:?}");

    let mut analyze = Command::new("systemd-analyze");
    analyze.args(["security", "--offline=true", "--no-pager"]).arg(&path);
    let answer = String::from_utf8(analyze.output()?.stdout)?;
    let score = answer.lines().find(|line| line.contains("exposure level"));
    let score = score.with_context(|| answer.clone())?;
    println!("{}", score.trim());
    let number = score.split_whitespace().find_map(|word| word.parse::<f64>().ok());
    ensure!(number.is_some_and(|number| number <= MOST_EXPOSED), "{score}");
    Ok(None)
}
