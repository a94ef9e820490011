//! The stage: the daemon and the guests, how they are started, and how they are watched.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flatline_tests::daemon::{Daemon, DaemonConfig};
use flatline_tests::guest::{DiskConfig, Guest, GuestConfig, GuestKind, private_qemu};
use flatline_tests::image::Images;
use flatline_tests::interrupt;
use flatline_tests::netns::Netns;
use serde_json::Value;

use super::TAP;
use super::screen::{Row, Screen};
use super::traces::Traces;

/// Silence before the demo's daemon suspects a guest: half of the default, to be shown sooner.
const FLAT_FOR: Duration = Duration::from_secs(5);
/// Emulated guests took 5 s to boot on an idle host, and three share it here.
pub(super) const BOOT_LIMIT: Duration = Duration::from_secs(60);
/// For what takes a few seconds when all is well.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How often the shop sends and stores something.
const TRADE_INTERVAL: Duration = Duration::from_secs(1);
const DISK_BYTES: u64 = 64 << 20;

pub(super) const SHOP: &str = "shop";
pub(super) const IDLER: &str = "idler";
pub(super) const CRUNCHER: &str = "cruncher";
pub(super) const PLAYERS: [&str; 3] = [SHOP, IDLER, CRUNCHER];

/// The running demo. Fields are dropped in this order: a daemon that outlived its guests would take
/// their end for a crash, and a namespace lasts as long as a QEMU in it.
pub(super) struct Stage {
    pub(super) daemon: Daemon,
    pub(super) shop: Guest,
    pub(super) others: [Guest; 2],
    pub(super) booted: Instant,
    /// When `shop` last did something; `None` while it is not to.
    pub(super) last_trade: Option<Instant>,
    /// The daemon's last answer to `status --json`.
    status: Value,
    _netns: Netns,
}

impl Stage {
    /// Starts the daemon and the guests, and waits until they have booted.
    pub(super) fn set_up(
        dir: &Path,
        binary: PathBuf,
        images: &Images,
        screen: &mut Screen,
        traces: &mut Traces,
    ) -> Result<Self> {
        let qemu = private_qemu(dir)?;
        let netns = Netns::new()?;
        screen.step("1. flatline starts on the host; nothing of it goes into a guest.");
        let mut config = DaemonConfig::new(&binary, &qemu);
        config.flat_for = FLAT_FOR;
        let daemon = Daemon::start(&config, dir)?;
        traces.note_programs(daemon.pid().context("the daemon ended")?)?;
        let status = daemon.status()?;
        let probes = status["host"]["probes"].as_array().map_or(&[][..], Vec::as_slice);
        let attached = probes.iter().filter(|probe| probe["state"] == "attached").count();
        screen.say(&format!(
            "   It loads eBPF programs that count what guests send and store: {attached} of {} attached.",
            probes.len()
        ));
        screen.say(&format!("   It will suspect a guest that is silent for {FLAT_FOR:?}."));

        screen.step("2. Three virtual machines boot Linux, each on a tap and a disk of its own.");
        let guests = [(SHOP, 1), (IDLER, 2), (CRUNCHER, 3)].map(|(name, number): (&str, u8)| {
            let mut config = GuestConfig::new(name, GuestKind::Linux(images.clone()), &qemu, dir);
            config.tap =
                Some(netns.tap(&format!("{TAP}{name}"), Some(&format!("10.7.{number}.1/24")))?);
            config.ip = Some(format!("10.7.{number}.2/24"));
            config.disk = Some(DiskConfig::new(dir.join(format!("{name}.img")), DISK_BYTES));
            if name == SHOP {
                // Of both, flatline keeps how they were when it crashed.
                (config.vga, config.console_log) = (true, true);
            }
            config.start()
        });
        let [shop, idler, cruncher] = guests;
        let (shop, others) = (shop?, [idler?, cruncher?]);
        let booted = Instant::now();
        let mut stage =
            Self { daemon, shop, others, booted, last_trade: None, status, _netns: netns };
        stage.watch(screen, "all three booted", BOOT_LIMIT, |stage| {
            let guests = std::iter::once(&stage.shop).chain(&stage.others);
            Ok(guests.map(Guest::banner_count).all(|count| count > 0).then_some(()))
        })?;
        stage.booted = Instant::now();
        Ok(stage)
    }

    /// Shows the guests until `done` has an answer.
    pub(super) fn watch<T>(
        &mut self,
        screen: &mut Screen,
        what: &str,
        limit: Duration,
        mut done: impl FnMut(&Self) -> Result<Option<T>>,
    ) -> Result<T> {
        let begin = Instant::now();
        loop {
            interrupt::check()?;
            if self.last_trade.is_some_and(|at| at.elapsed() >= TRADE_INTERVAL) {
                self.last_trade = Some(Instant::now());
                self.shop.send("net 1")?;
                self.shop.send("disk-write 4 4")?;
            }
            self.status = self.daemon.status()?;
            let rows = self.vms().filter(|vm| PLAYERS.iter().any(|name| vm["name"] == *name));
            screen.table(&rows.map(Row::new).collect::<Vec<_>>());
            if let Some(answer) = done(self)? {
                return Ok(answer);
            }
            ensure!(begin.elapsed() < limit, "{what}: not within {limit:?}; now: {}", self.status);
            interrupt::sleep(POLL_INTERVAL)?;
        }
    }

    fn vms(&self) -> impl Iterator<Item = &Value> {
        self.status["vms"].as_array().into_iter().flatten()
    }

    pub(super) fn is_alive(&self, name: &str) -> bool {
        self.vms().any(|vm| vm["name"] == name && vm["state"] == "alive")
    }

    pub(super) fn incidents_of(&self, name: &str) -> Result<Vec<Value>> {
        let incidents = self.daemon.incidents()?;
        Ok(incidents.into_iter().filter(|incident| incident["vm"] == name).collect())
    }
}
