//! The ARP probe: asks a guest's kernel on its own tap whether it still owns its address.
//!
//! The probe's sender is 0.0.0.0, as in RFC 5227: whoever owns the address answers, and nobody's cache
//! changes. It goes to the guest's own Ethernet address from [`PROBE_MAC`], by which the tap program
//! tells the answer and takes it out of the traffic. Nothing of it is seen beyond the tap.

use std::{
    fs::File,
    io,
    mem::size_of,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::Arc,
    time::Duration,
};

use monitor_ebpf::PROBE_MAC;
use tokio::time::sleep;

use super::{Asked, Note, Scene, Witness, of_calibrated};
use crate::{
    discover::in_netns,
    sample::{Reading, TapAddress},
    verdict::Answer,
};

/// The row in the table.
pub const WITNESS: Witness = Witness {
    name: "ARP probe",
    looks_for: "an answer for the address that it uses",
    asked_in: of_calibrated,
    ask: |scene, note| -> Asked { Box::pin(ask(scene, note)) },
};

/// Probes to an address in one round.
const PROBES_PER_ROUND: u32 = 2;
/// Time after each; an answer takes 1 ms where the host isn't overloaded.
const PROBE_EVERY: Duration = Duration::from_millis(300);

/// A tap to probe.
#[derive(Clone, Debug)]
pub struct ArpTarget {
    /// A socket in the tap's network namespace.
    pub socket: Arc<ArpSocket>,
    /// The tap's index there.
    pub ifindex: u32,
    /// The address to ask for.
    pub guest: TapAddress,
}

async fn ask(scene: Arc<Scene>, note: Note) -> (Answer, Note) {
    let answer = match &scene.target {
        Ok(target) => probe(&scene, target).await.unwrap_or_else(Answer::NotAsked),
        Err(why) => Answer::NotAsked(why.clone()),
    };
    (answer, note)
}

async fn probe(scene: &Scene, target: &ArpTarget) -> Result<Answer, String> {
    let before = answers(scene).map_err(|missing| missing.to_string())?;
    for _ in 0..PROBES_PER_ROUND {
        let sent = target.socket.probe(target.ifindex, target.guest);
        sent.map_err(|error| format!("the probe could not be sent: {error}"))?;
        sleep(PROBE_EVERY).await;
    }
    let address = target.guest.ipv4;
    let now = answers(scene).map_err(|missing| missing.to_string())?;
    Ok(if now > before {
        Answer::Lives(format!("{address} answers"))
    } else {
        Answer::Silent(format!("{address} left {PROBES_PER_ROUND} probes unanswered"))
    })
}

/// Answers are counted at the tap, which takes them out of the traffic.
fn answers(scene: &Scene) -> Reading<u64> {
    let slot = scene.slot.clone().map_err(|why| crate::sample::Missing::new("its row", why))?;
    Ok(scene.counters.row(scene.vm_id(), slot)?.network.probe_answers)
}

const ETH_P_ARP: u16 = 0x0806;
/// An Ethernet header and an ARP packet for IPv4; padding to 60 bytes is not needed on a tap.
const FRAME_BYTES: usize = 42;

/// A raw socket in one network namespace, through which every tap there can be probed.
#[derive(Debug)]
pub struct ArpSocket {
    socket: OwnedFd,
}

impl ArpSocket {
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
            // SAFETY: the kernel just returned it, and nobody else has it.
            Ok(Self { socket: unsafe { OwnedFd::from_raw_fd(socket) } })
        })?
    }

    /// Sends one probe into the tap with index `ifindex`.
    ///
    /// # Errors
    /// What the kernel said, such as `ENETDOWN` for a tap that is down.
    pub fn probe(&self, ifindex: u32, guest: TapAddress) -> io::Result<()> {
        let frame = probe_frame(guest);
        // SAFETY: `sockaddr_ll` is made of integers, for which zero is a value.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        #[expect(clippy::cast_possible_truncation, reason = "AF_PACKET is 17")]
        {
            to.sll_family = libc::AF_PACKET as u16;
        }
        to.sll_protocol = ETH_P_ARP.to_be();
        to.sll_ifindex = ifindex.try_into().map_err(io::Error::other)?;
        to.sll_halen = 6;
        to.sll_addr[..6].copy_from_slice(&guest.mac);
        #[expect(clippy::cast_possible_truncation, reason = "20 bytes")]
        let to_bytes = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: both pointers are to live values on this stack, given with their own sizes.
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

fn probe_frame(guest: TapAddress) -> [u8; FRAME_BYTES] {
    let mut frame = [0; FRAME_BYTES];
    frame[..6].copy_from_slice(&guest.mac);
    frame[6..12].copy_from_slice(&PROBE_MAC);
    frame[12..14].copy_from_slice(&ETH_P_ARP.to_be_bytes());
    // Hardware Ethernet, protocol IPv4, their address lengths, operation: request (RFC 826).
    frame[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
    frame[22..28].copy_from_slice(&PROBE_MAC);
    // The sender's IPv4 address and the target's Ethernet address stay zero.
    frame[38..].copy_from_slice(&guest.ipv4.octets());
    frame
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn the_probe_is_a_request_from_nobody_for_the_guests_address() {
        let guest = TapAddress { ipv4: Ipv4Addr::new(10, 7, 0, 2), mac: [2, 0, 0, 0, 0, 9] };
        let expected = [
            [2, 0, 0, 0, 0, 9].as_slice(),
            &PROBE_MAC,
            &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
            &PROBE_MAC,
            &[0, 0, 0, 0],
            &[0; 6],
            &[10, 7, 0, 2],
        ]
        .concat();
        assert_eq!(probe_frame(guest).as_slice(), expected);
    }
}
