//! Slot of a process: the row in which its VM is counted.

use crate::{
    kernel::{field, global, globals},
    maps::{PRESENCE, SLOTS},
};

globals! {
    TASK_TGID_OFFSET
    /// The number of sets less one; the number is a power of two.
    SLOTS_MASK
}

/// The pid of the process that `task` is a thread of.
///
/// # Safety
///
/// `task` must be a pointer whose type the verifier knows.
#[inline(always)]
pub(crate) unsafe fn pid_of(task: *const u8) -> u32 {
    // SAFETY: the caller's.
    unsafe { field(task, &TASK_TGID_OFFSET) }
}

/// The slot of the QEMU with this pid; `None` for every other process.
#[inline(always)]
pub(crate) fn slot_of(pid: u32) -> Option<u32> {
    if !PRESENCE.get(0)?.may_have_process(pid) {
        return None;
    }
    let set = SLOTS.get(pid & global(&SLOTS_MASK))?;
    // A row is one word, which user space exchanges as a whole. What an idle CPU submits in an interrupt
    // has the pid 0, which is that of free rows.
    set.rows.iter().find(|row| row.pid == pid && pid != 0).map(|row| row.slot)
}
