//! VMs of several users of the host that do what a test tells them: made-up QEMUs, each run by its user.

use std::time::Duration;

use anyhow::Result;
pub(crate) use flatline_tests::tenants::Tenant;
use flatline_tests::{
    daemon::{Daemon, DaemonConfig},
    guest::GuestConfig,
    tenants::Homes,
};
use serde_json::Value;

use crate::rig::{Rig, wait_for_vm};

/// For VMs to be found, and heard once.
const WITHIN: Duration = Duration::from_secs(30);

/// The place of these VMs in a test's own.
pub(crate) struct Tenants<'a> {
    rig: &'a Rig,
    homes: Homes,
}

impl<'a> Tenants<'a> {
    /// Lets every user of the host into the test's directory, and puts the program there.
    pub(crate) fn new(rig: &'a Rig) -> Result<Self> {
        Ok(Self { rig, homes: rig.homes()? })
    }

    /// The configuration of a daemon for these VMs and the test's other ones.
    pub(crate) fn daemon_config(&self) -> Result<DaemonConfig> {
        let mut config = self.rig.daemon_config()?;
        config.executables.extend(self.homes.executables());
        Ok(config)
    }

    /// Starts so many VMs of one user, called `name-0` and so on.
    pub(crate) fn start(&self, user: u32, name: &str, vms: usize) -> Result<Vec<Tenant>> {
        (0..vms).map(|n| self.homes.tenant(user, &format!("{name}-{n}"))).collect()
    }

    /// A real QEMU of a user, whose guest reads its disk all the time and obeys its serial line.
    pub(crate) fn real(&self, user: u32, name: &str) -> Result<GuestConfig> {
        self.homes.obeys(&self.rig.qemu, user, name)
    }
}

/// Waits until each of them was heard by its agent: only then does its silence say something.
pub(crate) fn wait_until_heard(daemon: &Daemon, tenants: &[Tenant]) -> Result<()> {
    for tenant in tenants {
        let is_heard = |row: &Value| {
            row["state"] == "alive"
                && row["reason"].as_str().is_some_and(|reason| reason.contains("guest agent"))
        };
        wait_for_vm(daemon, &tenant.name, "heard", WITHIN, is_heard)?;
    }
    Ok(())
}
