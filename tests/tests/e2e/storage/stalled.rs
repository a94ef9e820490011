//! A store that stalls is the host's fault: the VM is held for as long as it lasts, whatever its guest looks
//! like, and judged again afterwards.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    daemon::Daemon,
    guest::Guest,
    interrupt,
    store::{FileSystem, FuseExport, LoopDevice},
};
use serde_json::Value;

use super::{
    figures::Shown,
    machine::{
        Bus, DISK_BYTES, fill, machine, qemu_io, record, wait_for_record, wait_for_requests,
    },
};
use crate::{
    counts::observer,
    rig::{Rig, vm, wait_for_incident, wait_for_vm},
};

/// Silence before a VM is suspected; a halted guest is convicted some seconds later.
const FLAT_FOR: Duration = Duration::from_secs(2);
/// How long the store stalls: a guest that is halted would be convicted meanwhile, and one is, afterwards.
const STALLED_FOR: Duration = Duration::from_secs(8);
/// Requests that are in flight meanwhile.
const REQUESTS: u64 = 3;

/// A FUSE export whose server is stopped.
pub(super) fn behind_fuse() -> Result<Option<String>> {
    if let Some(why) = FuseExport::refusal() {
        return Ok(Some(why));
    }
    let rig = Rig::new()?;
    let export = FuseExport::new(rig.dir(), "export", DISK_BYTES)?;
    let device = LoopDevice::new(export.path(), DISK_BYTES, false)?;
    stalls(&rig, &device, || export.stop())?;
    Ok(None)
}

/// A file system that is frozen.
pub(super) fn behind_a_frozen_file_system() -> Result<()> {
    let rig = Rig::new()?;
    let file_system = FileSystem::new("ext4", rig.dir(), 64 << 20, false)?;
    let device = LoopDevice::new(&file_system.path().join("device.raw"), DISK_BYTES, false)?;
    stalls(&rig, &device, || file_system.freeze())
}

/// Lets a VM on `device` have requests in flight that do not complete for as long as what `stall` returns lives.
fn stalls<T>(rig: &Rig, device: &LoopDevice, stall: impl FnOnce() -> Result<T>) -> Result<()> {
    // A guest that is as dead as any once it has done this.
    fill(device.path(), &record(4, 4))?;
    let options = "format=raw,cache=none,aio=native";
    let guest = machine(rig, "stalls", device.path(), options, Bus::Virtio)?.start()?;
    let mut config = observer(rig)?;
    config.flat_for = FLAT_FOR;
    config.boot_grace = Duration::from_secs(1);
    let daemon = rig.daemon(&config)?;
    let guests = [guest];
    let guest = &guests[0];
    Shown::first(&daemon, &guests)?;
    guest.qmp("cont", &Value::Null)?;
    wait_for_record(guest, 4, 4)?;

    let stalled = stall()?;
    // What is written goes down to the file, while what is read may lie in the page cache.
    for turn in 0..REQUESTS {
        qemu_io(guest, &format!("aio_write {} 64k", turn << 16))?;
    }
    watch(&daemon, guest)?;
    drop(stalled);

    let what = "alive again";
    let row = wait_for_vm(&daemon, guest.name(), what, Duration::from_secs(10), |row| {
        row["state"] == "alive" && row["storage"]["in_flight"] == 0
    })?;
    println!("{}: {}", row["state"], row["reason"]);
    ensure!(row["storage"]["oldest_in_flight_seconds"].is_null(), "{row}");
    ensure!(row["storage"]["failed_ops"] == 0, "{row}");
    ensure!(daemon.incidents()?.is_empty(), "{:?}", daemon.incidents()?);
    wait_for_requests(guest, "all are done", |done| {
        done.failed_ops == 0 && done.write_ops == 4 + REQUESTS
    })?;
    // It was the stall alone that held the verdict back.
    let begin = Instant::now();
    wait_for_incident(&daemon, guest.name(), "convicted", STALLED_FOR * 2, |incident| {
        incident["cause"] == "halted"
    })?;
    println!("convicted {:.1} s later", begin.elapsed().as_secs_f64());
    Ok(())
}

/// Looks at what is shown while the store is stalled.
fn watch(daemon: &Daemon, guest: &Guest) -> Result<()> {
    let begin = Instant::now();
    let held = |row: &Value| {
        let reason = row["reason"].as_str().unwrap_or_default();
        row["state"] == "held" && reason.contains("the host's storage is stalled")
    };
    let mut row = wait_for_vm(daemon, guest.name(), "held", Duration::from_secs(5), held)?;
    let mut age = 0.0;
    while begin.elapsed() < STALLED_FOR {
        ensure!(held(&row), "{row}");
        ensure!(row["storage"]["in_flight"] == REQUESTS, "{row}");
        let oldest = row["storage"]["oldest_in_flight_seconds"].as_f64();
        let oldest = oldest.with_context(|| format!("no age: {row}"))?;
        ensure!(oldest >= age, "it was {age} s: {row}");
        age = oldest;
        interrupt::sleep(Duration::from_millis(500))?;
        row = vm(daemon, guest.name())?;
    }
    println!("{} for {age:.1} s", row["reason"]);
    // A reading is up to a second old.
    ensure!(age > STALLED_FOR.as_secs_f64() - 2.0, "only {age} s: {row}");
    ensure!(daemon.incidents()?.is_empty(), "{:?}", daemon.incidents()?);
    Ok(())
}
