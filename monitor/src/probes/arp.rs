//! The ARP probe: asks a guest's kernel on its own tap whether it still owns its IPv4 address.
//!
//! The probe's sender is 0.0.0.0, as in RFC 5227: the owner of the address answers, and no cache
//! changes. It goes to the guest's own Ethernet address from [`PROBE_MAC`], by which the tap program
//! tells the answer and takes it out of the traffic. Nothing of it is seen beyond the tap.

use std::net::Ipv4Addr;

use monitor_ebpf::PROBE_MAC;

use super::{
    Witness, ethernet, of_calibrated,
    probing::{self, Probe},
};
use crate::sampler::{TapAddress, TapAddresses};

/// The row in the table.
pub(super) const WITNESS: Witness = Witness {
    name: "ARP probe",
    looks_for: "an answer for the IPv4 address that it uses",
    asked_in: of_calibrated,
    only_excuses: false,
    ask: |context, _| Box::pin(probing::ask(context, probe, |counters| counters.arp_answers)),
};

const ETH_P_ARP: u16 = 0x0806;

fn probe(addresses: &TapAddresses) -> Option<Probe> {
    addresses.ipv4.map(|guest| Probe { ip: guest.ip.into(), frame: frame(&guest) })
}

/// The frame that asks for `guest`.
pub fn frame(guest: &TapAddress<Ipv4Addr>) -> Vec<u8> {
    let mut frame = ethernet::header(guest.mac, guest.vlan, ETH_P_ARP);
    // Hardware Ethernet, protocol IPv4, their address lengths, operation: request (RFC 826).
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(PROBE_MAC);
    frame.extend(Ipv4Addr::UNSPECIFIED.octets());
    // The target's Ethernet address is what is asked for.
    frame.extend([0; 6]);
    frame.extend(guest.ip.octets());
    frame
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;

    #[test]
    fn the_probe_is_a_request_from_no_address_for_the_guests_address() {
        let ip = Ipv4Addr::new(10, 7, 0, 2);
        let mut guest = TapAddress { ip, mac: [2, 0, 0, 0, 0, 9], vlan: None };
        let request = [
            [8, 6, 0, 1, 8, 0, 6, 4, 0, 1].as_slice(),
            &PROBE_MAC,
            &[0, 0, 0, 0],
            &[0; 6],
            &[10, 7, 0, 2],
        ]
        .concat();
        let addresses = [[2, 0, 0, 0, 0, 9], PROBE_MAC].concat();
        assert_eq!(frame(&guest), [addresses.clone(), request.clone()].concat());
        guest.vlan = NonZeroU16::new(7);
        assert_eq!(frame(&guest), [addresses, vec![0x81, 0, 0, 7], request].concat());
    }
}
