//! Route netlink, as far as aya has none: a socket, a request, and the messages of an answer.
//!
//! Everything here works in the network namespace of the calling thread. Messages:
//! include/uapi/linux/{netlink,rtnetlink,if_link}.h of Linux 6.12.

use std::{ffi::CStr, io, os::fd::OwnedFd, time::Duration};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};

pub(super) const NLM_F_REQUEST: u16 = 0x01;
pub(super) const NLM_F_ACK: u16 = 0x04;
pub(super) const NLM_F_ECHO: u16 = 0x08;
pub(super) const NLM_F_DUMP: u16 = 0x300;
pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const NLMSG_DONE: u16 = 3;
pub(super) const NLM_F_EXCL: u16 = 0x200;
pub(super) const NLM_F_CREATE: u16 = 0x400;
pub(super) const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
pub(super) const RTM_NEWSTATS: u16 = 92;
pub(super) const RTM_GETSTATS: u16 = 94;
/// The statistics of an interface itself: an attribute's type, and its bit in a filter.
const IFLA_STATS_LINK_64: u16 = 1;
pub(super) const LINK_STATISTICS: u32 = 1 << (IFLA_STATS_LINK_64 - 1);
pub(super) const IFLA_IFNAME: u16 = 3;
/// The same statistics, beside what else is told of an interface.
const IFLA_STATS64: u16 = 23;
/// What XDP programs an interface has, and of that whether there is any, and which.
const IFLA_XDP: u16 = 43;
const IFLA_XDP_ATTACHED: u16 = 2;
const IFLA_XDP_PROG_ID: u16 = 4;
/// The bits of an attribute's type that say how it is made.
const NLA_FLAGS: u16 = 0xc000;
const HEADER_BYTES: usize = 16;
/// A `struct ifinfomsg`.
pub(super) const LINK_BYTES: usize = 16;
/// A `struct if_stats_msg`, after which the attributes of an answer begin.
pub(super) const STATS_BYTES: usize = 12;
/// The kernel fills at most 32 KiB of a dump at once (`netlink_dump`).
pub(super) const BUFFER_BYTES: usize = 32 << 10;
/// The kernel answers at once; a thread must not wait for ever if it doesn't.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// A socket for one question at a time.
pub(super) struct Socket {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl Socket {
    pub(super) fn open() -> io::Result<Self> {
        // NETLINK_ROUTE is protocol 0.
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_LIMIT))?;
        Ok(Self { socket, buffer: vec![0; BUFFER_BYTES] })
    }

    /// Sends a request.
    pub(super) fn ask(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        ask(&self.socket, kind, flags, body)
    }

    /// The next datagram's messages: type and body of each.
    pub(super) fn answers(&mut self) -> io::Result<impl Iterator<Item = (u16, &[u8])>> {
        let (length, _) = recv(&self.socket, self.buffer.as_mut_slice(), RecvFlags::empty())?;
        if length == 0 {
            return Err(io::Error::other("the kernel gave no answer"));
        }
        Ok(messages(&self.buffer[..length]))
    }

    /// Asks `request`, and parses the answer of the kind `wanted`.
    fn answer<T>(
        &mut self,
        request: u16,
        body: &[u8],
        wanted: u16,
        parse: impl Fn(&[u8]) -> io::Result<T>,
    ) -> io::Result<T> {
        self.ask(request, 0, body)?;
        for (kind, body) in self.answers()? {
            if kind == wanted {
                return parse(body);
            }
            if kind == NLMSG_ERROR {
                return Err(errno(body).unwrap_or_else(|| io::Error::other("no answer")));
            }
        }
        Err(io::Error::other("the kernel told nothing of the interface"))
    }

    /// What is known of an interface.
    pub(super) fn link(&mut self, ifindex: u32) -> io::Result<LinkFacts> {
        let mut body = [0; LINK_BYTES];
        body[4..8].copy_from_slice(&ifindex.to_ne_bytes());
        self.answer(RTM_GETLINK, &body, RTM_NEWLINK, |body| {
            let facts = parse_link(body.get(LINK_BYTES..).unwrap_or_default());
            facts.ok_or_else(|| {
                io::Error::other("what the kernel tells of the interface is malformed")
            })
        })
    }
}

