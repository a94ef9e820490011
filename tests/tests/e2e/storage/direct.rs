//! Direct I/O: each request of the guest is one to the block layer, and counted as that.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    guest::{Guest, GuestConfig},
    store::{FileSystem, LoopDevice},
};
use rustix::fs::{Advice, fadvise};
use serde_json::Value;

use super::{
    figures::{Charged, OfQemu, Shown},
    machine::{Bus, RECORD_REQUEST, SECTOR, fill, machine, record, wait_for_record},
};
use crate::{
    counts::{observer, refusal},
    rig::Rig,
};

/// A configuration of the table.
struct Row {
    name: String,
    image: PathBuf,
    options: String,
    bus: Bus,
    /// Whether QEMU follows each write with a flush of its own, because it was told to, or because the
    /// firmware does not claim to do so itself (`VIRTIO_BLK_F_FLUSH`).
    flushes: bool,
    /// Whether the image is a block device.
    is_device: bool,
    /// Whether the file system reads whole blocks only, and keeps them in the page cache even in direct I/O.
    whole_blocks: bool,
}

impl Row {
    fn new(name: &str, image: &Path, cache: &str, aio: &str, bus: Bus) -> Self {
        Self {
            name: name.to_owned(),
            image: image.to_owned(),
            options: format!("format=raw,cache={cache},aio={aio}"),
            bus,
            flushes: cache == "directsync" || bus != Bus::Ide,
            is_device: image.starts_with("/dev"),
            whole_blocks: false,
        }
    }
}

/// All that there is with one `aio=`, on a file of the host's own file system.
pub(super) fn with_aio(aio: &str) -> Result<Option<String>> {
    let rig = Rig::new()?;
    let mut rows = Vec::new();
    for (cache, bus) in [
        ("none", Bus::Virtio),
        ("none", Bus::VirtioOnIoThread),
        ("none", Bus::Ide),
        ("directsync", Bus::Virtio),
        ("directsync", Bus::VirtioOnIoThread),
        ("directsync", Bus::Ide),
    ] {
        let name = format!("{cache}-{bus:?}").to_lowercase();
        let image = rig.dir().join(format!("{name}.raw"));
        rows.push(Row::new(&name, &image, cache, aio, bus));
    }
    fill(&rows[0].image, &[])?;
    if let Some(why) = refusal(aio, &rows[0].image)? {
        return Ok(Some(why));
    }
    table(&rig, &rows)?;
    Ok(None)
}

/// A block device, and a file on a file system on a block device that is itself a file: each request is
/// counted where QEMU submits it, and not once more a layer below.
pub(super) fn on_block_devices() -> Result<()> {
    let rig = Rig::new()?;
    let buffered = LoopDevice::new(&rig.dir().join("buffered.raw"), 16 << 20, false)?;
    let direct = LoopDevice::new(&rig.dir().join("direct.raw"), 16 << 20, true)?;
    let ide = LoopDevice::new(&rig.dir().join("ide.raw"), 16 << 20, true)?;
    let below = FileSystem::new("ext4", rig.dir(), 64 << 20, true)?;
    let file = below.path().join("stacked.raw");
    table(
        &rig,
        &[
            Row::new("device-native", buffered.path(), "none", "native", Bus::Virtio),
            Row::new("device-threads", direct.path(), "none", "threads", Bus::VirtioOnIoThread),
            Row::new("device-ide", ide.path(), "none", "native", Bus::Ide),
            Row::new("file-on-device", &file, "none", "native", Bus::VirtioOnIoThread),
        ],
    )
}

/// A file on a file system of another kind.
pub(super) fn on(kind: &str) -> Result<Option<String>> {
    if let Some(why) = FileSystem::refusal(kind) {
        return Ok(Some(why));
    }
    let rig = Rig::new()?;
    let file_system = FileSystem::new(kind, rig.dir(), 512 << 20, false)?;
    let image = |name: &str| file_system.path().join(name);
    let mut rows = [
        Row::new("native", &image("native"), "none", "native", Bus::VirtioOnIoThread),
        Row::new("threads", &image("threads"), "none", "threads", Bus::Virtio),
    ];
    for row in &mut rows {
        row.whole_blocks = kind == "btrfs";
    }
    table(&rig, &rows)?;
    Ok(None)
}

/// A QEMU whose program comes from the disk page by page while its guest reads.
pub(super) fn by_a_program_that_is_read_itself() -> Result<()> {
    let rig = Rig::new()?;
    let image = rig.dir().join("cold.raw");
    let (reads, writes) = (150, 110);
    fill(&image, &record(reads, writes))?;
    let mut config =
        machine(&rig, "cold", &image, "format=raw,cache=none,aio=threads", Bus::Virtio)?;
    // Not a link: nothing else is to have used its pages, nor are many to come at once.
    let file_system = FileSystem::new("ext4", rig.dir(), 128 << 20, false)?;
    file_system.set_read_ahead(4)?;
    config.executable = file_system.path().join("cold-qemu");
    let executables = vec![config.executable.display().to_string()];
    fs::copy(fs::canonicalize(&rig.qemu)?, &config.executable)?;
    let program = File::open(&config.executable)?;
    program.sync_all()?;
    fadvise(&program, 0, None, Advice::DontNeed)?;
    let guests = [config.start()?];
    let mut config = observer(&rig)?;
    config.executables = executables;
    let daemon = rig.daemon(&config)?;
    let before = (Shown::first(&daemon, &guests)?[0], Charged::to(&guests[0])?);
    guests[0].qmp("cont", &Value::Null)?;
    wait_for_record(&guests[0], reads.into(), writes.into())?;
    let shown = Shown::quiet(&daemon, &guests)?[0].since(before.0);
    let charged = Charged::to(&guests[0])?.since(before.1);
    let qemu = OfQemu::read(&guests[0])?;
    println!("{shown:?}; {qemu:?}; {charged:?}");
    ensure!(charged.read_bytes > qemu.read_bytes, "none of it was read: {charged:?}, {qemu:?}");
    ensure!(shown.read_bytes == qemu.read_bytes, "{qemu:?}, and not {shown:?}");
    ensure!(shown.read_ops == qemu.read_ops, "{qemu:?}, and not {shown:?}");
    ensure!(shown.write_bytes == qemu.write_bytes, "{qemu:?}, and not {shown:?}");
    Ok(())
}

