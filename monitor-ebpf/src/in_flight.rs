//! Requests in flight: since when, and of which VM.
//!
//! A set is found by the bio's address, and searched. Neighbours in the kernel's memory have sets beside each
//! other, so that the few bios that are in use at a time are found in a page or two. Spread over all of the map, as by a
//! hash, each look-up would wait for memory (measured: 20 to 40 ns), also the one for each request of other processes.
//!
//! A completion looks at the set's marks first, of which many are in the line that the last one was found in.
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
//! A bio's cgroup (`bi_blkg`) would tell without a table which VM it is of, where each QEMU has one of its own. Measured
//! beside this, a VM's request takes 12 to 15 ns less of 66 to 85; but each of all other processes takes 12 to 15 ns more of 23
//! to 39, since its bio has to be read, and there are more of these. It would tell neither since when requests are in flight,
//! nor whether one counts: what a stacked device submits below bears the same cgroup, as do the two halves of a bio that is
//! split, and what the host writes back bears the root's (cgroup v1).

use aya_ebpf::helpers::generated::bpf_jiffies64;
use monitor_ebpf::{InFlight, InFlightSet, MARKED_SETS, Owner, REQUESTS_OF_SET};

use crate::{
    kernel::{global, globals, low_half},
    maps::{IN_FLIGHT, IN_FLIGHT_MARKS},
    vms::{add_atomically, counters_of},
};

globals! {
    /// The number of sets less one; the number is a power of two.
    IN_FLIGHT_MASK
}

/// Bits of a bio's address that don't matter for its set: 256 bytes, of which one takes 128 to 512.
const GRANULE_BITS: u32 = 8;

/// Which places of a set are taken.
type Marks = [u8; REQUESTS_OF_SET as usize];

/// The place of a request, and its mark.
pub(crate) struct Place {
    request: &'static mut InFlight,
    mark: &'static mut u8,
}

impl Place {
    /// What stands in it. The place is free then, and may be another request's.
    #[inline(always)]
    pub(crate) fn take(self) -> InFlight {
        let request = *self.request;
        // The mark first: another CPU that takes the place once it is free marks it anew.
        // SAFETY: references are valid to write.
        unsafe {
            core::ptr::from_mut(self.mark).write_volatile(0);
            (&raw mut self.request.bio).write_volatile(0);
        }
        request
    }
}

/// Notes a request; `false` if there is no room.
#[inline(always)]
pub(crate) fn note(bio: *const u8, owner: Owner) -> bool {
    let index = set_of(bio);
    let Some(marks) = marks(index) else { return false };
    let Some(set) = requests(index) else { return false };
    let Some(Place { request, mark }) = free_place(bio, set, marks) else { return false };
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the lower half is enough, see `InFlight::age`"
    )]
    // SAFETY: plain call.
    let submitted_jiffies = unsafe { bpf_jiffies64() } as u32;
    // The address last: user space, which reads meanwhile, takes no other request's age for this one's.
    (request.submitted_jiffies, request.owner) = (submitted_jiffies, owner);
    // SAFETY: references are valid to write.
    unsafe {
        core::ptr::from_mut(mark).write_volatile(1);
        (&raw mut request.bio).write_volatile(bio as u64);
    }
    true
}

/// A place for the bio: one that is free, or its own of before.
#[inline(always)]
fn free_place(
    bio: *const u8,
    set: &'static mut InFlightSet,
    marks: &'static mut Marks,
) -> Option<Place> {
    let is_empty = u64::from_ne_bytes(*marks) == 0;
    let mut free = None;
    for (request, mark) in set.requests.iter_mut().zip(marks) {
        if request.bio == bio as u64 {
            // Its completion was missed, or it could not be submitted again.
            forget(request.owner);
            return Some(Place { request, mark });
        }
        if request.bio == 0 {
            free = Some(Place { request, mark });
            // Most sets are, and then the bio has no place in it.
            if is_empty {
                break;
            }
        }
    }
    free
}

/// The place of a request that is in flight.
#[inline(always)]
pub(crate) fn find(bio: *const u8) -> Option<Place> {
    let index = set_of(bio);
    let marks = marks(index)?;
    if u64::from_ne_bytes(*marks) == 0 {
        return None;
    }
    let mut places = requests(index)?.requests.iter_mut().zip(marks);
    let (request, mark) = places.find(|(request, _)| request.bio == bio as u64)?;
    Some(Place { request, mark })
}

#[inline(always)]
fn forget(owner: Owner) {
    if let Some((lane, _)) = counters_of(owner.slot())
        && owner == Owner::new(owner.slot(), lane.pid)
    {
        // By the side that submits: a completion that interrupts it on this CPU adds to the same field.
        add_atomically(&mut lane.completed_ops, 1);
    }
}

/// The set of a bio.
#[inline(always)]
fn set_of(bio: *const u8) -> u32 {
    low_half(bio) >> GRANULE_BITS & global(&IN_FLIGHT_MASK)
}

#[inline(always)]
fn requests(set: u32) -> Option<&'static mut InFlightSet> {
    // SAFETY: array elements live as long as the map; what two CPUs that meet in one do, see above.
    IN_FLIGHT.get_ptr_mut(set).map(|set| unsafe { &mut *set })
}

#[inline(always)]
fn marks(set: u32) -> Option<&'static mut Marks> {
    let (row, at) = (set / MARKED_SETS, (set % MARKED_SETS) as usize);
    // SAFETY: as above.
    IN_FLIGHT_MARKS.get_ptr_mut(row).map(|marks| unsafe { &mut (*marks).is_taken[at] })
}
