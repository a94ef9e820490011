//! What is measured: a daemon with directories of its own, stand-ins for VMs, and the program that looks at
//! them.

use std::fs::File;
use std::io::PipeWriter;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use flatline_tests::daemon::{Daemon, DaemonConfig, free_address};
use flatline_tests::interrupt;
use flatline_tests::netns::Netns;
use serde_json::Value;

use super::figures::Figures;

/// The same as the configuration's default: stand-ins that store something every four seconds live.
pub(crate) const FLAT_FOR: Duration = Duration::from_secs(10);
/// For whatever takes a few seconds when all is well.
const PATIENCE: Duration = Duration::from_secs(60);
/// More for each VM: a tap alone takes some 25 ms through tcx.
const PATIENCE_FOR_EACH: Duration = Duration::from_millis(120);
/// Too large for the disk's own cache to hold much, and small enough to make.
const DISK_BYTES: usize = 64 << 20;
/// vCPU threads of each stand-in.
pub(crate) const VCPUS: usize = 4;

/// The programs that were built.
#[derive(Debug)]
pub(crate) struct Programs {
    pub(crate) daemon: PathBuf,
    pub(crate) stand_in: PathBuf,
    pub(crate) bench: PathBuf,
    /// The object with empty eBPF programs.
    pub(crate) empty: PathBuf,
}

/// A place for daemons and stand-ins, which are to be dropped before it.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    pub(crate) programs: &'a Programs,
    dir: &'a Path,
    /// The stand-in under the name that the daemon takes for a QEMU's.
    qemu: PathBuf,
    /// What loads read and write.
    disk: PathBuf,
    /// Where daemons have their figures.
    pub(crate) metrics: SocketAddr,
}

/// What a daemon's configuration has beside the stage's own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) boot_grace: Duration,
    /// As many VMs as it has room for.
    pub(crate) most_vms: usize,
}

/// The configuration's own defaults.
impl Default for Settings {
    fn default() -> Self {
        Self { boot_grace: Duration::from_secs(60), most_vms: 1024 }
    }
}

/// What a stand-in is started with, beside its name.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StandIn<'a> {
    /// `KIND:` of its load; the file is the stage's disk.
    pub(crate) load: Option<&'a str>,
    /// Where it makes a tap, which has its own name.
    pub(crate) netns: Option<&'a Netns>,
    /// Whether its tap has room for more queues than its own.
    pub(crate) has_queues: bool,
    /// The file that sets its pace: how often it sends a frame on its tap, or reads a block where it has none.
    pub(crate) pace: Option<&'a Path>,
    /// Whether it answers on a QMP socket.
    pub(crate) qmp: bool,
    /// Where it writes at its end how many QMP commands it was given.
    pub(crate) count: Option<&'a Path>,
    /// Whether the daemon is to take it for no VM.
    pub(crate) stranger: bool,
}

/// Stand-ins that run; dropping it ends them.
#[derive(Debug)]
pub(crate) struct Fleet {
    children: Vec<Child>,
    /// They end when nothing holds it any more, also if we are killed.
    _leash: PipeWriter,
}

impl<'a> Stage<'a> {
    /// Prepares `dir`.
    pub(crate) fn new(programs: &'a Programs, dir: &'a Path) -> Result<Self> {
        let qemu = dir.join("qemu-system-x86_64");
        // A hard link does not work across file systems.
        std::fs::hard_link(&programs.stand_in, &qemu)
            .or_else(|_| std::fs::copy(&programs.stand_in, &qemu).map(|_| ()))
            .with_context(|| format!("cannot make {}", qemu.display()))?;
        let disk = dir.join("disk.img");
        std::fs::write(&disk, vec![0xa5; DISK_BYTES]).context("cannot make a disk")?;
        File::open(&disk)?.sync_all()?;
        Ok(Self { programs, dir, qemu, disk, metrics: free_address()? })
    }

    /// The same, with another disk than a file.
    pub(crate) fn with_disk(self, disk: PathBuf) -> Self {
        Self { disk, ..self }
    }

    /// A new file of its own directory, which sets a pace.
    pub(crate) fn pace(&self, name: &str, pace: Duration) -> Result<PathBuf> {
        let path = self.dir.join(format!("pace-{name}"));
        set_pace(&path, pace)?;
        Ok(path)
    }

    /// The executable of the stand-ins that count as VMs.
    pub(crate) fn executable(&self) -> String {
        self.qemu.display().to_string()
    }

    /// Where the daemons pin.
    pub(crate) fn bpffs(&self) -> PathBuf {
        self.dir.join("bpf/flatline")
    }

    /// Where a daemon answers.
    pub(crate) fn control_socket(&self) -> PathBuf {
        self.dir.join("run/control.sock")
    }

    /// Starts a daemon that decides, but touches nothing.
    pub(crate) fn daemon(&self, settings: Settings) -> Result<Daemon> {
        let mut config = DaemonConfig::new(&self.programs.daemon, &self.qemu);
        config.mode = "observe".to_owned();
        config.flat_for = FLAT_FOR;
        config.boot_grace = settings.boot_grace;
        // As operators have it: what a tick leaves for Prometheus is part of what it costs.
        config.metrics = self.metrics.to_string();
        config.extra_toml = format!("[probes]\nmax_vms = {}\n", settings.most_vms);
        Daemon::start(&config, self.dir)
    }

