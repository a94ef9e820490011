//! What a packet pays for flatline's programs on its tap.
//!
//! Twice: the programs alone, run by the kernel itself a million times on one frame; and in passing, as
//! frames from a tap with them, one with an empty program, and one with none.

use std::{
    fs::File,
    io::Write as _,
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, tc::TcAttachOptions};
use clap::Args;
use flatline_tests::netns::open_tap;
use monitor_ebpf::heartbeat::{
    self, CHECK_NAME_BYTES, HEARTBEAT_MAGIC, HEARTBEAT_VERSION, Heartbeat,
};

use crate::{clock, kernel, print};

/// `TC_ACT_UNSPEC` and `TC_ACT_SHOT`.
const GO_ON: i32 = -1;
const DROP: i32 = 2;
/// As flatline's probes have it; asserted below by what becomes of the answer.
const PROBE_MAC: [u8; 6] = monitor_ebpf::PROBE_MAC;
const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 0xf1, 0xa7, 1];
const ARP: [u8; 2] = [8, 6];
const ICMPV6: u8 = 58;
const TCP: u8 = 6;
/// ICMPv6's neighbour solicitation and advertisement.
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// IEEE 802's second number for local experiments: nothing on the host takes such a frame any further, and the first
/// is that of heartbeats.
const EXPERIMENT: [u8; 2] = [0x88, 0xb6];

const BEAT: Heartbeat = Heartbeat {
    magic: HEARTBEAT_MAGIC,
    version: HEARTBEAT_VERSION,
    flags: 0,
    reserved: [0; 2],
    interval_ms: 1000_u32.to_be_bytes(),
    boot: [7; 8],
    sequence: [0; 8],
    check: [0; CHECK_NAME_BYTES],
};

#[derive(Args)]
pub(crate) struct Options {
    /// The empty programs
    #[arg(long)]
    object: PathBuf,
    /// The namespace of the tap
    #[arg(long)]
    netns: PathBuf,
    /// A tap that the daemon watches, and that has room for another queue
    #[arg(long)]
    tap: String,
    #[arg(long)]
    rounds: u32,
    /// Runs of each program in a round
    #[arg(long)]
    repeat: u32,
    /// Frames through each tap in a round
    #[arg(long)]
    frames: u32,
}

pub(crate) fn measure(bpffs: &Path, options: &Options) -> Result<()> {
    kernel::enter(&options.netns)?;
    let mut empty = kernel::load(&options.object)?;
    let empty: &mut SchedClassifier =
        empty.program_mut("empty_classifier").context("no empty classifier")?.try_into()?;
    empty.load()?;
    // Two taps beside the watched one, alike in all but what is on them.
    let with_none = Flooded::open("bench-none")?;
    let with_empty = Flooded::open("bench-empty")?;
    let options_of_tcx = TcAttachOptions::TcxOrder(LinkOrder::default());
    empty.attach_with_options(&with_empty.name, TcAttachType::Ingress, options_of_tcx)?;
    let watched = Flooded::open(&options.tap)?;
    runs(bpffs, options, empty, watched.ifindex, with_none.ifindex)?;
    passing(options, [("none", with_none), ("empty", with_empty), ("flatline", watched)])
}

