//! VMs that share something are never mixed up: a file system, a device, a backing file.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{command, guest::Guest, interrupt, store::FileSystem};

use super::{
    figures::{OfQemu, Shown, ensure_close},
    machine::{Bus, fill, machine, qemu_io, wait_for_requests},
};
use crate::{counts::observer, rig::Rig};

/// Bytes of each request.
const REQUEST: u64 = 64 << 10;

/// Has each guest carry out so many of `command`, in turn, at the same time.
fn in_turn(guests: &[Guest], amounts: &[u64], command: &str) -> Result<()> {
    for turn in 0..amounts.iter().copied().max().unwrap_or_default() {
        for (guest, amount) in guests.iter().zip(amounts) {
            if turn < *amount {
                qemu_io(guest, &format!("{command} {} {REQUEST}", turn * REQUEST))?;
            }
        }
    }
    Ok(())
}

/// Two in direct I/O and two in buffered, all writing to one file system on one device at the same time.
pub(super) fn on_one_file_system() -> Result<()> {
    let rig = Rig::new()?;
    let file_system = FileSystem::new("ext4", rig.dir(), 128 << 20, false)?;
    let kinds = [
        ("direct-1", "cache=none,aio=native"),
        ("direct-2", "cache=none,aio=threads"),
        ("buffered-1", "cache=writeback,aio=threads"),
        ("buffered-2", "cache=writeback,aio=threads"),
    ];
    let mut guests = Vec::new();
    for (name, options) in kinds {
        let image = file_system.path().join(name);
        fill(&image, &[])?;
        let options = format!("format=raw,{options}");
        guests.push(machine(&rig, name, &image, &options, Bus::Virtio)?.start()?);
    }
    let daemon = rig.daemon(&observer(&rig)?)?;
    let before = Shown::first(&daemon, &guests)?;
    let amounts = [23, 37, 51, 68];
    in_turn(&guests, &amounts, "aio_write -P 7")?;
    for (guest, amount) in guests.iter().zip(amounts) {
        wait_for_requests(guest, "its writes", |done| done.write_ops == amount)?;
    }
    // The kernel's own workers write back: they belong to no VM.
    file_system.sync()?;
    let after = Shown::quiet(&daemon, &guests)?;
    for (((kind, before), after), amount) in kinds.iter().zip(before).zip(after).zip(amounts) {
        let (name, shown) = (kind.0, after.since(before));
        println!("{name}: {amount} writes: {shown:?}");
        if name.starts_with("direct") {
            ensure!(shown.write_ops == amount, "{name}: {amount} writes, and not {shown:?}");
            ensure!(shown.write_bytes == amount * REQUEST, "{name}: {shown:?}");
            ensure!(shown.writeback_ops == 0, "{name}: {shown:?}");
        } else {
            ensure_close(name, shown.write_bytes, amount * REQUEST)?;
            ensure!(shown.writeback_bytes == shown.write_bytes, "{name}: {shown:?}");
        }
        ensure!(shown.read_ops == 0, "{name}: {shown:?}");
        shown.ensure_completed().context(name)?;
    }
    Ok(())
}

