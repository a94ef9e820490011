//! Broadcasts into a tap: traffic that a dead guest gets too, and that must not pass for its life.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::netns::Tap;

/// The shortest Ethernet frame without its checksum.
const FRAME_BYTES: usize = 60;

/// Frames sent at a steady rate until this is dropped.
#[derive(Debug)]
pub struct Broadcast {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Broadcast {
    /// Sends `frames_per_second` (at least 1) ARP requests for an address that no guest has.
    ///
    /// # Errors
    ///
    /// If the tap's namespace or a raw socket in it cannot be opened.
    pub fn start(tap: &Tap, frames_per_second: u32) -> Result<Self> {
        let name = tap.name().to_owned();
        let (socket, index) = tap.inside(move || open(&name))??;
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&sent));
        let interval = Duration::from_secs(1) / frames_per_second.max(1);
        let thread = std::thread::spawn(move || {
            let frame = frame();
            let mut due = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                // A full queue is what a dead guest's tap looks like: go on.
                if send(&socket, index, &frame).is_ok() {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                due += interval;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        });
        Ok(Self { stop, sent, thread: Some(thread) })
    }

    /// How many frames the kernel took so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Broadcast {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It panics nowhere, and there is nothing to tell if it did.
            let _ = thread.join();
        }
    }
}

/// Sends so many of the same frames into a tap as fast as its QEMU takes them, so that none is dropped.
///
/// # Errors
///
/// If the tap's namespace or a raw socket in it cannot be opened, or QEMU takes nothing for 10 s.
pub fn flood(tap: &Tap, frames: u64) -> Result<()> {
    const QUEUE: u64 = 50_000;
    tap.set(&["txqueuelen", &QUEUE.to_string()])?;
    let name = tap.name().to_owned();
    let (socket, index) = tap.inside(move || open(&name))??;
    let frame = frame();
    // The kernel counts a frame as sent when QEMU takes it.
    let taken = || anyhow::Ok(tap.counters()?.tx_packets);
    let before = taken()?;
    let mut sent = 0;
    while sent < frames {
        for _ in 0..(QUEUE / 2).min(frames - sent) {
            send(&socket, index, &frame).context("cannot send into the tap")?;
            sent += 1;
        }
        let begin = Instant::now();
        while taken()? < before + sent {
            anyhow::ensure!(begin.elapsed() < Duration::from_secs(10), "QEMU takes no frames");
        }
    }
    Ok(())
}

/// A raw socket keeps the namespace of the thread that opened it.
fn open(tap: &str) -> Result<(OwnedFd, libc::c_int)> {
    // SAFETY: no pointers; the returned fd is checked before use.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error()).context("cannot open a raw socket");
    }
    // SAFETY: the kernel just gave this fd to us, and nothing else holds it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let index = rustix::net::netdevice::name_to_index(&socket, tap)
        .with_context(|| format!("no interface {tap}"))?;
    Ok((socket, libc::c_int::try_from(index).context("an interface index is an int")?))
}

fn send(socket: &OwnedFd, index: libc::c_int, frame: &[u8; FRAME_BYTES]) -> io::Result<()> {
    // SAFETY: zeroes are a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::sa_family_t::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    address.sll_ifindex = index;
    address.sll_halen = 6;
    address.sll_addr[..6].fill(0xff);
    let address_bytes =
        libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
    // SAFETY: `frame` and `address` outlive the call, and the lengths are theirs.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            libc::MSG_DONTWAIT,
            (&raw const address).cast(),
            address_bytes,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Who has 10.7.255.254? Tell 10.7.255.253, at a locally administered address.
fn frame() -> [u8; FRAME_BYTES] {
    const SENDER: [u8; 6] = [0x02, 0, 0, 0, 0, 1];
    let mut frame = [0; FRAME_BYTES];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&SENDER);
    // EtherType ARP; Ethernet and IPv4 addresses, 6 and 4 bytes long; a request.
    frame[12..22].copy_from_slice(&[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame[22..28].copy_from_slice(&SENDER);
    frame[28..32].copy_from_slice(&[10, 7, 255, 253]);
    frame[38..42].copy_from_slice(&[10, 7, 255, 254]);
    frame
}
