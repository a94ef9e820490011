//! Processes that start and end, told to user space at once through a ring buffer.

use aya_ebpf::{EbpfContext, macros::btf_tracepoint, programs::BtfTracePointContext};
use aya_log_ebpf::{debug, warn};
use monitor_ebpf::{PROCESS_EXEC, PROCESS_EXIT, ProcessEvent};

use crate::{
    kernel::{field, offsets},
    maps::PROCESS_EVENTS,
    slots,
};

offsets! {
    TASK_EXIT_CODE_OFFSET
}

/// Tells user space that a process became another program.
///
/// Hook: `tp_btf/sched_process_exec` (5.5). Which programs are QEMUs is a matter of configuration, and
/// `exec` is rare enough to let user space decide. Cost: 23 us with the wake-up of user space.
#[btf_tracepoint(function = "sched_process_exec")]
pub(crate) fn process_started(ctx: BtfTracePointContext) -> i32 {
    emit(&ctx, ProcessEvent { kind: PROCESS_EXEC, pid: ctx.tgid(), status: 0, reserved: 0 });
    0
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
    let status = unsafe { field::<i32>(task, &TASK_EXIT_CODE_OFFSET) };
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
