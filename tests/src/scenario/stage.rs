//! Where a scenario plays: a network namespace, a directory, stores; then guests in it, and a daemon that sees
//! only them.

use std::any::Any;
use std::cell::RefCell;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Error, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use super::{BOOT_GRACE, FLAT_FOR, Scenario, UNCONFIRMED_FLAT_FOR};
use crate::boot_sector::BootSector;
use crate::daemon::{Daemon, DaemonConfig};
use crate::guest::{Board, DiskConfig, Guest, GuestConfig, GuestKind, private_copy, private_qemu};
use crate::image::{Images, arm64};
use crate::interrupt;
use crate::netns::{Netns, Tap};
use crate::store::{FileSystem, FuseExport, Memory};
use crate::tools;

/// Room for the guest's `disk` load, and more.
const DISK_BYTES: u64 = 64 << 20;
/// For a VM to be found, and its tap attached: files are looked for every ten seconds.
const WATCHED_LIMIT: Duration = Duration::from_secs(30);
/// Eight guests that boot on two cores took 30 s.
pub(super) const BOOT_LIMIT: Duration = Duration::from_secs(90);
/// The name of the guest that nothing is done to.
pub(super) const BYSTANDER: &str = "bystander";

/// What a place's QEMU for Arm guests is called.
const ARM_QEMU: &str = "qemu-system-aarch64";

/// What was built before.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The daemon.
    pub daemon: PathBuf,
    /// What Linux guests boot.
    pub images: Images,
}

/// Where guests are made. Stores in it are taken down with it.
#[derive(Debug)]
pub struct Place {
    fuse: Option<FuseExport>,
    file_system: Option<FileSystem>,
    memory: Option<Memory>,
    netns: Netns,
    images: Images,
    qemu: PathBuf,
    taps: u8,
    open: Vec<File>,
    dir: TempDir,
}

/// A scenario's guests and daemon, which run. What was done to the host is undone first, before anything that
/// waits for it is ended; and a daemon that outlived its guests would take their end for a crash.
#[derive(Debug)]
pub struct Stage {
    undo: RefCell<Vec<Box<dyn Any>>>,
    /// The daemon.
    pub daemon: Daemon,
    /// The guest that the scenario is about, and then those that it needs beside.
    pub guests: Vec<Guest>,
    /// The idle guest that nothing is done to.
    pub bystander: Guest,
    /// The tap of the scenario's guest, if it has one.
    pub tap: Option<Tap>,
    /// Its address, if it has one.
    address: Option<String>,
    /// When the guest was started.
    pub started: SystemTime,
    place: Place,
}

impl Place {
    /// An empty one.
    ///
    /// # Errors
    ///
    /// If no namespace or directory can be made, or there is no QEMU.
    pub(crate) fn new(programs: &Programs) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("flatline-scene-").tempdir()?;
        Ok(Self {
            fuse: None,
            file_system: None,
            memory: None,
            netns: Netns::new()?,
            images: programs.images.clone(),
            qemu: private_qemu(dir.path())?,
            taps: 0,
            open: Vec::new(),
            dir,
        })
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A Linux without network and disk.
    pub fn bare_linux(&self, name: &str) -> GuestConfig {
        let kind = GuestKind::Linux(self.images.clone());
        GuestConfig::new(name, kind, &self.qemu, self.dir())
    }

    /// A Linux with a tap, an address and a disk.
    ///
    /// # Errors
    ///
    /// If the tap cannot be made.
    pub fn linux(&mut self, name: &str) -> Result<GuestConfig> {
        let mut config = self.bare_linux(name);
        self.taps += 1;
        let number = self.taps;
        let gateway = format!("10.7.{number}.1/24");
        config.tap = Some(self.netns.tap(&format!("tap{number}"), Some(&gateway))?);
        config.ip = Some(format!("10.7.{number}.2/24"));
        let image = self.dir().join(format!("{name}.img"));
        config.disk = Some(DiskConfig::new(image, DISK_BYTES));
        Ok(config)
    }

    /// The same on a 64-bit Arm machine.
    ///
    /// # Errors
    ///
    /// If there is no QEMU for it, or its kernel can't be had.
    pub fn arm_linux(&mut self, name: &str) -> Result<GuestConfig> {
        let program = tools::QEMU_AARCH64.needed().map_err(anyhow::Error::msg)?;
        let beside = self.images.kernel.parent().context("the images are in a directory")?;
        let images = arm64::build(&beside.join("arm64"))?;
        let mut config = self.linux(name)?;
        config.kind = GuestKind::Linux(images);
        config.board = Board::ArmVirt;
        config.executable = private_copy(&program, ARM_QEMU, self.dir())?;
        Ok(config)
    }

