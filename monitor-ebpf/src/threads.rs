//! CPU time of all QEMUs' threads, in one reading.

use core::{ffi::c_void, mem::size_of};

use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_ns, bpf_seq_write};
use monitor_ebpf::ThreadTime;

use crate::{
    kernel::{field, globals},
    slots,
};

globals! {
    TASK_PID_OFFSET
    TASK_STATE_OFFSET
    TASK_RUN_OFFSET
    TASK_WAIT_OFFSET
}

#[expect(clippy::cast_possible_truncation, reason = "32 bytes")]
const RECORD_BYTES: u32 = size_of::<ThreadTime>() as u32;

/// `struct bpf_iter__task`: what the kernel hands to an iterator over tasks.
#[repr(C)]
struct TaskContext {
    meta: *const IteratorMeta,
    task: *const u8,
}

/// The beginning of `struct bpf_iter_meta`.
#[repr(C)]
struct IteratorMeta {
    seq: *mut c_void,
    session_id: u64,
    /// How many elements there were before this one.
    seq_num: u64,
}

/// Writes a [`ThreadTime`] for each thread of a watched QEMU.
///
/// Hook: `iter/task` (5.8). Runs only while the pinned iterator is read, once for each thread of
/// the host; those of other processes end at a look-up that fails.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
fn threads(ctx: *const TaskContext) -> i32 {
    // SAFETY: the kernel hands a valid context, whose pointers the verifier knows the types of.
    let (meta, task) = unsafe { ((*ctx).meta, (*ctx).task) };
    if task.is_null() {
        return 0;
    }
    // SAFETY: as above.
    if unsafe { (*meta).seq_num } == 0 {
        write(meta, &clocks());
    }
    // SAFETY: the task lives as long as the program runs, and has been tested for null.
    let pid = unsafe { slots::pid_of(task) };
    if slots::slot_of(pid).is_none() {
        return 0;
    }
    // SAFETY: as above.
    let record = unsafe {
        ThreadTime {
            pid,
            tid: field::<i32, _>(task, &TASK_PID_OFFSET).cast_unsigned(),
            state: field(task, &TASK_STATE_OFFSET),
            reserved: 0,
            run_ns: field(task, &TASK_RUN_OFFSET),
            wait_ns: field(task, &TASK_WAIT_OFFSET),
        }
    };
    write(meta, &record);
    0
}

/// The record that comes first.
#[inline(always)]
fn clocks() -> ThreadTime {
    // SAFETY: plain calls.
    let (run_ns, wait_ns) = unsafe { (bpf_ktime_get_ns(), bpf_jiffies64()) };
    ThreadTime { pid: 0, tid: 0, state: 0, reserved: 0, run_ns, wait_ns }
}

#[inline(always)]
fn write(meta: *const IteratorMeta, record: &ThreadTime) {
    // SAFETY: the record is initialized, without padding, and as long as said. A buffer that is full makes
    // the kernel call again for the same task.
    unsafe {
        bpf_seq_write(
            (*meta).seq.cast(),
            core::ptr::from_ref(record).cast::<c_void>(),
            RECORD_BYTES,
        )
    };
}
