//! The frames by which a guest's kernel tells its neighbours its addresses: ARP (RFC 826) for IPv4, neighbour
//! discovery (NDP, RFC 4861) for IPv6. What it says of itself is learned, so that it can be asked for it;
//! what it says because flatline asked is told from all else.
//!
//! An address belongs to the VLAN that it was seen in. The kernel has taken the tag off the frame before
//! any program at a tap's ingress runs, and only one: nothing is learned from a frame with another tag
//! below it, or with one that isn't 802.1Q's, since a probe could not be made to look like that.

use core::mem::{offset_of, size_of};

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use aya_log_ebpf::debug;
use monitor_ebpf::{PROBE_IPV6, PROBE_MAC, TapRow};

/// An Ethernet type as `skb->protocol` and `skb->vlan_proto` hold it, in network byte order.
const fn ethernet_type(number: u16) -> u32 {
    number.to_be() as u32
}

const ETH_P_ARP_BE: u32 = ethernet_type(0x0806);
const ETH_P_IPV6_BE: u32 = ethernet_type(0x86dd);
const ETH_P_8021Q_BE: u32 = ethernet_type(0x8100);
/// The VLAN's number in a tag; the rest is the frame's priority.
const VLAN_VID_MASK: u32 = 0x0fff;

const ARP_REPLY_BE: u16 = 2_u16.to_be();

const IPPROTO_ICMPV6: u8 = 58;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Of a frame that no router forwarded (RFC 4861, section 7.1).
const NEVER_FORWARDED: u8 = 255;
/// The options that carry a link-layer address: a solicitation's sender's, an advertisement's target's.
const LINK_LAYER_ADDRESS: [u8; 2] = [1, 2];
/// Their length, in units of 8 bytes.
const OPTION_UNITS: u8 = 1;

/// An ARP frame for IPv4 over Ethernet (RFC 826), as it lies on the wire.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct ArpFrame {
    ethernet_destination: [u8; 6],
    ethernet_source: [u8; 6],
    ethernet_type: u16,
    hardware_type: u16,
    protocol_type: u16,
    hardware_length: u8,
    protocol_length: u8,
    operation: u16,
    sender_mac: [u8; 6],
    sender_ipv4: [u8; 4],
    target_mac: [u8; 6],
    target_ipv4: [u8; 4],
}

/// A neighbour solicitation or advertisement over Ethernet, but for its options. It has no extension
/// header: none is of use here, and a fragment must be ignored (RFC 6980).
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct NdpFrame {
    ethernet_destination: [u8; 6],
    ethernet_source: [u8; 6],
    ethernet_type: u16,
    version_and_flow: u32,
    payload_length: u16,
    next_header: u8,
    hop_limit: u8,
    source: [u8; 16],
    destination: [u8; 16],
    icmp_type: u8,
    icmp_code: u8,
    checksum: u16,
    flags: u32,
    target: [u8; 16],
}

/// An option of such a frame that carries an Ethernet address.
#[repr(C)]
#[derive(Clone, Copy)]
struct LinkLayerOption {
    kind: u8,
    units: u8,
    mac: [u8; 6],
}

/// A frame that the guest would not have sent had flatline not asked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// To an ARP probe.
    Arp,
    /// To an NDP probe.
    Ndp,
    /// Whether flatline is still there: a guest finds out some seconds after it answered an NDP probe.
    Reachability,
}

/// Learns an address from a frame that the guest sent, or tells that it is an answer.
///
/// Cost: none that could be measured for a packet that is neither ARP nor IPv6; for another IPv6 packet 0.1
/// to 0.3 ns, two bytes read in place. A helper's call that copies 42 bytes for ARP, 18 ns, and two for NDP,
/// 78 and 8 bytes, 27 ns.
#[inline(always)]
pub(crate) fn classify_neighbour(
    ctx: &TcContext,
    skb: &__sk_buff,
    tap: &mut TapRow,
) -> Option<Answer> {
    match skb.protocol {
        ETH_P_ARP_BE => arp(ctx, skb, tap),
        ETH_P_IPV6_BE if is_ndp(ctx) => ndp(ctx, skb, tap),
        _ => None,
    }
}

