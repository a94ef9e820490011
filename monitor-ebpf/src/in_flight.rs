//! Requests in flight: since when, and of which VM.
//!
//! A set of four is found by the bio's address, and searched. Neighbours in the kernel's memory have sets beside each
//! other, so that the few bios that are in use at a time are found in a page or two. Spread over all of the map, as by a
//! hash, each look-up would wait for memory (measured: 20 to 40 ns), also the one for each request of other processes.
//!
//! Two CPUs that submit into the same free place within a nanosecond may lose one of the two; user space takes such a
//! request off the books once no device is stalled, and this once the same bio is submitted again.
//!
//! Completions can be missed, a whole interrupt's at once. Seen first on a loop device, it was reproduced on a plain
//! disk (Linux 6.18): the kernel's own trace shows each of them, but no eBPF program on the tracepoint was run, an empty one
//! as little as this, and none was counted as skipped (`recursion_misses`). Nearly all had interrupted one and the same
//! process, a supervisor of the machine under test. So it is neither recursion nor a request of too many bios, and can't be
//! mended here: the same two ways take such requests off the books.
//!
//! A bio's cgroup (`bi_blkg`) would tell without a table which VM it is of, but not whether it counts: what a stacked device
//! submits below bears it too, and what the host writes back bears the root's (cgroup v1).

use aya_ebpf::helpers::generated::bpf_jiffies64;
use monitor_ebpf::{InFlight, InFlightSet, Layout, Owner};

use crate::{
    kernel::global,
    maps::IN_FLIGHT,
    vms::{add_atomically, lane_of},
};

/// The number of sets less one; the number is a power of two.
#[unsafe(no_mangle)]
static IN_FLIGHT_MASK: u32 = 0;

/// Bits of a bio's address that don't matter for its set: 256 bytes, of which one takes 128 to 512.
const GRANULE_BITS: u32 = 8;

/// Notes a request; `false` if there is no room.
#[inline(always)]
pub(crate) fn note(bio: *const u8, anchor: *const Layout, owner: Owner) -> bool {
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
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the lower half is enough, see `InFlight::age`"
    )]
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
pub(crate) fn find(bio: *const u8, anchor: *const Layout) -> Option<&'static mut InFlight> {
    set_of(bio, anchor)?.requests.iter_mut().find(|place| place.bio == bio as u64)
}

#[inline(always)]
fn forget(owner: Owner) {
    if let Some(lane) = lane_of(owner.slot())
        && owner == Owner::new(owner.slot(), lane.pid)
    {
        // By the side that submits: a completion that interrupts it on this CPU adds to the same field.
        add_atomically(&mut lane.completed_ops, 1);
    }
}

/// The set of a bio. The verifier lets nothing be computed with a pointer but its distance from another one,
/// which is a number: `anchor` is one that stays where it is for as long as the maps live.
#[inline(always)]
fn set_of(bio: *const u8, anchor: *const Layout) -> Option<&'static mut InFlightSet> {
    let distance = (bio as u64).wrapping_sub(anchor as u64);
    #[expect(clippy::cast_possible_truncation, reason = "the mask takes less than that")]
    let index = (distance >> GRANULE_BITS) as u32 & global(&IN_FLIGHT_MASK);
    // SAFETY: array elements live as long as the map; what two CPUs that meet in one do, see above.
    IN_FLIGHT.get_ptr_mut(index).map(|set| unsafe { &mut *set })
}
