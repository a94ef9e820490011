//! A machine with 128 possible CPUs, beside one with two: guests in which the daemon watches stand-ins.
//!
//! They run under emulation, in which all takes many times as long: what counts is one beside the other.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flatline_tests::cpio::Archive;
use flatline_tests::{image, interrupt};

use super::figures::Figures;
use super::report::{Report, Target};
use super::stage::{Programs, Settings, Stage, StandIn, set_pace, wait_for};
use super::ticks::{self, Cost, WITHOUT};
use crate::guest;
use crate::process::{capture, heading};

/// The hidden task that measures inside.
pub(crate) const INSIDE: &str = "bench-inside";
const VMS: usize = 200;
const MANY_CPUS: u32 = 128;
const FEW_CPUS: u32 = 2;
const TICKS: u32 = 20;
/// How often the stand-ins read a block: in each tick, and in one of four.
const PACES: [(&str, Duration); 2] =
    [("alive", Duration::from_millis(450)), ("seldom", Duration::from_secs(4))];
const BOOT_GRACE: Duration = Duration::from_secs(2);
const SETTLE: Duration = Duration::from_secs(15);
/// For a guest to boot, measure and end.
const LIMIT: Duration = Duration::from_secs(400);
/// Where everything lies in the guest.
const PLACE: &str = "/bench";
/// More than one block, and so little that the host has all of it in memory.
const DISK_BYTES: u64 = 64 << 20;
/// What the guest's disk is called inside.
const DISK: &str = "/dev/vda";

const RATIO_TARGET: Target = Target::at_most(1.2);

/// Measures in both guests.
pub(crate) fn measure(stage: &Stage<'_>, dir: &Path, report: &mut Report) -> Result<()> {
    let images = image::build(&guest::build()?, |step| eprintln!("{step}"))?;
    let initramfs = dir.join("initramfs");
    let mut bytes = std::fs::read(&images.initramfs)?;
    bytes.extend(archive(stage.programs)?);
    std::fs::write(&initramfs, bytes)?;
    let disk = dir.join("guest.img");
    File::create(&disk)?.set_len(DISK_BYTES)?;
    let mut figures = Vec::new();
    for cpus in [FEW_CPUS, MANY_CPUS] {
        heading(&format!("a guest with {cpus} possible CPUs"));
        figures.push(run(&images.kernel, &initramfs, &disk, &dir.join("guest.log"), cpus)?);
    }
    let title = "A tick of 200 VMs on machines with 2 and with 128 possible CPUs";
    let section = report.section(title, "ms", HOW);
    for (name, _) in PACES {
        let costs = figures.iter().map(|figures| Cost::parse(figures, name, WITHOUT));
        let costs = costs.collect::<Result<Vec<_>>>()?;
        let what = if name == "alive" { "all alive" } else { "each shows life every four seconds" };
        for (cost, cpus) in costs.iter().zip([FEW_CPUS, MANY_CPUS]) {
            section.value(
                &format!("{what}, {cpus} CPUs, means of ten ticks"),
                &cost.means,
                None,
                "",
            );
        }
        let ratio = costs[1].means.times(1.0 / costs[0].means.median());
        let what = format!("{what}: 128 CPUs, times as much as 2");
        section.in_unit(&what, &ratio, "times", Some(RATIO_TARGET), REMEDY);
        if name == "alive" {
            for (cost, cpus) in costs.iter().zip([FEW_CPUS, MANY_CPUS]) {
                cost.tell_memory(section, &format!(", {cpus} CPUs"));
            }
        }
    }
    Ok(())
}

/// Lets a guest measure, and returns what it printed.
fn run(kernel: &Path, initramfs: &Path, disk: &Path, log: &Path, cpus: u32) -> Result<Figures> {
    interrupt::check()?;
    let child = Command::new("qemu-system-x86_64")
        .args(["-nodefaults", "-display", "none", "-no-reboot", "-machine", "q35"])
        .args(["-accel", "tcg,thread=multi", "-cpu", "max,-la57", "-m", "3072"])
        .args(["-smp", &format!("2,maxcpus={cpus}")])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", &format!("console=ttyS0 quiet panic=-1 rdinit={PLACE}/init nowatchdog")])
        .args(["-drive", &format!("file={},if=virtio,format=raw,cache=none", disk.display())])
        .args(["-serial", &format!("file:{}", log.display())])
        .process_group(0)
        .stdin(Stdio::null())
        .spawn()
        .context("cannot start QEMU")?;
    let mut guest = Guest(child);
    let ended = interrupt::wait_until("the guest to end", LIMIT, || Ok(guest.0.try_wait()?));
    let text = String::from_utf8_lossy(&std::fs::read(log)?).into_owned();
    let lines: String = text
        .lines()
        .filter(|line| line.starts_with("{\""))
        .map(|line| format!("{line}\n"))
        .collect();
    let said = || text.lines().rev().take(30).collect::<Vec<_>>().join("\n");
    ended.with_context(said)?;
    let figures = Figures::parse(&lines)?;
    let possible = figures.rounds("possible_cpus").with_context(said)?.median();
    ensure!(possible == f64::from(cpus), "the guest has {possible} possible CPUs");
    Ok(figures)
}

