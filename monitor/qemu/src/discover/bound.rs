//! Which files the listening sockets of a process are bound to, where the sockets themselves can't be asked: as the kernel's
//! monitor of sockets tells it (net/unix/diag.c of Linux 6.12), with the process' descriptors by their links.
//!
//! A file is compared by the kernel's own numbers: `stat` tells another device on some file systems, and may hang on others.

use std::{
    collections::HashSet,
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    time::Duration,
};

use rustix::{
    fs::{AtFlags, StatxFlags, statx},
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send,
        socket_with,
        sockopt::{Timeout, set_socket_timeout},
    },
};

use super::{fdinfo::FdInfo, files, in_netns, netns::netns_of, proc};

// Of include/uapi/linux/{netlink,sock_diag,unix_diag}.h.
const NLM_F_REQUEST: u16 = 0x01;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const AF_UNIX: u8 = 1;
const TCP_LISTEN: u32 = 10;
const UDIAG_SHOW_VFS: u32 = 0x02;
const UNIX_DIAG_VFS: u16 = 1;
const HEADER_BYTES: usize = 16;
/// A `struct unix_diag_msg`, after which the attributes begin.
const MESSAGE_BYTES: usize = 16;
const ATTRIBUTE_BYTES: usize = 4;
/// The kernel fills at most 32 KiB of a dump at once (`netlink_dump`).
const BUFFER_BYTES: usize = 32 << 10;
/// The kernel answers at once; a thread must not wait for ever if it doesn't.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// A file as the kernel numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    /// `major << 20 | minor`.
    device: u32,
    /// The lower half of the inode's number, which is all that is told of a socket's.
    inode: u32,
}

/// A listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Listening {
    /// Its own inode, by which a descriptor links to it.
    inode: u32,
    /// The file that it is bound to.
    at: Place,
}

/// Whether `file`, open as a path that `pid` sees, is what a socket is bound to on which `pid` listens.
///
/// # Errors
/// If that can't be told.
pub(crate) fn listens_at(pid: u32, file: &OwnedFd) -> io::Result<bool> {
    let descriptors = proc::descriptors(pid).map_err(io::Error::other)?.each;
    let own: HashSet<u32> =
        descriptors.iter().filter_map(|(_, link)| inode_in(link.to_str()?)).collect();
    let Some(at) = place_of(pid, file)? else { return Ok(false) };
    let (netns, _) = netns_of(pid).map_err(io::Error::other)?;
    let all = in_netns(&netns, listening).flatten()?;
    Ok(all.iter().any(|one| one.at == at && own.contains(&one.inode)))
}

/// The number in `socket:[NUMBER]`.
fn inode_in(link: &str) -> Option<u32> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// Where a file is that was found among the mounts of `pid`; `None` if it is in none of these.
fn place_of(pid: u32, file: &OwnedFd) -> io::Result<Option<Place>> {
    let fd = u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?;
    let info = FdInfo::read(std::process::id(), fd).map_err(io::Error::other)?;
    let Some(FdInfo { mount, inode, .. }) = info else { return Ok(None) };
    let inode = match inode {
        Some(inode) => inode,
        None => {
            let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
            statx(file, "", flags, StatxFlags::INO)?.stx_ino
        }
    };
    let mounts = files::parse_mountinfo(&proc::mountinfo(pid).map_err(io::Error::other)?);
    // The rest of a longer number can't be compared.
    let inode = (inode & u64::from(u32::MAX)).try_into().map_err(io::Error::other)?;
    Ok(mounts.get(&mount).map(|mount| Place { device: mount.device, inode }))
}

/// All that listen in the network namespace of the calling thread, bound to a file.
fn listening() -> io::Result<Vec<Listening>> {
    let flags = SocketFlags::CLOEXEC;
    let protocol = Some(netlink::SOCK_DIAG);
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_LIMIT))?;
    send(&socket, &request(), SendFlags::empty())?;
    let mut all = Vec::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let (length, _) = recv(&socket, buffer.as_mut_slice(), RecvFlags::empty())?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        if rest.is_empty() {
            return Err(io::Error::other("the kernel gave no answer"));
        }
        while let Some((kind, body, after)) = message(rest) {
            match kind {
                NLMSG_DONE => return Ok(all),
                NLMSG_ERROR => {
                    let errno = body.first_chunk().map(|code| -i32::from_ne_bytes(*code));
                    return Err(io::Error::from_raw_os_error(errno.unwrap_or(libc::EIO)));
                }
                SOCK_DIAG_BY_FAMILY => all.extend(parse(body)),
                _ => {}
            }
            rest = after;
        }
    }
}

/// A `struct unix_diag_req` for all that listen, with the header before it.
fn request() -> Vec<u8> {
    let mut body = vec![AF_UNIX, 0, 0, 0];
    for word in [1 << TCP_LISTEN, 0, UDIAG_SHOW_VFS, 0, 0] {
        body.extend(u32::to_ne_bytes(word));
    }
    #[expect(clippy::cast_possible_truncation, reason = "40 bytes")]
    let length = (HEADER_BYTES + body.len()) as u32;
    let mut request = length.to_ne_bytes().to_vec();
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    // One socket, one question: the sequence number and port stay zero.
    request.extend([0; 8]);
    request.extend(body);
    request
}

/// The first message of an answer: its type, its body, and what comes after it.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(HEADER_BYTES..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// A socket in an answer; `None` if it is bound to no file.
fn parse(body: &[u8]) -> Option<Listening> {
    let inode = u32_at(body, 4)?;
    let mut rest = body.get(MESSAGE_BYTES..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
        let value = rest.get(ATTRIBUTE_BYTES..length)?;
        if kind == UNIX_DIAG_VFS {
            let at = Place { inode: u32_at(value, 0)?, device: u32_at(value, 4)? };
            return Some(Listening { inode, at });
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use rustix::fs::{CWD, Mode, OFlags, openat};

    use super::*;

    #[test]
    fn a_file_is_its_process_own_only_while_a_socket_of_it_listens_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let open = || openat(CWD, &path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let file = open();
        let own = std::process::id();
        assert!(listens_at(own, &file).unwrap());
        let mut other = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(!listens_at(other.id(), &file).unwrap(), "another process has no such descriptor");
        other.kill().unwrap();
        other.wait().unwrap();
        // Another socket's file in its place, which is closed then.
        std::fs::remove_file(&path).unwrap();
        let others = UnixListener::bind(&path).unwrap();
        let file = open();
        assert!(listens_at(own, &file).unwrap());
        drop(others);
        assert!(!listens_at(own, &file).unwrap(), "no socket listens there any more");
        drop(listener);
    }

    #[test]
    fn what_is_torn_or_of_no_file_is_none() {
        assert_eq!(inode_in("socket:[17]"), Some(17));
        for other in ["socket:[x]", "/socket:[17]", "socket:17", ""] {
            assert_eq!(inode_in(other), None, "{other}");
        }
        let mut body = vec![1, 1, 10, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(parse(&body), None);
        body.extend([12, 0, 1, 0, 9, 0, 0, 0, 3, 0, 0x10, 0]);
        let at = Place { device: 1 << 20 | 3, inode: 9 };
        #[cfg(target_endian = "little")]
        assert_eq!(parse(&body), Some(Listening { inode: 7, at }));
        (0..body.len()).for_each(|length| assert_eq!(parse(&body[..length]), None));
    }
}
