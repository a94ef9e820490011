//! Addresses of guests, as the tap programs learned them: where a probe may be sent.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    num::NonZeroU16,
};

use monitor_ebpf::TapRow;

/// The addresses that a tap's guest was last seen to use; `None`: none of that family so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TapAddresses {
    /// From its ARP frames.
    pub ipv4: Option<TapAddress<Ipv4Addr>>,
    /// From its NDP frames; the link-local one, once it was seen.
    pub ipv6: Option<TapAddress<Ipv6Addr>>,
}

/// An address of a guest's, and by which frames it is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TapAddress<Ip> {
    /// The address.
    pub ip: Ip,
    /// The Ethernet address that it was seen with.
    pub mac: [u8; 6],
    /// The VLAN (802.1Q) that it was seen in; `None`: the frame had no tag.
    pub vlan: Option<NonZeroU16>,
}

impl From<TapRow> for TapAddresses {
    fn from(row: TapRow) -> Self {
        let (ipv4, ipv6) = (Ipv4Addr::from(row.guest_ipv4), Ipv6Addr::from(row.guest_ipv6));
        let vlan = NonZeroU16::new;
        Self {
            ipv4: (!ipv4.is_unspecified()).then(|| TapAddress {
                ip: ipv4,
                mac: row.guest_ipv4_mac,
                vlan: vlan(row.guest_ipv4_vlan),
            }),
            ipv6: (!ipv6.is_unspecified()).then(|| TapAddress {
                ip: ipv6,
                mac: row.guest_ipv6_mac,
                vlan: vlan(row.guest_ipv6_vlan),
            }),
        }
    }
}

/// A row as it was when its tap was attached.
pub(super) fn without_addresses(row: TapRow) -> TapRow {
    let TapRow { netns, ifindex, slot, .. } = row;
    TapRow { netns, ifindex, slot, ..TapRow::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_familys_address_is_known_by_itself_and_untagged_is_no_vlan() {
        let mut row = TapRow { netns: 1, ifindex: 2, slot: 3, ..TapRow::default() };
        assert_eq!(TapAddresses::from(row), TapAddresses::default());
        row.guest_ipv6 = Ipv6Addr::LOCALHOST.octets();
        row.guest_ipv6_mac = [6; 6];
        row.guest_ipv6_vlan = 66;
        let ipv6 = TapAddress { ip: Ipv6Addr::LOCALHOST, mac: [6; 6], vlan: NonZeroU16::new(66) };
        assert_eq!(TapAddresses::from(row), TapAddresses { ipv4: None, ipv6: Some(ipv6) });
        row.guest_ipv4 = [10, 0, 0, 4];
        row.guest_ipv4_mac = [4; 6];
        let ipv4 = TapAddress { ip: Ipv4Addr::new(10, 0, 0, 4), mac: [4; 6], vlan: None };
        assert_eq!(TapAddresses::from(row), TapAddresses { ipv4: Some(ipv4), ipv6: Some(ipv6) });
    }

    #[test]
    fn a_row_that_forgets_stays_its_taps_and_keeps_nothing_of_either_family() {
        let row = TapRow {
            netns: 1,
            ifindex: 2,
            slot: 3,
            guest_ipv4: [4; 4],
            guest_ipv4_mac: [4; 6],
            guest_ipv4_vlan: 4,
            guest_ipv6: [6; 16],
            guest_ipv6_mac: [6; 6],
            guest_ipv6_vlan: 6,
        };
        let fresh = TapRow { netns: 1, ifindex: 2, slot: 3, ..TapRow::default() };
        assert_eq!(without_addresses(row), fresh);
    }
}
