//! What every test stands on: a place of its own, guests in it, and a daemon that sees only them.

use std::{
    env,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    boot_sector::BootSector,
    command, cpu,
    daemon::{Daemon, DaemonConfig},
    guest::{Accelerator, DiskConfig, Guest, GuestConfig, GuestKind, private_qemu},
    image, interrupt,
    netns::{Netns, Tap},
    qmp::time_of,
    state,
    tenants::{Fakes, Homes},
};
use serde_json::Value;
use tempfile::TempDir;

pub(crate) use crate::turns::{skippable_trial_with, trial, trial_that_may_skip, trial_with};
pub(crate) use flatline_tests::schedule::Load;

/// `flat_for` of the daemons whose restarts are waited for, and what is granted on top of it: guests that spin share
/// the cores with those of the test beside, and one that gets less than half of a core is given more time.
pub(crate) const FLAT_FOR: Duration = Duration::from_secs(3);
pub(crate) const MARGIN: Duration = Duration::from_secs(10);
/// `boot_grace` of these daemons: a guest that was started before its daemon and shows no sign of life is judged after
/// that.
pub(crate) const BOOT_GRACE: Duration = Duration::from_secs(3);
/// The ticks of daemons whose figures are waited for, a quarter of the usual.
pub(crate) const OFTEN: Duration = Duration::from_millis(250);
/// Time for a guest to boot while other guests spin on both cores.
pub(crate) const BOOT_LIMIT: Duration = Duration::from_secs(60);

/// A test's own place. Guests and daemons that live in it must be dropped before it.
pub(crate) struct Rig {
    /// Network namespace of its taps.
    pub(crate) netns: Netns,
    /// Its own name for QEMU.
    pub(crate) qemu: PathBuf,
    images: image::Images,
    dir: TempDir,
}

impl Rig {
    /// Makes the place.
    pub(crate) fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("flatline-test-").tempdir()?;
        Ok(Self {
            netns: Netns::new()?,
            qemu: private_qemu(dir.path())?,
            images: image::build(&guest_dir()?, |_| {})?,
            dir,
        })
    }

    /// A directory in it for each user of the host, and programs that pose as their QEMUs.
    pub(crate) fn homes(&self) -> Result<Homes> {
        Homes::new(self.dir(), &fakes())
    }

    /// Its directory.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A Linux guest with a tap (`10.7.N.2`) and a direct-I/O disk, to be changed and started.
    pub(crate) fn linux(&self, name: &str, number: u8) -> Result<GuestConfig> {
        let kind = GuestKind::Linux(self.images.clone());
        let mut config = GuestConfig::new(name, kind, &self.qemu, self.dir());
        config.tap =
            Some(self.netns.tap(&format!("tap{number}"), Some(&format!("10.7.{number}.1/24")))?);
        config.ip = Some(format!("10.7.{number}.2/24"));
        config.disk = Some(self.disk(name));
        Ok(config)
    }

    /// A Linux guest that has loaded a crash kernel, with a tap and a disk.
    pub(crate) fn linux_with_crash_kernel(&self, name: &str, number: u8) -> Result<GuestConfig> {
        let images = image::kdump::build(&self.images, &guest_dir()?.join("kdump"))?;
        let mut config = self.linux(name, number)?;
        config.kind = GuestKind::Linux(images);
        config.memory_mib = image::kdump::MEMORY_MIB;
        config.kernel_args.push(image::kdump::ROOM.to_owned());
        Ok(config)
    }

    /// A Linux without a tap that can have a guest of its own; or why there is none.
    pub(crate) fn hypervisor(&self, name: &str) -> Result<GuestConfig, String> {
        GuestConfig::hypervisor(name, &self.images, &self.qemu, self.dir())
    }

    /// A guest that is nothing but a boot sector, without a tap.
    pub(crate) fn boot_sector(
        &self,
        name: &str,
        code: BootSector,
        accelerator: Accelerator,
    ) -> GuestConfig {
        let kind = GuestKind::BootSector(code);
        let mut config = GuestConfig::new(name, kind, &self.qemu, self.dir());
        config.accelerator = accelerator;
        config
    }

    /// The same with the sector on a disk that is read past the page cache: what its firmware reads is a sign of life.
    pub(crate) fn boot_sector_on_disk(&self, name: &str, code: BootSector) -> Result<GuestConfig> {
        let mut config = self.boot_sector(name, code, Accelerator::Tcg);
        let disk = self.dir().join(format!("{name}.direct.img"));
        code.write(&disk)?;
        let drive = format!("file={},format=raw,if=none,id=direct,cache=none", disk.display());
        let device = "virtio-blk-pci,drive=direct,bootindex=0";
        config.extra_args.extend(["-drive", &drive, "-device", device].map(str::to_owned));
        Ok(config)
    }

    /// A disk of 64 MiB that is read and written past the page cache.
    pub(crate) fn disk(&self, name: &str) -> DiskConfig {
        DiskConfig::new(self.dir().join(format!("{name}.img")), 64 << 20)
    }

    /// The configuration of a daemon for this test's guests.
    pub(crate) fn daemon_config(&self) -> Result<DaemonConfig> {
        let mut config = DaemonConfig::new(&binary()?, &self.qemu);
        (config.flat_for, config.boot_grace) = (FLAT_FOR, BOOT_GRACE);
        Ok(config)
    }

    /// Starts that daemon.
    pub(crate) fn daemon(&self, config: &DaemonConfig) -> Result<Daemon> {
        Daemon::start(config, self.dir())
    }
}

