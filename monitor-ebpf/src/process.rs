//! Processes that start and end, told to user space at once through a ring buffer.

use aya_ebpf::{EbpfContext, macros::btf_tracepoint, programs::BtfTracePointContext};
use aya_log_ebpf::{debug, warn};
use monitor_ebpf::{ANY_EXECUTABLE, PROCESS_EXEC, PROCESS_EXIT, ProcessEvent};

use crate::{
    kernel::{field, global, globals},
    maps::{EXECUTABLES, PROCESS_EVENTS},
    slots,
    writeback::INODE_NUMBER_OFFSET,
};

globals! {
    TASK_EXIT_CODE_OFFSET
    BINPRM_FILE_OFFSET
    FILE_INODE_OFFSET
    /// Not an offset: whether the way to an executable's inode is known on this kernel.
    EXECUTABLE_KNOWN
}

/// Tells user space that a process became another program, which may be a QEMU by its inode's number.
///
/// Hook: `tp_btf/sched_process_exec` (5.5). Cost: 0.3 us of any other program; of a QEMU, 5 us with the wake-up of user space,
/// which then looks at the process.
#[btf_tracepoint(function = "sched_process_exec")]
pub(crate) fn process_started(ctx: BtfTracePointContext) -> i32 {
    if may_be_qemu(&ctx) {
        emit(&ctx, ProcessEvent { kind: PROCESS_EXEC, pid: ctx.tgid(), status: 0, reserved: 0 });
    }
    0
}

/// Whether user space looks for a program with this inode's number. The number alone decides: what `stat` says of the file
/// system's device is not what the kernel has everywhere (btrfs, overlayfs), and a stranger that is told of by chance is found to
/// be one.
#[inline(always)]
fn may_be_qemu(ctx: &BtfTracePointContext) -> bool {
    if global(&EXECUTABLE_KNOWN) == 0 {
        return true;
    }
    let program: *const u8 = ctx.arg(2);
    // SAFETY: `program` is the tracepoint's own argument, and each of the others is typed like the field that it was read from.
    let number: u64 = unsafe {
        let file: *const u8 = field(program, &BINPRM_FILE_OFFSET);
        let inode: *const u8 = field(file, &FILE_INODE_OFFSET);
        field(inode, &INODE_NUMBER_OFFSET)
    };
    EXECUTABLES.get_ptr(number).is_some() || EXECUTABLES.get_ptr(ANY_EXECUTABLE).is_some()
}

/// Tells user space that a watched QEMU ended, and with which status.
///
/// Hook: `tp_btf/sched_process_exit` (5.5). Fires for every thread on the host; all but a main thread
/// end at a comparison, and all but a watched one at a lookup that fails. Cost: below 1 us, mostly of
/// threads that don't matter.
#[btf_tracepoint(function = "sched_process_exit")]
pub(crate) fn process_ended(ctx: BtfTracePointContext) -> i32 {
    let pid = ctx.tgid();
    if ctx.pid() != pid || slots::slot_of(pid).is_none() {
        return 0;
    }
    let task: *const u8 = ctx.arg(0);
    // SAFETY: `task` is the tracepoint's own argument.
    let status = unsafe { field::<i32, _>(task, &TASK_EXIT_CODE_OFFSET) };
    emit(&ctx, ProcessEvent { kind: PROCESS_EXIT, pid, status, reserved: 0 });
    0
}

#[inline(always)]
fn emit(ctx: &BtfTracePointContext, event: ProcessEvent) {
    debug!(ctx, "process {}: event {}, status {}", event.pid, event.kind, event.status);
    if PROCESS_EVENTS.output(event, 0).is_err() {
        // User space sweeps /proc from time to time as well, so that this delays and loses nothing.
        warn!(ctx, "no room to tell of process {}", event.pid);
    }
}