#[inline(always)]
fn arp(ctx: &TcContext, skb: &__sk_buff, tap: &mut TapRow) -> Option<Answer> {
    let frame: ArpFrame = ctx.load(0).ok()?;
    if frame.operation == ARP_REPLY_BE && frame.target_mac == PROBE_MAC {
        return Some(Answer::Arp);
    }
    // A sender of 0.0.0.0 is a guest that still tests its address for duplicates (RFC 5227), and a sender
    // other than the frame's source speaks for another host.
    let usable = frame.hardware_length == 6
        && frame.protocol_length == 4
        && frame.sender_mac == frame.ethernet_source
        && frame.sender_ipv4 != [0; 4];
    let vlan = vlan(skb).filter(|_| usable)?;
    if tap.guest_ipv4 != frame.sender_ipv4
        || tap.guest_ipv4_mac != frame.sender_mac
        || tap.guest_ipv4_vlan != vlan
    {
        tap.guest_ipv4 = frame.sender_ipv4;
        tap.guest_ipv4_mac = frame.sender_mac;
        tap.guest_ipv4_vlan = vlan;
        let address = u32::from_be_bytes(frame.sender_ipv4);
        debug!(ctx, "tap {} uses {:i} in VLAN {}", tap.ifindex, address, vlan);
    }
    None
}

/// Whether an IPv6 packet is one of the two that [`ndp`] knows. One whose headers lie outside of what can
/// be read in place is none: the kernel makes each of a tap's small packets in one piece.
#[inline(always)]
fn is_ndp(ctx: &TcContext) -> bool {
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + size_of::<NdpFrame>() > end {
        return false;
    }
    let byte = |offset: usize| {
        // SAFETY: both offsets are inside an `NdpFrame`, which was just seen to fit in the packet.
        unsafe { *((start + offset) as *const u8) }
    };
    byte(offset_of!(NdpFrame, next_header)) == IPPROTO_ICMPV6
        && matches!(
            byte(offset_of!(NdpFrame, icmp_type)),
            NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT
        )
}

#[inline(always)]
fn ndp(ctx: &TcContext, skb: &__sk_buff, tap: &mut TapRow) -> Option<Answer> {
    let frame: NdpFrame = ctx.load(0).ok()?;
    let is_advertisement = frame.icmp_type == NEIGHBOUR_ADVERTISEMENT;
    let to_us = frame.ethernet_destination == PROBE_MAC;
    if to_us && is_advertisement {
        return Some(Answer::Ndp);
    }
    // A guest that has forgotten our Ethernet address asks all hosts.
    if to_us || (!is_advertisement && frame.target == PROBE_IPV6) {
        return Some(Answer::Reachability);
    }
    // A source of `::` is a guest that still tests its address for duplicates (RFC 4862), and one other
    // than the advertised address may speak for another host.
    let usable = frame.hop_limit == NEVER_FORWARDED
        && frame.icmp_code == 0
        && frame.source != [0; 16]
        && frame.source[0] != 0xff
        && (!is_advertisement || frame.source == frame.target)
        && link_layer_address_fits(ctx, &frame);
    let vlan = vlan(skb).filter(|_| usable)?;
    let same_interface = tap.guest_ipv6_mac == frame.ethernet_source && tap.guest_ipv6_vlan == vlan;
    let same = same_interface && tap.guest_ipv6 == frame.source;
    // A guest uses several in turn. Its link-local one is always there; others may be temporary.
    let better = !same_interface || is_link_local(&frame.source) || !is_link_local(&tap.guest_ipv6);
    if better && !same {
        tap.guest_ipv6 = frame.source;
        tap.guest_ipv6_mac = frame.ethernet_source;
        tap.guest_ipv6_vlan = vlan;
        debug!(ctx, "tap {} uses {:i} in VLAN {}", tap.ifindex, frame.source, vlan);
    }
    None
}

/// Whether the frame was sent by the host that it tells of. It needn't tell that to a receiver that knows it already.
#[inline(always)]
fn link_layer_address_fits(ctx: &TcContext, frame: &NdpFrame) -> bool {
    match ctx.load::<LinkLayerOption>(size_of::<NdpFrame>()) {
        Ok(option) if LINK_LAYER_ADDRESS.contains(&option.kind) => {
            option.units == OPTION_UNITS && option.mac == frame.ethernet_source
        }
        Ok(_) | Err(_) => true,
    }
}

/// `fe80::/10`.
#[inline(always)]
fn is_link_local(address: &[u8; 16]) -> bool {
    address[0] == 0xfe && address[1] & 0xc0 == 0x80
}

/// The VLAN that a frame belongs to; 0: none, as for a frame whose tag has a priority only. `None` where its
/// tag is not 802.1Q's.
#[inline(always)]
fn vlan(skb: &__sk_buff) -> Option<u16> {
    if skb.vlan_present == 0 {
        return Some(0);
    }
    (skb.vlan_proto == ETH_P_8021Q_BE).then_some((skb.vlan_tci & VLAN_VID_MASK) as u16)
}

const _: () = {
    assert!(size_of::<ArpFrame>() == 42);
    assert!(size_of::<NdpFrame>() == 78);
    assert!(size_of::<LinkLayerOption>() == 8);
    assert!(offset_of!(NdpFrame, next_header) == 20);
    assert!(offset_of!(NdpFrame, icmp_type) == 54);
};