    /// A machine that boots a few bytes, without a tap.
    pub fn boot_sector(&self, name: &str, code: BootSector) -> GuestConfig {
        GuestConfig::new(name, GuestKind::BootSector(code), &self.qemu, self.dir())
    }

    /// A Linux without network and disk that can have a guest of its own.
    ///
    /// # Errors
    ///
    /// If its image could not be built.
    pub(super) fn hypervisor(&self, name: &str) -> Result<GuestConfig> {
        GuestConfig::hypervisor(name, &self.images, &self.qemu, self.dir()).map_err(Error::msg)
    }

    /// The QEMU that the daemon is to see, and no other.
    pub(crate) fn qemu(&self) -> &Path {
        &self.qemu
    }

    /// A machine that finds nothing to boot.
    pub fn nothing(&self, name: &str) -> GuestConfig {
        GuestConfig::new(name, GuestKind::Nothing, &self.qemu, self.dir())
    }

    /// Keeps files open until the place is taken down.
    pub(super) fn keep_open(&mut self, files: impl IntoIterator<Item = File>) {
        self.open.extend(files);
    }

    /// A disk whose server can be stopped.
    ///
    /// # Errors
    ///
    /// If this machine has no FUSE exports.
    pub fn disk_behind_fuse(&mut self) -> Result<DiskConfig> {
        let export = FuseExport::new(self.dir(), "disk", DISK_BYTES)?;
        let disk = DiskConfig::new(export.path().to_owned(), DISK_BYTES);
        self.fuse = Some(export);
        Ok(disk)
    }

    /// A disk on a file system that can be frozen.
    ///
    /// # Errors
    ///
    /// If it cannot be made.
    pub fn disk_on_own_file_system(&mut self) -> Result<DiskConfig> {
        let file_system = FileSystem::new("ext4", self.dir(), 2 * DISK_BYTES, false)?;
        let disk = DiskConfig::new(file_system.path().join("disk.img"), DISK_BYTES);
        self.file_system = Some(file_system);
        Ok(disk)
    }

    /// A disk for whose content there is not nearly room enough.
    ///
    /// # Errors
    ///
    /// If it cannot be made.
    pub fn disk_without_room(&mut self) -> Result<DiskConfig> {
        let memory = Memory::new(self.dir(), 2 << 20)?;
        let mut disk = DiskConfig::new(memory.path().join("disk.img"), DISK_BYTES);
        // A file system in memory may take no direct I/O.
        "writeback".clone_into(&mut disk.cache);
        self.memory = Some(memory);
        Ok(disk)
    }

    /// The file system of [`Self::disk_on_own_file_system`].
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn file_system(&self) -> Result<&FileSystem> {
        self.file_system.as_ref().context("this place has no file system of its own")
    }

    /// The server of [`Self::disk_behind_fuse`].
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn fuse(&self) -> Result<&FuseExport> {
        self.fuse.as_ref().context("this place has no FUSE export")
    }
}

impl Stage {
    /// Starts the daemon and the guests of `scenario`, and waits until those that boot have booted, and all is calm.
    ///
    /// # Errors
    ///
    /// If something cannot be made or started, or does not boot within 90 s.
    pub fn set_up(scenario: &Scenario, programs: &Programs) -> Result<Self> {
        let stage = Self::with(scenario.guests, scenario.boots, programs)?;
        if scenario.boots {
            stage.settle()?;
        }
        Ok(stage)
    }