/// An interface's name, and the packets that it received and sent since it was made, by the kernel's own account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LinkFacts {
    pub(super) name: String,
    pub(super) received: u64,
    pub(super) sent: u64,
}

fn parse_link(link: &[u8]) -> Option<LinkFacts> {
    let find = |wanted| attributes(link).find(|(kind, _)| *kind == wanted).map(|(_, it)| it);
    let name = CStr::from_bytes_until_nul(find(IFLA_IFNAME)?).ok()?;
    let (received, sent) = two_longs(find(IFLA_STATS64)?)?;
    Some(LinkFacts { name: name.to_string_lossy().into_owned(), received, sent })
}

/// Sends a request through a socket.
pub(super) fn ask(socket: &OwnedFd, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(HEADER_BYTES + body.len()).map_err(io::Error::other)?;
    let mut message = Vec::with_capacity(HEADER_BYTES + body.len());
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((flags | NLM_F_REQUEST).to_ne_bytes());
    // The sequence number and port stay zero: one socket, one question at a time.
    message.extend([0; 8]);
    message.extend(body);
    send(socket, &message, SendFlags::empty())?;
    Ok(())
}

/// Packets that an interface received and sent since it was made, by the kernel's own account.
pub(super) fn packets(ifindex: u32) -> io::Result<(u64, u64)> {
    let mut body = [0; STATS_BYTES];
    body[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    body[8..12].copy_from_slice(&LINK_STATISTICS.to_ne_bytes());
    answer(RTM_GETSTATS, &body, RTM_NEWSTATS, |body| {
        parse_packets(body).ok_or_else(|| io::Error::other("the kernel's statistics are malformed"))
    })
}

/// Asks `request`, and parses the answer of the kind `wanted`.
fn answer<T>(
    request: u16,
    body: &[u8],
    wanted: u16,
    parse: impl Fn(&[u8]) -> io::Result<T>,
) -> io::Result<T> {
    Socket::open()?.answer(request, body, wanted, parse)
}

/// The first two fields of a `struct rtnl_link_stats64`: packets received, and sent.
pub(super) fn parse_packets(body: &[u8]) -> Option<(u64, u64)> {
    let mut attributes = attributes(body.get(STATS_BYTES..)?);
    let (_, value) = attributes.find(|(kind, _)| *kind == IFLA_STATS_LINK_64)?;
    two_longs(value)
}

fn two_longs(value: &[u8]) -> Option<(u64, u64)> {
    let long = |at: usize| value.get(at..at + 8)?.try_into().ok().map(u64::from_ne_bytes);
    Some((long(0)?, long(8)?))
}

/// The id of an interface's XDP program; `Some(0)` where the kernel doesn't tell it, `None`: there is none.
pub(super) fn xdp_program(ifindex: u32) -> io::Result<Option<u32>> {
    let mut body = [0; LINK_BYTES];
    body[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    answer(RTM_GETLINK, &body, RTM_NEWLINK, |body| {
        Ok(parse_xdp(body.get(LINK_BYTES..).unwrap_or_default()))
    })
}

fn parse_xdp(link: &[u8]) -> Option<u32> {
    let (_, xdp) = attributes(link).find(|(kind, _)| *kind == IFLA_XDP)?;
    let (_, attached) = attributes(xdp).find(|(kind, _)| *kind == IFLA_XDP_ATTACHED)?;
    if attached.first().is_none_or(|mode| *mode == 0) {
        return None;
    }
    let id = attributes(xdp).find(|(kind, _)| *kind == IFLA_XDP_PROG_ID);
    let id = id.and_then(|(_, value)| Some(u32::from_ne_bytes(value.get(..4)?.try_into().ok()?)));
    Some(id.unwrap_or_default())
}

/// The attributes in a message's rest: type and value of each. Ends at the first that is malformed.
pub(super) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let half = |at: usize| rest.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes);
        let (length, kind) = (usize::from(half(0)?), half(2)?);
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & !NLA_FLAGS, value))
    })
}

/// An attribute as it stands in a message.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut attribute = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

