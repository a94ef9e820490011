//! What a guest's kernel tells its neighbours is learned, in either family and in whatever VLAN; a probe
//! for it is answered, and nothing else on the network hears of the one or the other.
//!
//! The probes are the daemon's own, linked in: made and sent by its code, but when the test wants it.

mod taught;

use std::{
    net::Ipv6Addr,
    num::NonZeroU16,
    os::unix::fs::MetadataExt as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use flatline::parts::{CounterMaps, ProbeSocket, TapAddresses, arp, ndp};
use flatline_qemu::discover::{Tap as WatchedTap, TapKind};
use flatline_tests::{
    capture::Capture,
    daemon::Daemon,
    guest::{Guest, GuestConfig},
    interrupt,
};
use libtest_mimic::Trial;
use monitor_ebpf::{PROBE_IPV6, PROBE_MAC};
use serde_json::json;

use crate::{
    counts::map_total,
    rig::{BOOT_LIMIT, Rig, trial, wait_for_vm},
};

/// Longer than a guest is silent between two frames of its own while it settles.
const QUIET: Duration = Duration::from_secs(5);
const QUIET_LIMIT: Duration = Duration::from_secs(60);
/// Linux looks three times for a router, and settles that much sooner than with its 4 s between them.
const ROUTERS_EACH_SECOND: &str = "sysctl.net.ipv6.conf.default.router_solicitation_interval=1";
/// A guest asks 5 s after its answer whether the other is still there, and thrice in all.
const REACHABILITY_LIMIT: Duration = Duration::from_secs(15);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("ipv6_and_vlan_guests_answer_probes_that_the_network_never_sees", answered),
        trial("only_frames_that_speak_for_their_sender_teach_an_address", taught::taught),
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
        map_total(self.rig, self.guest, field)
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

/// A daemon that asks no guest: only the test's own probes are to be seen.
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
    let mut configs = [six, tagged];
    for config in &mut configs {
        config.kernel_args.push(ROUTERS_EACH_SECOND.to_owned());
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
    // Both at the same time: most of it is waiting for the guest to settle.
    std::thread::scope(|scope| {
        [&six, &tagged]
            .map(|learned| scope.spawn(|| probe(learned, &socket)))
            .into_iter()
            .try_for_each(|probed| probed.join().map_err(|_| anyhow!("it panicked"))?)
    })?;
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

    // It boots anew, and hasn't asked for any address yet.
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

/// Asks for each of the guest's addresses, and waits until it has forgotten the asker.
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
