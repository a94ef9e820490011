//! What a guest's kernel tells its neighbours is learned, in either family and in whatever VLAN; a probe
//! for it is answered, and nobody else on the network hears of the one or the other.
//!
//! The probes are the daemon's own, linked in: made and sent by its code, but when the test wants it.

use std::{
    net::{Ipv6Addr, UdpSocket},
    num::NonZeroU16,
    os::unix::fs::MetadataExt as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use flatline::parts::{CounterMaps, ProbeSocket, TapAddress, TapAddresses, arp, ndp};
use flatline_qemu::discover::{Tap as WatchedTap, TapKind};
use flatline_tests::{
    capture::Capture,
    daemon::Daemon,
    guest::{Guest, GuestConfig},
    interrupt,
    netns::Tap,
};
use libtest_mimic::Trial;
use monitor_ebpf::{PROBE_IPV6, PROBE_MAC};
use serde_json::json;

use crate::{
    counts::map_total,
    network::{hub, hub_arguments, tap_of, wait_until_attached},
    rig::{BOOT_LIMIT, Rig, trial, wait_for_vm},
};

/// Longer than a guest is silent between two frames of its own while it settles.
const QUIET: Duration = Duration::from_secs(5);
const QUIET_LIMIT: Duration = Duration::from_secs(60);
/// A guest asks 5 s after its answer whether the other is still there, and thrice in all.
const REACHABILITY_LIMIT: Duration = Duration::from_secs(15);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("ipv6_and_vlan_guests_answer_probes_that_the_network_never_sees", answered),
        trial("only_frames_that_speak_for_their_sender_teach_an_address", taught),
    ]
}

/// The daemon's view of one tap.
struct Learned<'a> {
    rig: &'a Rig,
    guest: &'a Guest,
    maps: CounterMaps,
    tap: WatchedTap,
}

impl<'a> Learned<'a> {
    fn new(rig: &'a Rig, daemon: &Daemon, guest: &'a Guest) -> Result<Self> {
        let shown = daemon.show(guest.name())?;
        let ifindex = shown["taps"][0]["ifindex"].as_u64().context("no tap is shown")?;
        let tap = WatchedTap {
            kind: TapKind::Tap,
            name: shown["taps"][0]["name"].as_str().unwrap_or_default().to_owned(),
            netns: std::fs::metadata(rig.netns.path())?.ino().try_into()?,
            ifindex: ifindex.try_into()?,
        };
        let maps = CounterMaps::open(&rig.dir().join("bpf/flatline"))?;
        Ok(Self { rig, guest, maps, tap })
    }

    fn addresses(&self) -> Result<TapAddresses> {
        self.maps.tap_addresses(&self.tap).map_err(|missing| anyhow!("{missing}"))
    }

    fn counter(&self, field: &str) -> Result<u64> {
        map_total(self.rig, self.guest, "network", field)
    }

    /// What the guest sent, of it what was taken out, of that the answers to NDP probes, and when it last
    /// sent something of its own.
    fn counters(&self) -> Result<[u64; 4]> {
        let [sent, taken, ndp, last] =
            ["guest_tx_packets", "probe_answers", "ndp_answers", "guest_tx_last_jiffies"];
        Ok([self.counter(sent)?, self.counter(taken)?, self.counter(ndp)?, self.counter(last)?])
    }

    fn wait_until_quiet(&self) -> Result<[u64; 4]> {
        let (mut last, mut since) = (self.counters()?, Instant::now());
        interrupt::wait_until("the guest to be quiet", QUIET_LIMIT, || {
            let now = self.counters()?;
            if now != last {
                (last, since) = (now, Instant::now());
            }
            Ok((since.elapsed() > QUIET).then_some(now))
        })
    }
}

