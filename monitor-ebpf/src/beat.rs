//! The heartbeats of a guest's agent, which are heard at its tap and go no further.

use aya_ebpf::{helpers::generated::bpf_jiffies64, programs::TcContext};
use monitor_ebpf::heartbeat::{
    FLAG_CHECK_FAILED, FLAG_LEAVING, HEARTBEAT_ETHERTYPE, HEARTBEAT_MAGIC, Heartbeat, HeartbeatRow,
};

use crate::{maps::HEARTBEATS, vms::add_atomically};

/// The frames' Ethernet type as `skb->protocol` holds it, in network byte order.
pub(crate) const ETH_HEARTBEAT_BE: u32 = HEARTBEAT_ETHERTYPE.to_be() as u32;
/// Bytes of an Ethernet header; the kernel has taken a VLAN's tag off.
const ETH_HLEN: usize = 14;

/// A frame that begins like a beat.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// It is one.
    Beat,
    /// Too short, of another version, or made up.
    Malformed,
}

/// Takes note of a frame of the heartbeats' Ethernet type. `None`: it begins with something else, and is none of ours.
///
/// Cost: two calls of a helper, which copy 4 and 60 bytes, and the clock; measured in `docs/costs.md`. Which VM it belongs to says
/// the tap that it came through, and nothing in the frame.
#[inline(always)]
pub(crate) fn record_heartbeat(ctx: &TcContext, slot: u32) -> Option<Heard> {
    if ctx.load::<[u8; 4]>(ETH_HLEN) != Ok(HEARTBEAT_MAGIC) {
        return None;
    }
    // SAFETY: array elements live as long as the map. Frames that come by two of a guest's cards at the same moment may mix
    // what the same agent says of itself; what is counted is added atomically.
    let row = unsafe { &mut *HEARTBEATS.get_ptr_mut(slot)? };
    match ctx.load::<Heartbeat>(ETH_HLEN) {
        Ok(beat) if beat.is_well_formed() => {
            note(row, &beat);
            Some(Heard::Beat)
        }
        Ok(_) | Err(_) => {
            add_atomically(&mut row.malformed, 1);
            Some(Heard::Malformed)
        }
    }
}

#[inline(always)]
fn note(row: &mut HeartbeatRow, beat: &Heartbeat) {
    row.interval_ms = u32::from_be_bytes(beat.interval_ms);
    row.boot = u64::from_be_bytes(beat.boot);
    row.sequence = u64::from_be_bytes(beat.sequence);
    row.flags = u32::from(beat.flags);
    row.check = beat.check;
    // SAFETY: plain call.
    row.last_jiffies = unsafe { bpf_jiffies64() };
    // The count last: user space reads the row meanwhile, and a frame that it sees counted is to be the one that it sees.
    if beat.flags & FLAG_LEAVING != 0 {
        add_atomically(&mut row.leavings, 1);
    } else if beat.flags & FLAG_CHECK_FAILED != 0 {
        add_atomically(&mut row.failures, 1);
    } else {
        add_atomically(&mut row.beats, 1);
    }
}
