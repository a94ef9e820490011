//! Machines whose disk is all that matters, and loads that are known to the byte.
//!
//! Two kinds of load: a boot sector that reads and writes through the firmware, and so through the disk's
//! own device model; and QEMU's own `qemu-io`, on a machine that may never have run an instruction.

use std::{
    fs::File,
    io::{Seek as _, SeekFrom, Write as _},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    boot_sector::BootSector,
    guest::{Accelerator, Guest, GuestConfig},
    interrupt,
};
use serde_json::json;

use super::figures::OfQemu;
use crate::rig::Rig;

/// The name that QEMU knows the disk by.
pub(crate) const DISK: &str = "disk0";
/// Size of the disks. The loads stay within its first 6 MiB.
pub(crate) const DISK_BYTES: u64 = 8 << 20;
/// Bytes of each of a boot record's requests.
pub(crate) const RECORD_REQUEST: u64 = 8 << 10;
/// Bytes of a sector.
pub(crate) const SECTOR: u64 = 512;
/// What a load may take on a busy machine.
pub(crate) const LOAD_LIMIT: Duration = Duration::from_secs(60);

/// What the disk hangs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bus {
    /// virtio-blk, served by QEMU's main thread.
    Virtio,
    /// virtio-blk, served by a thread of its own.
    VirtioOnIoThread,
    /// An IDE disk, served by whichever vCPU thread asks.
    Ide,
}

/// A machine with one disk, which boots from it once it is let go: it does not run by itself.
pub(crate) fn machine(
    rig: &Rig,
    name: &str,
    image: &Path,
    options: &str,
    bus: Bus,
) -> Result<GuestConfig> {
    let image = image.to_str().context("a path of the test's own is UTF-8")?;
    // Never booted: the disk comes first.
    let mut config = rig.boot_sector(name, BootSector::CliHlt, Accelerator::Tcg);
    let mut add = |words: &[&str]| config.extra_args.extend(words.iter().map(|&word| word.into()));
    add(&["-S", "-drive", &format!("file={image},if=none,id={DISK},{options}")]);
    match bus {
        Bus::Virtio => add(&["-device", &format!("virtio-blk-pci,drive={DISK},bootindex=1")]),
        Bus::VirtioOnIoThread => {
            add(&["-object", "iothread,id=io0"]);
            add(&["-device", &format!("virtio-blk-pci,drive={DISK},iothread=io0,bootindex=1")]);
        }
        Bus::Ide => add(&["-device", &format!("ide-hd,bus=ide.1,drive={DISK},bootindex=1")]),
    }
    Ok(config)
}

/// Fills an image or a device with real blocks, the first of which boots: reads of a hole never reach the
/// block layer, and a first write into one makes the file system write of its own.
pub(crate) fn fill(image: &Path, first_sector: &[u8]) -> Result<()> {
    let mut file = File::options().create(true).truncate(false).write(true).open(image)?;
    let mut content = vec![0x5a; usize::try_from(DISK_BYTES)?];
    content[..first_sector.len()].copy_from_slice(first_sector);
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&content)?;
    file.sync_all().with_context(|| format!("cannot fill {}", image.display()))
}

/// A boot record that reads `reads` times 8 KiB from the disk that it was booted from, then writes `writes`
/// times as much behind them, one request at a time, and halts for good.
pub(crate) fn record(reads: u16, writes: u16) -> Vec<u8> {
    let [reads_low, reads_high] = reads.to_le_bytes();
    let [writes_low, writes_high] = writes.to_le_bytes();
    #[rustfmt::skip]
    let code = [
        // cli; ds = ss = 0; sp = 0x7c00; sti. The firmware leaves the disk's number in dl.
        0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, 0xfb,
        // cx = reads. Each turn: ah = 0x42 (extended read), call `one`, loop.
        0xb9, reads_low, reads_high, 0xb4, 0x42, 0xe8, 0x11, 0x00, 0xe2, 0xf9,
        // cx = writes. Each turn: ax = 0x4300 (extended write), call `one`, loop.
        0xb9, writes_low, writes_high, 0xb8, 0x00, 0x43, 0xe8, 0x06, 0x00, 0xe2, 0xf8,
        // stop: cli; hlt; jmp stop.
        0xfa, 0xf4, 0xeb, 0xfc,
        // one: si = packet; int 0x13; jc stop; add word [packet + 8], 16; ret.
        0xbe, 0x31, 0x7c, 0xcd, 0x13, 0x72, 0xf5, 0x83, 0x06, 0x39, 0x7c, 0x10, 0xc3,
        // packet: 16 bytes long; 16 sectors, to or from 0:0x8000, at sector 64 to begin with.
        0x10, 0x00, 0x10, 0x00, 0x00, 0x80, 0x00, 0x00, 0x40, 0, 0, 0, 0, 0, 0, 0,
    ];
    let mut sector = vec![0; 512];
    sector[..code.len()].copy_from_slice(&code);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

/// Waits until a boot record has done all that [`record`] says it does. The firmware reads and writes an IDE
/// disk sector by sector, so that only bytes tell.
pub(crate) fn wait_for_record(guest: &Guest, reads: u64, writes: u64) -> Result<()> {
    wait_for_requests(guest, &format!("{reads} reads and {writes} writes"), |done| {
        // It has read the record itself as well.
        done.read_bytes > reads * RECORD_REQUEST && done.write_bytes >= writes * RECORD_REQUEST
    })
}

/// Has QEMU do something with the disk itself. What `aio_read` and `aio_write` do counts in `query-blockstats`
/// like a guest's requests, and ends later; other commands have ended when this returns, and don't count
/// there. (`aio_flush` flushes nothing: it waits for the others.)
pub(crate) fn qemu_io(guest: &Guest, command: &str) -> Result<()> {
    let line = json!({ "command-line": format!("qemu-io {DISK} \"{command}\"") });
    let said = guest.qmp("human-monitor-command", &line)?;
    ensure!(said == "", "{}: {command}: {said}", guest.name());
    Ok(())
}

/// Waits until what QEMU says of its disk is what is wanted.
pub(crate) fn wait_for_requests(
    guest: &Guest,
    what: &str,
    wanted: impl Fn(OfQemu) -> bool,
) -> Result<()> {
    interrupt::wait_until(&format!("{}: {what}", guest.name()), LOAD_LIMIT, || {
        Ok(wanted(OfQemu::read(guest)?).then_some(()))
    })
}
