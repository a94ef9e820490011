//! The raw socket by which a probe gets into a tap, and to its guest alone.

use std::{
    fs::File,
    io,
    mem::size_of,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use flatline_qemu::discover::in_netns;

/// A raw socket in one network namespace, through which every tap there can be probed.
#[derive(Debug)]
pub struct ProbeSocket {
    socket: OwnedFd,
}

impl ProbeSocket {
    /// Opens a socket in the namespace of `netns` (`/proc/PID/ns/net`). It receives nothing: no protocol
    /// is bound, and the answers are counted by the tap program.
    ///
    /// # Errors
    /// What the kernel said; without CAP_NET_RAW in that namespace, `EPERM`.
    pub fn open(netns: &File) -> io::Result<Self> {
        in_netns(netns, || {
            let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
            // SAFETY: plain call without pointers.
            let socket = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
            if socket < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: the kernel just returned it, and nothing else has it.
            Ok(Self { socket: unsafe { OwnedFd::from_raw_fd(socket) } })
        })?
    }

    /// Sends one Ethernet frame into the tap with index `ifindex`. Padding to 60 bytes is not needed on a tap.
    ///
    /// # Errors
    /// What the kernel said, such as `ENETDOWN` for a tap that is down; `InvalidInput` for a frame without
    /// a whole header.
    pub fn send(&self, ifindex: u32, frame: &[u8]) -> io::Result<()> {
        let Some((&[d0, d1, d2, d3, d4, d5, _, _, _, _, _, _, p0, p1], _)) =
            frame.split_first_chunk::<14>()
        else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        // SAFETY: `sockaddr_ll` is made of integers, for which zero is a value.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        #[expect(clippy::cast_possible_truncation, reason = "AF_PACKET is 17")]
        {
            to.sll_family = libc::AF_PACKET as u16;
        }
        to.sll_protocol = u16::from_ne_bytes([p0, p1]);
        to.sll_ifindex = ifindex.try_into().map_err(io::Error::other)?;
        to.sll_halen = 6;
        to.sll_addr[..6].copy_from_slice(&[d0, d1, d2, d3, d4, d5]);
        #[expect(clippy::cast_possible_truncation, reason = "20 bytes")]
        let to_bytes = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: both pointers are to values that outlive the call, given with their own sizes.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                libc::MSG_DONTWAIT,
                (&raw const to).cast(),
                to_bytes,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
