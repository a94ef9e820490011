//! Buffered I/O: what a guest writes is in the host's page cache first, and another task submits it later.
//! The bytes are the VM's all the same, once, wherever the file is.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    guest::Guest,
    store::{FileSystem, LoopDevice},
};
use rustix::fs::{Advice, fadvise};

use super::{
    figures::{Charged, OfQemu, Shown, ensure_close},
    machine::{Bus, fill, machine, qemu_io, wait_for_requests},
};
use crate::{counts::observer, rig::Rig};

/// Bytes of each write.
const WRITE: u64 = 64 << 10;

/// A configuration of the table.
struct Row {
    name: &'static str,
    image: PathBuf,
    cache: &'static str,
}

impl Row {
    fn new(name: &'static str, image: &Path, cache: &'static str) -> Self {
        Self { name, image: image.to_owned(), cache }
    }
}

/// A file, block devices, and a file on a file system on a block device.
pub(super) fn table() -> Result<()> {
    let rig = Rig::new()?;
    let device = LoopDevice::new(&rig.dir().join("device.raw"), 16 << 20, false)?;
    let direct = LoopDevice::new(&rig.dir().join("direct.raw"), 16 << 20, true)?;
    // The device hands the pages of the file above it on to the one below.
    let stacked = FileSystem::new("ext4", rig.dir(), 64 << 20, true)?;
    compare(
        &rig,
        &[
            Row::new("file", &rig.dir().join("file.raw"), "writeback"),
            Row::new("file-through", &rig.dir().join("through.raw"), "writethrough"),
            Row::new("device", device.path(), "writeback"),
            Row::new("device-direct", direct.path(), "writeback"),
            Row::new("stacked", &stacked.path().join("stacked.raw"), "writeback"),
        ],
    )
}

/// Files on a file system of another kind.
pub(super) fn on(kind: &str) -> Result<Option<String>> {
    if let Some(why) = FileSystem::refusal(kind) {
        return Ok(Some(why));
    }
    let rig = Rig::new()?;
    let file_system = FileSystem::new(kind, rig.dir(), 512 << 20, true)?;
    let image = |name: &str| file_system.path().join(name);
    compare(
        &rig,
        &[
            Row::new("back", &image("back"), "writeback"),
            Row::new("through", &image("through"), "writethrough"),
        ],
    )?;
    Ok(None)
}

/// Writes to all of them at the same time, a different amount to each, has that written back, and compares.
fn compare(rig: &Rig, rows: &[Row]) -> Result<()> {
    let mut guests = Vec::new();
    for row in rows {
        fill(&row.image, &[])?;
        let options = format!("format=raw,aio=threads,cache={}", row.cache);
        guests.push(machine(rig, row.name, &row.image, &options, Bus::Virtio)?.start()?);
    }
    let daemon = rig.daemon(&observer(rig)?)?;
    let shown_before = Shown::first(&daemon, &guests)?;
    let charged_before = guests.iter().map(Charged::to).collect::<Result<Vec<_>>>()?;
    let writes: Vec<u64> = (0..).map(|n| 20 + 7 * n).take(rows.len()).collect();
    for turn in 0..writes.iter().copied().max().unwrap_or_default() {
        for (guest, writes) in guests.iter().zip(&writes) {
            if turn < *writes {
                qemu_io(guest, &format!("aio_write -P {} {} {WRITE}", turn + 1, turn * WRITE))?;
            }
        }
    }
    for (guest, writes) in guests.iter().zip(&writes) {
        wait_for_requests(guest, "the writes", |done| done.write_ops == *writes)?;
    }
    for row in rows {
        // By this process, which has nothing to do with any of the VMs.
        File::options().write(true).open(&row.image)?.sync_all()?;
    }
    let shown_after = Shown::quiet(&daemon, &guests)?;
    let mut wrong = Vec::new();
    for (n, (row, guest)) in rows.iter().zip(&guests).enumerate() {
        let shown = shown_after[n].since(shown_before[n]);
        let charged = Charged::to(guest)?.since(charged_before[n]);
        println!("{}: {} writes: {shown:?}; {charged:?}", row.name, writes[n]);
        if let Err(error) = check(row, guest, shown, charged, writes[n] * WRITE) {
            wrong.push(format!("{}: {error:#}: {shown:?}; {charged:?}", row.name));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

fn check(row: &Row, guest: &Guest, shown: Shown, charged: Charged, bytes: u64) -> Result<()> {
    let qemu = OfQemu::read(guest)?;
    ensure!(qemu.write_bytes == bytes, "the load: {qemu:?}");
    ensure_close("bytes written", shown.write_bytes, bytes)?;
    ensure!(charged.write_bytes >= bytes, "the kernel's account");
    if row.cache == "writethrough" {
        // QEMU waits for each write to be on the disk, and submits it itself.
        ensure!(shown.writeback_bytes == 0 && shown.flush_ops > 0, "QEMU's own writes");
    } else {
        // Some may have been written back by QEMU's own threads, where the kernel had them do so.
        ensure!(shown.writeback_bytes > 0 && shown.writeback_ops > 0, "no writes of others");
    }
    ensure!(shown.read_ops == 0 && shown.failed_ops == 0, "there was nothing else");
    shown.ensure_completed().context("completed")
}

/// What the page cache reads ahead of QEMU, it reads for the VM: no less than QEMU asked for, and as much as
/// the kernel charges.
pub(super) fn reads_ahead() -> Result<()> {
    const READS: u64 = 40;
    let rig = Rig::new()?;
    let image = rig.dir().join("image.raw");
    fill(&image, &[])?;
    fadvise(File::open(&image)?, 0, None, Advice::DontNeed)?;
    let options = "format=raw,aio=threads,cache=writeback";
    let guests = [machine(&rig, "reads", &image, options, Bus::Virtio)?.start()?];
    let daemon = rig.daemon(&observer(&rig)?)?;
    let before = (Shown::first(&daemon, &guests)?[0], Charged::to(&guests[0])?);
    for turn in 0..READS {
        // Not at the start, which QEMU has looked at.
        qemu_io(&guests[0], &format!("aio_read {} {WRITE}", (1 << 20) + turn * WRITE))?;
    }
    wait_for_requests(&guests[0], "the reads", |done| done.read_ops == READS)?;
    let shown = Shown::quiet(&daemon, &guests)?[0].since(before.0);
    let charged = Charged::to(&guests[0])?.since(before.1);
    println!("{shown:?}; {charged:?}");
    ensure!(shown.read_bytes >= READS * WRITE, "not all: {shown:?}");
    ensure!(shown.write_ops == 0, "{shown:?}");
    ensure_close("bytes read", shown.read_bytes, charged.read_bytes)?;
    shown.ensure_completed()
}
