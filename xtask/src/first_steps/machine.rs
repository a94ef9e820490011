//! A fresh Debian with systemd and QEMU, in a QEMU of its own without a network.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::apt;
use crate::process::{find_program, heading, run_quietly, workspace_root};

/// What of Debian a host of virtual machines has, beyond Debian's smallest form; libraries, but no recommendations.
const INCLUDED: &str = "systemd-sysv,udev,dbus,procps,iproute2,linux-image-cloud-amd64,initramfs-tools,\
                        qemu-system-x86";
/// Where the commands run: what the README calls by a relative path is there.
pub(super) const PLACE: &str = "root/flatline";
const DISK_BYTES: &str = "4G";
/// Emulated, on cores that others may use.
const LIMIT: &str = "900";
/// What begins the line before a command's output: seconds since the machine's start follow.
const MARK: &str = "@@ ";

/// A command, what it printed, and how long it took.
#[derive(Debug)]
pub(super) struct Played {
    pub(super) command: String,
    pub(super) output: String,
    pub(super) took: Duration,
}

fn directory() -> PathBuf {
    workspace_root().join("target/first-steps")
}

/// Makes that Debian, where it isn't there from before: as a directory.
pub(super) fn debian() -> Result<PathBuf> {
    let (root, done) = (directory().join("debian"), directory().join("debian.done"));
    if done.exists() {
        return Ok(root);
    }
    ensure!(find_program("mke2fs").is_some(), "mke2fs is missing: apt-get install e2fsprogs");
    heading(&format!("a fresh Debian ({})", apt::RELEASE));
    if root.exists() {
        std::fs::remove_dir_all(&root).context("cannot remove an unfinished Debian")?;
    }
    std::fs::create_dir_all(&root)?;
    apt::debootstrap(&root, INCLUDED)?;
    std::fs::write(done, "")?;
    Ok(root)
}

/// Boots a copy of it that has the `packages`, and has it run the `commands` one after the other.
pub(super) fn play(
    debian: &Path,
    packages: &[PathBuf],
    commands: &[String],
) -> Result<Vec<Played>> {
    let place = debian.join(PLACE).join("target/dist");
    std::fs::create_dir_all(&place)?;
    for package in packages {
        std::fs::copy(package, place.join(package.file_name().context("a nameless package")?))?;
    }
    std::fs::write(debian.join("root/steps"), script(commands))?;
    let units = debian.join("etc/systemd/system");
    let wants = units.join("multi-user.target.wants");
    std::fs::create_dir_all(&wants)?;
    std::fs::write(units.join(UNIT_NAME), UNIT)?;
    let link = wants.join(UNIT_NAME);
    let _ = std::fs::remove_file(&link);
    std::os::unix::fs::symlink(Path::new("..").join(UNIT_NAME), &link)?;
    let disk = directory().join("debian.ext4");
    let _ = std::fs::remove_file(&disk);
    let mut command = Command::new("mke2fs");
    command.args(["-q", "-t", "ext4", "-d"]).arg(debian).arg(&disk).arg(DISK_BYTES);
    run_quietly("its disk", &mut command)?;
    let mut machine = boot(debian, &disk)?;
    let played = watch(&mut machine);
    let _ = machine.kill();
    let _ = machine.wait();
    played
}

const UNIT_NAME: &str = "first-steps.service";
/// Not `Type=oneshot`: the boot is complete while it runs.
const UNIT: &str = "[Unit]
Description=The README's first steps
[Service]
Type=idle
ExecStart=/bin/bash /root/steps
ExecStopPost=/bin/systemctl poweroff --force
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
";

/// Each command as it stands, each after a line that says when it began.
fn script(commands: &[String]) -> String {
    let mark = |text: &str| {
        let text = text.replace('\'', r"'\''");
        format!("echo '{MARK}'\"$(cut -d ' ' -f 1 /proc/uptime)\"' {text}'\n")
    };
    let mut script = format!("set -e\nexport COLUMNS=116\ncd /{PLACE}\n");
    script.push_str("trap 'journalctl --no-pager -b -u flatline -o json --output-fields=MESSAGE,FLATLINE_STATE,FLATLINE_ERROR,F_STATE | tail -n 14; flatline show practice' ERR\n");
    for command in commands {
        script.push_str(&mark(command));
        script.push_str(command);
        script.push('\n');
    }
    script.push_str(&mark("done"));
    script
}

fn boot(debian: &Path, disk: &Path) -> Result<Child> {
    let file = |prefix: &str| {
        let files = std::fs::read_dir(debian.join("boot"))?.filter_map(Result::ok);
        let mut paths = files.map(|file| file.path());
        let named = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        };
        paths.find(named).with_context(|| format!("Debian has no {prefix}"))
    };
    let mut command = Command::new("timeout");
    command.args([LIMIT, "qemu-system-x86_64", "-name", "first-steps", "-nodefaults"]);
    command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2048"]);
    command.args(["-display", "none", "-no-reboot", "-nic", "none", "-serial", "stdio"]);
    command.arg("-kernel").arg(file("vmlinuz-")?).arg("-initrd").arg(file("initrd.img-")?);
    // A login on the console would hang up on what writes there.
    let kernel = "root=/dev/vda rw console=ttyS0 quiet systemd.show_status=0 \
                  systemd.mask=serial-getty@ttyS0.service";
    command.args(["-append", kernel]);
    let drive = format!("file={},format=raw,if=virtio,cache=unsafe", disk.display());
    command.args(["-drive", &drive]).stdin(Stdio::null()).stdout(Stdio::piped());
    command.spawn().context("cannot start QEMU")
}

/// Reads its console until all is played, and shows it.
fn watch(machine: &mut Child) -> Result<Vec<Played>> {
    let console = machine.stdout.take().context("the pipe was asked for")?;
    let mut played: Vec<(f64, Played)> = Vec::new();
    for line in BufReader::new(console).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        // What a progress bar leaves in the end.
        let line = line.trim_end_matches('\r').rsplit('\r').next().unwrap_or_default().to_owned();
        println!("    {line}");
        let mark = line.find(MARK).and_then(|at| line[at + MARK.len()..].split_once(' '));
        match mark.and_then(|(when, rest)| Some((when.parse::<f64>().ok()?, rest))) {
            Some((now, rest)) => {
                if let Some((began, last)) = played.last_mut() {
                    last.took = Duration::from_secs_f64((now - *began).max(0.0));
                }
                if rest == "done" {
                    return Ok(played.into_iter().map(|(_, one)| one).collect());
                }
                let (command, output) = (rest.to_owned(), String::new());
                played.push((now, Played { command, output, took: Duration::ZERO }));
            }
            None => {
                if let Some((_, last)) = played.last_mut() {
                    last.output.push_str(&line);
                    last.output.push('\n');
                }
            }
        }
    }
    match played.last() {
        Some((_, Played { command, output, .. })) => bail!("`{command}` went wrong:\n{output}"),
        None => bail!("it did not come up within {LIMIT} s"),
    }
}
