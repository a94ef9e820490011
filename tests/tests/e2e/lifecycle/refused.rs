//! What keeps the daemon from starting, which it says in one line.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::{idler, wait_until_attached};
use crate::programs;
use crate::rig::{Rig, binary, boot_all, put, vm};

/// An ordinary user's id, that of Debian's `nobody`.
const UNPRIVILEGED: &str = "65534";

/// Runs a command that must fail with `code`, and say why in one line that has all of `words`.
fn refused(command: &mut Command, code: i32, words: &[&str]) -> Result<()> {
    command.env_remove("JOURNAL_STREAM").env_remove("NOTIFY_SOCKET");
    let output = command.stdin(Stdio::null()).output().context("cannot run it")?;
    let text = String::from_utf8_lossy(&output.stderr);
    println!("{}: {}", output.status, text.trim_end());
    ensure!(
        output.status.code() == Some(code),
        "{command:?}: {}, not {code}: {text}",
        output.status
    );
    let said: Vec<&str> = text.lines().filter(|line| line.starts_with("flatline: ")).collect();
    let [line] = said[..] else { anyhow::bail!("{command:?}: not one line: {text}") };
    for word in words {
        ensure!(line.contains(word), "no {word:?} in: {line}");
    }
    for noise in ["panicked at", "RUST_BACKTRACE", "stack backtrace"] {
        ensure!(!text.contains(noise), "{command:?}: {text}");
    }
    Ok(())
}

/// `arguments`, then `run` with that configuration; ended after a while, should it start after all.
fn run_through(arguments: &[&str], binary: &Path, config: &Path) -> Command {
    let mut command = Command::new("timeout");
    command.arg("20").args(arguments).arg(binary).arg("run").arg("--config").arg(config);
    command
}

pub(super) fn second() -> Result<()> {
    let rig = Rig::new()?;
    let (config, tap) = idler(&rig, "watched-once")?;
    let _guests = boot_all(&[config])?;
    let daemon = rig.daemon(&rig.daemon_config()?)?;
    let ids = wait_until_attached(&tap)?;
    let again = &mut run_through(&[], &binary()?, daemon.config_path());
    refused(again, 1, &["another flatline runs on this host"])?;
    // Other directories for everything but the state are no way around.
    let text = std::fs::read_to_string(daemon.config_path())?;
    let elsewhere = text.replace("/run\"", "/run2\"").replace("/bpf/flatline\"", "/bpf/other\"");
    ensure!(elsewhere != text, "nothing was replaced in {text}");
    let config = rig.dir().join("elsewhere.toml");
    std::fs::write(&config, elsewhere)?;
    refused(&mut run_through(&[], &binary()?, &config), 1, &["another flatline runs"])?;

    vm(&daemon, "watched-once")?;
    ensure!(programs::on_tap(&tap)? == ids, "the programs on the tap were exchanged");
    Ok(())
}

pub(super) fn unfit() -> Result<()> {
    let rig = Rig::new()?;
    // One that ran and ended: its configuration, directories and bpffs are as they should be.
    let mut daemon = rig.daemon(&rig.daemon_config()?)?;
    ensure!(daemon.terminate()?.success(), "{}", daemon.log().text());
    let good = daemon.config_path();
    let text = std::fs::read_to_string(good)?;

    // The test's own directory is closed to others.
    let public = tempfile::Builder::new().prefix("flatline-public-").tempdir()?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(public.path(), mode)?;
    let (copy, config) = (public.path().join("flatline"), public.path().join("flatline.toml"));
    put(&binary()?, &copy)?;
    std::fs::write(&config, &text)?;
    let user = ["setpriv", "--reuid", UNPRIVILEGED, "--regid", UNPRIVILEGED, "--clear-groups"];
    refused(&mut run_through(&user, &copy, &config), 1, &["CAP_BPF", "root"])?;

    let hide = "mount -t tmpfs none /sys/kernel/btf && exec \"$0\" \"$@\"";
    let hidden = ["unshare", "--mount", "--propagation", "private", "sh", "-c", hide];
    refused(&mut run_through(&hidden, &binary()?, good), 1, &["BTF", "CONFIG_DEBUG_INFO_BTF"])?;

    let plain = rig.dir().join("plain");
    std::fs::create_dir(&plain)?;
    let pins = rig.dir().join("bpf/flatline").display().to_string();
    let elsewhere = text.replace(&pins, &plain.display().to_string());
    ensure!(elsewhere != text, "no {pins} in {text}");
    let config = rig.dir().join("plain.toml");
    std::fs::write(&config, elsewhere)?;
    let where_it_is = plain.display().to_string();
    refused(&mut run_through(&[], &binary()?, &config), 1, &[&where_it_is, "bpf file system"])?;

    // Torn within a value, it is no TOML, in which nothing has a key; mistakes in a whole file have.
    let key = "flat_for = \"";
    let end = text.find(key).context("no flat_for")? + key.len();
    let line = format!("torn.toml:{}:", text[..end].lines().count());
    let torn = rig.dir().join("torn.toml");
    std::fs::write(&torn, &text[..=end])?;
    refused(&mut run_through(&[], &binary()?, &torn), 2, &[&line, "detection.flat_for"])?;
    std::fs::write(&torn, format!("{}\"\n", &text[..=end]))?;
    refused(&mut run_through(&[], &binary()?, &torn), 2, &[&line, "detection.flat_for"])?;
    std::fs::write(&torn, text.replace(key, "flat_fro = \""))?;
    refused(&mut run_through(&[], &binary()?, &torn), 2, &[&line, "detection.flat_fro"])?;
    Ok(())
}
