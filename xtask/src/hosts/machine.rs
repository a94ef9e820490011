//! A host of virtual machines: QEMU's emulation of an AMD machine with SVM, or of a 64-bit Arm machine that begins at EL2, without
//! a network.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use flatline_tests::cpio::Archive;
use flatline_tests::guest::{ACCELERATOR_VARIABLE, GLOBAL_VARIABLE, ROOT_VARIABLE};
use flatline_tests::interrupt;

use super::cell::Cell;
use super::disks::{PAYLOAD, QEMU_ROOT};
use super::inside;
use super::kernel::Bootable;
use super::kit::Kit;
use super::withheld::Withheld;
use crate::architecture::Architecture;

/// The machine and its CPUs. Nested paging under emulation has four levels at most; Arm's pointer authentication is quick only
/// where it is not the architecture's own.
const X86: [&str; 4] = ["-machine", "q35", "-cpu", "max,-la57"];
const ARM: [&str; 4] =
    ["-machine", "virt,virtualization=on,gic-version=3", "-cpu", "max,sve=off,pauth-impdef=on"];
/// Of each, its kernel's console, and the line for cells.
const X86_LINES: [&str; 2] = ["ttyS0", "ttyS1"];
const ARM_LINES: [&str; 2] = ["ttyAMA0", "hvc0"];
const CPUS: &str = "2";
const MEMORY_MIB: &str = "4096";
/// On x86, makes virtio devices tell by ports that they are to look, not by memory. QEMU's emulation leaves the kind of the last exception
/// where KVM of Linux 6.15 and newer takes it for one that is being delivered, and gives up on an access to a device's memory.
/// QEMUs of their own roots are left alone, as those from 10 on refuse it for all such devices: their hosts run Linux 6.12.
const PORTS: &str = "virtio-pci.disable-modern=on";
/// What it prints when it begins to try things.
const READY: &str = "HOST READY";
/// What it prints when all is tried.
const DONE: &str = "HOST DONE";
/// For one host, with all that is tried on it, where other programs use the CPUs too.
const LIMIT: Duration = Duration::from_secs(45 * 60);
/// Mounts and modules do not take long even then.
const BOOT_LIMIT: Duration = Duration::from_secs(180);

/// What it consists of.
#[derive(Debug)]
pub(super) struct Machine<'a> {
    pub(super) kit: &'a Kit,
    pub(super) kernel: &'a Bootable,
    /// Debian, what this task brings, and perhaps a QEMU in a root of its own; none is changed.
    pub(super) disks: Vec<PathBuf>,
    /// Where its archive and what it writes go.
    pub(super) dir: &'a Path,
    /// What its kernel prints, and the task inside of it beside its cells.
    pub(super) console: &'a Path,
}

