//! Which frames of a guest teach the daemon an address, sent one by one.

use std::net::{Ipv6Addr, UdpSocket};
use std::num::NonZeroU16;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use flatline::parts::{TapAddress, TapAddresses};
use flatline_tests::{interrupt, netns::Tap};
use monitor_ebpf::{PROBE_IPV6, PROBE_MAC};

use super::{Learned, daemon_that_never_asks};
use crate::hubs::{hub, hub_arguments, tap_of, wait_until_attached};
use crate::rig::{BOOT_LIMIT, Rig, wait_for_vm};

/// The addresses that the frames give the guest.
const GLOBAL: &str = "fd00:7::2";
const OTHER: &str = "fd00:7::3";
const LOCAL: &str = "fe80::2";
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 8];
const BROADCAST: [u8; 6] = [0xff; 6];

/// A neighbour solicitation (135) or advertisement (136) as [`MAC`] sends it; what a case changes comes after.
#[derive(Clone)]
struct Ndp {
    to: [u8; 6],
    tags: Vec<u8>,
    hop_limit: u8,
    source: Ipv6Addr,
    kind: u8,
    target: Ipv6Addr,
    option: Vec<u8>,
}

impl Ndp {
    fn solicitation(source: &str) -> Result<Self> {
        Ok(Self {
            to: [0x33, 0x33, 0, 0, 0, 1],
            tags: Vec::new(),
            hop_limit: 255,
            source: source.parse()?,
            kind: 135,
            target: "fd00:7::1".parse()?,
            option: [[1, 1].as_slice(), &MAC].concat(),
        })
    }

    fn frame(&self) -> Vec<u8> {
        [
            self.to.as_slice(),
            &MAC,
            &self.tags,
            &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, self.hop_limit],
            &self.source.octets(),
            &self.target.octets(),
            &[self.kind, 0, 0, 0, 0, 0, 0, 0],
            &self.target.octets(),
            &self.option,
        ]
        .concat()
    }
}

fn arp_frame(tags: &[u8], operation: u8, target_mac: [u8; 6]) -> Vec<u8> {
    let head = [8, 6, 0, 1, 8, 0, 6, 4, 0, operation];
    let (sender, target) = ([10, 7, 0, 2], [10, 7, 0, 1]);
    [&BROADCAST, &MAC[..], tags, &head, &MAC, &sender, &target_mac, &target].concat()
}

pub(super) fn taught() -> Result<()> {
    let rig = Rig::new()?;
    let tap = rig.netns.tap("tap1", None)?;
    let mut config = hub(&rig, "teaches", "")?;
    config.extra_args.extend(hub_arguments(1, &tap_of(1, &tap), 7001));
    let guest = config.start()?;
    let daemon = daemon_that_never_asks(&rig)?;
    wait_until_attached(&daemon, "teaches", &["tap1"])?;
    let learned = Learned::new(&rig, &daemon, &guest)?;
    let link = Link { rig: &rig, tap: &tap, learned: &learned };
    link.teaches_nothing()?;
    link.teaches_ipv6()?;
    link.teaches_ipv4()?;
    let [_, taken, ndp, _] = link.is_answered()?;
    let shown = daemon.show("teaches")?;
    wait_for_vm(&daemon, "teaches", "its answers", BOOT_LIMIT, |row| {
        let network = &row["network"];
        network["probe_answers"] == taken && network["ndp_answers"] == ndp
    })
    .with_context(|| format!("{shown}"))?;
    Ok(())
}

/// The guest's socket, its tap, and what the daemon learned there.
struct Link<'a> {
    rig: &'a Rig,
    tap: &'a Tap,
    learned: &'a Learned<'a>,
}

