//! Guests that save a dump of their own by a crash kernel: they are left to it, and their crash is counted once.

use std::time::Duration;

use anyhow::{Result, ensure};
use flatline_tests::{
    daemon::{Daemon, DaemonConfig},
    guest::{Guest, GuestConfig},
    interrupt::wait_until,
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::rig::{
    BOOT_LIMIT, Load, OFTEN, Rig, incidents_of, outer_resets, trial_with, vm, wait_for_incident,
    wait_for_vm,
};

/// For a crash kernel to boot, and to save its dump, while another test's guests run.
const SAVES_WITHIN: Duration = Duration::from_secs(240);
/// A crash kernel that writes nothing is given a minute.
const HANGS_FOR: Duration = Duration::from_secs(60);

pub(crate) fn trials() -> Vec<Trial> {
    // Whether a crash kernel boots in time is a matter of the CPU that it has.
    let boots = Load::Spins(1);
    vec![
        trial_with(
            boots,
            "a_guest_that_announces_its_dump_is_left_to_it_and_counted_once",
            announced,
        ),
        trial_with(
            boots,
            "a_guest_whose_console_tells_of_a_panic_without_an_end_is_left_to_its_dump",
            told,
        ),
        trial_with(boots, "a_guest_whose_crash_kernel_hangs_is_restarted_after_its_grace", hangs),
    ]
}

/// A guest with a crash kernel and its daemon.
struct Scene {
    guest: Guest,
    daemon: Daemon,
    _rig: Rig,
}

impl Scene {
    fn new(name: &str, change: impl FnOnce(&mut GuestConfig, &mut DaemonConfig)) -> Result<Self> {
        let rig = Rig::new()?;
        let mut config = rig.linux_with_crash_kernel(name, 1)?;
        let mut daemon_config = rig.daemon_config()?;
        change(&mut config, &mut daemon_config);
        let daemon = rig.daemon(&daemon_config)?;
        // Not from a saved state: it is to load its crash kernel.
        let guest = config.start()?;
        guest.wait_until_booted(BOOT_LIMIT)?;
        let scene = Self { guest, daemon, _rig: rig };
        let log = scene.guest.log().text();
        ensure!(log.contains("CRASH KERNEL LOADED"), "{log}");
        let is_known = |row: &Value| row["state"] == "alive";
        wait_for_vm(&scene.daemon, name, "alive", BOOT_LIMIT, is_known)?;
        scene.guest.run("net 1", BOOT_LIMIT)?;
        Ok(scene)
    }

    /// It panics, and its crash kernel boots.
    fn panics(&self) -> Result<()> {
        outer_resets(&self.guest)?;
        self.guest.send("panic")?;
        let took = self.guest.wait_for("CRASH KERNEL RUNS", SAVES_WITHIN)?;
        println!("its crash kernel runs {took:.1?} after its start");
        Ok(())
    }

    /// The dump is saved, the guest comes back by itself, and the one incident is closed.
    fn saves(&self) -> Result<()> {
        let (guest, name) = (&self.guest, self.guest.name());
        let open = incidents_of(&self.daemon, name)?;
        ensure!(open.len() == 1 && open[0]["outcome"].is_null(), "{open:?}");
        let row = vm(&self.daemon, name)?;
        ensure!(row["state"] == "held", "{row}");
        ensure!(row["reason"].as_str().is_some_and(|why| why.contains("own crash dump")), "{row}");
        wait_until("the guest to be back", SAVES_WITHIN, || {
            Ok((guest.banner_count() == 2).then_some(()))
        })?;
        ensure!(guest.log().text().contains("CRASH KERNEL SAVED"), "{}", guest.log().text());
        let is_closed = |incident: &Value| incident["outcome"] == "recovered";
        let closed = wait_for_incident(&self.daemon, name, "closed", BOOT_LIMIT, is_closed)?;
        ensure!(closed["id"] == open[0]["id"] && closed["cause"] == "panicked", "{closed}");
        ensure!(closed["attempts"] == serde_json::json!([]), "{closed}");
        ensure!(closed["action"].is_null(), "{closed}");
        ensure!(incidents_of(&self.daemon, name)?.len() == 1);
        let resets = outer_resets(guest)?;
        ensure!(resets.is_empty(), "{resets:?}\n{}", self.daemon.log().text());
        let row = vm(&self.daemon, name)?;
        ensure!(row["restarts_in_window"] == 1, "its own reset, and no more: {row}");
        Ok(())
    }
}

/// Its panic is told to QEMU before its crash kernel is started.
fn announces(config: &mut GuestConfig) {
    config.vcpus = 2;
    config.pvpanic = true;
    config.kernel_args.push("crash_kexec_post_notifiers".to_owned());
    config.extra_args.extend(["-action", "panic=pause"].map(str::to_owned));
}

fn announced() -> Result<()> {
    let scene = Scene::new("announces", |config, _| announces(config))?;
    scene.panics()?;
    scene.saves()
}

fn told() -> Result<()> {
    let scene = Scene::new("tells", |config, daemon| {
        config.console_log = true;
        config.kernel_args.push("flatline.crash=slow".to_owned());
        // It is asked before its crash kernel has booted.
        (daemon.flat_for, daemon.sample_interval) = (OFTEN * 8, OFTEN);
    })?;
    scene.panics()?;
    scene.saves()
}

fn hangs() -> Result<()> {
    let scene = Scene::new("hangs", |config, _| {
        announces(config);
        config.kernel_args.push("flatline.crash=hang".to_owned());
    })?;
    let name = scene.guest.name();
    scene.panics()?;
    let is_convicted = |incident: &Value| incident["reason"].as_str().is_some_and(is_over);
    wait_for_incident(&scene.daemon, name, "given up", HANGS_FOR * 2, is_convicted)?;
    let is_closed = |incident: &Value| incident["outcome"] == "recovered";
    let closed = wait_for_incident(&scene.daemon, name, "closed", BOOT_LIMIT, is_closed)?;
    ensure!(closed["cause"] == "panicked", "{closed}");
    ensure!(closed["attempts"].as_array().is_some_and(|all| all.len() == 1), "{closed}");
    ensure!(incidents_of(&scene.daemon, name)?.len() == 1);
    ensure!(outer_resets(&scene.guest)?.len() == 1, "{}", scene.daemon.log().text());
    let row = vm(&scene.daemon, name)?;
    ensure!(row["restarts_in_window"] == 1, "{row}");
    Ok(())
}

fn is_over(reason: &str) -> bool {
    reason.contains("has written nothing for 60 s")
}