/// A QEMU; dropping it ends it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Machine<'_> {
    /// Boots it as the host of that name, and hands each cell on as it comes.
    ///
    /// # Errors
    ///
    /// If it does not come up, ends before all is tried, or does not end within three quarters of an hour: with the end of its
    /// console.
    pub(super) fn play(&self, host: &str, columns: &str, mut told: impl FnMut(Cell)) -> Result<()> {
        let initrd = self.dir.join("initrd.cpio");
        self.write_initrd(&initrd)?;
        let mut machine = Running(self.command(host, columns, &initrd).spawn()?);
        let stdout = machine.0.stdout.take().context("the pipe was asked for")?;
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    break;
                }
            }
        });
        let (begin, mut is_up) = (Instant::now(), false);
        let mut withheld = Withheld::default();
        let said = || tail(self.console);
        loop {
            interrupt::check()?;
            withheld.sample(machine.0.id());
            match lines.recv_timeout(Duration::from_millis(500)) {
                Ok(line) if line.contains(READY) => is_up = true,
                Ok(line) if line.contains(DONE) => return Ok(()),
                Ok(line) => Cell::parse(&line)
                    .into_iter()
                    .map(|cell| cell.settled(|from, to| withheld.between(from, to)))
                    .for_each(&mut told),
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
                Err(_) => bail!("it ended before all was tried:\n{}", said()),
            }
            if begin.elapsed() > if is_up { LIMIT } else { BOOT_LIMIT } {
                bail!("it took longer than {:?}:\n{}", begin.elapsed(), said());
            }
        }
    }

    fn command(&self, host: &str, columns: &str, initrd: &Path) -> Command {
        let (machine, lines) = match self.kit.architecture {
            Architecture::X86_64 => (X86, X86_LINES),
            Architecture::Aarch64 => (ARM, ARM_LINES),
        };
        let mut command = self.kit.emulator.command();
        command.args(["-name", &format!("host-{host}"), "-nodefaults", "-no-user-config"]);
        command.args(["-display", "none", "-no-reboot", "-nic", "none"]).args(machine);
        command.args(["-accel", "tcg,thread=multi,tb-size=1024", "-smp", CPUS]);
        command.args(["-m", MEMORY_MIB, "-kernel"]).arg(&self.kernel.vmlinux);
        command.arg("-initrd").arg(initrd);
        // On x86 its clock is the time stamp counter's: under emulation, timers to compare it with are late.
        let words = format!(
            "console={} quiet mitigations=off nokaslr clocksource=tsc tsc=reliable nowatchdog panic=-1 \
             {}={host} {}={columns}",
            lines[0],
            inside::HOST_WORD,
            inside::COLUMNS_WORD
        );
        command.args(["-append", &words]);
        for disk in &self.disks {
            let drive = format!("file={},format=raw,if=virtio,snapshot=on", disk.display());
            command.args(["-drive", &drive]);
        }
        command.args(["-serial", &format!("file:{}", self.console.display())]);
        match self.kit.architecture {
            Architecture::X86_64 => command.args(["-serial", "stdio"]),
            // It has one serial line.
            Architecture::Aarch64 => command
                .args(["-chardev", "stdio,id=cells", "-device", "virtio-serial-pci"])
                .args(["-device", "virtconsole,chardev=cells"]),
        };
        // What it writes to its disks, until it ends.
        command.env("TMPDIR", self.dir);
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }

    /// The modules, and what loads them and finds the disks.
    fn write_initrd(&self, path: &Path) -> Result<()> {
        let mut archive = Archive::default();
        for name in ["bin", "dev", "proc", "sys", "root"] {
            archive.directory(name);
        }
        archive.file("bin/busybox", 0o755, &std::fs::read(&self.kit.busybox)?);
        archive.file("init", 0o755, INIT.as_bytes());
        let mut file = std::fs::File::create(path)?;
        file.write_all(&std::fs::read(&self.kernel.modules)?)?;
        // The kernel takes several archives, one behind the other.
        file.write_all(&archive.finish())?;
        Ok(())
    }
}

/// The end of its console.
fn tail(console: &Path) -> String {
    let text = std::fs::read(console).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

/// The script that the host runs from the payload once its root is there.
pub(super) fn script(architecture: Architecture) -> String {
    let ([console, cells], notifies) = match architecture {
        Architecture::X86_64 => (X86_LINES, "export GLOBAL=VIRTIO"),
        Architecture::Aarch64 => (ARM_LINES, ":"),
    };
    SCRIPT
        .replace("PAYLOAD", PAYLOAD)
        .replace("CONSOLE", console)
        .replace("CELLS", cells)
        .replace("NOTIFIES", notifies)
        .replace("READY", READY)
        .replace("DONE", DONE)
        .replace("TASK", inside::TASK)
        .replace("ON_KVM", ACCELERATOR_VARIABLE)
        .replace("GLOBAL", GLOBAL_VARIABLE)
        .replace("VIRTIO", PORTS)
        .replace("PATIENCE", interrupt::PATIENCE_VARIABLE)
        .replace("IN_ROOT", ROOT_VARIABLE)
        .replace("OTHERS", QEMU_ROOT)
}

const INIT: &str = "#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs none /dev
for module in /modules/*.ko; do $b insmod $module; done
for attempt in 1 2 3 4 5 6 7 8 9 10; do
    [ -b /dev/vdb ] && break
    $b sleep 1
done
$b mount -t ext4 /dev/vda /root && $b mount -t ext4 /dev/vdb /root/payload
[ -b /dev/vdc ] && $b mount -t ext4 /dev/vdc /root/qemu
$b mount --move /dev /root/dev
exec $b switch_root /root /payload/init
";
const SCRIPT: &str = "#!/bin/sh
export PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t proc none /proc
mount -t sysfs none /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts none /dev/pts
mount -t tmpfs none /dev/shm
mount -t tmpfs none /run
mount -t cgroup2 none /sys/fs/cgroup
mount -t bpf none /sys/fs/bpf
mount -t debugfs none /sys/kernel/debug
mount -t tracefs none /sys/kernel/tracing
mount --bind PAYLOAD/busybox /usr/bin/busybox
ip link set lo up
hostname host
stty -F /dev/CELLS raw
export ON_KVM=kvm PATIENCE=3
[ -b /dev/vdc ] || NOTIFIES
[ -b /dev/vdc ] && export IN_ROOT=OTHERS FLATLINE_QEMU=OTHERS/usr/bin/qemu-system-x86_64
echo READY >/dev/CELLS
PAYLOAD/xtask TASK >/dev/CELLS 2>/dev/CONSOLE </dev/null && echo DONE >/dev/CELLS
busybox poweroff -f
";
