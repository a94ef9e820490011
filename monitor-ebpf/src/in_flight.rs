//! Requests in flight: since when, and of which VM.
//!
//! A set of four is found by the bio's address, and searched. Two CPUs that submit into the same free
//! place within a nanosecond may lose one of the two; user space takes such a request off the books once
//! no device is stalled, and this once the same bio is submitted again.
//!
//! On a loop device with buffered I/O and many requests a second, whole batches of completions were seen to
//! be missed, for a reason that is not known; the same two ways take them off the books.

use aya_ebpf::helpers::generated::bpf_jiffies64;
use monitor_ebpf::{InFlight, InFlightSet, Layout, Owner};

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
pub(crate) fn note(bio: *const u8, anchor: &'static Layout, owner: Owner) -> bool {
    let Some(set) = set_of(bio, anchor) else { return false };
    let mut free = None;
    for place in &mut set.requests {
        if place.bio == bio as u64 {
            // Its completion was missed, or it could not be submitted again.
            forget(place.owner);
            free = Some(place);
            break;
        }
        if place.bio == 0 {
            free = Some(place);
        }
    }
    let Some(place) = free else { return false };
    // SAFETY: plain call.
    let submitted_jiffies = unsafe { bpf_jiffies64() } as u32;
    // The address last: user space, which reads meanwhile, takes no other request's age for this one's.
    (place.submitted_jiffies, place.owner) = (submitted_jiffies, owner);
    // SAFETY: a reference is valid to write.
    unsafe { (&raw mut place.bio).write_volatile(bio as u64) };
    true
}

/// The place of a request that is in flight.
#[inline(always)]
pub(crate) fn find(bio: *const u8, anchor: &'static Layout) -> Option<&'static mut InFlight> {
    set_of(bio, anchor)?.requests.iter_mut().find(|place| place.bio == bio as u64)
}

#[inline(always)]
fn forget(owner: Owner) {
    if let Some(lane) = lane_of(owner.slot())
        && owner == Owner::new(owner.slot(), lane.pid)
    {
        add(&mut lane.completed_ops, 1);
    }
}

/// The set of a bio. The verifier lets nothing be computed with a pointer but its distance from another one,
/// which is a number: `anchor` is one that stays where it is for as long as the maps live.
#[inline(always)]
fn set_of(bio: *const u8, anchor: &'static Layout) -> Option<&'static mut InFlightSet> {
    let distance = (bio as u64).wrapping_sub(core::ptr::from_ref(anchor) as u64);
    // The upper bits of a product depend on all bits of its factors (Knuth's multiplicative hashing).
    let mixed = distance.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    let index = mixed as u32 & global(&IN_FLIGHT_MASK);
    // SAFETY: array elements live as long as the map; what two CPUs that meet in one do, see above.
    IN_FLIGHT.get_ptr_mut(index).map(|set| unsafe { &mut *set })
}
