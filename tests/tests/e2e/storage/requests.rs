//! Requests that are neither reads nor writes, and those that fail.

use anyhow::{Context as _, Result, ensure};
use flatline_tests::store::{LoopDevice, Memory};

use super::{
    figures::{OfQemu, Shown},
    machine::{Bus, DISK, DISK_BYTES, LOAD_LIMIT, fill, machine, qemu_io, wait_for_requests},
};
use crate::{
    counts::observer,
    rig::{Rig, boot_all},
};

/// Room for what the real guest does.
const GUEST_DISK_BYTES: u64 = 64 << 20;

/// Discards and flushes of a known number, on a device that has both.
pub(super) fn discards_and_flushes() -> Result<()> {
    let rig = Rig::new()?;
    let device = LoopDevice::new(&rig.dir().join("device.raw"), DISK_BYTES, false)?;
    fill(device.path(), &[])?;
    let mut guests = Vec::new();
    for (name, aio) in [("native", "native"), ("threads", "threads")] {
        // One device can't be two disks of QEMUs that lock it.
        let options = format!("format=raw,cache=none,aio={aio},discard=unmap,file.locking=off");
        guests.push(machine(&rig, name, device.path(), &options, Bus::Virtio)?.start()?);
    }
    let daemon = rig.daemon(&observer(&rig)?)?;
    let before = Shown::first(&daemon, &guests)?;
    let amounts = [(5, 11), (8, 7)];
    for (guest, (discards, flushes)) in guests.iter().zip(amounts) {
        for turn in 0..discards {
            qemu_io(guest, &format!("discard {} 128k", turn << 17))?;
        }
        for turn in 1..=flushes {
            // QEMU leaves a flush out if nothing was written since the last one.
            qemu_io(guest, &format!("aio_write {} 4k", turn << 12))?;
            wait_for_requests(guest, "a write", |done| done.write_ops == turn)?;
            qemu_io(guest, "flush")?;
        }
    }
    let after = Shown::quiet(&daemon, &guests)?;
    for (n, (guest, (discards, flushes))) in guests.iter().zip(amounts).enumerate() {
        let shown = after[n].since(before[n]);
        println!("{}: {shown:?}", guest.name());
        let expected = Shown {
            write_ops: flushes,
            write_bytes: flushes << 12,
            flush_ops: flushes,
            discard_ops: discards,
            discard_bytes: discards << 17,
            completed_ops: shown.completed_ops,
            ..Shown::default()
        };
        ensure!(shown == expected, "{}: {shown:?}, and not {expected:?}", guest.name());
        shown.ensure_completed().context(amounts[n].0)?;
    }
    Ok(())
}

/// A Linux that does all of it itself, on a device of a thread of its own.
pub(super) fn by_a_real_guest() -> Result<()> {
    let rig = Rig::new()?;
    let device = LoopDevice::new(&rig.dir().join("device.raw"), GUEST_DISK_BYTES, false)?;
    let mut config = rig.linux("linux", 1)?;
    config.disk = None;
    let drive = format!(
        "file={},if=none,id={DISK},format=raw,cache=none,aio=native,discard=unmap",
        device.path().display()
    );
    config.extra_args.extend(["-drive", &drive].map(Into::into));
    config.extra_args.extend(["-object", "iothread,id=io0"].map(Into::into));
    let disk = format!("virtio-blk-pci,drive={DISK},iothread=io0");
    config.extra_args.extend(["-device", &disk].map(Into::into));
    let guests = boot_all(&[config])?;
    let guest = &guests[0];
    let daemon = rig.daemon(&observer(&rig)?)?;
    Shown::first(&daemon, &guests)?;
    let before = (Shown::quiet(&daemon, &guests)?[0], OfQemu::read(guest)?);
    for command in ["disk-write 300 64", "disk-read 200 64", "disk-discard 16 8", "disk-flush 9"] {
        guest.run(command, LOAD_LIMIT)?;
    }
    let shown = Shown::quiet(&daemon, &guests)?[0].since(before.0);
    let after = OfQemu::read(guest)?;
    println!("{shown:?}; from {:?} to {after:?}", before.1);
    let expected = Shown {
        read_ops: after.read_ops - before.1.read_ops,
        read_bytes: after.read_bytes - before.1.read_bytes,
        write_ops: after.write_ops - before.1.write_ops,
        write_bytes: after.write_bytes - before.1.write_bytes,
        flush_ops: 9,
        // However the guest cut it, the bytes are those.
        discard_ops: shown.discard_ops,
        discard_bytes: 8 << 20,
        completed_ops: shown.completed_ops,
        ..Shown::default()
    };
    ensure!(shown == expected, "{shown:?}, and not {expected:?}");
    ensure!(shown.write_bytes == (300 << 16) + (9 << 12), "{shown:?}");
    ensure!(shown.read_bytes >= 200 << 16 && shown.discard_ops > 0, "{shown:?}");
    shown.ensure_completed()
}

/// A device whose file has no room to grow fails what is written behind that.
pub(super) fn failures() -> Result<()> {
    let rig = Rig::new()?;
    let memory = Memory::new(rig.dir(), 1 << 20)?;
    let device = LoopDevice::new(&memory.path().join("sparse.raw"), DISK_BYTES, false)?;
    let options = "format=raw,cache=none,aio=native,werror=report,rerror=report";
    let guests = [machine(&rig, "fails", device.path(), options, Bus::Virtio)?.start()?];
    let guest = &guests[0];
    let daemon = rig.daemon(&observer(&rig)?)?;
    let before = Shown::first(&daemon, &guests)?;
    let writes = 40;
    for turn in 0..writes {
        qemu_io(guest, &format!("aio_write {} 64k", turn << 16))?;
    }
    wait_for_requests(guest, "its writes", |done| done.write_ops + done.failed_ops == writes)?;
    let shown = Shown::quiet(&daemon, &guests)?[0].since(before[0]);
    let qemu = OfQemu::read(guest)?;
    println!("{shown:?}; {qemu:?}");
    ensure!(qemu.write_ops > 0 && qemu.failed_ops > 0, "some were to fail: {qemu:?}");
    ensure!(shown.write_ops == writes, "{writes} writes, and not {shown:?}");
    ensure!(shown.failed_ops == qemu.failed_ops, "{qemu:?}, and not {shown:?}");
    shown.ensure_completed()
}
