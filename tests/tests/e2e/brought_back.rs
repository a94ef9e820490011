//! Every crash is found in time, and answered with a restart of that guest alone.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    boot_sector::BootSector,
    broadcast::Broadcast,
    daemon::Daemon,
    guest::{Accelerator, Guest},
    interrupt::{sleep, wait_until},
    qmp::time_of,
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::rig::{
    BOOT_LIMIT, Crash, FLAT_FOR, Load, MARGIN, Rig, boot_all, boot_watched, check_restart,
    incidents_of, skippable_trial_with, trial, trial_with, vm, wait_for_incident,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial_with(
            Load::Spins(4),
            "linux_guests_that_crash_come_back_and_their_neighbours_are_left_alone",
            linux,
        ),
        trial("a_guest_that_reports_its_panic_is_reset_within_a_second", pvpanic),
        trial_with(Load::Spins(2), "crashed_boot_sectors_are_reset_under_tcg", || {
            boot_sectors(Accelerator::Tcg)
        }),
        skippable_trial_with(Load::Spins(2), "crashed_boot_sectors_are_reset_under_kvm", || {
            match kvm()? {
                None => boot_sectors(Accelerator::Kvm).map(|()| None),
                why => Ok(why),
            }
        }),
    ]
}

/// Waits for the restart of `guest` that answers the crash at `crashed`, and checks what is said of it.
fn check_incident(daemon: &Daemon, guest: &Guest, cause: &str, crash: &Crash) -> Result<()> {
    let name = guest.name();
    let incident = check_restart(daemon, guest, crash)?;
    // To the microsecond by QEMU's own account.
    let took = time_of_event(&guest.events()?, "RESET")?.duration_since(crash.at)?;
    println!("{name}: {cause}: reset {took:.1?} after the crash: {}", incident["reason"]);
    let limit = crash.allowed(FLAT_FOR + MARGIN, daemon, guest)?;
    ensure!(took <= limit, "{name}: reset only after {took:?}: {incident}");
    ensure!(incident["cause"] == cause, "{name}: cause of {incident}");
    ensure!(
        incident["action"].as_str().is_some_and(|action| action.starts_with("system_reset")),
        "{name}: action of {incident}"
    );
    ensure!(!incident["last_sign_of_life"].is_null() && incident["detect_seconds"].is_f64());
    Ok(())
}

/// When QEMU first reported such an event.
fn time_of_event(events: &[Value], name: &str) -> Result<SystemTime> {
    let event = events.iter().find(|event| event["event"] == name);
    time_of(event.with_context(|| format!("no {name} among {events:?}"))?)
}

/// Waits until the guest's own banner shows that it booted again, and its incident that it lives.
fn check_recovery(daemon: &Daemon, guest: &Guest) -> Result<()> {
    let name = guest.name();
    guest.wait_for_after(guest.log().start(), "FLATLINE-GUEST READY", BOOT_LIMIT)?;
    wait_until("the banner again", BOOT_LIMIT, || Ok((guest.banner_count() >= 2).then_some(())))?;
    let incident = wait_for_incident(daemon, name, "recovered", BOOT_LIMIT, |incident| {
        incident["outcome"] == "recovered"
    })?;
    ensure!(incident["recover_seconds"].is_f64() && !incident["recovered_at"].is_null());
    ensure!(incidents_of(daemon, name)?.len() == 1, "{name}: more than one incident");
    Ok(())
}

fn linux() -> Result<()> {
    let rig = Rig::new()?;
    let mut two = rig.linux("panics-on-two-vcpus", 2)?;
    two.vcpus = 2;
    two.debug_threads = false;
    let configs = [
        rig.linux("panics", 1)?,
        two,
        rig.linux("halts", 3)?,
        rig.linux("panics-in-a-storm", 4)?,
        rig.linux("idles", 5)?,
        rig.linux("computes", 6)?,
    ];
    let mut config = rig.daemon_config()?;
    // They boot before its eyes.
    config.boot_grace = Duration::from_secs(5);
    let daemon = rig.daemon(&config)?;
    let guests = boot_watched(&daemon, &configs)?;
    let [panics, two, halts, stormy, idles, computes] = &guests[..] else { unreachable!() };
    computes.run("compute 1", Duration::from_secs(10))?;
    // Long enough for every guest to have been asked once: each has shown life while it booted.
    sleep(FLAT_FOR * 2)?;

    let mut crashes = Vec::new();
    let storm = Broadcast::start(configs[3].tap.as_ref().unwrap_or_else(|| unreachable!()), 100)?;
    for (guest, command, cause) in [
        (halts, "halt", "halted"),
        (stormy, "panic", "spinning"),
        (two, "panic", "spinning"),
        (panics, "panic", "spinning"),
    ] {
        crashes.push((guest, cause, Crash::now(&daemon, guest)?));
        guest.send(command)?;
    }
    for (guest, cause, crash) in &crashes {
        check_incident(&daemon, guest, cause, crash)?;
    }
    drop(storm);
    for (guest, _, _) in &crashes {
        check_recovery(&daemon, guest)?;
    }
    for guest in [idles, computes] {
        ensure!(incidents_of(&daemon, guest.name())?.is_empty(), "{} was suspected", guest.name());
        ensure!(guest.banner_count() == 1, "{} was reset", guest.name());
        let row = vm(&daemon, guest.name())?;
        ensure!(row["cause"].is_null() && row["restarts_in_window"] == 0, "{row}");
    }
    Ok(())
}

