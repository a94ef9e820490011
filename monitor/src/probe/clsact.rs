//! Looks into the clsact queueing discipline of an interface, and takes one back that nobody uses any more.
//!
//! aya adds one, but neither lists its filters nor ever removes it. Ours is removed with our filters, unless
//! somebody else has put filters into it meanwhile. Everything here works in the network namespace of the
//! calling thread.
//!
//! Messages: include/uapi/linux/{netlink,rtnetlink,pkt_sched}.h of Linux 6.12.

use std::{io, os::fd::OwnedFd};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};

const NLM_F_REQUEST: u16 = 0x01;
const NLM_F_ACK: u16 = 0x04;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_DELQDISC: u16 = 37;
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;
/// `TC_H_CLSACT`, and its two hooks as parents of filters.
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const CLSACT_HOOKS: [u32; 2] = [0xffff_fff2, 0xffff_fff3];
/// A header and a `struct tcmsg`.
const HEADER_BYTES: usize = 16;
const MESSAGE_BYTES: usize = HEADER_BYTES + 20;
/// The kernel fills at most 32 KiB of a dump at once (`netlink_dump`).
const BUFFER_BYTES: usize = 32 << 10;
/// The kernel answers at once; a thread must not wait for ever if it doesn't.
const ANSWER_LIMIT: std::time::Duration = std::time::Duration::from_secs(2);

/// Removes the clsact discipline of the interface `ifindex` if no filter is in it. Returns whether it
/// was removed.
///
/// # Errors
/// What the kernel said; nothing was removed then.
pub(super) fn remove_if_unused(ifindex: u32) -> io::Result<bool> {
    let socket = open()?;
    for hook in CLSACT_HOOKS {
        if has_filters(&socket, ifindex, hook)? {
            return Ok(false);
        }
    }
    let flags = NLM_F_REQUEST | NLM_F_ACK;
    send(
        &socket,
        &message(RTM_DELQDISC, flags, ifindex, CLSACT_HANDLE, CLSACT),
        SendFlags::empty(),
    )?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let (length, _) = recv(&socket, buffer.as_mut_slice(), RecvFlags::empty())?;
    match answers(&buffer[..length]).next() {
        Some((NLMSG_ERROR, code)) => errno(code).map_or(Ok(true), Err),
        _ => Err(io::Error::other("the kernel gave no answer to RTM_DELQDISC")),
    }
}

/// Whether the filter of this priority and handle is in the clsact discipline of an interface.
///
/// # Errors
/// What the kernel said.
pub(super) fn has_filter(
    ifindex: u32,
    ingress: bool,
    priority: u16,
    handle: u16,
) -> io::Result<bool> {
    let socket = open()?;
    let [of_ingress, of_egress] = CLSACT_HOOKS;
    let mut found = false;
    each_filter(&socket, ifindex, if ingress { of_ingress } else { of_egress }, |filter| {
        found |= filter == Some((priority, u32::from(handle)));
    })?;
    Ok(found)
}

fn open() -> io::Result<OwnedFd> {
    // NETLINK_ROUTE is protocol 0.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_LIMIT))?;
    Ok(socket)
}

fn has_filters(socket: &OwnedFd, ifindex: u32, hook: u32) -> io::Result<bool> {
    let mut found = false;
    each_filter(socket, ifindex, hook, |_| found = true)?;
    Ok(found)
}

/// Calls `f` with priority and handle of each filter; `None` if they can't be read. An interface without
/// the discipline has no filters.
fn each_filter(
    socket: &OwnedFd,
    ifindex: u32,
    hook: u32,
    mut f: impl FnMut(Option<(u16, u32)>),
) -> io::Result<()> {
    let flags = NLM_F_REQUEST | NLM_F_DUMP;
    send(socket, &message(RTM_GETTFILTER, flags, ifindex, 0, hook), SendFlags::empty())?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let (length, _) = recv(socket, buffer.as_mut_slice(), RecvFlags::empty())?;
        for (kind, body) in answers(&buffer[..length]) {
            match kind {
                RTM_NEWTFILTER => f(place(body)),
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return errno(body).map_or(Ok(()), Err),
                _ => {}
            }
        }
        if length == 0 {
            return Err(io::Error::other("the kernel ended a dump without saying so"));
        }
    }
}

/// Priority and handle, from a `struct tcmsg`: its `tcm_handle` and the upper half of its `tcm_info`.
fn place(tcmsg: &[u8]) -> Option<(u16, u32)> {
    let word = |at: usize| tcmsg.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    Some((u16::try_from(word(16)? >> 16).ok()?, word(8)?))
}

fn message(kind: u16, flags: u16, ifindex: u32, handle: u32, parent: u32) -> [u8; MESSAGE_BYTES] {
    let mut message = [0; MESSAGE_BYTES];
    #[expect(clippy::cast_possible_truncation, reason = "36 bytes")]
    message[..4].copy_from_slice(&(MESSAGE_BYTES as u32).to_ne_bytes());
    message[4..6].copy_from_slice(&kind.to_ne_bytes());
    message[6..8].copy_from_slice(&flags.to_ne_bytes());
    // The sequence number and port stay zero: one socket, one question at a time.
    let body = &mut message[HEADER_BYTES..];
    body[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    body[8..12].copy_from_slice(&handle.to_ne_bytes());
    body[12..16].copy_from_slice(&parent.to_ne_bytes());
    message
}

/// The messages in a datagram: type and body of each. Ends at the first that is malformed.
fn answers(mut datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
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
fn errno(body: &[u8]) -> Option<io::Error> {
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

    fn datagram(messages: &[(u16, &[u8])]) -> Vec<u8> {
        let mut datagram = Vec::new();
        for (kind, body) in messages {
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
        let datagram = datagram(&[(RTM_NEWTFILTER, b"abc"), (NLMSG_DONE, b"")]);
        let found: Vec<_> = answers(&datagram).collect();
        assert_eq!(found, [(RTM_NEWTFILTER, b"abc".as_slice()), (NLMSG_DONE, b"".as_slice())]);
    }

    #[test]
    fn a_datagram_that_is_cut_or_lies_about_its_length_ends_early_and_does_not_panic() {
        let whole = datagram(&[(RTM_NEWTFILTER, b"abcd"), (NLMSG_DONE, b"efgh")]);
        for length in 0..whole.len() {
            assert!(answers(&whole[..length]).count() < 2, "cut at {length}");
        }
        for lie in [0_u32, 1, 15, 17, u32::MAX] {
            let mut torn = whole.clone();
            torn[..4].copy_from_slice(&lie.to_ne_bytes());
            assert!(answers(&torn).count() <= 2);
        }
    }

    #[test]
    fn an_acknowledgement_is_no_error_and_an_error_keeps_its_number() {
        assert!(errno(&0_i32.to_ne_bytes()).is_none());
        let error = errno(&(-libc::ENOENT).to_ne_bytes()).unwrap();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
        assert!(errno(b"x").is_some());
    }
}
