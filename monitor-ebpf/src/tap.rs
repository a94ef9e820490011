//! Packets that cross a tap. The host's *ingress* on a tap is what the guest sent: the sign of life. Its
//! *egress* is what was sent to the guest, which a dead guest receives as well.

use aya_ebpf::{
    bindings::__sk_buff,
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};
use aya_log_ebpf::debug;
use monitor_ebpf::{TAP_PROBES, TapRow, tap_home};

use crate::{
    beat::{ETH_HEARTBEAT_BE, Heard, record_heartbeat},
    kernel::{global, globals},
    maps::TAPS,
    neighbour::{Answer, classify_neighbour},
    vms::{add, add_atomically, counters_of, lives},
};

globals! {
    /// Inode number of the network namespace in which this copy of the programs is attached to taps.
    ///
    /// `skb->ifindex` is unique only inside its namespace, and reading the namespace from the packet would
    /// cost a chain of kernel reads; so each namespace gets its own copy, and the verifier sees a constant.
    NETNS
    /// The number of rows of `taps` less one; the number is a power of two.
    TAPS_MASK
}

/// Counts what the guest sent, learns its addresses from its ARP and NDP frames, and takes its answers to
/// our probes and its heartbeats out of the traffic, so that neither the bridge nor any neighbour ever sees one.
///
/// Hook: tap ingress, tcx (6.6) or clsact (4.5); the clock needs 5.6. Always lets other programs on the
/// tap go on. Cost: that of [`tap_to_guest`], and what [`classify_neighbour`] and [`record_heartbeat`] say.
#[classifier]
pub(crate) fn tap_from_guest(ctx: TcContext) -> i32 {
    let Some(tap) = tap(sk_buff(&ctx).ifindex) else {
        return TC_ACT_UNSPEC;
    };
    let Some((lane, shared)) = counters_of(tap.slot) else {
        return TC_ACT_UNSPEC;
    };
    add(&mut lane.guest_tx_packets, 1);
    add(&mut lane.guest_tx_bytes, u64::from(ctx.len()));
    if let Some(answer) = classify_neighbour(&ctx, sk_buff(&ctx), tap) {
        add_atomically(&mut shared.probe_answers, 1);
        add_atomically(&mut shared.probe_answer_bytes, u64::from(ctx.len()));
        match answer {
            Answer::Arp => add_atomically(&mut shared.arp_answers, 1),
            Answer::Ndp => add_atomically(&mut shared.ndp_answers, 1),
            Answer::Reachability => {}
        }
        debug!(&ctx, "tap {}: an answer to a probe is taken out", tap.ifindex);
        return TC_ACT_SHOT;
    }
    let heard = match sk_buff(&ctx).protocol {
        ETH_HEARTBEAT_BE => record_heartbeat(&ctx, tap.slot),
        _ => None,
    };
    let now = lives(tap.slot);
    if heard == Some(Heard::Beat) {
        add_atomically(&mut shared.heartbeats, 1);
        add_atomically(&mut shared.heartbeat_bytes, u64::from(ctx.len()));
        return TC_ACT_SHOT;
    }
    lane.guest_tx_last_jiffies = now;
    // What only looks like a beat is a sign of life, and goes no further either.
    if heard.is_some() { TC_ACT_SHOT } else { TC_ACT_UNSPEC }
}

/// Counts what was sent to the guest.
///
/// Hook: tap egress, tcx (6.6) or clsact (4.5). Always lets other programs on the tap go on. Cost: two
/// look-ups by index, see `docs/costs.md`.
#[classifier]
pub(crate) fn tap_to_guest(ctx: TcContext) -> i32 {
    if let Some(tap) = tap(sk_buff(&ctx).ifindex)
        && let Some((lane, _)) = counters_of(tap.slot)
    {
        add(&mut lane.guest_rx_packets, 1);
        add(&mut lane.guest_rx_bytes, u64::from(ctx.len()));
    }
    TC_ACT_UNSPEC
}

/// The tap that this packet crosses.
#[inline(always)]
fn tap(ifindex: u32) -> Option<&'static mut TapRow> {
    let (netns, mask) = (global(&NETNS), global(&TAPS_MASK));
    let home = tap_home(netns, ifindex, mask);
    for step in 0..TAP_PROBES {
        // SAFETY: array elements live as long as the map. Concurrent writers of a tap's row overwrite
        // each other's address, which is harmless.
        let row = unsafe { &mut *TAPS.get_ptr_mut(home.wrapping_add(step) & mask)? };
        if row.ifindex == ifindex && row.netns == netns {
            return Some(row);
        }
    }
    None
}

#[inline(always)]
fn sk_buff(ctx: &TcContext) -> &__sk_buff {
    // SAFETY: the kernel hands every classifier a valid context, which lives as long as the program runs.
    unsafe { &*ctx.skb.skb }
}
