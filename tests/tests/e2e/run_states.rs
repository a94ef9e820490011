//! What brings a crashed guest back depends on its run state and on what its QEMU was told to do at a reset; and one that
//! is left alone stays as it was.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    boot_sector::BootSector,
    daemon::Daemon,
    guest::{Accelerator, DiskConfig, Guest},
    interrupt::{sleep, wait_until},
    store::Memory,
};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::rig::{
    BOOT_LIMIT, FLAT_FOR, MARGIN, Rig, boot_all, incidents_of, outer_resets, trial,
    trial_that_may_skip, vm, wait_for_incident, wait_for_vm,
};

/// For a guest of a few bytes to be found dead, restarted, and seen alive.
const WITHIN: Duration = Duration::from_secs(60);

/// Longer than a guest that does nothing lives where it may be judged.
const A_WHILE: Duration = Duration::from_secs(2 * FLAT_FOR.as_secs() + 1);

/// Firmware resets the machine once more while it boots: until that is over, a reset must be one.
const PUT_BACK_AFTER: Duration = Duration::from_secs(10);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_qemu_that_would_end_or_stop_at_a_reset_is_brought_back_and_told_so_again", told),
        trial("a_dead_guest_that_somebody_paused_is_left_alone_until_it_runs_again", paused),
        trial("a_guest_whose_disk_was_full_goes_on_where_it_was_once_there_is_room", continued),
        trial_that_may_skip("a_guest_that_kvm_gave_up_is_restarted", gave_up),
    ]
}

fn row_is(state: &'static str) -> impl Fn(&Value) -> bool {
    move |row| row["state"] == state
}

fn recovered(daemon: &Daemon, name: &str) -> Result<Value> {
    wait_for_incident(daemon, name, "recovered", WITHIN, |incident| {
        incident["outcome"] == "recovered"
    })
}

fn told() -> Result<()> {
    let rig = Rig::new()?;
    // It ends at a reset.
    let mut ends = rig.boot_sector_on_disk("ends", BootSector::OnCommand)?;
    (ends.no_reboot, ends.traces_commands) = (true, true);
    // It stops at a reset, as at a panic.
    let mut stops = rig.boot_sector_on_disk("stops", BootSector::OnCommand)?;
    (stops.pvpanic, stops.traces_commands) = (true, true);
    let actions = "reboot=shutdown,shutdown=pause,panic=pause";
    stops.extra_args.extend(["-action".to_owned(), actions.to_owned()]);
    // It stops at everything but a panic, at which it runs on.
    let mut runs_on = rig.boot_sector_on_disk("runs-on", BootSector::OnCommand)?;
    (runs_on.pvpanic, runs_on.traces_commands) = (true, true);
    let actions = "reboot=shutdown,shutdown=pause,panic=none";
    runs_on.extra_args.extend(["-action".to_owned(), actions.to_owned()]);
    let guests = boot_all(&[ends, stops, runs_on])?;
    let daemon = rig.daemon(&rig.daemon_config()?)?;
    for guest in &guests {
        wait_for_vm(&daemon, guest.name(), "alive", WITHIN, row_is("alive"))?;
        guest.events()?;
    }
    let [ends, stops, runs_on] = &guests[..] else { unreachable!() };
    let crashes =
        [(ends, "h", "running"), (stops, "p", "guest-panicked"), (runs_on, "p", "running")];
    for (guest, word, _) in crashes {
        guest.send(word)?;
    }
    for (guest, _, run_state) in crashes {
        let incident = recovered(&daemon, guest.name())?;
        ensure!(incident["attempts"][0]["run_state"] == run_state, "{incident}");
        ensure!(outer_resets(guest)?.len() == 1 && guest.run_state()? == "running", "{incident}");
    }
    // A bare reset does what QEMU was told first, once the daemon has told it so again.
    for guest in &guests {
        wait_until("it to be told so again", PUT_BACK_AFTER + MARGIN, || {
            Ok((guest.times_taken("set-action")? == 2).then_some(()))
        })
        .with_context(|| format!("{}: {:?}", guest.name(), guest.times_taken("set-action")))?;
    }
    ends.qmp("system_reset", &Value::Null)?;
    ends.wait_for_exit(WITHIN)?;
    for guest in [stops, runs_on] {
        guest.qmp("system_reset", &Value::Null)?;
        wait_until("its run state", WITHIN, || {
            Ok((guest.run_state()? == "shutdown").then_some(()))
        })?;
        wait_for_vm(&daemon, guest.name(), "held", WITHIN, row_is("held"))?;
    }
    Ok(())
}