/// A macvtap of a network namespace.
pub(crate) struct Macvtap {
    pub(crate) tap: Tap,
    /// What a QEMU opens.
    pub(crate) device: PathBuf,
}

impl Macvtap {
    /// Makes `mv1` on one end of a pair of cards, whose other end is `outside`; or says why this host has none.
    pub(crate) fn new(netns: &Netns) -> Result<Result<Self, String>> {
        netns.ip(&["link", "add", "below", "type", "veth", "peer", "name", "outside"])?;
        let add =
            ["link", "add", "link", "below", "name", "mv1", "type", "macvtap", "mode", "bridge"];
        if let Err(error) = netns.ip(&add) {
            return Ok(Err(format!("no macvtap can be made: {error:#}")));
        }
        for name in ["below", "outside", "mv1"] {
            netns.ip(&["link", "set", name, "up"])?;
        }
        let output = command::run("ip", ["-n", netns.name(), "-j", "link", "show", "mv1"])?;
        let shown: Value = serde_json::from_slice(&output)?;
        let index = shown[0]["ifindex"].as_u64().context("no ifindex")?;
        let device = PathBuf::from(format!("/dev/tap{index}"));
        if !device.exists() {
            let why = format!("no {}: nothing makes the nodes of macvtaps", device.display());
            return Ok(Err(why));
        }
        Ok(Ok(Self { tap: netns.interface("mv1"), device }))
    }
}

/// Programs that pose as QEMUs.
pub(crate) fn fakes() -> Fakes {
    let qemu = env!("CARGO_BIN_EXE_fake-qemu").into();
    Fakes { qemu, tenant: env!("CARGO_BIN_EXE_fake-tenant").into() }
}

/// The `flatline` under test.
pub(crate) fn binary() -> Result<PathBuf> {
    let binary = env::var_os("FLATLINE_BINARY")
        .context("FLATLINE_BINARY is not set: run this through `cargo xtask test`")?;
    Ok(binary.into())
}

/// Where the guests' images and states are.
fn guest_dir() -> Result<PathBuf> {
    let directory = env::var_os("FLATLINE_GUEST_DIR")
        .context("FLATLINE_GUEST_DIR is not set: run this through `cargo xtask test`")?;
    Ok(directory.into())
}

/// Starts all guests, from a saved state where there is one of their shape, and waits until each takes commands.
pub(crate) fn boot_all(configs: &[GuestConfig]) -> Result<Vec<Guest>> {
    let states = guest_dir()?.join("states");
    let start = |config| state::start(config, &states);
    let guests = configs.iter().map(start).collect::<Result<Vec<_>>>()?;
    for (guest, config) in guests.iter().zip(configs) {
        if matches!(config.kind, GuestKind::Linux(_)) {
            guest
                .wait_until_booted(BOOT_LIMIT)
                .with_context(|| format!("guest {}", config.name))?;
        }
    }
    Ok(guests)
}

/// Starts all guests before the daemon's eyes, as [`boot_all`].
///
/// One that goes on from a saved state sends a single frame, perhaps before its tap is looked at. So each with an address
/// sends once more: only then can it be asked.
pub(crate) fn boot_watched(daemon: &Daemon, configs: &[GuestConfig]) -> Result<Vec<Guest>> {
    let guests = boot_all(configs)?;
    for (guest, config) in guests.iter().zip(configs) {
        if config.ip.is_some() && matches!(config.kind, GuestKind::Linux(_)) {
            let is_read = |row: &Value| row["network"].is_object();
            wait_for_vm(daemon, guest.name(), "its tap", BOOT_LIMIT, is_read)?;
            guest.run("net 1", BOOT_LIMIT)?;
        }
    }
    Ok(guests)
}

/// The VM's row of `status --json`.
pub(crate) fn vm(daemon: &Daemon, name: &str) -> Result<Value> {
    let status = daemon.status()?;
    let vms = status["vms"].as_array().context("status has no vms")?;
    vms.iter()
        .find(|vm| vm["name"] == name)
        .cloned()
        .with_context(|| format!("no VM {name}: {status}"))
}

