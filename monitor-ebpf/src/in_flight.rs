//! Requests in flight: since when, and of which VM.
//!
//! A set of four is found by the bio's address, and searched. Two CPUs that submit into the same free
//! place within a nanosecond may lose one of the two; user space takes such a request off the books once
//! no device is stalled, and this once the same bio is submitted again.
//!
//! On a loop device with buffered I/O and many requests a second, whole batches of completions were seen to
//! be missed, for a reason that is not known; the same two ways take them off the books.

use aya_ebpf::helpers::generated::bpf_jiffies64;
use monitor_ebpf::{InFlight, InFlightSet, Layout};

use crate::{
    kernel::global,
    maps::IN_FLIGHT,
    vms::{add, lane_of},
};

/// The number of sets less one; the number is a power of two.
#[unsafe(no_mangle)]
static IN_FLIGHT_MASK: u32 = 0;

/// Notes a request; `false` if there is no room.
#[inline(always)]
pub(crate) fn note(bio: *const u8, anchor: &'static Layout, pid: u32, slot: u32) -> bool {
    let Some(set) = set_of(bio, anchor) else { return false };
    // SAFETY: array elements live as long as the map; what two CPUs that meet in one do, see above.
    let set = unsafe { &mut *set };
    let mut free = None;
    for place in &mut set.requests {
        if place.bio == bio as u64 {
            // Its completion was missed, or it could not be submitted again.
            forget(place);
            free = Some(place);
            break;
        }
        if place.bio == 0 {
            free = Some(place);
        }
    }
    let Some(place) = free else { return false };
    // SAFETY: plain call.
    let submitted_jiffies = unsafe { bpf_jiffies64() };
    *place = InFlight { bio: bio as u64, submitted_jiffies, pid, slot };
    true
}

/// Takes a request that completes; with it the time that it took, in the kernel's ticks.
#[inline(always)]
pub(crate) fn take(bio: *const u8, anchor: &'static Layout) -> Option<(InFlight, u64)> {
    // SAFETY: as for `note`.
    let set = unsafe { &mut *set_of(bio, anchor)? };
    for place in &mut set.requests {
        if place.bio == bio as u64 {
            let request = *place;
            place.bio = 0;
            // SAFETY: plain call.
            let now = unsafe { bpf_jiffies64() };
            return Some((request, now.saturating_sub(request.submitted_jiffies)));
        }
    }
    None
}

#[inline(always)]
fn forget(request: &InFlight) {
    if let Some(lane) = lane_of(request.slot)
        && lane.pid == request.pid
    {
        add(&mut lane.completed_ops, 1);
    }
}

/// The set of a bio. The verifier lets nothing be computed with a pointer but its distance from another one,
/// which is a number: `anchor` is one that stays where it is for as long as the maps live.
#[inline(always)]
fn set_of(bio: *const u8, anchor: &'static Layout) -> Option<*mut InFlightSet> {
    let distance = (bio as u64).wrapping_sub(core::ptr::from_ref(anchor) as u64);
    // The upper bits of a product depend on all bits of its factors (Knuth's multiplicative hashing).
    let mixed = distance.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    let index = mixed as u32 & global(&IN_FLIGHT_MASK);
    IN_FLIGHT.get_ptr_mut(index)
}