fn paused() -> Result<()> {
    let rig = Rig::new()?;
    let name = "paused";
    let guests = boot_all(&[rig.boot_sector_on_disk(name, BootSector::OnCommand)?])?;
    let guest: &Guest = &guests[0];
    let daemon = rig.daemon(&rig.daemon_config()?)?;
    wait_for_vm(&daemon, name, "alive", WITHIN, row_is("alive"))?;
    guest.events()?;
    guest.send("h")?;
    sleep(Duration::from_secs(1))?;
    guest.qmp("stop", &Value::Null)?;
    wait_for_vm(&daemon, name, "held", WITHIN, row_is("held"))?;
    sleep(A_WHILE)?;
    let row = vm(&daemon, name)?;
    ensure!(row["state"] == "held" && row["run_state"] == "paused", "{row}");
    ensure!(incidents_of(&daemon, name)?.is_empty() && guest.run_state()? == "paused");
    guest.qmp("cont", &Value::Null)?;
    recovered(&daemon, name)?;
    ensure!(outer_resets(guest)?.len() == 1, "{}", daemon.log().text());
    Ok(())
}

fn continued() -> Result<()> {
    let rig = Rig::new()?;
    let name = "was-full";
    let small = Memory::new(rig.dir(), 2 << 20)?;
    let mut config = rig.linux(name, 1)?;
    let mut disk = DiskConfig::new(small.path().join("disk.img"), 64 << 20);
    // A file system in memory may take no direct I/O.
    "writeback".clone_into(&mut disk.cache);
    disk.stops_at_errors = true;
    config.disk = Some(disk);
    let guests = boot_all(&[config])?;
    let guest = &guests[0];
    let daemon = rig.daemon(&rig.daemon_config()?)?;
    guest.send("disk-write 2048 4")?;
    wait_until("no room", BOOT_LIMIT, || Ok((guest.run_state()? == "io-error").then_some(())))?;
    wait_for_vm(&daemon, name, "held", WITHIN, row_is("held"))?;
    sleep(A_WHILE)?;
    let row = vm(&daemon, name)?;
    ensure!(row["state"] == "held" && row["run_state"] == "io-error", "{row}");
    small.resize(64 << 20)?;
    guest.qmp("cont", &Value::Null)?;
    guest.wait_for_after(guest.log().start(), "DONE disk-write", BOOT_LIMIT)?;
    wait_for_vm(&daemon, name, "alive", WITHIN, row_is("alive"))?;
    ensure!(outer_resets(guest)?.is_empty() && guest.banner_count() == 1, "it was reset");
    ensure!(incidents_of(&daemon, name)?.is_empty(), "{}", daemon.log().text());
    Ok(())
}

fn gave_up() -> Result<Option<String>> {
    let rig = Rig::new()?;
    let name = "gave-up";
    let mut config = rig.boot_sector(name, BootSector::NowhereJmp, Accelerator::Kvm);
    config.traces_commands = true;
    let daemon = rig.daemon(&rig.daemon_config()?)?;
    let guest = match config.start() {
        Ok(guest) => guest,
        Err(error) => return Ok(Some(format!("KVM runs no boot sector: {error:#}"))),
    };
    let gave_up = wait_until("KVM gives up", Duration::from_secs(15), || {
        Ok(incidents_of(&daemon, name)?.into_iter().find(|incident| {
            incident["cause"] == "internal-error" && incident["action_at"].is_string()
        }))
    });
    let registers = json!({ "command-line": "info registers" });
    match gave_up {
        Ok(incident) => {
            ensure!(incident["attempts"][0]["run_state"] == "internal-error", "{incident}");
            ensure!(!outer_resets(&guest)?.is_empty(), "{incident}");
            Ok(None)
        }
        // Not every KVM does.
        Err(_) if guest.run_state()? == "running" => {
            let text = guest.qmp("human-monitor-command", &registers)?;
            Ok(Some(format!("this KVM does not give up there: {text}")))
        }
        Err(error) => Err(error.context(daemon.log().text())),
    }
}
