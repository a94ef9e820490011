//! Requests to the block layer for a VM: submitted and completed.
//!
//! The unit is the bio: it is submitted by the task that wants the data, while a request may be issued
//! later by a kernel worker. What no QEMU submits itself may still be one's: [`writeback`] tells.

use aya_ebpf::{
    helpers::bpf_get_current_task_btf, macros::btf_tracepoint, programs::BtfTracePointContext,
};
use aya_log_ebpf::warn;
use monitor_ebpf::Owner;

use crate::{
    in_flight::{self, Place},
    kernel::{field, global, globals},
    maps::LAYOUT,
    slots,
    vms::{add, add_atomically, counters_of, lives},
    writeback,
};

globals! {
    BIO_OPF_OFFSET
    BIO_SIZE_OFFSET
    BIO_STATUS_OFFSET
    BIO_NEXT_OFFSET
    REQUEST_SIZE_OFFSET
    REQUEST_BIO_OFFSET
    REQUEST_LAST_BIO_OFFSET
    TASK_BIO_LIST_OFFSET
    /// Not an offset: the flag `REQ_META`, whose bit differs between kernels.
    REQUEST_META_FLAG
    /// Not an offset: the flag `REQ_IDLE`, likewise.
    REQUEST_IDLE_FLAG
    /// Not an offset: the flag `REQ_RAHEAD`, likewise.
    REQUEST_AHEAD_FLAG
    /// The generation of this copy of the programs.
    GENERATION
}

/// Bios in one request that are looked at: half a MiB in single pages. The verifier goes through every turn
/// of the loop, which takes 25 ms of the daemon's start for 128 of them, and 90 for 256. Others stay in
/// flight until another bio comes to stand at their address, or user space sees that no device has any.
const MOST_BIOS_OF_A_REQUEST: u32 = 128;

/// `REQ_OP_MASK` and operations of `enum req_op` (include/linux/blk_types.h; unchanged since 4.10).
const REQ_OP_MASK: u32 = 0xff;
const REQ_OP_READ: u32 = 0;
const REQ_OP_WRITE: u32 = 1;
const REQ_OP_FLUSH: u32 = 2;
const REQ_OP_DISCARD: u32 = 3;

/// Counts a request for the VM it is submitted for, and notes it as in flight.
///
/// Hook: `tp_btf/block_bio_queue` with the bio as its first argument (5.11). Reads of other processes
/// cost a look-up that fails, writes that and the way to the page's file. Cost: see `docs/costs.md`.
#[btf_tracepoint(function = "block_bio_queue")]
pub(crate) fn block_submitted(ctx: BtfTracePointContext) -> i32 {
    let bio: *const u8 = ctx.arg(0);
    // SAFETY: `bio` is the tracepoint's own argument.
    let opf: u32 = unsafe { field(bio, &BIO_OPF_OFFSET) };
    let task = current_task();
    // SAFETY: the verifier knows the current task's type.
    let pid = unsafe { slots::pid_of(task) };
    let own = slots::slot_of(pid);
    let slot = match own {
        // Most of what other processes do ends here.
        None if !may_write_back(opf) => return 0,
        // A host's file system that notes something of its own while QEMU waits: nothing of the guest's.
        Some(_) if opf & global(&REQUEST_META_FLAG) != 0 => return 0,
        // Submitted once more by a driver, for a bio that was counted already.
        Some(_) if is_nested(task) => return 0,
        // QEMU's own code and libraries, which come through read-ahead as buffered reads of an image do.
        Some(_) if opf & global(&REQUEST_AHEAD_FLAG) != 0 && writeback::is_of_mapped_file(bio) => {
            return 0;
        }
        Some(slot) => slot,
        // A flush of a file system's own has no pages.
        None if bytes_of(bio) == 0 => return 0,
        None => match writeback::slot_of(bio) {
            // Not by a driver, for a bio that has the same pages and was counted already.
            Some(slot) if !is_nested(task) => slot,
            _ => return 0,
        },
    };
    let bytes = bytes_of(bio);
    if !counts() {
        return 0;
    }
    let Some((lane, shared)) = counters_of(slot) else { return 0 };
    match opf & REQ_OP_MASK {
        REQ_OP_READ => {
            add(&mut lane.read_ops, 1);
            add(&mut lane.read_bytes, u64::from(bytes));
        }
        // A flush that QEMU asks for comes as an empty write with REQ_PREFLUSH set.
        REQ_OP_WRITE if bytes == 0 => add(&mut lane.flush_ops, 1),
        REQ_OP_WRITE => {
            add(&mut lane.write_ops, 1);
            add(&mut lane.write_bytes, u64::from(bytes));
            if own.is_none() {
                add_atomically(&mut shared.writeback_ops, 1);
                add_atomically(&mut shared.writeback_bytes, u64::from(bytes));
            }
        }
        REQ_OP_FLUSH => add(&mut lane.flush_ops, 1),
        REQ_OP_DISCARD => {
            add_atomically(&mut shared.discard_ops, 1);
            add_atomically(&mut shared.discard_bytes, u64::from(bytes));
        }
        _ => add_atomically(&mut shared.other_ops, 1),
    }
    let pid = if own.is_some() { pid } else { lane.pid };
    if !in_flight::note(bio, Owner::new(slot, pid)) {
        add_atomically(&mut shared.untracked_ops, 1);
        warn!(&ctx, "VM {}: no room to follow a request", pid);
    }
    0
}

