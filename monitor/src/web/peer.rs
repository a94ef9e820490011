//! Which user of this host is at the other end of a connection, by the kernel's account.
//!
//! A loopback address is open to every process of the host, QEMUs that a guest took over among them. What is not
//! for them is told from what is by the user who owns the other socket, as `/proc/net/tcp` has it.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _},
    net::{IpAddr, SocketAddr},
};

/// The most that is read of the kernel's list: a hundred thousand connections.
const LIST_MAX_BYTES: u64 = 16 << 20;
/// A connection that both ends still have. One whose process closed it has no user, for whom the list has root.
const ESTABLISHED: &str = "01";

/// The user who owns the socket at the `peer` end of the connection to `own`; `None` where it is none of this host's, or
/// no longer.
pub(super) fn user(peer: SocketAddr, own: SocketAddr) -> io::Result<Option<u32>> {
    let list = match peer {
        SocketAddr::V4(_) => "/proc/self/net/tcp",
        SocketAddr::V6(_) => "/proc/self/net/tcp6",
    };
    let (peer, own) = (as_listed(peer), as_listed(own));
    for line in BufReader::new(File::open(list)?.take(LIST_MAX_BYTES)).lines() {
        if let Some(user) = user_in(&line?, &peer, &own) {
            return Ok(Some(user));
        }
    }
    Ok(None)
}

fn user_in(line: &str, local: &str, remote: &str) -> Option<u32> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    if fields.next()? != local || fields.next()? != remote || fields.next()? != ESTABLISHED {
        return None;
    }
    // Queues, timer and retransmissions stand before it.
    fields.nth(3)?.parse().ok()
}

/// An address as the kernel lists it: words in memory's order, in hexadecimal digits.
fn as_listed(address: SocketAddr) -> String {
    let words = |octets: &[u8]| -> String {
        let word = |octets: &[u8]| octets.try_into().map(u32::from_ne_bytes).unwrap_or_default();
        octets.chunks(4).map(|octets| format!("{:08X}", word(octets))).collect()
    };
    let host = match address.ip() {
        IpAddr::V4(host) => words(&host.octets()),
        IpAddr::V6(host) => words(&host.octets()),
    };
    format!("{host}:{:04X}", address.port())
}

#[cfg(test)]
mod tests {
    use std::net::{Shutdown, TcpListener, TcpStream};

    use super::*;

    #[test]
    fn who_is_connected_is_found_for_both_families_while_he_is() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            // A machine may have no IPv6.
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (stream, peer) = listener.accept().unwrap();
            let own = stream.local_addr().unwrap();
            let me = rustix::process::geteuid().as_raw();
            assert_eq!(user(peer, own).unwrap(), Some(me), "{address}");
            assert_eq!(user(own, own).unwrap(), None, "{address}");
            client.shutdown(Shutdown::Both).unwrap();
            drop(client);
            assert_eq!(user(peer, own).unwrap(), None, "{address}: it was closed");
        }
    }

    #[test]
    fn only_the_whole_connection_counts() {
        let line = "  11: 0100007F:B1C6 0100007F:2505 01 00000000:00000000 00:00000000 00000000  \
                    107        0 54321 1 0000000000000000 20 4 30 10 -1";
        let (local, remote) = ("0100007F:B1C6", "0100007F:2505");
        assert_eq!(user_in(line, local, remote), Some(107));
        assert_eq!(user_in(line, remote, local), None);
        assert_eq!(user_in(line, local, "0100007F:2506"), None);
        assert_eq!(user_in(&line.replace(" 01 ", " 06 "), local, remote), None);
        for torn in
            ["", "  sl  local_address rem_address   st", "11: 0100007F:B1C6 0100007F:2505 01"]
        {
            assert_eq!(user_in(torn, local, remote), None);
        }
        assert_eq!(as_listed("[::1]:80".parse().unwrap()), "00000000000000000000000001000000:0050");
    }
}
