//! Looks into the clsact queueing discipline of an interface, and takes one back that nobody uses any more.
//!
//! aya adds one, but neither lists its filters nor ever removes it. Ours is removed with our filters, unless
//! somebody else has put filters into it meanwhile. Everything here works in the network namespace of the
//! calling thread. Messages: include/uapi/linux/{rtnetlink,pkt_sched}.h of Linux 6.12.

use std::io;

use super::netlink::{NLM_F_ACK, NLM_F_DUMP, NLMSG_DONE, NLMSG_ERROR, Socket, errno};

const RTM_DELQDISC: u16 = 37;
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;
/// `TC_H_CLSACT`, and its two hooks as parents of filters.
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const CLSACT_HOOKS: [u32; 2] = [0xffff_fff2, 0xffff_fff3];
/// A `struct tcmsg`.
const BODY_BYTES: usize = 20;

/// Removes the clsact discipline of the interface `ifindex` if no filter is in it. Returns whether it
/// was removed.
///
/// # Errors
/// What the kernel said; nothing was removed then.
pub(super) fn remove_if_unused(ifindex: u32) -> io::Result<bool> {
    let mut socket = Socket::open()?;
    for hook in CLSACT_HOOKS {
        let mut has_filters = false;
        each_filter(&mut socket, ifindex, hook, |_| has_filters = true)?;
        if has_filters {
            return Ok(false);
        }
    }
    socket.ask(RTM_DELQDISC, NLM_F_ACK, &body(ifindex, CLSACT_HANDLE, CLSACT))?;
    match socket.answers()?.next() {
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
    let mut socket = Socket::open()?;
    let [of_ingress, of_egress] = CLSACT_HOOKS;
    let mut found = false;
    each_filter(&mut socket, ifindex, if ingress { of_ingress } else { of_egress }, |filter| {
        found |= filter == Some((priority, u32::from(handle)));
    })?;
    Ok(found)
}

/// Calls `f` with priority and handle of each filter; `None` if they can't be read. An interface without
/// the discipline has no filters.
fn each_filter(
    socket: &mut Socket,
    ifindex: u32,
    hook: u32,
    mut f: impl FnMut(Option<(u16, u32)>),
) -> io::Result<()> {
    socket.ask(RTM_GETTFILTER, NLM_F_DUMP, &body(ifindex, 0, hook))?;
    loop {
        for (kind, body) in socket.answers()? {
            match kind {
                RTM_NEWTFILTER => f(place(body)),
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return errno(body).map_or(Ok(()), Err),
                _ => {}
            }
        }
    }
}

/// Priority and handle, from a `struct tcmsg`: its `tcm_handle` and the upper half of its `tcm_info`.
fn place(tcmsg: &[u8]) -> Option<(u16, u32)> {
    let word = |at: usize| tcmsg.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    Some((u16::try_from(word(16)? >> 16).ok()?, word(8)?))
}

fn body(ifindex: u32, handle: u32, parent: u32) -> [u8; BODY_BYTES] {
    let mut body = [0; BODY_BYTES];
    body[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    body[8..12].copy_from_slice(&handle.to_ne_bytes());
    body[12..16].copy_from_slice(&parent.to_ne_bytes());
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_known_by_its_priority_and_handle() {
        let mut tcmsg = [0; BODY_BYTES];
        tcmsg[8..12].copy_from_slice(&1_u32.to_ne_bytes());
        tcmsg[16..20].copy_from_slice(&0xf1a7_0300_u32.to_ne_bytes());
        assert_eq!(place(&tcmsg), Some((0xf1a7, 1)));
        assert_eq!(place(&tcmsg[..19]), None);
    }
}
