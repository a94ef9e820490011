//! What a VM's QEMU submits to the block layer itself (direct I/O and io_uring), and what completes.
//!
//! The unit is the bio: it is submitted by the task that wants the data, while a request may be issued
//! later by a kernel worker. Buffered writes are submitted by a worker and are not counted here.

use aya_ebpf::{
    bindings::BPF_ANY, helpers::bpf_get_current_pid_tgid, macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use aya_log_ebpf::warn;
use monitor_ebpf::{InFlight, StorageCounters};

use crate::maps::{IN_FLIGHT, VMS};

/// Offsets into the running kernel's `struct bio`, which user space resolves from its BTF: aya emits no
/// CO-RE relocations for Rust, and an offset taken from one kernel is wrong on the next.
#[unsafe(no_mangle)]
static BIO_OPF_OFFSET: u32 = 0;
#[unsafe(no_mangle)]
static BIO_SIZE_OFFSET: u32 = 0;
#[unsafe(no_mangle)]
static BIO_STATUS_OFFSET: u32 = 0;
#[unsafe(no_mangle)]
static BIO_NEXT_OFFSET: u32 = 0;
/// The same for `struct request`.
#[unsafe(no_mangle)]
static REQUEST_BIO_OFFSET: u32 = 0;

/// Bios in one request that are followed: 4 MiB in pages, more than most devices take at once.
const MOST_BIOS_OF_A_REQUEST: u32 = 1024;

/// `REQ_OP_MASK` and operations of `enum req_op` (include/linux/blk_types.h; unchanged since 4.10).
const REQ_OP_MASK: u32 = 0xff;
const REQ_OP_READ: u32 = 0;
const REQ_OP_WRITE: u32 = 1;
const REQ_OP_FLUSH: u32 = 2;

/// Counts a request for the VM whose QEMU submits it, and notes it as in flight.
///
/// Hook: `tp_btf/block_bio_queue` with the bio as its first argument (5.11). Requests of other
/// processes cost one lookup that fails. Cost: 400 ns a request at some 1,000 a second, with cold caches;
/// most of it is the entry in `in_flight`.
#[btf_tracepoint(function = "block_bio_queue")]
pub(crate) fn block_submitted(ctx: BtfTracePointContext) -> i32 {
    // The upper half is the thread group.
    let vm = (bpf_get_current_pid_tgid() >> 32) as u32;
    let Some(storage) = counters(vm) else { return 0 };
    let bio: *const u8 = ctx.arg(0);
    // SAFETY: `bio` is the tracepoint's own argument, whose type the verifier knows; the offsets are the
    // running kernel's, and a faulting read yields zero instead of faulting.
    let (opf, bytes) = unsafe {
        (
            field::<u32>(bio, &raw const BIO_OPF_OFFSET),
            field::<u32>(bio, &raw const BIO_SIZE_OFFSET),
        )
    };
    match opf & REQ_OP_MASK {
        REQ_OP_READ => {
            storage.read_ops += 1;
            storage.read_bytes += u64::from(bytes);
        }
        // A flush that QEMU asks for comes as an empty write with REQ_PREFLUSH set.
        REQ_OP_WRITE if bytes == 0 => storage.flush_ops += 1,
        REQ_OP_WRITE => {
            storage.write_ops += 1;
            storage.write_bytes += u64::from(bytes);
        }
        REQ_OP_FLUSH => storage.flush_ops += 1,
        _ => storage.other_ops += 1,
    }
    if IN_FLIGHT.insert(bio as u64, InFlight { vm, bytes }, u64::from(BPF_ANY)).is_ok() {
        storage.tracked_ops += 1;
    } else {
        storage.untracked_ops += 1;
        warn!(&ctx, "VM {}: no room to follow a request", vm);
    }
    0
}

/// Counts the completion of requests on devices that have request queues, which most disks are.
///
/// Hook: `tp_btf/block_rq_complete` with the request and the completed bytes as first and third argument
/// (5.11). A request may carry several bios, merged while they waited. Bios that nobody follows cost one
/// lookup that fails. Cost: 270 ns, measured like [`block_submitted`].
#[btf_tracepoint(function = "block_rq_complete")]
pub(crate) fn block_request_completed(ctx: BtfTracePointContext) -> i32 {
    let request: *const u8 = ctx.arg(0);
    let failed = ctx.arg::<u8>(1) != 0;
    let mut bytes_left: u32 = ctx.arg(2);
    // SAFETY: as in `block_submitted`; the bios hang on the request until its completion was traced.
    let mut bio: *const u8 = unsafe { field(request, &raw const REQUEST_BIO_OFFSET) };
    for _ in 0..MOST_BIOS_OF_A_REQUEST {
        if bio.is_null() {
            break;
        }
        // SAFETY: as above.
        let bytes = unsafe { field::<u32>(bio, &raw const BIO_SIZE_OFFSET) };
        if bytes > bytes_left {
            // Completed in part: the rest is traced when it completes.
            break;
        }
        completed(bio, failed);
        bytes_left -= bytes;
        if bytes_left == 0 {
            break;
        }
        // SAFETY: as above.
        bio = unsafe { field(bio, &raw const BIO_NEXT_OFFSET) };
    }
    0
}

/// Counts the completion of requests on devices without request queues, such as device mapper's.
///
/// Hook: `tp_btf/block_bio_complete` with the bio as second argument (5.11). The kernel fires it only for
/// a bio whose completion `block_rq_complete` did not show. Cost: 350 ns, over a few of them only.
#[btf_tracepoint(function = "block_bio_complete")]
pub(crate) fn block_bio_completed(ctx: BtfTracePointContext) -> i32 {
    let bio: *const u8 = ctx.arg(1);
    // SAFETY: as in `block_submitted`.
    let failed = unsafe { field::<u8>(bio, &raw const BIO_STATUS_OFFSET) } != 0;
    completed(bio, failed);
    0
}

#[inline(always)]
fn completed(bio: *const u8, failed: bool) {
    // SAFETY: the entry is copied at once; only its own completion removes it.
    let Some(request) = (unsafe { IN_FLIGHT.get(bio as u64).copied() }) else { return };
    // The row is gone where the VM ended before its last request; nobody asks any more.
    if IN_FLIGHT.remove(bio as u64).is_ok()
        && let Some(storage) = counters(request.vm)
    {
        storage.completed_ops += 1;
        if failed {
            storage.failed_ops += 1;
        }
    }
}

#[inline(always)]
fn counters(vm: u32) -> Option<&'static mut StorageCounters> {
    // SAFETY: the row is this CPU's own copy. A completion that interrupts a submission on this CPU adds
    // to `completed_ops` and `failed_ops`, which a submission never touches.
    VMS.get_ptr_mut(vm).map(|row| unsafe { &mut (*row).storage })
}

/// Reads a field of a kernel structure at an offset that user space resolved.
///
/// # Safety
///
/// `base` must be a BTF-typed argument of the tracepoint, and `offset` a global that is set before the load.
#[inline(always)]
pub(crate) unsafe fn field<T: Copy>(base: *const u8, offset: *const u32) -> T {
    // SAFETY: the global is frozen, so the verifier knows the offset and checks the load against the
    // kernel's own type; volatile, so that the compiler doesn't fold in the value of build time.
    unsafe { base.add(core::ptr::read_volatile(offset) as usize).cast::<T>().read_volatile() }
}