/// What the guest has beside the tests' own initramfs.
fn archive(programs: &Programs) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.directory("bench");
    archive.directory("tmp");
    archive.file("bench/init", 0o755, INIT.as_bytes());
    let xtask = std::env::current_exe()?;
    let mut libraries = BTreeSet::new();
    for (name, program) in [
        ("flatline", &programs.daemon),
        ("stand-in", &programs.stand_in),
        ("bench", &programs.bench),
        ("xtask", &xtask),
    ] {
        archive.file(&format!("bench/{name}"), 0o755, &std::fs::read(program)?);
        // A static one has none.
        let needed = capture(Command::new("ldd").arg(program)).unwrap_or_default();
        let paths = needed.split_ascii_whitespace().filter(|word| word.starts_with('/'));
        libraries.extend(paths.map(PathBuf::from));
    }
    let mut directories = BTreeSet::new();
    for library in libraries {
        let parents = library.ancestors().skip(1).filter(|parent| parent.parent().is_some());
        for parent in parents.collect::<Vec<_>>().into_iter().rev() {
            if directories.insert(parent.to_owned()) {
                archive.directory(&parent.display().to_string()[1..]);
            }
        }
        archive.file(&library.display().to_string()[1..], 0o755, &std::fs::read(&library)?);
    }
    Ok(archive.finish())
}

/// Measures inside of the guest, and prints it.
pub(crate) fn inside() -> Result<()> {
    interrupt::install()?;
    let program = |name: &str| Path::new(PLACE).join(name);
    let programs = Programs {
        daemon: program("flatline"),
        stand_in: program("stand-in"),
        bench: program("bench"),
        empty: program("none"),
    };
    let dir = tempfile::tempdir()?;
    let stage = Stage::new(&programs, dir.path())?.with_disk(DISK.into());
    let pace = stage.pace("all", PACES[0].1)?;
    let what = StandIn { load: Some("trickle"), pace: Some(&pace), ..StandIn::default() };
    let mut fleet = stage.start("vm", VMS, what)?;
    let settings = Settings { boot_grace: BOOT_GRACE, ..Settings::default() };
    let daemon = stage.daemon(settings)?;
    wait_for(&daemon, "all of them alive", VMS, |vm| {
        vm["state"] == "alive" && !vm["storage"].is_null()
    })?;
    for (name, every) in PACES {
        set_pace(&pace, every)?;
        interrupt::sleep(SETTLE)?;
        fleet.check()?;
        ticks::measure(&stage, &daemon, (TICKS, WITHOUT), settings.most_vms)?.print(name);
    }
    let possible = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last: u32 = possible.trim().rsplit('-').next().unwrap_or_default().parse()?;
    println!("{{\"name\":\"possible_cpus\",\"rounds\":[{}]}}", last + 1);
    Ok(())
}

/// A QEMU; dropping it ends it.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const INIT: &str = "#!/bin/busybox sh
busybox mount -t devtmpfs none /dev
busybox mount -t proc none /proc
busybox mount -t sysfs none /sys
/bin/busybox --install -s /bin
export PATH=/bin
exec </dev/null >/dev/ttyS0 2>&1
for module in /modules/*virtio*.ko; do insmod $module 2>/dev/null; done
mount -t tracefs none /sys/kernel/tracing
mount -t tmpfs none /tmp
ip link set lo up
/bench/xtask bench-inside
poweroff -f
";
const HOW: &str = "Two guests of QEMU's own emulation, in which all takes many times as long, with two CPUs each and room for no \
    more, or for 128 (`-smp 2,maxcpus=128`), on Linux 6.1. The VMs are stand-ins without taps, which read blocks of \
    the guest's disk.";
const REMEDY: &str =
    "What differs was not looked into; both guests are to have the machine for themselves alike.";
