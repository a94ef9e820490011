//! News of interfaces, and the kernel's counts of their packets, from one socket in each network namespace where a VM has a tap.
//!
//! Read once a tick, if there is any, and without waiting, so that a flood of news costs no more than the sockets hold; what they did not hold
//! is told as missed. Only namespaces that live in any case are listened to: a socket keeps its own alive. Messages:
//! include/uapi/linux/{rtnetlink,if_link}.h of Linux 6.12.

use std::{
    collections::HashMap as StdHashMap,
    fs::File,
    io,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
};

use rustix::{
    event::epoll,
    fs::Timespec,
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SocketFlags, SocketType, bind, netlink::SocketAddrNetlink,
        recvfrom, socket_with,
    },
};
use tracing::debug;

use super::netlink::{
    self, BUFFER_BYTES, IFLA_IFNAME, LINK_BYTES, NLM_F_DUMP, NLMSG_DONE, NLMSG_ERROR, RTM_GETSTATS,
    RTM_NEWLINK, RTM_NEWSTATS, attributes, errno,
};
use flatline_qemu::discover::in_netns;

const RTM_DELLINK: u16 = 17;
/// `RTMGRP_LINK`: the bit of the group `RTNLGRP_LINK`.
const NEWS_OF_LINKS: u32 = 1;
const IFLA_LINKINFO: u16 = 18;
const IFLA_CARRIER: u16 = 33;
const IFLA_INFO_KIND: u16 = 1;
/// The kinds of interfaces that a QEMU may hold the other end of.
const TAP_KINDS: [&[u8]; 3] = [b"tun\0", b"macvtap\0", b"ipvtap\0"];
/// Namespaces that are listened to at the most.
const MOST_SOCKETS: usize = 1024;
/// Datagrams that are read of one socket at once; what is left is read in the next tick.
const MOST_DATAGRAMS: usize = 512;
/// Sockets with news that are read at once, likewise.
const MOST_EVENTS: usize = 64;

/// What the kernel tells of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News<'a> {
    /// It is new, or something about it changed, or nothing did.
    Link(Link<'a>),
    /// It is gone: removed, or moved to another namespace.
    Gone { ifindex: u32 },
    /// Packets that it received and sent since it was made.
    Packets { ifindex: u32, received: u64, sent: u64 },
    /// Some news was lost.
    Missed,
}

/// An interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link<'a> {
    pub(super) ifindex: u32,
    pub(super) name: &'a [u8],
    /// Whether a process holds the other end of a tap.
    pub(super) has_carrier: bool,
    /// Whether it is of a kind of which a QEMU may hold the other end.
    pub(super) is_tap: bool,
}

