//! dpkg installs the packages into an empty root, with their scripts; nothing of this machine is touched.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::command::run_command;

use super::packages;

/// Files that must be there, and their modes.
const FILES: [(&str, u32); 13] = [
    ("usr/bin/flatline", 0o755),
    ("usr/bin/flatline-heartbeat", 0o755),
    ("etc/flatline/flatline.toml", 0o644),
    ("usr/lib/systemd/system/flatline.service", 0o644),
    ("usr/lib/systemd/system/flatline-heartbeat.service", 0o644),
    ("usr/lib/sysusers.d/flatline.conf", 0o644),
    ("usr/lib/tmpfiles.d/flatline.conf", 0o644),
    ("usr/share/flatline/prometheus/flatline.rules.yml", 0o644),
    ("usr/share/man/man1/flatline.1.gz", 0o644),
    ("usr/share/man/man1/flatline-incidents-show.1.gz", 0o644),
    ("usr/share/man/man5/flatline.toml.5.gz", 0o644),
    ("usr/share/bash-completion/completions/flatline", 0o644),
    ("usr/share/doc/flatline/copyright", 0o644),
];

pub(super) fn test() -> Result<Option<String>> {
    if Command::new("dpkg").arg("--version").output().is_err() {
        return Ok(Some("dpkg is not installed".to_owned()));
    }
    let packages = packages()?;
    let root = tempfile::Builder::new().prefix("flatline-root-").tempdir()?;
    let root = root.path();
    let dpkg = |words: &[&str]| {
        let mut command = Command::new("dpkg");
        // Nothing that they depend on is there; their scripts are told of the root instead of being locked into it.
        command.args(["--force-depends", "--force-script-chrootless", "--root"]).arg(root);
        command.args(words);
        command
    };
    for directory in ["info", "updates", "triggers"] {
        fs::create_dir_all(root.join("var/lib/dpkg").join(directory))?;
    }
    fs::write(root.join("var/lib/dpkg/status"), "")?;
    run_command(dpkg(&["--install"]).args(&packages))?;
    installed(root)?;

    // What the administrator wrote stays, also when the package comes again, and goes with a purge.
    let configuration = root.join("etc/flatline/flatline.toml");
    let changed = fs::read_to_string(&configuration)?.replace("\"observe\"", "\"recover\"");
    fs::write(&configuration, &changed)?;
    run_command(dpkg(&["--install"]).args(&packages))?;
    ensure!(fs::read_to_string(&configuration)? == changed, "it was overwritten");
    let names = ["flatline", "flatline-heartbeat"];
    run_command(dpkg(&["--remove"]).args(names))?;
    ensure!(configuration.exists() && !root.join("usr/bin/flatline").exists());
    run_command(dpkg(&["--purge"]).args(names))?;
    for path in ["etc/flatline", "var/lib/flatline", "usr/share/flatline", "usr/share/man"] {
        ensure!(!root.join(path).exists(), "/{path} is left");
    }
    ensure!(!root.join(WANTED).is_symlink(), "it is still enabled");
    Ok(None)
}

/// What makes systemd start it.
const WANTED: &str = "etc/systemd/system/multi-user.target.wants/flatline.service";

fn installed(root: &Path) -> Result<()> {
    for (path, mode) in FILES {
        let file = root.join(path).metadata().with_context(|| format!("no /{path}"))?;
        ensure!(file.permissions().mode() & 0o7777 == mode, "/{path}: {:o}", file.mode());
        ensure!((file.uid(), file.gid()) == (0, 0), "/{path} is not root's");
    }
    ensure!(root.join(WANTED).is_symlink(), "it is not enabled");
    let wanted = "etc/systemd/system/basic.target.wants/flatline-heartbeat.service";
    ensure!(root.join(wanted).is_symlink(), "the agent is not enabled");

    // Installing never restarts a VM.
    let configuration = root.join("etc/flatline/flatline.toml");
    let modes = fs::read_to_string(&configuration)?;
    let modes: Vec<_> = modes.lines().filter(|line| line.starts_with("mode")).collect();
    ensure!(modes == ["mode = \"observe\""], "{modes:?}");
    let program = root.join("usr/bin/flatline");
    run_command(Command::new(&program).arg("check-config").arg(&configuration))?;
    let admin = root.join("var/lib/dpkg");
    let mut query = Command::new("dpkg-query");
    query.arg("--admindir").arg(&admin).args([
        "--show",
        "--showformat",
        "${Conffiles}",
        "flatline",
    ]);
    let conffiles = String::from_utf8(run_command(&mut query)?)?;
    ensure!(conffiles.contains(" /etc/flatline/flatline.toml "), "{conffiles}");

    // The group, and the directory that hands it on to the control socket.
    let groups = fs::read_to_string(root.join("etc/group")).context("no group was made")?;
    let group = groups.lines().find_map(|line| line.strip_prefix("flatline:"));
    let id: u32 =
        group.and_then(|line| line.split(':').nth(1)).context("no group flatline")?.parse()?;
    let run = root.join("run/flatline").metadata().context("no /run/flatline")?;
    ensure!(run.mode() & 0o7777 == 0o2750, "{:o}", run.mode());
    ensure!((run.uid(), run.gid()) == (0, id), "{}:{}, not {id}", run.uid(), run.gid());

    let completion = root.join("usr/share/bash-completion/completions/flatline");
    run_command(Command::new("bash").arg("-n").arg(completion))?;
    Ok(())
}