    /// The same, with guests of any making, which are Linux if they boot.
    pub(super) fn with(
        guests: impl FnOnce(&mut Place) -> Result<Vec<GuestConfig>>,
        boots: bool,
        programs: &Programs,
    ) -> Result<Self> {
        let mut place = Place::new(programs)?;
        let mut config = DaemonConfig::new(&programs.daemon, &place.qemu);
        config.flat_for = FLAT_FOR;
        config.boot_grace = BOOT_GRACE;
        // Comes last in the section for detection.
        config.extra_toml = format!(
            "unconfirmed_flat_for = \"{}\"\n",
            humantime::format_duration(UNCONFIRMED_FLAT_FOR)
        );
        config.executables.push(place.dir().join(ARM_QEMU).display().to_string());
        let daemon = Daemon::start(&config, place.dir())?;
        let bystander = place.linux(BYSTANDER)?.start()?;
        if !boots {
            // What becomes of the others does so at once.
            bystander.wait_until_booted(BOOT_LIMIT)?;
        }
        let configs = guests(&mut place)?;
        let tap = configs.first().and_then(|config| config.tap.clone());
        let address = configs.first().and_then(|config| config.ip.as_deref());
        let address = address.and_then(|ip| ip.split('/').next()).map(str::to_owned);
        let started = SystemTime::now();
        let guests = configs.iter().map(GuestConfig::start).collect::<Result<Vec<_>>>()?;
        let stage = Self {
            undo: RefCell::default(),
            daemon,
            guests,
            bystander,
            tap,
            address,
            started,
            place,
        };
        if boots {
            stage.bystander.wait_until_booted(BOOT_LIMIT)?;
            for (guest, config) in stage.guests.iter().zip(&configs) {
                guest.wait_until_booted(BOOT_LIMIT)?;
                if config.ip.is_some() {
                    // What it sent while it booted may have been before its tap was watched; an address that
                    // was not seen is none to ask.
                    stage.wait_until_watched(&config.name)?;
                    guest.run("net 1", BOOT_LIMIT)?;
                }
            }
        }
        Ok(stage)
    }

    /// Waits until the programs are on its tap: a QEMU of a file that is new is not told of when it is executed first.
    fn wait_until_watched(&self, name: &str) -> Result<()> {
        interrupt::wait_until(&format!("{name}'s tap"), WATCHED_LIMIT, || {
            let shown = self.daemon.show(name).ok();
            let is_on = shown.is_some_and(|vm| vm["taps"][0]["attached"] == true);
            Ok(is_on.then_some(()))
        })
    }

    /// The guest that the scenario is about.
    pub fn guest(&self) -> &Guest {
        &self.guests[0]
    }

    /// All that are to be left alone whatever happens to that one.
    pub fn others(&self) -> impl Iterator<Item = &Guest> {
        self.guests.iter().skip(1).chain([&self.bystander])
    }

    /// Where the stores are.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Keeps something until the scenario has ended, when dropping it undoes what was done.
    pub fn until_the_end(&self, what: impl Any) {
        self.undo.borrow_mut().push(Box::new(what));
    }

    /// Whether the scenario's guest answers an ARP request of our own. Asking takes part: the answer is a sign
    /// of life, for the daemon too.
    ///
    /// # Errors
    ///
    /// If the guest has no tap or no address.
    pub(super) fn answers(&self) -> Result<bool> {
        let (Some(tap), Some(address)) = (&self.tap, &self.address) else {
            bail!("a guest without a tap and an address answers nothing");
        };
        let [enter, option] = tap.enter_prefix();
        let mut arping = Command::new(enter);
        arping.arg(option).args(["--", "busybox", "arping", "-q", "-c", "3", "-w", "3", "-I"]);
        let asked = arping.args([tap.name(), address]).stdin(Stdio::null()).status();
        Ok(asked.context("cannot ask")?.success())
    }

    /// Waits until every guest is past its grace and had time to be asked once.
    pub(super) fn settle(&self) -> Result<()> {
        let begin = Instant::now();
        interrupt::wait_until("guests past their grace", BOOT_LIMIT, || {
            let starting = |guest: &Guest| match self.row(guest.name()) {
                Ok(row) => row.is_none_or(|row| row["state"] == "starting"),
                Err(_) => true,
            };
            Ok((!self.guests.iter().any(starting)).then_some(()))
        })?;
        // A guest is asked in the second after its grace, and the round takes no second either.
        let whole = BOOT_GRACE + Duration::from_secs(5);
        interrupt::sleep(whole.saturating_sub(begin.elapsed()))
    }

    /// A VM's row of `status --json`; none if it has none.
    ///
    /// # Errors
    ///
    /// As [`Daemon::status`].
    pub fn row(&self, name: &str) -> Result<Option<Value>> {
        let status = self.daemon.status()?;
        let rows = status["vms"].as_array().context("status has no vms")?;
        Ok(rows.iter().find(|row| row["name"] == name).cloned())
    }
}
