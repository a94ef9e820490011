//! A daemon that is killed is followed by one that knows its VMs, and that looks at what became of them before it judges one.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    boot_sector::BootSector,
    command::run_command,
    guest::{Accelerator, was_killed},
    interrupt,
};

use super::{GRACE, through, wait_until_attached};
use crate::{
    programs,
    rig::{FLAT_FOR, Rig, boot_all, incidents_of, wait_for_vm},
};

/// For what is known to be written down.
const WRITTEN_WITHIN: Duration = Duration::from_secs(10);

/// The programs on a VM's tap are detached while no daemon runs, though their pins stay, and another VM starts.
pub(super) fn detached_meanwhile() -> Result<()> {
    let rig = Rig::new()?;
    let config = rig.linux("is-known", 1)?;
    let tap = config.tap.clone().context("it has a tap")?;
    let guests = boot_all(&[config])?;
    let mut config = rig.daemon_config()?;
    config.extra_toml = through("tcx");
    let mut daemon = rig.daemon(&config)?;
    let before = wait_until_attached(&tap)?;
    wait_for_vm(&daemon, "is-known", "alive", GRACE, |row| row["state"] == "alive")?;
    let known = daemon.config_path().with_file_name("state/vms.jsonl");
    interrupt::wait_until("the VM to be remembered", WRITTEN_WITHIN, || {
        let text = std::fs::read_to_string(&known).unwrap_or_default();
        Ok(text.contains("\"is-known\"").then_some(()))
    })?;
    ensure!(was_killed(daemon.kill()?), "it ended by itself: {}", daemon.log().text());
    for entry in std::fs::read_dir(rig.dir().join("bpf/flatline/links"))? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("tap-")) {
            run_command(Command::new("bpftool").args(["link", "detach", "pinned"]).arg(path))?;
        }
    }
    ensure!(programs::on_tap(&tap)?.is_empty(), "they are on the tap still");
    let _other = rig.boot_sector("is-new", BootSector::StiHlt, Accelerator::Tcg).start()?;
    daemon.start_again()?;
    let log = daemon.log().text();
    ensure!(log.contains("1 VMs are known by an earlier daemon"), "{log}");
    let after = wait_until_attached(&tap)?;
    ensure!(before.iter().all(|id| !after.contains(id)), "{before:?} are there again: {after:?}");
    wait_for_vm(&daemon, "is-new", "found", GRACE, |_| true)?;
    interrupt::sleep(FLAT_FOR * 2)?;
    wait_for_vm(&daemon, "is-known", "alive", GRACE, |row| row["state"] == "alive")?;
    ensure!(guests[0].banner_count() == 1 && incidents_of(&daemon, "is-known")?.is_empty());
    Ok(())
}
