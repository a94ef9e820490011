//! The frame by which a guest says that it lives, and what a tap's program keeps of it.
//!
//! A guest sends it on its own network card to an address that no bridge forwards, with an EtherType that is free for
//! local use: it needs no address, no route, and nothing between the guest and the tap. Numbers are in network byte order.

use core::mem::{offset_of, size_of};

/// `Local Experimental Ethertype 1` of IEEE Std 802.
pub const HEARTBEAT_ETHERTYPE: u16 = 0x88b5;
/// The *nearest bridge* group address of IEEE Std 802.1Q: a bridge keeps to itself what it hears there, so that a beat
/// goes no further where no program takes it off the tap.
pub const HEARTBEAT_MAC: [u8; 6] = [0x01, 0x80, 0xc2, 0x00, 0x00, 0x0e];
/// How a beat begins, by which it is told from other uses of the EtherType.
pub const HEARTBEAT_MAGIC: [u8; 4] = *b"FLHB";
/// The version of the frame.
pub const HEARTBEAT_VERSION: u8 = 1;
/// The guest is going down in good order.
pub const FLAG_LEAVING: u8 = 1 << 0;
/// The guest lives, and what it was told to check does not: this is no beat.
pub const FLAG_CHECK_FAILED: u8 = 1 << 1;
/// Bytes of a check's name.
pub const CHECK_NAME_BYTES: usize = 32;

impl Heartbeat {
    /// What follows the EtherType, as it came.
    pub fn from_bytes(bytes: &[u8; size_of::<Self>()]) -> Self {
        // SAFETY: a beat is made of bytes alone, without padding, so that any bytes are one.
        unsafe { core::mem::transmute_copy(bytes) }
    }

    /// Whether this is a beat that this version understands.
    #[inline(always)]
    pub fn is_well_formed(&self) -> bool {
        self.magic == HEARTBEAT_MAGIC
            && self.version == HEARTBEAT_VERSION
            && self.flags & !(FLAG_LEAVING | FLAG_CHECK_FAILED) == 0
            && self.interval_ms != [0; 4]
    }
}

/// What follows the EtherType.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// [`HEARTBEAT_MAGIC`].
    pub magic: [u8; 4],
    /// [`HEARTBEAT_VERSION`].
    pub version: u8,
    /// [`FLAG_LEAVING`], [`FLAG_CHECK_FAILED`].
    pub flags: u8,
    /// Zero.
    pub reserved: [u8; 2],
    /// Milliseconds from one beat to the next; never zero.
    pub interval_ms: [u8; 4],
    /// A number that another boot does not have.
    pub boot: [u8; 8],
    /// Counts beats since the agent began, from 1.
    pub sequence: [u8; 8],
    /// What is checked before each beat, in printable ASCII, with zeros behind it; all zeros: nothing.
    pub check: [u8; CHECK_NAME_BYTES],
}

/// Heartbeats of one VM's guest: one row of `heartbeats`, indexed by the VM's slot.
///
/// Its counters only grow; the rest is as the last frame has it. Moments are in the kernel's ticks; 0: never.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeartbeatRow {
    /// QEMU's pid; 0: the row is unused.
    pub pid: u32,
    /// From one beat to the next, as the last frame has it.
    pub interval_ms: u32,
    /// When that process started, in clock ticks after boot.
    pub start_ticks: u64,
    /// Beats. A guest with several cards sends each of them on every one.
    pub beats: u64,
    /// Frames that say that the guest's check failed.
    pub failures: u64,
    /// Frames that say that the guest goes down in good order.
    pub leavings: u64,
    /// Frames that begin like a beat and are none: dropped as well, but the guest's traffic.
    pub malformed: u64,
    /// When the last frame that was none of the malformed came.
    pub last_jiffies: u64,
    /// The boot's number, as that frame has it.
    pub boot: u64,
    /// Its sequence number.
    pub sequence: u64,
    /// Its flags.
    pub flags: u32,
    /// Keeps the row a multiple of eight bytes.
    pub reserved: u32,
    /// What its guest checks; as it came, so that nothing of it can be relied on.
    pub check: [u8; CHECK_NAME_BYTES],
}

/// A beat's bytes with its Ethernet header.
pub const HEARTBEAT_FRAME_BYTES: usize = 14 + size_of::<Heartbeat>();

const _: () = {
    assert!(size_of::<Heartbeat>() == 60);
    assert!(align_of::<Heartbeat>() == 1);
    assert!(offset_of!(Heartbeat, check) == 28);
    assert!(size_of::<HeartbeatRow>() == 112);
    assert!(offset_of!(HeartbeatRow, start_ticks) == 8);
    assert!(offset_of!(HeartbeatRow, check) == 80);
};

/// A whole frame, from the card with the address `source`.
pub fn frame(source: [u8; 6], beat: &Heartbeat) -> [u8; HEARTBEAT_FRAME_BYTES] {
    let mut frame = [0; HEARTBEAT_FRAME_BYTES];
    let (header, body) = frame.split_at_mut(14);
    header[..6].copy_from_slice(&HEARTBEAT_MAC);
    header[6..12].copy_from_slice(&source);
    header[12..].copy_from_slice(&HEARTBEAT_ETHERTYPE.to_be_bytes());
    let (start, check) = body.split_at_mut(28);
    start[..4].copy_from_slice(&beat.magic);
    start[4] = beat.version;
    start[5] = beat.flags;
    start[6..8].copy_from_slice(&beat.reserved);
    start[8..12].copy_from_slice(&beat.interval_ms);
    start[12..20].copy_from_slice(&beat.boot);
    start[20..].copy_from_slice(&beat.sequence);
    check.copy_from_slice(&beat.check);
    frame
}
