//! What there is a fixed number or amount of is shared out by user: none takes another's.

mod evidence;
mod incidents;
mod masses;
mod monitors;
mod slots;

use std::time::{Duration, Instant};

use anyhow::Result;
use flatline_tests::{
    boot_sector::BootSector,
    daemon::{Daemon, DaemonConfig},
    guest::{Accelerator, Guest, GuestConfig},
    tenants::{Claim, Fake, Homes},
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::rig::{Rig, wait_for_incident};

/// Users that no machine has: the one that takes what it can get, and two that have a VM each.
const HOSTILE: u32 = 64_980;
const VICTIM: u32 = 64_981;
const CONTROL: u32 = 64_982;
/// For a guest of a few bytes to boot, to be found dead, and to be reset.
const WITHIN: Duration = Duration::from_secs(60);
/// What the attack may add to that.
const MARGIN: Duration = Duration::from_secs(5);

pub(crate) fn trials() -> Vec<Trial> {
    [slots::trials(), evidence::trials(), incidents::trials(), masses::trials(), monitors::trials()]
        .into_iter()
        .flatten()
        .collect()
}

/// A place in which each user has a directory, and programs that pose as QEMUs.
struct Tenants {
    rig: Rig,
    homes: Homes,
}

impl Tenants {
    fn new() -> Result<Self> {
        let rig = Rig::new()?;
        let homes = rig.homes()?;
        Ok(Self { rig, homes })
    }

    /// A daemon that watches both kinds, with these lines in its configuration.
    fn daemon(&self, lines: &str) -> Result<Daemon> {
        let mut config: DaemonConfig = self.rig.daemon_config()?;
        config.executables.extend(self.homes.executables());
        config.boot_grace = Duration::from_secs(2);
        lines.clone_into(&mut config.extra_toml);
        self.rig.daemon(&config)
    }

    /// A user's real QEMU, whose guest does this.
    fn guest(&self, user: u32, name: &str, sector: BootSector) -> Result<GuestConfig> {
        let mut config = self.rig.boot_sector(name, sector, Accelerator::Tcg);
        config.dir = self.homes.of(user)?;
        config.user = Some(user);
        Ok(config)
    }

    /// A user's program that poses as a QEMU in this manner.
    fn fake(&self, user: u32, name: &str, manner: &str) -> Result<Fake> {
        self.fake_with(user, name, manner, &[])
    }

    /// The same with more words for its command line.
    fn fake_with(&self, user: u32, name: &str, manner: &str, more: &[&str]) -> Result<Fake> {
        self.homes.fake(user, &Claim::new(name, manner).with(more))
    }

    /// Starts a user's guest that halts for good, and waits until it is reset: with the time that took.
    fn is_found_dead(&self, daemon: &Daemon, user: u32, name: &str) -> Result<(Guest, Duration)> {
        let guest = self.guest(user, name, BootSector::CliHlt)?.start()?;
        let begun = Instant::now();
        let acted = |incident: &Value| !incident["action_at"].is_null();
        wait_for_incident(daemon, name, "reset", WITHIN, acted)?;
        let took = begun.elapsed();
        println!("{name} of user {user}: reset {took:.1?} after its start");
        Ok((guest, took))
    }
}