impl Link<'_> {
    /// Sends one frame as the guest that listens at the hub's socket, and waits until the tap had it.
    fn send(&self, frame: Vec<u8>) -> Result<()> {
        let before = self.tap.counters()?.rx_packets;
        self.rig.netns.interface("lo").inside(move || -> Result<()> {
            UdpSocket::bind("127.0.0.1:0")?.send_to(&frame, ("127.0.0.1", 7001))?;
            Ok(())
        })??;
        interrupt::wait_until("the frame", Duration::from_secs(10), || {
            Ok((self.tap.counters()?.rx_packets > before).then_some(()))
        })
    }

    /// Frames that don't speak for their sender.
    fn teaches_nothing(&self) -> Result<()> {
        let own = Ndp::solicitation(GLOBAL)?;
        let nothing = [
            ("a test for duplicates", Ndp::solicitation("::")?.frame()),
            ("a multicast source", Ndp::solicitation("ff02::1")?.frame()),
            ("a forwarded frame", Ndp { hop_limit: 64, ..own.clone() }.frame()),
            (
                "another's Ethernet address",
                Ndp { option: [[1, 1].as_slice(), &OTHER_MAC].concat(), ..own.clone() }.frame(),
            ),
            ("an advertisement for another", Ndp { kind: 136, ..own.clone() }.frame()),
            ("an echo request", Ndp { kind: 128, ..own.clone() }.frame()),
            ("two tags", Ndp { tags: vec![0x81, 0, 0, 7, 0x81, 0, 0, 8], ..own.clone() }.frame()),
            ("a provider's tag", Ndp { tags: vec![0x88, 0xa8, 0, 7], ..own.clone() }.frame()),
            ("a frame cut short", own.frame()[..77].to_vec()),
            ("a test for duplicates (ARP)", {
                let mut frame = arp_frame(&[], 1, [0; 6]);
                frame[28..32].fill(0);
                frame
            }),
            ("two tags (ARP)", arp_frame(&[0x81, 0, 0, 7, 0x81, 0, 0, 8], 1, [0; 6])),
        ];
        for (what, frame) in nothing {
            self.send(frame)?;
            let addresses = self.learned.addresses()?;
            ensure!(addresses == TapAddresses::default(), "{what} taught {addresses:?}");
        }
        Ok(())
    }

    fn teaches_ipv6(&self) -> Result<()> {
        let own = Ndp::solicitation(GLOBAL)?;
        let advertisement = Ndp {
            kind: 136,
            target: own.source,
            option: [[2, 1].as_slice(), &MAC].concat(),
            ..own.clone()
        };
        for (what, frame, address, vlan) in [
            ("no option", Ndp { option: Vec::new(), ..own.clone() }, GLOBAL, 0),
            ("another address", Ndp::solicitation(OTHER)?, OTHER, 0),
            ("an advertisement of its own", advertisement, GLOBAL, 0),
            ("a link-local address", Ndp::solicitation(LOCAL)?, LOCAL, 0),
            ("a global address after that", own.clone(), LOCAL, 0),
            ("a VLAN", Ndp { tags: tag(7), ..own.clone() }, GLOBAL, 7),
            (
                "a priority",
                Ndp { tags: vec![0x81, 0, 0xa0, 0], ..Ndp::solicitation(LOCAL)? },
                LOCAL,
                0,
            ),
            ("both", Ndp { tags: vec![0x81, 0, 0xaf, 0xfe], ..own.clone() }, GLOBAL, 0xffe),
        ] {
            self.send(frame.frame())?;
            let ipv6 = TapAddress { ip: address.parse()?, mac: MAC, vlan: NonZeroU16::new(vlan) };
            let addresses = self.learned.addresses()?;
            let expected = TapAddresses { ipv4: None, ipv6: Some(ipv6) };
            ensure!(addresses == expected, "{what} taught {addresses:?} instead of {expected:?}");
        }
        Ok(())
    }

    /// The IPv6 address that was learned before stays.
    fn teaches_ipv4(&self) -> Result<()> {
        let ipv6 = self.learned.addresses()?.ipv6;
        for vlan in [9, 0] {
            let tags = if vlan == 0 { Vec::new() } else { tag(vlan) };
            self.send(arp_frame(&tags, 1, [0; 6]))?;
            let vlan = NonZeroU16::new(vlan.into());
            let ipv4 = TapAddress { ip: [10, 7, 0, 2].into(), mac: MAC, vlan };
            let addresses = self.learned.addresses()?;
            ensure!(addresses == TapAddresses { ipv4: Some(ipv4), ipv6 }, "{addresses:?}");
        }
        Ok(())
    }

    /// Answers to the daemon's probes are taken out; nothing else is, and none teaches an address. Returns the counters.
    fn is_answered(&self) -> Result<[u64; 4]> {
        let own = Ndp::solicitation(GLOBAL)?;
        let to_us = Ndp { to: PROBE_MAC, ..Ndp::solicitation(OTHER)? };
        let addresses = self.learned.addresses()?;
        let mut expected = self.learned.counters()?;
        for (what, frame, taken, ndp) in [
            ("an answer", Ndp { kind: 136, ..to_us.clone() }.frame(), 1, 1),
            ("an answer in a VLAN", Ndp { kind: 136, tags: tag(7), ..to_us.clone() }.frame(), 1, 1),
            ("a question", to_us.frame(), 1, 0),
            ("a question to all", Ndp { target: PROBE_IPV6.into(), ..own.clone() }.frame(), 1, 0),
            ("an ARP answer", arp_frame(&[], 2, PROBE_MAC), 1, 0),
            ("an ARP answer in a VLAN", arp_frame(&tag(7), 2, PROBE_MAC), 1, 0),
            ("an ARP question", arp_frame(&[], 1, PROBE_MAC), 0, 0),
            ("another packet to us", Ndp { kind: 128, ..to_us.clone() }.frame(), 0, 0),
        ] {
            // The kernel's ticks are 10 ms at most.
            interrupt::sleep(Duration::from_millis(20))?;
            self.send(frame)?;
            let now = self.learned.counters()?;
            expected = [expected[0] + 1, expected[1] + taken, expected[2] + ndp, expected[3]];
            ensure!(now[..3] == expected[..3], "{what}: {now:?} instead of {expected:?}");
            ensure!(
                (now[3] == expected[3]) == (taken == 1),
                "{what}: sent at {now:?}, {expected:?}"
            );
            expected = now;
            ensure!(
                self.learned.addresses()? == addresses,
                "{what} taught {:?}",
                self.learned.addresses()?
            );
        }
        Ok(expected)
    }
}

fn tag(vlan: u8) -> Vec<u8> {
    vec![0x81, 0, 0, vlan]
}
