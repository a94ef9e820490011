//! Storage that the block layer never sees is named, and not taken for a disk that does nothing.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use tempfile::NamedTempFile;

use super::{
    figures::{OfQemu, Shown},
    machine::{Bus, DISK_BYTES, machine, qemu_io, wait_for_requests},
    store::FuseExport,
};
use crate::rig::Rig;

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
    let mut config = rig.daemon_config()?;
    config.mode = "observe".to_owned();
    let daemon = rig.daemon(&config)?;
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
        // Where somebody reads how much its storage moves, the figure bears that as well.
        let signals = said["signals"].as_array().context("no signals")?;
        let signal = signals.iter().find(|signal| signal["name"] == "storage");
        let value = signal.context("no storage")?["value"].as_str().unwrap_or_default();
        ensure!(value.contains(&named), "{name}: {value}");
    }
    Ok(None)
}
