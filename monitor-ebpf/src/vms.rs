//! Rows of VMs: which lane of one this CPU adds to, and the sign of life beside it.

use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_jiffies64};
use monitor_ebpf::{VM_LANES, VmLane, VmRow, VmShared};

use crate::{
    kernel::{global, globals},
    maps::{LIFE, VMS},
};

globals! {
    /// Not zero: the host has no more CPUs than a row has lanes, so that each lane has one writer.
    LANES_ARE_EXCLUSIVE
}

/// The counters in the row of a slot that this CPU adds to: its lane, and those that all share.
///
/// Of two programs that interrupt each other on the same CPU, one counts submissions and the other completions: they add to
/// different fields of the lane.
#[inline(always)]
pub(crate) fn counters_of(slot: u32) -> Option<(&'static mut VmLane, &'static mut VmShared)> {
    // SAFETY: array elements live as long as the map; several CPUs write a lane, and what is shared, by atomic additions alone.
    let VmRow { lanes, shared } = unsafe { &mut *VMS.get_ptr_mut(slot)? };
    // SAFETY: plain call.
    let cpu = unsafe { bpf_get_smp_processor_id() } as usize;
    Some((&mut lanes[cpu & (VM_LANES - 1)], shared))
}

/// Adds to a counter of a lane.
#[inline(always)]
pub(crate) fn add(counter: &mut u64, number: u64) {
    if global(&LANES_ARE_EXCLUSIVE) != 0 {
        *counter += number;
    } else {
        add_atomically(counter, number);
    }
}

/// Adds to a counter that several CPUs write.
///
/// `core::sync::atomic` has no form of it that the BPF target compiles to the one instruction that every kernel knows.
#[inline(always)]
#[cfg(target_arch = "bpf")]
pub(crate) fn add_atomically(counter: &mut u64, number: u64) {
    // SAFETY: the instruction adds to eight aligned bytes that are valid to write.
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({counter} + 0) += {number}",
            counter = in(reg) core::ptr::from_mut(counter),
            number = in(reg) number,
            options(nostack),
        );
    }
}

/// As above, for tools that look at this crate on another target.
#[cfg(not(target_arch = "bpf"))]
pub(crate) fn add_atomically(counter: &mut u64, number: u64) {
    *counter += number;
}

/// Notes a sign of life of the VM in a slot; returns the kernel's ticks. Written only where it changes, so that CPUs that
/// meet in the line share it.
#[inline(always)]
pub(crate) fn lives(slot: u32) -> u64 {
    // Even the coarse one of the other clocks would be most of what a packet costs.
    // SAFETY: plain call.
    let now = unsafe { bpf_jiffies64() };
    if let Some(life) = LIFE.get_ptr_mut(slot) {
        // SAFETY: array elements live as long as the map. A late writer may put an earlier tick in place of a later one;
        // it differs from what was there a moment before all the same.
        unsafe {
            if *life != now {
                *life = now;
            }
        }
    }
    now
}