/// Two overlays on one backing file: each VM that reads it, reads it for itself.
pub(super) fn on_one_backing_file() -> Result<()> {
    let rig = Rig::new()?;
    let base = rig.dir().join("base.raw");
    fill(&base, &[])?;
    let names = ["overlay-1", "overlay-2"];
    let mut guests = Vec::new();
    for name in names {
        let image = rig.dir().join(name);
        make_overlay(&base, &image)?;
        let options = "format=qcow2,cache=none,aio=native";
        guests.push(machine(&rig, name, &image, options, Bus::Virtio)?.start()?);
    }
    let daemon = rig.daemon(&observer(&rig)?)?;
    let before = Shown::first(&daemon, &guests)?;
    let amounts = [31, 57];
    in_turn(&guests, &amounts, "aio_read")?;
    for (guest, amount) in guests.iter().zip(amounts) {
        wait_for_requests(guest, "its reads", |done| done.read_ops == amount)?;
    }
    let after = Shown::quiet(&daemon, &guests)?;
    for ((guest, (before, after)), amount) in
        guests.iter().zip(before.into_iter().zip(after)).zip(amounts)
    {
        let shown = after.since(before);
        let qemu = OfQemu::read(guest)?;
        println!("{}: {shown:?}; {qemu:?}", guest.name());
        // Nothing was ever written to the overlays, so that all of it comes from the base.
        let expected = Shown {
            read_ops: amount,
            read_bytes: amount * REQUEST,
            completed_ops: shown.completed_ops,
            ..Shown::default()
        };
        ensure!(shown == expected, "{}: {shown:?}, and not {expected:?}", guest.name());
        ensure!(qemu.read_bytes == amount * REQUEST, "{}: {qemu:?}", guest.name());
        shown.ensure_completed().context(names[0])?;
    }
    Ok(())
}

/// Files that the kernel numbers alike, as btrfs does in its subvolumes: what is written back to them is told
/// to be no VM's, rather than one's that may have done nothing; until only one has such a file.
pub(super) fn numbered_alike() -> Result<Option<String>> {
    if let Some(why) = FileSystem::refusal("btrfs") {
        return Ok(Some(why));
    }
    let rig = Rig::new()?;
    let file_system = FileSystem::new("btrfs", rig.dir(), 512 << 20, false)?;
    let names = ["alike-1", "alike-2"];
    let mut guests = Vec::new();
    let mut numbers = Vec::new();
    for name in names {
        let subvolume = file_system.path().join(name);
        let words = ["subvolume", "create"].map(AsRef::as_ref);
        command::run("btrfs", words.into_iter().chain([subvolume.as_os_str()]))?;
        let image = subvolume.join("image.raw");
        fill(&image, &[])?;
        numbers.push(fs::metadata(&image)?.ino());
        let options = "format=raw,cache=writeback,aio=threads";
        guests.push(machine(&rig, name, &image, options, Bus::Virtio)?.start()?);
    }
    ensure!(numbers[0] == numbers[1], "not alike: {numbers:?}");
    let daemon = rig.daemon(&observer(&rig)?)?;
    let before = Shown::first(&daemon, &guests)?;
    in_turn(&guests[1..], &[20], "aio_write -P 9")?;
    wait_for_requests(&guests[1], "its writes", |done| done.write_ops == 20)?;
    file_system.sync()?;
    let after = Shown::quiet(&daemon, &guests)?;
    for (n, other) in [(0, names[1]), (1, names[0])] {
        let shown = after[n].since(before[n]);
        println!("{}: {shown:?}", names[n]);
        // What QEMU itself submits is its own in any case.
        ensure!(shown.writeback_ops == 0, "{}: {shown:?}", names[n]);
        let said = daemon.show(names[n])?;
        let unseen = said["unseen_storage"].as_str().context("nothing is said")?;
        ensure!(unseen.contains(other), "{}: {unseen}", names[n]);
    }
    guests.pop();
    interrupt::wait_until("the other to be gone", Duration::from_secs(10), || {
        Ok(daemon.show(names[0])?["unseen_storage"].is_null().then_some(()))
    })?;
    in_turn(&guests, &[30], "aio_write -P 9")?;
    wait_for_requests(&guests[0], "its writes", |done| done.write_ops == 30)?;
    file_system.sync()?;
    let shown = Shown::quiet(&daemon, &guests)?[0].since(after[0]);
    println!("{}: {shown:?}", names[0]);
    ensure_close(names[0], shown.write_bytes, 30 * REQUEST)?;
    Ok(None)
}

fn make_overlay(base: &Path, overlay: &Path) -> Result<()> {
    let words = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"].map(AsRef::as_ref);
    let paths = [base.as_os_str(), overlay.as_os_str()];
    command::run("qemu-img", words.into_iter().chain(paths)).map(drop)
}
