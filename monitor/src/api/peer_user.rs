//! The user at the other end of a TCP connection from this very host, as the kernel tells it: `inet_diag`.
//!
//! `struct inet_diag_req_v2` and `struct inet_diag_msg` of include/uapi/linux/inet_diag.h of Linux 6.12, asked for one socket by
//! its addresses, within the network namespace of the calling thread.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};

/// `SOCK_DIAG_BY_FAMILY` of include/uapi/linux/sock_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const IPPROTO_TCP: u8 = 6;
const TCP_ESTABLISHED: u8 = 1;
/// A `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;
/// A `struct inet_diag_req_v2`.
const REQUEST_BYTES: usize = 56;
/// Where in a `struct inet_diag_msg` the user id stands, behind a `struct inet_diag_sockid` of 48 bytes and three numbers.
const UID_AT: usize = 4 + 48 + 12;
/// The kernel answers at once.
const ANSWER_LIMIT: Duration = Duration::from_millis(100);

/// The user of the socket at `peer` that is connected to `own`, if it is one of this host's.
pub(super) fn uid_of(peer: SocketAddr, own: SocketAddr) -> Option<u32> {
    let is_here = peer.ip().is_loopback() || peer.ip() == own.ip();
    is_here.then(|| ask(peer, own).ok().flatten()).flatten()
}

fn ask(peer: SocketAddr, own: SocketAddr) -> io::Result<Option<u32>> {
    let (flags, protocol) = (SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG));
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_LIMIT))?;
    send(&socket, &request(peer, own), SendFlags::empty())?;
    let mut answer = [0; 1024];
    let (length, _) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
    Ok(parse(answer.get(..length).unwrap_or_default()))
}

fn request(peer: SocketAddr, own: SocketAddr) -> Vec<u8> {
    let family = match peer {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let mut request = Vec::with_capacity(HEADER_BYTES + REQUEST_BYTES);
    request.extend(u32::try_from(HEADER_BYTES + REQUEST_BYTES).unwrap_or_default().to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend(NLM_F_REQUEST.to_ne_bytes());
    request.extend([0; 8]);
    request.extend([u8::try_from(family.as_raw()).unwrap_or_default(), IPPROTO_TCP, 0, 0]);
    // In any state.
    request.extend(u32::MAX.to_ne_bytes());
    // The socket that is asked for is the client's.
    request.extend(peer.port().to_be_bytes());
    request.extend(own.port().to_be_bytes());
    for address in [peer.ip(), own.ip()] {
        let mut bytes = [0; 16];
        match address {
            IpAddr::V4(address) => bytes[..4].copy_from_slice(&address.octets()),
            IpAddr::V6(address) => bytes = address.octets(),
        }
        request.extend(bytes);
    }
    // On any interface, and of any cookie (`INET_DIAG_NOCOOKIE`).
    request.extend([0; 4]);
    request.extend([0xff; 8]);
    request
}

/// The user of the socket in an answer. One that was closed is no user's any more, and said to be root's.
fn parse(answer: &[u8]) -> Option<u32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let body = answer.get(HEADER_BYTES..)?;
    if kind != SOCK_DIAG_BY_FAMILY || *body.get(1)? != TCP_ESTABLISHED {
        return None;
    }
    Some(u32::from_ne_bytes(body.get(UID_AT..UID_AT + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_connection_from_this_host_has_our_own_user() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (accepted, peer) = listener.accept().unwrap();
            let own = accepted.local_addr().unwrap();
            assert_eq!(uid_of(peer, own), Some(rustix::process::getuid().as_raw()), "{address}");
            drop(client);
            assert_eq!(uid_of(peer, own), None, "one that was closed");
        }
        let elsewhere = "192.0.2.1:1".parse().unwrap();
        assert_eq!(uid_of(elsewhere, "127.0.0.1:1".parse().unwrap()), None);
    }

    #[test]
    fn an_answer_that_is_torn_or_an_error_has_no_user() {
        let mut answer = vec![0; HEADER_BYTES + UID_AT + 4];
        answer[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        answer[HEADER_BYTES + 1] = TCP_ESTABLISHED;
        answer[HEADER_BYTES + UID_AT..].copy_from_slice(&1000_u32.to_ne_bytes());
        assert_eq!(parse(&answer), Some(1000));
        for length in 0..answer.len() {
            assert_eq!(parse(&answer[..length]), None);
        }
        answer[4..6].copy_from_slice(&2_u16.to_ne_bytes());
        assert_eq!(parse(&answer), None);
    }
}
