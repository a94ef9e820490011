//! The head of a probe's frame: what makes it reach one guest, in the VLAN that it is in.

use std::num::NonZeroU16;

use monitor_ebpf::PROBE_MAC;

/// The protocol number of an 802.1Q tag.
const ETH_P_8021Q: u16 = 0x8100;

/// An Ethernet header from [`PROBE_MAC`], with a tag of the lowest priority where there is a `vlan`.
pub(super) fn header(to: [u8; 6], vlan: Option<NonZeroU16>, protocol: u16) -> Vec<u8> {
    let mut header = [to, PROBE_MAC].concat();
    if let Some(vlan) = vlan {
        header.extend(ETH_P_8021Q.to_be_bytes());
        header.extend(vlan.get().to_be_bytes());
    }
    header.extend(protocol.to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 9];

    #[test]
    fn a_frame_has_a_tag_only_where_the_guest_is_in_a_vlan() {
        let plain = [GUEST.as_slice(), &PROBE_MAC, &[8, 6]].concat();
        assert_eq!(header(GUEST, None, 0x0806), plain);
        let tagged = [GUEST.as_slice(), &PROBE_MAC, &[0x81, 0, 0x01, 0x02, 8, 6]].concat();
        assert_eq!(header(GUEST, NonZeroU16::new(0x102), 0x0806), tagged);
    }
}