    /// Starts `count` stand-ins `NAME-0`, ..
    pub(crate) fn start(&self, name: &str, count: usize, what: StandIn<'_>) -> Result<Fleet> {
        let (end, leash) = std::io::pipe()?;
        let mut fleet = Fleet { children: Vec::with_capacity(count), _leash: leash };
        for number in 0..count {
            interrupt::check()?;
            let mut command = self.command(&format!("{name}-{number}"), what);
            command.process_group(0).stdin(end.try_clone()?).stdout(Stdio::null());
            fleet.children.push(command.spawn().context("cannot start a stand-in")?);
        }
        Ok(fleet)
    }

    fn command(&self, name: &str, what: StandIn<'_>) -> Command {
        let StandIn { load, netns, has_queues, pace, qmp, count, stranger } = what;
        let program = if stranger { &self.programs.stand_in } else { &self.qemu };
        let mut command = match netns {
            Some(netns) => {
                let [enter, option] = netns.enter_prefix();
                let mut command = Command::new(enter);
                command.arg(option).arg("--").arg(program);
                command
            }
            None => Command::new(program),
        };
        command.args(["-name", &format!("{name},debug-threads=on"), "-machine", "pc"]);
        command.args(["-accel", "tcg,thread=multi", "-m", "16", "-display", "none"]);
        command.args(["-smp", &VCPUS.to_string()]);
        if netns.is_some() {
            let queues = if has_queues { ",queues=2" } else { "" };
            command.args(["-netdev", &format!("tap,id=net0,ifname={name},vhost=off{queues}")]);
        }
        if let Some(file) = pace {
            command.arg("-every").arg(file);
        }
        if qmp {
            let socket = self.dir.join(format!("{name}.qmp"));
            // Of an earlier one of this name.
            let _ = std::fs::remove_file(&socket);
            command.args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())]);
        }
        if let Some(file) = count {
            command.arg("-count").arg(file);
        }
        if let Some(kind) = load {
            command.args(["-load", &format!("{kind}:{}", self.disk.display())]);
        }
        command
    }

    /// Has the program measure a `subject` of a running daemon.
    pub(crate) fn measure(&self, subject: &str, arguments: &[&str]) -> Result<Figures> {
        interrupt::check()?;
        let output = Command::new(&self.programs.bench)
            .arg("--bpffs")
            .arg(self.bpffs())
            .arg(subject)
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .context("cannot run the measuring program")?;
        if !output.status.success() {
            bail!("measuring {subject}: {}", output.status);
        }
        Figures::parse(&String::from_utf8_lossy(&output.stdout))
    }
}

/// Sets how often those show a sign of life that go by this file; zero: never.
pub(crate) fn set_pace(path: &Path, pace: Duration) -> Result<()> {
    // Whole at any time.
    let new = path.with_extension("new");
    std::fs::write(&new, pace.as_millis().to_string())?;
    std::fs::rename(&new, path).with_context(|| format!("cannot write {}", path.display()))
}

/// Waits until `status` shows `count` VMs of which each is as wanted.
pub(crate) fn wait_for(
    daemon: &Daemon,
    what: &str,
    count: usize,
    wanted: impl Fn(&Value) -> bool,
) -> Result<()> {
    let patience = PATIENCE + PATIENCE_FOR_EACH * u32::try_from(count)?;
    let mut unanswered = None;
    let waited = interrupt::wait_until(what, patience, || {
        let status = match daemon.status() {
            Ok(status) => status,
            // Under emulation, a daemon that starts takes longer than its client waits.
            Err(error) => {
                unanswered = Some(error);
                return Ok(None);
            }
        };
        unanswered = None;
        let vms = status["vms"].as_array().map_or(&[][..], Vec::as_slice);
        let all = vms.len() == count && vms.iter().all(&wanted);
        if !all {
            // Asking takes time, of which the daemon needs most now.
            interrupt::sleep(Duration::from_millis(2) * u32::try_from(count)?)?;
        }
        Ok(all.then_some(()))
    });
    match unanswered {
        Some(error) => waited.context(format!("{error:#}")),
        None => waited,
    }
}

impl Fleet {
    /// An error if one of them has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        for child in &mut self.children {
            let ended = child.try_wait()?;
            ensure!(ended.is_none(), "a stand-in has ended: {ended:?}");
        }
        Ok(())
    }
}

impl Fleet {
    /// Lets them end by themselves, and waits until they have.
    pub(crate) fn finish(mut self) -> Result<()> {
        let children = std::mem::take(&mut self.children);
        drop(self);
        for mut child in children {
            let status = child.wait()?;
            ensure!(status.success(), "a stand-in: {status}");
        }
        Ok(())
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
        }
        for child in &mut self.children {
            let _ = child.wait();
        }
    }
}
