//! Another owner's tcx program on a tap: counts what it sees, and lets the next one go on or doesn't.
//!
//! Assembled by hand, so that no other loader is needed, and nothing of flatline's has a part in it.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use flatline_tests::netns::Tap;

// Of include/uapi/linux/bpf.h.
const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_DETACH: libc::c_long = 34;
const BPF_LINK_GET_FD_BY_ID: libc::c_long = 30;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_F_BEFORE: u32 = 1 << 3;
const BPF_F_AFTER: u32 = 1 << 4;

/// Where it stands among the programs on the tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Before all others.
    First,
    /// Behind all others.
    Last,
}

/// What it does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// `TCX_NEXT`: the programs behind it see the packet as well.
    HandOn = -1,
    /// `TCX_PASS`: no other program does.
    Take = 0,
}

/// A program on one direction of a tap, until it is dropped.
pub(crate) struct Foreign {
    map: OwnedFd,
    _program: OwnedFd,
    _link: OwnedFd,
}

/// `union bpf_attr` is longer; the kernel takes what it is given for the rest being zero.
type Attribute = [u64; 16];

fn bpf(command: libc::c_long, attribute: &mut Attribute) -> io::Result<libc::c_long> {
    // SAFETY: the attribute is as long as said, and what it points to outlives the call.
    let answer = unsafe {
        libc::syscall(libc::SYS_bpf, command, attribute.as_mut_ptr(), size_of::<Attribute>())
    };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

fn descriptor(answer: libc::c_long) -> Result<OwnedFd> {
    let fd = i32::try_from(answer)?;
    // SAFETY: the kernel just returned it, and nothing else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Two 32-bit fields of an attribute, the first in the lower half.
fn pair(first: u32, second: u32) -> u64 {
    u64::from(first) | u64::from(second) << 32
}

fn number(fd: &OwnedFd) -> Result<u32> {
    Ok(u32::try_from(fd.as_raw_fd())?)
}

impl Foreign {
    /// Attaches it to what the guest sends (`from_guest`), or to what is sent to the guest.
    pub(crate) fn attach(
        tap: &Tap,
        from_guest: bool,
        place: Place,
        verdict: Verdict,
    ) -> Result<Self> {
        let mut attribute = Attribute::default();
        // Type and key size; value size and entries.
        attribute[0] = pair(BPF_MAP_TYPE_ARRAY, 4);
        attribute[1] = pair(8, 1);
        let map = descriptor(bpf(BPF_MAP_CREATE, &mut attribute).context("a foreign map")?)?;
        let program = load(&map, verdict)?;
        let name = tap.name().to_owned();
        let fd = number(&program)?;
        // BPF_TCX_INGRESS and BPF_TCX_EGRESS of `enum bpf_attach_type`.
        let direction = if from_guest { 46 } else { 47 };
        let flags = if place == Place::First { BPF_F_BEFORE } else { BPF_F_AFTER };
        let link = tap.inside(move || -> Result<OwnedFd> {
            let socket = rustix::net::socket(
                rustix::net::AddressFamily::UNIX,
                rustix::net::SocketType::DGRAM,
                None,
            )?;
            let index = rustix::net::netdevice::name_to_index(&socket, &name)?;
            let mut attribute = Attribute::default();
            attribute[0] = pair(fd, index);
            attribute[1] = pair(direction, flags);
            descriptor(bpf(BPF_LINK_CREATE, &mut attribute).context("a foreign link")?)
        })??;
        Ok(Self { map, _program: program, _link: link })
    }

    /// Packets that it saw.
    pub(crate) fn packets(&self) -> Result<u64> {
        let (key, mut value) = (0_u32, 0_u64);
        let mut attribute = Attribute::default();
        attribute[0] = u64::from(number(&self.map)?);
        attribute[1] = (&raw const key).expose_provenance() as u64;
        attribute[2] = (&raw mut value).expose_provenance() as u64;
        bpf(BPF_MAP_LOOKUP_ELEM, &mut attribute).context("the foreign map")?;
        Ok(value)
    }
}

/// `if (row = lookup(map, 0)) atomic_add(row, 1); return verdict;`
fn load(map: &OwnedFd, verdict: Verdict) -> Result<OwnedFd> {
    // Opcode, registers (source, then destination), offset, immediate: as `struct bpf_insn` has them.
    let instruction = |opcode: u8, registers: u8, offset: i16, immediate: i32| -> u64 {
        u64::from(opcode)
            | u64::from(registers) << 8
            | u64::from(offset.cast_unsigned()) << 16
            | u64::from(immediate.cast_unsigned()) << 32
    };
    let program = [
        instruction(0x62, 0x0a, -4, 0),              // *(u32 *)(r10 - 4) = 0
        instruction(0xbf, 0xa2, 0, 0),               // r2 = r10
        instruction(0x07, 0x02, 0, -4),              // r2 += -4
        instruction(0x18, 0x11, 0, map.as_raw_fd()), // r1 = map
        instruction(0, 0, 0, 0),                     // its second half
        instruction(0x85, 0, 0, 1),                  // r0 = lookup(r1, r2)
        instruction(0x15, 0x00, 2, 0),               // if r0 == 0 goto +2
        instruction(0xb7, 0x01, 0, 1),               // r1 = 1
        instruction(0xdb, 0x10, 0, 0),               // atomic *(u64 *)r0 += r1
        instruction(0xb7, 0x00, 0, verdict as i32),  // r0 = verdict
        instruction(0x95, 0, 0, 0),                  // exit
    ];
    let license = c"GPL";
    let mut attribute = Attribute::default();
    attribute[0] = pair(BPF_PROG_TYPE_SCHED_CLS, u32::try_from(program.len())?);
    attribute[1] = program.as_ptr().expose_provenance() as u64;
    attribute[2] = license.as_ptr().expose_provenance() as u64;
    descriptor(bpf(BPF_PROG_LOAD, &mut attribute).context("a foreign program")?)
}

/// Detaches a pinned link from its tap, as `bpftool link detach` does; the pin stays.
pub(crate) fn detach_link(pin: &std::path::Path) -> Result<()> {
    let id = link_id(pin)?;
    let mut attribute = Attribute::default();
    attribute[0] = u64::from(id);
    let link = descriptor(bpf(BPF_LINK_GET_FD_BY_ID, &mut attribute).context("the link")?)?;
    let mut attribute = Attribute::default();
    attribute[0] = u64::from(number(&link)?);
    bpf(BPF_LINK_DETACH, &mut attribute).context("detaching the link")?;
    Ok(())
}

/// The kernel's number of a pinned link, by bpftool's account.
fn link_id(pin: &std::path::Path) -> Result<u32> {
    let output = flatline_tests::command::run(
        "bpftool",
        ["-j".as_ref(), "link".as_ref(), "show".as_ref(), "pinned".as_ref(), pin.as_os_str()],
    )?;
    let shown: serde_json::Value = serde_json::from_slice(&output)?;
    let id = shown["id"].as_u64().with_context(|| format!("no id in {shown}"))?;
    Ok(u32::try_from(id)?)
}