/// The messages in a datagram. Ends at the first that is malformed.
pub(super) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(datagram.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(datagram.get(4..6)?.try_into().ok()?);
        let body = datagram.get(HEADER_BYTES..length)?;
        // Each begins at a multiple of four.
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// The error in the body of an `NLMSG_ERROR`; `None` for an acknowledgement.
pub(super) fn errno(body: &[u8]) -> Option<io::Error> {
    let code = body.get(..4).and_then(|code| code.try_into().ok()).map(i32::from_ne_bytes);
    match code {
        Some(0) => None,
        Some(code) => Some(io::Error::from_raw_os_error(code.saturating_neg())),
        None => Some(io::Error::other("the kernel's answer is cut short")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(parts: &[(u16, &[u8])]) -> Vec<u8> {
        let mut datagram = Vec::new();
        for (kind, body) in parts {
            let length = u32::try_from(HEADER_BYTES + body.len()).unwrap();
            datagram.extend(length.to_ne_bytes());
            datagram.extend(kind.to_ne_bytes());
            datagram.extend([0; 10]);
            datagram.extend(*body);
            datagram.resize(datagram.len().next_multiple_of(4), 0);
        }
        datagram
    }

    #[test]
    fn each_message_of_a_datagram_is_found() {
        let datagram = datagram(&[(44, b"abc"), (NLMSG_DONE, b"")]);
        let found: Vec<_> = messages(&datagram).collect();
        assert_eq!(found, [(44, b"abc".as_slice()), (NLMSG_DONE, b"".as_slice())]);
    }

    #[test]
    fn a_datagram_that_is_cut_or_lies_about_its_length_ends_early_and_does_not_panic() {
        let whole = datagram(&[(44, b"abcd"), (NLMSG_DONE, b"efgh")]);
        for length in 0..whole.len() {
            assert!(messages(&whole[..length]).count() < 2, "cut at {length}");
        }
        for lie in [0_u32, 1, 15, 17, u32::MAX] {
            let mut torn = whole.clone();
            torn[..4].copy_from_slice(&lie.to_ne_bytes());
            assert!(messages(&torn).count() <= 2);
        }
    }

    #[test]
    fn an_acknowledgement_is_no_error_and_an_error_keeps_its_number() {
        assert!(errno(&0_i32.to_ne_bytes()).is_none());
        let error = errno(&(-libc::ENOENT).to_ne_bytes()).unwrap();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
        assert!(errno(b"x").is_some());
    }

    #[test]
    fn the_kernel_tells_of_the_loopback_interface_and_of_none_that_is_not_there() {
        let (received, sent) = packets(1).unwrap();
        assert_eq!(received, sent, "what it sends it receives");
        assert!(packets(u32::MAX >> 1).is_err());
    }

    #[test]
    fn statistics_that_are_cut_are_none_and_no_panic() {
        let mut body = vec![0; STATS_BYTES];
        body.extend(24_u16.to_ne_bytes());
        body.extend(IFLA_STATS_LINK_64.to_ne_bytes());
        body.extend(7_u64.to_ne_bytes());
        body.extend(9_u64.to_ne_bytes());
        body.extend([0; 4]);
        assert_eq!(parse_packets(&body), Some((7, 9)));
        for length in 0..STATS_BYTES + 20 {
            assert_eq!(parse_packets(&body[..length]), None, "cut at {length}");
        }
        body[STATS_BYTES..STATS_BYTES + 2].copy_from_slice(&0_u16.to_ne_bytes());
        assert_eq!(parse_packets(&body), None, "a length of nothing");
    }

    #[test]
    fn an_xdp_program_is_told_from_none() {
        let xdp = |parts: &[(u16, &[u8])]| {
            let inner: Vec<u8> =
                parts.iter().flat_map(|(kind, value)| attribute(*kind, value)).collect();
            [attribute(3, b"tap1\0"), attribute(IFLA_XDP | 0x8000, &inner)].concat()
        };
        let id = 77_u32.to_ne_bytes();
        let attached = xdp(&[(IFLA_XDP_ATTACHED, &[2]), (IFLA_XDP_PROG_ID, &id)]);
        assert_eq!(parse_xdp(&attached), Some(77));
        assert_eq!(parse_xdp(&xdp(&[(IFLA_XDP_ATTACHED, &[4])])), Some(0));
        assert_eq!(parse_xdp(&xdp(&[(IFLA_XDP_ATTACHED, &[0])])), None);
        for length in 0..attached.len() {
            parse_xdp(&attached[..length]);
        }
        assert_eq!(xdp_program(1).unwrap(), None, "the loopback interface");
        assert!(xdp_program(u32::MAX >> 1).is_err());
    }
}
