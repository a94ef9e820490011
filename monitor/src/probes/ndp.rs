//! The NDP probe: asks a guest's kernel on its own tap whether it still owns its IPv6 address (RFC 4861).
//!
//! Unlike ARP's, its sender can't be unspecified: a question from `::` is what a host sends that wants the
//! address for itself, and would make a guest give it up (RFC 4862, section 5.4.3). So it comes from a
//! link-local address of flatline's own, [`PROBE_IPV6`], and says that this lives at [`PROBE_MAC`]. The
//! guest keeps that for a while, and some seconds later asks whether it is still true; there is no answer, and
//! it forgets. The tap program takes both its answer and those questions out of the traffic.

use std::net::Ipv6Addr;

use monitor_ebpf::{PROBE_IPV6, PROBE_MAC};

use super::{
    Witness, ethernet, of_calibrated,
    probing::{self, Probe},
};
use crate::sampler::{TapAddress, TapAddresses};

/// The row in the table.
pub(super) const WITNESS: Witness = Witness {
    name: "NDP probe",
    looks_for: "an answer for the IPv6 address that it uses",
    asked_in: of_calibrated,
    only_excuses: false,
    ask: |context, _| Box::pin(probing::ask(context, probe, |counters| counters.ndp_answers)),
};

const ETH_P_IPV6: u16 = 0x86dd;
const IPPROTO_ICMPV6: u8 = 58;
/// What tells the guest that no router forwarded the frame; it takes no other.
const HOP_LIMIT: u8 = 255;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const SOURCE_LINK_LAYER_ADDRESS: u8 = 1;
/// The solicitation and its option.
const MESSAGE_BYTES: u16 = 32;

fn probe(addresses: &TapAddresses) -> Option<Probe> {
    addresses.ipv6.map(|guest| Probe { ip: guest.ip.into(), frame: frame(&guest) })
}

/// The frame that asks for `guest`, sent to that address itself and not to its group: no other is to
/// hear it, and a guest need not have joined the group.
pub fn frame(guest: &TapAddress<Ipv6Addr>) -> Vec<u8> {
    let mut frame = ethernet::header(guest.mac, guest.vlan, ETH_P_IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(MESSAGE_BYTES.to_be_bytes());
    frame.extend([IPPROTO_ICMPV6, HOP_LIMIT]);
    frame.extend(PROBE_IPV6);
    frame.extend(guest.ip.octets());
    frame.extend(solicitation(guest.ip, 0));
    let checksum = checksum(guest.ip);
    let message_at = frame.len() - usize::from(MESSAGE_BYTES);
    frame[message_at..].copy_from_slice(&solicitation(guest.ip, checksum));
    frame
}

/// The message, from its ICMPv6 header on.
fn solicitation(target: Ipv6Addr, checksum: u16) -> Vec<u8> {
    let mut message = vec![NEIGHBOUR_SOLICITATION, 0];
    message.extend(checksum.to_be_bytes());
    message.extend([0; 4]);
    message.extend(target.octets());
    // Its length is in units of 8 bytes.
    message.extend([SOURCE_LINK_LAYER_ADDRESS, 1]);
    message.extend(PROBE_MAC);
    message
}

/// The checksum over the message and the pseudo-header before it (RFC 4443, section 2.3).
fn checksum(target: Ipv6Addr) -> u16 {
    let mut covered = PROBE_IPV6.to_vec();
    covered.extend(target.octets());
    covered.extend(u32::from(MESSAGE_BYTES).to_be_bytes());
    covered.extend([0, 0, 0, IPPROTO_ICMPV6]);
    covered.extend(solicitation(target, 0));
    let (words, _) = covered.as_chunks::<2>();
    let sum: u32 = words.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    // Twice: the first time may carry once more.
    let folded = (sum >> 16) + (sum & 0xffff);
    let [_, _, high, low] = ((folded >> 16) + folded).to_be_bytes();
    !u16::from_be_bytes([high, low])
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;

    fn guest(ip: &str) -> TapAddress<Ipv6Addr> {
        TapAddress { ip: ip.parse().expect("an address"), mac: [2, 0, 0, 0, 0, 9], vlan: None }
    }

    #[test]
    fn the_probe_is_a_solicitation_from_our_link_local_address_to_the_guest_alone() {
        let mut guest = guest("2001:db8::2");
        let sender = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0xf1, 0xa7, 0xff, 0xfe, 0x11, 0x9e, 1];
        let packet = [
            [0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255].as_slice(),
            &sender,
            &guest.ip.octets(),
            &[135, 0, 0x90, 0xa4, 0, 0, 0, 0],
            &guest.ip.octets(),
            &[1, 1],
            &PROBE_MAC,
        ]
        .concat();
        let addresses = [[2, 0, 0, 0, 0, 9], PROBE_MAC].concat();
        assert_eq!(frame(&guest), [addresses.clone(), packet.clone()].concat());
        guest.vlan = NonZeroU16::new(4094);
        assert_eq!(frame(&guest), [addresses, vec![0x81, 0, 0x0f, 0xfe], packet].concat());
    }

    #[test]
    fn the_checksum_is_right_for_any_address() {
        // By another implementation.
        for (ip, checksum) in [
            ("fe80::5054:ff:fe00:9", 0x505e),
            ("fd00:7::2", 0xf206),
            ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe", 0xec1c),
        ] {
            assert_eq!(super::checksum(guest(ip).ip), checksum, "{ip}");
        }
    }
}