/// Each program by itself.
fn runs(
    bpffs: &Path,
    options: &Options,
    empty: &SchedClassifier,
    tap: u32,
    stranger: u32,
) -> Result<()> {
    let from = kernel::pinned_program(bpffs, "-from")?;
    let to = kernel::pinned_program(bpffs, "-to")?;
    let empty = empty.fd()?;
    let data = frame(EXPERIMENT, 1, [0; 6]);
    let arp = frame(ARP, 1, [0; 6]);
    let answer = frame(ARP, 2, PROBE_MAC);
    let ipv6 = ipv6_frame(TCP, 0, [0xff; 6]);
    let ndp = ipv6_frame(ICMPV6, SOLICITATION, [0xff; 6]);
    let ndp_answer = ipv6_frame(ICMPV6, ADVERTISEMENT, PROBE_MAC);
    let beat = heartbeat::frame(GUEST_MAC, &BEAT);
    let made_up = heartbeat::frame(GUEST_MAC, &Heartbeat { version: 0, ..BEAT });
    let cases = [
        ("empty", empty.as_fd(), data.as_slice(), tap, GO_ON),
        ("from_guest", from.as_fd(), &data, tap, GO_ON),
        ("to_guest", to.as_fd(), &data, tap, GO_ON),
        ("from_guest_arp", from.as_fd(), &arp, tap, GO_ON),
        ("from_guest_answer", from.as_fd(), &answer, tap, DROP),
        ("from_guest_ipv6", from.as_fd(), &ipv6, tap, GO_ON),
        ("from_guest_ndp", from.as_fd(), &ndp, tap, GO_ON),
        ("from_guest_ndp_answer", from.as_fd(), &ndp_answer, tap, DROP),
        ("from_guest_heartbeat", from.as_fd(), &beat, tap, DROP),
        ("from_guest_malformed_heartbeat", from.as_fd(), &made_up, tap, DROP),
        ("unknown_tap", from.as_fd(), &data, stranger, GO_ON),
    ];
    let mut rounds = cases.map(|_| Vec::new());
    for _ in 0..options.rounds {
        for ((name, program, frame, ifindex, expected), rounds) in cases.iter().zip(&mut rounds) {
            let before = clock::thread_time();
            let verdict = kernel::test_run(*program, frame, *ifindex, options.repeat)?;
            let took = clock::thread_time() - before;
            ensure!(verdict == *expected, "{name} returned {verdict} instead of {expected}");
            rounds.push(took.as_secs_f64() * 1e9 / f64::from(options.repeat));
        }
    }
    for ((name, ..), rounds) in cases.iter().zip(&rounds) {
        print(&format!("packet/{name}"), rounds);
    }
    Ok(())
}

/// All the way from a tap into the host.
fn passing(options: &Options, mut taps: [(&str, Flooded); 3]) -> Result<()> {
    let frame = frame(EXPERIMENT, 1, [0; 6]);
    let mut rounds = [const { Vec::new() }; 3];
    for _ in 0..options.rounds {
        for ((_, tap), rounds) in taps.iter_mut().zip(&mut rounds) {
            rounds.push(clock::per_call(options.frames, || tap.queue.write_all(&frame))?);
        }
    }
    for ((name, _), rounds) in taps.iter().zip(&rounds) {
        print(&format!("passing/{name}"), rounds);
    }
    Ok(())
}

/// A tap that frames are sent from.
struct Flooded {
    name: String,
    ifindex: u32,
    queue: File,
    /// The watched tap has two, which costs each frame a look at whose flow it is.
    _other_queue: File,
}

impl Flooded {
    /// Opens queues of it, and sets it up. A tap that is made so goes with them.
    fn open(name: &str) -> Result<Self> {
        let (queue, other_queue) = (open_tap(name)?, open_tap(name)?);
        // SAFETY: zeroes are a valid ifreq: an empty name and no flags.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP)?;
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        // SAFETY: the descriptor is open, and the request is a whole ifreq that outlives the call.
        let answer =
            unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) };
        ensure!(answer == 0, "cannot set {name} up: {}", std::io::Error::last_os_error());
        let ifindex = rustix::net::netdevice::name_to_index(&socket, name)?;
        Ok(Self { name: name.to_owned(), ifindex, queue, _other_queue: other_queue })
    }
}

/// A frame of the shortest size. As ARP (RFC 826), with an address of the guest's.
fn frame(kind: [u8; 2], operation: u8, target_mac: [u8; 6]) -> [u8; 60] {
    let mut frame = [0; 60];
    frame[..6].copy_from_slice(&[0xff; 6]);
    frame[6..12].copy_from_slice(&GUEST_MAC);
    frame[12..14].copy_from_slice(&kind);
    frame[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, operation]);
    frame[22..28].copy_from_slice(&GUEST_MAC);
    frame[28..32].copy_from_slice(&[10, 7, 0, 2]);
    frame[32..38].copy_from_slice(&target_mac);
    frame[38..42].copy_from_slice(&[10, 7, 0, 1]);
    frame
}

/// An IPv6 packet as long as the two of neighbour discovery with their option (RFC 4861).
fn ipv6_frame(next_header: u8, icmp_type: u8, to: [u8; 6]) -> [u8; 86] {
    const OWN: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
    let mut frame = [0; 86];
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&GUEST_MAC);
    frame[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
    frame[19..22].copy_from_slice(&[32, next_header, 255]);
    frame[22..38].copy_from_slice(&OWN);
    frame[38..54].copy_from_slice(&OWN);
    frame[54] = icmp_type;
    frame[62..78].copy_from_slice(&OWN);
    frame[78..80].copy_from_slice(&[1, 1]);
    frame[80..].copy_from_slice(&GUEST_MAC);
    frame
}