fn pvpanic() -> Result<()> {
    let rig = Rig::new()?;
    let mut config = rig.linux("reports-its-panic", 1)?;
    config.pvpanic = true;
    config.traces_commands = true;
    config.extra_args.extend(["-action".into(), "panic=pause".into()]);
    let guests = boot_all(&[config])?;
    let daemon = rig.daemon(&rig.daemon_config()?)?;
    sleep(Duration::from_secs(3))?;
    guests[0].send("panic")?;
    let incident = wait_for_incident(
        &daemon,
        guests[0].name(),
        "reset",
        Duration::from_secs(10),
        |incident| !incident["action_at"].is_null(),
    )?;
    // The kernel says its last words to the console before it tells pvpanic: the second counts from QEMU's event. It
    // ends with the command, which QEMU takes 0.2 s to carry out.
    let took = guests[0].reset_after("GUEST_PANICKED", &guests[0].events()?)?;
    let took = took.context("QEMU tells no announcement, or no reset after it")?;
    println!("told to reset {took:.3?} after the announcement");
    ensure!(
        took < Duration::from_secs(1),
        "told to reset only {took:?} after the announcement: {incident}"
    );
    ensure!(incident["cause"] == "panicked", "{incident}");
    check_recovery(&daemon, &guests[0])
}

/// Why KVM runs no boot sector here, if so: it may be missing, or nested and unable to. It is tried once for all tests.
pub(crate) fn kvm() -> Result<Option<String>> {
    static TRIED: Mutex<Option<Option<String>>> = Mutex::new(None);
    let mut tried = TRIED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(why) = &*tried {
        return Ok(why.clone());
    }
    Ok(tried.insert(try_kvm()?).clone())
}

fn try_kvm() -> Result<Option<String>> {
    let rig = Rig::new()?;
    let booted = rig
        .boot_sector("tries-kvm", BootSector::StiHlt, Accelerator::Kvm)
        .start()
        .and_then(|guest| wait_for_boot_sector(&guest));
    Ok(booted.err().map(|error| format!("KVM runs no boot sector: {error:#}")))
}

fn boot_sectors(accelerator: Accelerator) -> Result<()> {
    let rig = Rig::new()?;
    let mut config = rig.daemon_config()?;
    config.boot_grace = Duration::from_secs(2);
    let daemon = rig.daemon(&config)?;
    let configs = [
        rig.boot_sector("cli-hlt", BootSector::CliHlt, accelerator),
        rig.boot_sector("cli-jmp", BootSector::CliJmp, accelerator),
    ];
    let healthy = [
        rig.boot_sector("sti-hlt", BootSector::StiHlt, accelerator),
        rig.boot_sector("sti-jmp", BootSector::StiJmp, accelerator),
    ];
    let guests = boot_all(&configs)?;
    let bystanders = boot_all(&healthy)?;
    let mut crashes = Vec::new();
    for guest in &guests {
        wait_for_boot_sector(guest)?;
        crashes.push(Crash::now(&daemon, guest)?);
    }
    check_incident(&daemon, &guests[0], "halted", &crashes[0])?;
    check_incident(&daemon, &guests[1], "spinning", &crashes[1])?;
    for guest in &bystanders {
        let incidents = incidents_of(&daemon, guest.name())?;
        ensure!(incidents.is_empty(), "{} was suspected: {incidents:?}", guest.name());
        vm(&daemon, guest.name())?;
    }
    Ok(())
}

/// Waits until the firmware has handed over to the boot sector.
fn wait_for_boot_sector(guest: &Guest) -> Result<()> {
    wait_until("the boot sector runs", BOOT_LIMIT, || {
        Ok(guest.runs_its_boot_sector()?.then_some(()))
    })
}
