//! What an interface sees, as any neighbour could.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};

use crate::netns::Tap;

/// As much of a frame as is kept.
const FRAME_BYTES: usize = 128;

/// A socket that gets a copy of each frame that an interface sends or receives, a few hundred at most.
#[derive(Debug)]
pub struct Capture {
    socket: OwnedFd,
}

impl Capture {
    /// Begins to listen at `interface`.
    ///
    /// # Errors
    ///
    /// If its namespace or a raw socket in it cannot be opened.
    pub fn start(interface: &Tap) -> Result<Self> {
        let name = interface.name().to_owned();
        interface.inside(move || open(&name))?
    }

    /// The frames since the last call, each cut to its first 128 bytes.
    ///
    /// # Errors
    ///
    /// If they cannot be read.
    pub fn frames(&self) -> Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        loop {
            let mut frame = [0; FRAME_BYTES];
            let socket = self.socket.as_raw_fd();
            // SAFETY: the buffer outlives the call, and the length is its own.
            let bytes = unsafe {
                libc::recv(socket, frame.as_mut_ptr().cast(), frame.len(), libc::MSG_DONTWAIT)
            };
            match usize::try_from(bytes) {
                Ok(bytes) => frames.push(frame[..bytes].to_vec()),
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() == io::ErrorKind::WouldBlock {
                        return Ok(frames);
                    }
                    return Err(error).context("cannot read captured frames");
                }
            }
        }
    }
}

fn open(name: &str) -> Result<Capture> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // Without a protocol it hears nothing until it is bound to the one interface.
    // SAFETY: no pointers; the returned fd is checked before use.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error()).context("cannot open a raw socket");
    }
    // SAFETY: the kernel just gave this fd to us, and nothing else holds it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: zeroes are a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::sa_family_t::try_from(libc::AF_PACKET)?;
    address.sll_protocol = u16::try_from(libc::ETH_P_ALL)?.to_be();
    let index = rustix::net::netdevice::name_to_index(&socket, name)
        .with_context(|| format!("no interface {name}"))?;
    address.sll_ifindex = index.try_into()?;
    let address_bytes = libc::socklen_t::try_from(size_of_val(&address))?;
    // SAFETY: `address` outlives the call, and the length is its own.
    let bound =
        unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), address_bytes) };
    if bound != 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("cannot hear {name}"));
    }
    Ok(Capture { socket })
}