/// A daemon that asks nobody: only the test's own probes are to be seen.
fn daemon_that_never_asks(rig: &Rig) -> Result<Daemon> {
    let mut config = rig.daemon_config()?;
    config.mode = "observe".to_owned();
    config.boot_grace = Duration::from_secs(3600);
    rig.daemon(&config)
}

fn answered() -> Result<()> {
    let rig = Rig::new()?;
    rig.netns.ip(&["link", "add", "bridge", "type", "bridge"])?;
    rig.netns.ip(&["link", "add", "port", "type", "veth", "peer", "name", "neighbour"])?;
    rig.netns.ip(&["link", "set", "port", "master", "bridge"])?;
    for name in ["bridge", "port", "neighbour"] {
        rig.netns.ip(&["link", "set", name, "up"])?;
    }
    let captures = ["neighbour", "bridge"]
        .map(|name| Capture::start(&rig.netns.interface(name)))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let mut six = rig.linux("six-only", 1)?;
    (six.ip, six.ip6) = (None, Some("fd00:7::2/64".to_owned()));
    let mut tagged = rig.linux("tagged", 2)?;
    (tagged.ip6, tagged.vlan) = (Some("fd00:8::2/64".to_owned()), Some(7));
    let configs = [six, tagged];
    for config in &configs {
        config.tap.as_ref().context("it has a tap")?.set(&["master", "bridge"])?;
    }
    let daemon = daemon_that_never_asks(&rig)?;
    let guests = configs.iter().map(GuestConfig::start).collect::<Result<Vec<_>>>()?;
    for guest in &guests {
        // Before it tests its addresses for duplicates.
        let attached = |row: &serde_json::Value| row["network"].is_object();
        wait_for_vm(&daemon, guest.name(), "its tap is read", BOOT_LIMIT, attached)?;
    }
    for guest in &guests {
        guest.wait_until_booted(BOOT_LIMIT)?;
    }
    let [six, tagged] =
        [Learned::new(&rig, &daemon, &guests[0])?, Learned::new(&rig, &daemon, &guests[1])?];
    let [sent, ..] = six.wait_until_quiet()?;
    ensure!(sent > 0, "it was to test its addresses");
    let none = TapAddresses::default();
    ensure!(six.addresses()? == none, "learned from a test: {:?}", six.addresses()?);

    guests[0].run("net6 1", BOOT_LIMIT)?;
    check_ip6(&six, "fd00:7::2".parse()?, None)?;
    guests[0].run("net6 1 fe80::1%eth0", BOOT_LIMIT)?;
    let own = six.addresses()?.ipv6.context("no IPv6 address any more")?;
    check_ip6(&six, link_local(own.mac), None)?;
    guests[0].run("net6 1", BOOT_LIMIT)?;
    check_ip6(&six, link_local(own.mac), None)?;
    ensure!(six.addresses()?.ipv4.is_none(), "{:?}", six.addresses()?);

    guests[1].run("net6 1", BOOT_LIMIT)?;
    check_ip6(&tagged, "fd00:8::2".parse()?, NonZeroU16::new(7))?;
    let ipv4 = tagged.addresses()?.ipv4.context("no IPv4 address")?;
    ensure!(ipv4.ip.octets() == [10, 7, 2, 2] && ipv4.vlan == NonZeroU16::new(7), "{ipv4:?}");

    let socket = ProbeSocket::open(&std::fs::File::open(rig.netns.path())?)?;
    for learned in [&six, &tagged] {
        probe(learned, &socket)?;
    }
    for (capture, place) in captures.iter().zip(["neighbour", "bridge"]) {
        let frames = capture.frames()?;
        println!("{place} saw {} frames", frames.len());
        for frame in &frames {
            let ours = |part: &[u8]| part == PROBE_MAC || part == PROBE_IPV6;
            let seen = frame.windows(6).any(ours) || frame.windows(16).any(ours);
            ensure!(!seen, "{place} saw {frame:x?}");
        }
        for mac in [own.mac, ipv4.mac] {
            let sent = frames.iter().any(|frame| frame.get(6..12) == Some(&mac));
            ensure!(sent || place != "neighbour", "{place} saw nothing of {mac:x?} at all");
        }
    }

    // It boots anew, and hasn't asked for anybody yet.
    guests[1].qmp("system_reset", &json!({}))?;
    interrupt::wait_until("its address to be forgotten", BOOT_LIMIT, || {
        Ok(tagged.addresses()?.ipv6.is_none().then_some(()))
    })
}