/// Lets all machines of a table run at the same time, each with a load of its own, so that none can pass for
/// another, and compares.
fn table(rig: &Rig, rows: &[Row]) -> Result<()> {
    let loads: Vec<(u16, u16)> =
        (0..).map(|n| (100 + 7 * n, 90 + 9 * n)).take(rows.len()).collect();
    let mut guests = Vec::new();
    for (row, (reads, writes)) in rows.iter().zip(&loads) {
        fill(&row.image, &record(*reads, *writes))?;
        let config: GuestConfig = machine(rig, &row.name, &row.image, &row.options, row.bus)?;
        guests.push(config.start()?);
    }
    // They halt for good when they are done, which is not what is looked at here.
    let daemon = rig.daemon(&observer(rig)?)?;
    let shown_before = Shown::first(&daemon, &guests)?;
    let charged_before = guests.iter().map(Charged::to).collect::<Result<Vec<_>>>()?;
    for guest in &guests {
        guest.qmp("cont", &Value::Null)?;
    }
    for (guest, (reads, writes)) in guests.iter().zip(&loads) {
        wait_for_record(guest, u64::from(*reads), u64::from(*writes))?;
    }
    let shown_after = Shown::quiet(&daemon, &guests)?;
    let mut wrong = Vec::new();
    for (n, guest) in guests.iter().enumerate() {
        let counted = Counted {
            shown: shown_after[n].since(shown_before[n]),
            qemu: OfQemu::read(guest)?,
            charged: Charged::to(guest)?.since(charged_before[n]),
        };
        let (row, (reads, writes)) = (&rows[n], loads[n]);
        println!("{} {}: {counted:?}", row.name, row.options);
        let checked = check(row, counted, reads.into(), writes.into())
            .and_then(|()| check_thread(row, guest, counted));
        if let Err(error) = checked {
            wrong.push(format!("{}: {error:#}: {counted:?}", row.name));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// One load by three accounts.
#[derive(Clone, Copy, Debug)]
struct Counted {
    shown: Shown,
    qemu: OfQemu,
    charged: Charged,
}

fn check(row: &Row, counted: Counted, reads: u64, writes: u64) -> Result<()> {
    let Counted { shown, qemu, charged } = counted;
    // The load is what it was to be. The firmware has read sectors of its own, the record among them, and takes
    // an IDE disk one sector at a time.
    let requests = if row.bus == Bus::Ide { RECORD_REQUEST / SECTOR } else { 1 };
    ensure!(qemu.write_ops == writes * requests, "the writes");
    ensure!(qemu.write_bytes == writes * RECORD_REQUEST, "the bytes written");
    let firmware = qemu.read_ops - reads * requests;
    ensure!(qemu.read_bytes == reads * RECORD_REQUEST + firmware * SECTOR, "the reads");

    ensure!(shown.write_ops == qemu.write_ops && shown.write_bytes == qemu.write_bytes, "writes");
    if row.whole_blocks {
        // A sector becomes a block of 4 KiB, or is in the page cache.
        let allowed = firmware * 4096;
        ensure!(shown.read_ops.abs_diff(qemu.read_ops) <= firmware, "reads");
        ensure!(shown.read_bytes.abs_diff(qemu.read_bytes) <= allowed, "bytes read");
    } else {
        ensure!(shown.read_ops == qemu.read_ops && shown.read_bytes == qemu.read_bytes, "reads");
    }
    // The kernel charges QEMU with its own program's pages, and with a file system's, on top.
    ensure!(charged.read_bytes >= shown.read_bytes, "the kernel's account");
    ensure!(charged.write_bytes >= shown.write_bytes, "the kernel's account");
    let flushes = if row.flushes { qemu.write_ops } else { 0 };
    // A file system that writes its journal just then flushes by that.
    let least = if row.is_device { flushes } else { flushes - flushes / 10 };
    ensure!((least..=flushes).contains(&shown.flush_ops), "flushes, of {flushes}");
    let nothing = [shown.writeback_ops, shown.discard_ops, shown.failed_ops];
    ensure!(nothing == [0; 3], "there was nothing else");
    shown.ensure_completed().context("completed")
}

/// That it was the disk's own thread that submitted, where the row wants one. With `threads` and
/// `io_uring`, others may submit for it.
fn check_thread(row: &Row, guest: &Guest, counted: Counted) -> Result<()> {
    if row.bus != Bus::VirtioOnIoThread || !row.options.contains("aio=native") || row.whole_blocks {
        return Ok(());
    }
    let threads = guest.qmp("query-iothreads", &Value::Null)?;
    let tid = threads[0]["thread-id"].as_u64().context("no iothread")?;
    let thread = Charged::to_thread(guest, tid)?;
    // The kernel may charge it with what a file system noted of its writes as well.
    ensure!(thread.write_bytes >= counted.shown.write_bytes, "by the iothread: {thread:?}");
    Ok(())
}