/// What takes the news of a namespace.
pub(super) type Taker<'a> = &'a mut dyn FnMut(u32, News<'_>);

/// The sockets.
pub(super) struct Links {
    /// The number of our own namespace.
    own: u32,
    epoll: OwnedFd,
    by_netns: StdHashMap<u32, OwnedFd>,
    buffer: Vec<u8>,
}

impl Links {
    /// Listens in our own namespace: a tap that is plugged into a QEMU that has none yet comes from there, if anywhere.
    ///
    /// # Errors
    /// What the kernel said.
    pub(super) fn new() -> io::Result<Self> {
        let netns = File::open("/proc/self/ns/net")?;
        let own = u32::try_from(netns.metadata()?.ino()).map_err(io::Error::other)?;
        let mut links = Self {
            own,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            by_netns: StdHashMap::new(),
            buffer: vec![0; BUFFER_BYTES],
        };
        links.listen(own, &netns);
        Ok(links)
    }

    /// What can be read from while there is news, of namespaces that are listened to later as well.
    ///
    /// # Errors
    /// What the kernel said.
    pub(super) fn bell(&self) -> io::Result<OwnedFd> {
        self.epoll.try_clone()
    }

    /// Listens in the namespace of this number. Whether it is listened to from now on.
    pub(super) fn listen(&mut self, number: u32, netns: &File) -> bool {
        if self.by_netns.contains_key(&number) {
            return true;
        }
        if self.by_netns.len() >= MOST_SOCKETS {
            return false;
        }
        let opened = in_netns(netns, open).flatten().and_then(|socket| {
            let data = epoll::EventData::new_u64(u64::from(number));
            epoll::add(&self.epoll, &socket, data, epoll::EventFlags::IN)?;
            Ok(socket)
        });
        match opened {
            Ok(socket) => drop(self.by_netns.insert(number, socket)),
            Err(error) => {
                debug!("no news of interfaces in the network namespace {number}: {error}");
                return false;
            }
        }
        true
    }

    /// Ends listening in a namespace, which nothing here keeps alive any more.
    pub(super) fn forget(&mut self, netns: u32) {
        if netns != self.own {
            self.by_netns.remove(&netns);
        }
    }

    /// Hands on all news there are. One call tells where there are none.
    pub(super) fn news(&mut self, take: Taker<'_>) {
        let Self { epoll, by_netns, buffer, .. } = self;
        let mut room = [const { MaybeUninit::uninit() }; MOST_EVENTS];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let ready = match epoll::wait(&*epoll, &mut room, Some(&at_once)) {
            Ok((ready, _)) => ready,
            Err(error) => return debug!("news of interfaces can't be waited for: {error}"),
        };
        for event in ready.iter() {
            let data = event.data;
            let netns = u32::try_from(data.u64()).unwrap_or_default();
            if let Some(socket) = by_netns.get(&netns)
                && let Err(error) = read(socket, buffer, &mut |news| take(netns, news))
            {
                debug!("no news of interfaces in the network namespace {netns}: {error}");
            }
        }
    }

    /// Hands on the counts of all interfaces of the namespaces that are listened to, and what news comes between.
    pub(super) fn count(&mut self, take: Taker<'_>) {
        let mut wanted = [0; netlink::STATS_BYTES];
        wanted[8..12].copy_from_slice(&netlink::LINK_STATISTICS.to_ne_bytes());
        for (netns, socket) in &self.by_netns {
            let counted = netlink::ask(socket, RTM_GETSTATS, NLM_F_DUMP, &wanted)
                .and_then(|()| read(socket, &mut self.buffer, &mut |news| take(*netns, news)));
            if let Err(error) = counted {
                debug!("no packets are told in the network namespace {netns}: {error}");
            }
        }
    }
}

fn open() -> io::Result<OwnedFd> {
    // NETLINK_ROUTE is protocol 0.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, NEWS_OF_LINKS))?;
    Ok(socket)
}

/// Reads what a socket holds, or up to the end of the answer that was asked for.
fn read(socket: &OwnedFd, buffer: &mut [u8], take: &mut dyn FnMut(News<'_>)) -> io::Result<()> {
    for _ in 0..MOST_DATAGRAMS {
        let (length, sender) = match recvfrom(socket, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((length, _, sender)) => (length, sender),
            Err(Errno::NOBUFS) => {
                take(News::Missed);
                continue;
            }
            Err(Errno::AGAIN) => return Ok(()),
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        // Who administers a namespace may send to a socket in it.
        let sender = sender.and_then(|sender| SocketAddrNetlink::try_from(sender).ok());
        if sender.is_none_or(|sender| sender.pid() != 0) {
            continue;
        }
        for (kind, body) in netlink::messages(&buffer[..length]) {
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return errno(body).map_or(Ok(()), Err),
                _ => parse(kind, body).into_iter().for_each(&mut *take),
            }
        }
    }
    Ok(())
}

fn parse(kind: u16, body: &[u8]) -> Option<News<'_>> {
    let ifindex = u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?);
    if kind == RTM_NEWSTATS {
        let (received, sent) = netlink::parse_packets(body)?;
        return Some(News::Packets { ifindex, received, sent });
    }
    // A `struct ifinfomsg` begins with the family: a bridge tells of its ports in another.
    let is_of_link = u16::from(*body.first()?) == AddressFamily::UNSPEC.as_raw();
    match kind {
        RTM_NEWLINK if is_of_link => {
            let rest = body.get(LINK_BYTES..)?;
            let find =
                |wanted| attributes(rest).find(|(kind, _)| *kind == wanted).map(|(_, it)| it);
            let name = find(IFLA_IFNAME)?;
            let info = find(IFLA_LINKINFO).unwrap_or_default();
            let kind = attributes(info).find(|(kind, _)| *kind == IFLA_INFO_KIND);
            Some(News::Link(Link {
                ifindex,
                name: name.strip_suffix(b"\0").unwrap_or(name),
                has_carrier: find(IFLA_CARRIER).is_none_or(|carrier| carrier != [0]),
                is_tap: kind.is_some_and(|(_, kind)| TAP_KINDS.contains(&kind)),
            }))
        }
        RTM_DELLINK if is_of_link => Some(News::Gone { ifindex }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::netlink::attribute;

    fn message(family: u8, ifindex: u32, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut body = vec![0; LINK_BYTES];
        body[0] = family;
        body[4..8].copy_from_slice(&ifindex.to_ne_bytes());
        [body, attributes.concat()].concat()
    }

    fn tap(family: u8, carrier: u8) -> Vec<u8> {
        let info = attribute(IFLA_INFO_KIND, b"tun\0");
        let parts = [
            attribute(IFLA_IFNAME, b"vnet7\0"),
            attribute(IFLA_CARRIER, &[carrier]),
            attribute(IFLA_LINKINFO | 0x8000, &info),
        ];
        message(family, 7, &parts)
    }

    #[test]
    fn a_tap_is_known_by_its_kind_and_its_name_and_whether_it_is_held() {
        let link = |has_carrier| Link { ifindex: 7, name: b"vnet7", has_carrier, is_tap: true };
        assert_eq!(parse(RTM_NEWLINK, &tap(0, 1)), Some(News::Link(link(true))));
        assert_eq!(parse(RTM_NEWLINK, &tap(0, 0)), Some(News::Link(link(false))));
        let other = message(0, 3, &[attribute(IFLA_IFNAME, b"eth0\0")]);
        let Some(News::Link(other)) = parse(RTM_NEWLINK, &other) else { panic!("no link") };
        assert!(!other.is_tap && other.has_carrier);
        assert_eq!(parse(RTM_DELLINK, &tap(0, 0)), Some(News::Gone { ifindex: 7 }));
    }

    #[test]
    fn a_port_that_leaves_its_bridge_is_not_gone() {
        let bridge = u8::try_from(libc::AF_BRIDGE).unwrap();
        assert_eq!(parse(RTM_DELLINK, &tap(bridge, 1)), None);
        assert_eq!(parse(RTM_NEWLINK, &tap(bridge, 0)), None);
    }

    #[test]
    fn news_that_is_cut_is_none_or_of_less_and_no_panic() {
        let whole = tap(0, 1);
        for length in 0..whole.len() {
            for kind in [RTM_NEWLINK, RTM_DELLINK, RTM_NEWSTATS] {
                if let Some(News::Link(link)) = parse(kind, &whole[..length]) {
                    assert!(!link.is_tap, "cut at {length}");
                }
            }
        }
    }

    #[test]
    fn the_counts_of_namespaces_that_are_listened_to_are_told_and_of_no_others() {
        let counted = |links: &mut Links| {
            let mut told = Vec::new();
            links.count(&mut |netns, news| {
                if let News::Packets { ifindex, received, sent } = news {
                    told.push((netns, ifindex, received == sent));
                }
            });
            told
        };
        let mut links = Links::new().unwrap();
        assert!(links.listen(9, &File::open("/proc/self/ns/net").unwrap()));
        let told = counted(&mut links);
        assert!(told.contains(&(9, 1, true)), "the loopback interface receives what it sends");
        links.forget(9);
        let own = links.own;
        links.forget(own);
        let told = counted(&mut links);
        assert!(told.contains(&(own, 1, true)) && told.iter().all(|(netns, ..)| *netns == own));
    }
}
