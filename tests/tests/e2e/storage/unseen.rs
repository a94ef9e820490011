//! Storage that the block layer never sees is named, and not taken for a disk that does nothing.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{boot_sector::BootSector, guest::Accelerator, interrupt, store::FuseExport};
use tempfile::NamedTempFile;

use super::{
    figures::{OfQemu, Shown},
    machine::{Bus, DISK, DISK_BYTES, machine, qemu_io, wait_for_requests},
};
use crate::{
    counts::observer,
    rig::{MARGIN, Rig, incidents_of, vm, wait_for_incident},
};

/// Silence before a VM is suspected.
const FLAT_FOR: Duration = Duration::from_secs(2);
/// Writes to each.
const WRITES: u64 = 16;

/// Files on FUSE and in memory.
pub(super) fn is_named() -> Result<Option<String>> {
    if let Some(why) = FuseExport::refusal() {
        return Ok(Some(why));
    }
    let rig = Rig::new()?;
    let seen = rig.dir().join("seen.raw");
    super::machine::fill(&seen, &[])?;
    let export = FuseExport::new(rig.dir(), "export", DISK_BYTES)?;
    let in_memory = NamedTempFile::with_prefix_in("flatline-test-", "/dev/shm")?;
    in_memory.as_file().set_len(DISK_BYTES)?;
    let cases: [(&str, &Path, Option<&str>); 3] = [
        ("seen", &seen, None),
        ("fuse", export.path(), Some("fuse")),
        ("memory", in_memory.path(), Some("tmpfs")),
    ];
    let mut guests = Vec::new();
    for (name, image, _) in cases {
        let options = "format=raw,cache=writeback,aio=threads";
        guests.push(machine(&rig, name, image, options, Bus::Virtio)?.start()?);
    }
    let daemon = rig.daemon(&observer(&rig)?)?;
    let before = Shown::first(&daemon, &guests)?;
    for guest in &guests {
        for turn in 0..WRITES {
            qemu_io(guest, &format!("aio_write {} 64k", turn << 16))?;
        }
        wait_for_requests(guest, "its writes", |done| done.write_ops == WRITES)?;
        qemu_io(guest, "flush")?;
    }
    let after = Shown::quiet(&daemon, &guests)?;
    for (n, (name, image, kind)) in cases.into_iter().enumerate() {
        let shown = after[n].since(before[n]);
        let wrote = OfQemu::read(&guests[n])?.write_bytes;
        let said = daemon.show(name)?;
        println!("{name}: {} of {wrote} bytes; {}", shown.write_bytes, said["unseen_storage"]);
        let Some(kind) = kind else {
            ensure!(shown.write_bytes == wrote, "{name}: {shown:?}");
            ensure!(said["unseen_storage"].is_null(), "{name}: {said}");
            continue;
        };
        ensure!(wrote > 0 && shown.write_bytes == 0, "{name}: seen after all: {shown:?}");
        let unseen = said["unseen_storage"].as_str().context("nothing is said")?;
        let named = format!("{} ({kind})", image.display());
        ensure!(unseen == named, "{name}: {unseen}, and not {named}");
        // Where a client reads how much its storage moves, the figure bears that as well.
        let signals = said["signals"].as_array().context("no signals")?;
        let signal = signals.iter().find(|signal| signal["name"] == "storage");
        let value = signal.context("no storage")?["value"].as_str().unwrap_or_default();
        ensure!(value.contains(&named), "{name}: {value}");
    }
    Ok(None)
}

/// A guest that is halted for good, but for what QEMU completes for it on FUSE: as long as that goes on it
/// is left alone.
pub(super) fn is_asked_of_qemu() -> Result<Option<String>> {
    if let Some(why) = FuseExport::refusal() {
        return Ok(Some(why));
    }
    let rig = Rig::new()?;
    let export = FuseExport::new(rig.dir(), "export", DISK_BYTES)?;
    let mut config = rig.boot_sector("works-on-fuse", BootSector::CliHlt, Accelerator::Tcg);
    let drive = format!("file={},if=none,id={DISK},format=raw", export.path().display());
    config.extra_args.extend(["-drive".to_owned(), drive]);
    config.extra_args.extend(["-device".to_owned(), format!("virtio-blk-pci,drive={DISK}")]);
    let guest = config.start()?;
    let mut config = rig.daemon_config()?;
    (config.flat_for, config.boot_grace) = (FLAT_FOR, Duration::from_secs(2));
    let daemon = rig.daemon(&config)?;
    let begin = Instant::now();
    let mut asked = false;
    while begin.elapsed() < FLAT_FOR * 4 {
        qemu_io(&guest, "aio_write 0 4k")?;
        interrupt::sleep(Duration::from_millis(300))?;
        let row = vm(&daemon, "works-on-fuse")?;
        asked |= row["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("block layer") && reason.contains(" completed"));
        ensure!(row["cause"].is_null(), "{row}");
    }
    ensure!(asked, "QEMU was not asked: {}", vm(&daemon, "works-on-fuse")?);
    ensure!(incidents_of(&daemon, "works-on-fuse")?.is_empty());
    // What QEMU completed since it was asked last, up to 10 s before, still counts as life: a silence is seen
    // later there than elsewhere.
    let limit = FLAT_FOR * 2 + Duration::from_secs(10) + MARGIN;
    let incident = wait_for_incident(&daemon, "works-on-fuse", "restarted", limit, |incident| {
        !incident["action_at"].is_null()
    })?;
    ensure!(incident["cause"] == "halted", "{incident}");
    let reason = incident["reason"].as_str().unwrap_or_default();
    ensure!(!reason.contains("requests completed"), "{incident}");
    Ok(None)
}