/// Waits until the VM's row satisfies `wanted`.
pub(crate) fn wait_for_vm(
    daemon: &Daemon,
    name: &str,
    what: &str,
    limit: Duration,
    wanted: impl Fn(&Value) -> bool,
) -> Result<Value> {
    interrupt::wait_until(&format!("{name}: {what}"), limit, || {
        // A VM that isn't there yet is waited for, too.
        Ok(vm(daemon, name).ok().filter(&wanted))
    })
    .with_context(|| format!("last: {:?}\n{}", vm(daemon, name), daemon.log().text()))
}

/// Incidents of one VM.
pub(crate) fn incidents_of(daemon: &Daemon, name: &str) -> Result<Vec<Value>> {
    Ok(daemon.incidents()?.into_iter().filter(|incident| incident["vm"] == name).collect())
}

/// Waits until the VM has an incident that satisfies `wanted`.
pub(crate) fn wait_for_incident(
    daemon: &Daemon,
    name: &str,
    what: &str,
    limit: Duration,
    wanted: impl Fn(&Value) -> bool,
) -> Result<Value> {
    interrupt::wait_until(&format!("{name}: {what}"), limit, || {
        Ok(incidents_of(daemon, name)?.into_iter().find(&wanted))
    })
    .with_context(|| {
        let (incidents, now) = (incidents_of(daemon, name), daemon.show(name));
        format!("incidents: {incidents:?}; now: {now:?}\n{}", daemon.log().text())
    })
}

/// Seconds from `from` to the RFC 3339 time in `field`, which has whole seconds, rounded down.
fn seconds_until(incident: &Value, field: &str, from: SystemTime) -> Result<f64> {
    let text = incident[field].as_str().with_context(|| format!("no {field} in {incident}"))?;
    let time = humantime::parse_rfc3339(text)?;
    Ok(match time.duration_since(from) {
        Ok(later) => later.as_secs_f64(),
        Err(earlier) => -earlier.duration().as_secs_f64(),
    })
}

/// Puts a program at `target`. A link where that works: a file that was written just now can't be
/// executed while another test's fork still holds it open.
pub(crate) fn put(source: &Path, target: &Path) -> Result<()> {
    std::fs::hard_link(source, target)
        .or_else(|_| std::fs::copy(source, target).map(|_| ()))
        .with_context(|| format!("cannot make {}", target.display()))
}

/// A moment from which a guest is to be found dead, and what the host had withheld until then.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crash {
    pub(crate) at: SystemTime,
    withheld: Duration,
}

impl Crash {
    /// This moment.
    pub(crate) fn now(daemon: &Daemon, guest: &Guest) -> Result<Self> {
        Ok(Self { at: SystemTime::now(), withheld: withheld(daemon, guest)? })
    }

    /// What `limit` becomes by the time that the host has withheld since: a daemon gives a vCPU that is not let run the
    /// time that it did not get.
    pub(crate) fn allowed(
        &self,
        limit: Duration,
        daemon: &Daemon,
        guest: &Guest,
    ) -> Result<Duration> {
        Ok(limit + withheld(daemon, guest)?.saturating_sub(self.withheld))
    }
}

/// What the host withheld so far of the daemon that looks and of the guest that it looks at.
fn withheld(daemon: &Daemon, guest: &Guest) -> Result<Duration> {
    let daemon = daemon.pid().context("the daemon does not run")?;
    Ok(cpu::withheld(daemon)? + cpu::withheld(guest.pid())?)
}

/// Waits for the restart of a guest that crashed; it must come as soon as [`FLAT_FOR`], [`MARGIN`] and the host allow.
/// Returns its incident.
pub(crate) fn check_restart(daemon: &Daemon, guest: &Guest, crash: &Crash) -> Result<Value> {
    let wait = FLAT_FOR + MARGIN * 6;
    let incident = wait_for_incident(daemon, guest.name(), "restarted", wait, |incident| {
        !incident["action_at"].is_null()
    })?;
    // Times in incidents have whole seconds, rounded down.
    let took = seconds_until(&incident, "action_at", crash.at)?;
    let limit = crash.allowed(FLAT_FOR + MARGIN, daemon, guest)?;
    println!(
        "{}: reset {took:.1} s after the crash, or up to 1 s later, of {limit:.1?}",
        guest.name()
    );
    ensure!(took <= limit.as_secs_f64(), "{}: reset only after {took} s: {incident}", guest.name());
    Ok(incident)
}

/// When the guest was reset from outside since its events were last asked for, by QEMU's own account.
pub(crate) fn outer_resets(guest: &Guest) -> Result<Vec<SystemTime>> {
    let events = guest.events()?;
    let outer = |event: &&Value| event["event"] == "RESET" && event["data"]["guest"] == false;
    events.iter().filter(outer).map(time_of).collect()
}
