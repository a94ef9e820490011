//! `cargo xtask first-steps`: what the README tells a newcomer, played line by line on a fresh Debian with
//! systemd, from the package to a crashed guest that is back; and `docs/first-steps.md`, which is what was seen.
//!
//! The Debian is made by debootstrap and runs in a QEMU without a network, so that nothing of this host is touched and
//! nothing of it helps. It runs under TCG, since a guest's kernel does not boot under every KVM that is nested: its
//! own guest is emulated by an emulated machine, and a user's machine is many times as fast.

mod machine;
mod readme;

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::document::machine as this_machine;
use crate::process::{heading, workspace_root};
use crate::{dist, setup};
use machine::{PLACE, Played};

/// Where what was seen is written to.
const DOCUMENT: &str = "docs/first-steps.md";
/// Lines of a command's output that the document has at most.
const SHOWN_LINES: usize = 30;

/// Makes the packages and the Debian, plays, and writes.
///
/// # Errors
///
/// If a command fails, or the README promises something that does not come.
pub(crate) fn task() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("this needs root, for a Debian of its own");
    }
    let readme = std::fs::read_to_string(workspace_root().join("README.md"))?;
    let commands = readme::commands(&readme)?;
    setup::ensure()?;
    let packages = dist::packages()?;
    let debian = machine::debian()?;
    heading(&format!("{} commands on a fresh Debian", commands.len()));
    let played = machine::play(&debian, &packages, &commands)?;
    check(&played)?;
    let path = workspace_root().join(DOCUMENT);
    std::fs::write(&path, document(&played)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    heading(&format!("all as the README says; {} has it", path.display()));
    Ok(())
}

/// Whether what the README says in words is so.
fn check(played: &[Played]) -> Result<()> {
    let said = |command: &str| {
        let same = played.iter().filter(move |one| one.command == command);
        same.map(|one| one.output.as_str()).collect::<Vec<_>>()
    };
    let [alive, dead] = said("flatline status")[..] else { bail!("status is asked for twice") };
    ensure!(alive.contains(" alive "), "it is to be alive:\n{alive}");
    ensure!(dead.contains(" crashed "), "flatline is to be sure of it:\n{dead}");
    let [observed, recovered] = said("flatline incidents")[..] else {
        bail!("incidents are asked for twice")
    };
    ensure!(observed.contains(" observed "), "it is only to be said:\n{observed}");
    ensure!(recovered.contains(" recovered "), "it is to be back:\n{recovered}");
    Ok(())
}

fn document(played: &[Played]) -> Result<String> {
    let whole: Duration = played.iter().map(|one| one.took).sum();
    let mut text = format!(
        "# First steps, as they were seen\n\n\
         Written by `cargo xtask first-steps`, which plays the README's *Install* and *The first crash* on a fresh\n\
         Debian 12 with systemd: an emulated machine with 2 CPUs, whose practice guest is emulated once more. All of\n\
         it took {:.0} s there, the README's own pauses included; times are that machine's, after each command.\n\n\
         Measured on {}.\n",
        whole.as_secs_f64(),
        this_machine()?
    );
    for Played { command, output, took } in played {
        // Where the README's relative paths are on that machine is its own affair.
        let output = output.replace(&format!("/{PLACE}/"), "");
        let lines: Vec<&str> = output.lines().map(str::trim_end).collect();
        let _ = write!(text, "\n```console\n# {command}\n");
        for line in lines.iter().take(SHOWN_LINES) {
            let _ = writeln!(text, "{line}");
        }
        if lines.len() > SHOWN_LINES {
            let _ = writeln!(text, "… and {} lines more", lines.len() - SHOWN_LINES);
        }
        let _ = write!(text, "```\n\n{:.1} s\n", took.as_secs_f64());
    }
    Ok(text)
}