fn check_ip6(learned: &Learned<'_>, ip: Ipv6Addr, vlan: Option<NonZeroU16>) -> Result<()> {
    let seen = learned.addresses()?.ipv6.context("no IPv6 address was learned")?;
    ensure!((seen.ip, seen.vlan) == (ip, vlan), "{seen:?} instead of {ip} in {vlan:?}");
    Ok(())
}

/// The link-local address that Linux makes of an Ethernet address.
fn link_local([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = [a ^ 2, b, c, d, e, f].map(u16::from);
    Ipv6Addr::new(0xfe80, 0, 0, 0, a << 8 | b, c << 8 | 0xff, 0xfe00 | d, e << 8 | f)
}

/// Asks for each of the guest's addresses, and waits until it has forgotten who asked.
fn probe(learned: &Learned<'_>, socket: &ProbeSocket) -> Result<()> {
    let before = learned.wait_until_quiet()?;
    let TapAddresses { ipv4, ipv6 } = learned.addresses()?;
    let mut expected = before;
    let frames = [ipv4.map(|guest| arp::frame(&guest)), ipv6.map(|guest| ndp::frame(&guest))];
    for (frame, ndp) in frames.iter().zip([0, 1]) {
        let Some(frame) = frame else { continue };
        socket.send(learned.tap.ifindex, frame)?;
        expected = [expected[0] + 1, expected[1] + 1, expected[2] + ndp, expected[3]];
        // A CPU's counters are not read in one moment; and its look whether we are there follows in some seconds.
        interrupt::wait_until("an answer", Duration::from_secs(5), || {
            Ok((learned.counters()? == expected).then_some(()))
        })
        .with_context(|| format!("{:?} instead of {expected:?}", learned.counters()))?;
    }
    interrupt::wait_until("a look whether we are there", REACHABILITY_LIMIT, || {
        Ok((learned.counters()?[1] > expected[1]).then_some(()))
    })?;
    let after = learned.wait_until_quiet()?;
    println!("{}: {before:?}, answers {expected:?}, in the end {after:?}", learned.guest.name());
    ensure!(after[0] - before[0] == after[1] - before[1], "something was taken for its own");
    ensure!(after[2..] == expected[2..], "{after:?}, {expected:?}");
    Ok(())
}

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

/// Sends one frame as the guest that listens at the hub's socket, and waits until the tap had it.
fn send(rig: &Rig, tap: &Tap, frame: Vec<u8>) -> Result<()> {
    let before = tap.counters()?.rx_packets;
    rig.netns.interface("lo").inside(move || -> Result<()> {
        UdpSocket::bind("127.0.0.1:0")?.send_to(&frame, ("127.0.0.1", 7001))?;
        Ok(())
    })??;
    interrupt::wait_until("the frame", Duration::from_secs(10), || {
        Ok((tap.counters()?.rx_packets > before).then_some(()))
    })
}

fn taught() -> Result<()> {
    let rig = Rig::new()?;
    let tap = rig.netns.tap("tap1", None)?;
    let mut config = hub(&rig, "teaches", "")?;
    config.extra_args.extend(hub_arguments(1, &tap_of(1, &tap), 7001));
    let guest = config.start()?;
    let daemon = daemon_that_never_asks(&rig)?;
    wait_until_attached(&daemon, "teaches", &["tap1"])?;
    let learned = Learned::new(&rig, &daemon, &guest)?;
    let (global, other, local) = ("fd00:7::2", "fd00:7::3", "fe80::2");
    let own = Ndp::solicitation(global)?;
    let nothing = [
        ("a test for duplicates", Ndp::solicitation("::")?.frame()),
        ("a multicast source", Ndp::solicitation("ff02::1")?.frame()),
        ("a forwarded frame", Ndp { hop_limit: 64, ..own.clone() }.frame()),
        (
            "another's Ethernet address",
            Ndp { option: [[1, 1].as_slice(), &OTHER_MAC].concat(), ..own.clone() }.frame(),
        ),
        ("an advertisement for somebody else", Ndp { kind: 136, ..own.clone() }.frame()),
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
        send(&rig, &tap, frame)?;
        let addresses = learned.addresses()?;
        ensure!(addresses == TapAddresses::default(), "{what} taught {addresses:?}");
    }

    let tag = |vlan: u8| vec![0x81, 0, 0, vlan];
    let advertisement = Ndp {
        kind: 136,
        target: own.source,
        option: [[2, 1].as_slice(), &MAC].concat(),
        ..own.clone()
    };
    for (what, frame, address, vlan) in [
        ("no option", Ndp { option: Vec::new(), ..own.clone() }, global, 0),
        ("another address", Ndp::solicitation(other)?, other, 0),
        ("an advertisement of its own", advertisement, global, 0),
        ("a link-local address", Ndp::solicitation(local)?, local, 0),
        ("a global address after that", own.clone(), local, 0),
        ("a VLAN", Ndp { tags: tag(7), ..own.clone() }, global, 7),
        ("a priority", Ndp { tags: vec![0x81, 0, 0xa0, 0], ..Ndp::solicitation(local)? }, local, 0),
        ("both", Ndp { tags: vec![0x81, 0, 0xaf, 0xfe], ..own.clone() }, global, 0xffe),
    ] {
        send(&rig, &tap, frame.frame())?;
        let ipv6 = TapAddress { ip: address.parse()?, mac: MAC, vlan: NonZeroU16::new(vlan) };
        let addresses = learned.addresses()?;
        let expected = TapAddresses { ipv4: None, ipv6: Some(ipv6) };
        ensure!(addresses == expected, "{what} taught {addresses:?} instead of {expected:?}");
    }
    let ipv6 = learned.addresses()?.ipv6;
    for vlan in [9, 0] {
        let tags = if vlan == 0 { Vec::new() } else { tag(vlan) };
        send(&rig, &tap, arp_frame(&tags, 1, [0; 6]))?;
        let vlan = NonZeroU16::new(vlan.into());
        let ipv4 = TapAddress { ip: [10, 7, 0, 2].into(), mac: MAC, vlan };
        let addresses = learned.addresses()?;
        ensure!(addresses == TapAddresses { ipv4: Some(ipv4), ipv6 }, "{addresses:?}");
    }

    let to_us = Ndp { to: PROBE_MAC, ..Ndp::solicitation(other)? };
    let addresses = learned.addresses()?;
    let mut expected = learned.counters()?;
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
        send(&rig, &tap, frame)?;
        let now = learned.counters()?;
        expected = [expected[0] + 1, expected[1] + taken, expected[2] + ndp, expected[3]];
        ensure!(now[..3] == expected[..3], "{what}: {now:?} instead of {expected:?}");
        ensure!((now[3] == expected[3]) == (taken == 1), "{what}: sent at {now:?}, {expected:?}");
        expected = now;
        ensure!(learned.addresses()? == addresses, "{what} taught {:?}", learned.addresses()?);
    }
    let shown = daemon.show("teaches")?;
    wait_for_vm(&daemon, "teaches", "its answers", BOOT_LIMIT, |row| {
        let network = &row["network"];
        network["probe_answers"] == expected[1] && network["ndp_answers"] == expected[2]
    })
    .with_context(|| format!("{shown}"))?;
    Ok(())
}