/// Whether this bio, which no QEMU submits, may be the first that carries pages of a file to a device. One
/// that carries them on to a device below has the same pages: a stacked driver's, or a loop device's with
/// direct I/O to its own file. All direct I/O is marked by `REQ_IDLE` (`iomap_dio_bio_opflags` in
/// fs/iomap/direct-io.c and `dio_bio_write_op` in block/fops.c of Linux 6.12), and no writing back is
/// (`wbc_to_write_flags` in include/linux/writeback.h).
#[inline(always)]
fn may_write_back(opf: u32) -> bool {
    opf & REQ_OP_MASK == REQ_OP_WRITE && opf & global(&REQUEST_IDLE_FLAG) == 0
}

/// Bytes that a bio still has to carry.
#[inline(always)]
fn bytes_of(bio: *const u8) -> u32 {
    // SAFETY: `bio` is a tracepoint's argument, or was read from one.
    unsafe { field(bio, &BIO_SIZE_OFFSET) }
}

/// Whether this copy of the programs is the one that counts.
#[inline(always)]
fn counts() -> bool {
    LAYOUT.get(0).is_some_and(|layout| layout.generation == global(&GENERATION))
}

/// The task that runs. One call for all that is asked of it: with what guards against speculation, a return from the kernel
/// costs more than a line of code.
#[inline(always)]
fn current_task() -> *const u8 {
    // SAFETY: plain call.
    unsafe { bpf_get_current_task_btf() }.cast()
}

/// Whether a driver submits this bio while it handles another one, on the same task: the kernel then
/// keeps a list of such bios in the task (`submit_bio_noacct_nocheck` in block/blk-core.c).
#[inline(always)]
fn is_nested(task: *const u8) -> bool {
    // SAFETY: the current task exists as long as the program runs, and the verifier knows its type.
    let list: u64 = unsafe { field(task, &TASK_BIO_LIST_OFFSET) };
    list != 0
}

/// Counts the completion of requests on devices that have request queues, which most disks are.
///
/// Hook: `tp_btf/block_rq_complete` with the request and the completed bytes as first and third argument
/// (5.11). A request may carry several bios, merged while they waited. Bios that aren't followed cost a
/// look at the set where they would be: 5 to 20 ns, by what the CPU's caches still hold.
#[btf_tracepoint(function = "block_rq_complete")]
pub(crate) fn block_request_completed(ctx: BtfTracePointContext) -> i32 {
    let request: *const u8 = ctx.arg(0);
    let failed = ctx.arg::<u8>(1) != 0;
    let bytes_done: u32 = ctx.arg(2);
    // SAFETY: `request` is the tracepoint's own argument; the bios hang on it until its completion was
    // traced.
    let (bio, last): (*const u8, *const u8) =
        unsafe { (field(request, &REQUEST_BIO_OFFSET), field(request, &REQUEST_LAST_BIO_OFFSET)) };
    if bio.is_null() {
        return 0;
    }
    // Most requests have one, which is not touched: another CPU may have written it last.
    if bio == last {
        let Some(place) = in_flight::find(bio) else { return 0 };
        // SAFETY: as above.
        let bytes: u32 = unsafe { field(request, &REQUEST_SIZE_OFFSET) };
        if bytes <= bytes_done {
            completed(place, failed);
            return 0;
        }
    }
    several_completed(bio, failed, bytes_done);
    0
}

/// The bios of a request that has several, or that completed in part.
///
/// A function of its own, as [`bio_completed`] is: what most requests go through stays together in the CPU's caches, and
/// the verifier does not follow each of its ways on into every later turn of the loop.
#[inline(never)]
fn several_completed(mut bio: *const u8, failed: bool, mut bytes_left: u32) {
    for _ in 0..MOST_BIOS_OF_A_REQUEST {
        let bytes = bytes_of(bio);
        // Completed in part: the rest is traced when it completes.
        if bytes > bytes_left {
            break;
        }
        bio_completed(bio, failed);
        bytes_left -= bytes;
        // SAFETY: as the bio itself.
        bio = unsafe { field(bio, &BIO_NEXT_OFFSET) };
        if bytes_left == 0 || bio.is_null() {
            break;
        }
    }
}

/// Counts the completion of requests on devices without request queues, such as device mapper's.
///
/// Hook: `tp_btf/block_bio_complete` with the bio as second argument (5.11). The kernel fires it only for
/// a bio whose completion `block_rq_complete` did not show.
#[btf_tracepoint(function = "block_bio_complete")]
pub(crate) fn block_bio_completed(ctx: BtfTracePointContext) -> i32 {
    let bio: *const u8 = ctx.arg(1);
    // SAFETY: `bio` is the tracepoint's own argument.
    let failed = unsafe { field::<u8, _>(bio, &BIO_STATUS_OFFSET) } != 0;
    bio_completed(bio, failed);
    0
}

/// A bio of several, or of a device without a queue.
#[inline(never)]
fn bio_completed(bio: *const u8, failed: bool) {
    if let Some(place) = in_flight::find(bio) {
        completed(place, failed);
    }
}

/// Frees the place of a request, and counts that it completed.
#[inline(always)]
fn completed(place: Place, failed: bool) {
    if !counts() {
        return;
    }
    let request = place.take();
    let owner = request.owner;
    let Some((lane, shared)) = counters_of(owner.slot()) else { return };
    // The VM may have ended before its last request, and the slot be another's by now.
    if owner == Owner::new(owner.slot(), lane.pid) {
        let took_jiffies = request.age(lives(owner.slot()));
        add(&mut lane.completed_ops, 1);
        if took_jiffies != 0 {
            add(&mut lane.completion_jiffies, took_jiffies);
        }
        if failed {
            add_atomically(&mut shared.failed_ops, 1);
        }
    }
}
