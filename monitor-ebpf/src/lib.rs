//! The layout that flatline's eBPF programs and its user space share.
//!
//! Everything here is `repr(C)`, made of integers, and free of implicit padding; sizes and offsets are
//! asserted below, because the two sides are built by different compilers for different targets. A
//! field's name is what `bpftool map dump pinned` prints, so it says its unit where it has one.
#![no_std]

/// Sender address of flatline's ARP probes: locally administered, so that no vendor owns it.
///
/// A guest answers a probe to this address, by which the tap program tells the answer from the guest's
/// other traffic.
pub const PROBE_MAC: [u8; 6] = [0x02, 0xf1, 0xa7, 0x11, 0x9e, 0x01];

/// What one VM's guest did on its network and its storage: one row of `vms`, keyed by QEMU's pid.
///
/// Each CPU has a copy of its own, which only grows; a reader adds them up.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmRow {
    /// All of the VM's taps together.
    pub network: NetworkCounters,
    /// All requests that the VM's QEMU submitted to the block layer itself.
    pub storage: StorageCounters,
}

/// Packets that crossed a VM's taps. A GSO packet counts once, with all its bytes, as the kernel's own
/// tap counters have it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetworkCounters {
    /// Sent by the guest (the tap's *ingress* on the host), answers to probes included.
    pub guest_tx_packets: u64,
    /// Bytes of those, with their Ethernet headers.
    pub guest_tx_bytes: u64,
    /// Sent to the guest (the tap's *egress* on the host), flatline's probes included.
    pub guest_rx_packets: u64,
    /// Bytes of those, with their Ethernet headers.
    pub guest_rx_bytes: u64,
    /// Answers to flatline's own probes: life only because somebody asked.
    pub probe_answers: u64,
    /// Bytes of those.
    pub probe_answer_bytes: u64,
}

/// Requests (bios) that a VM's QEMU submitted to the block layer, and what became of them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StorageCounters {
    /// Reads submitted.
    pub read_ops: u64,
    /// Bytes of those.
    pub read_bytes: u64,
    /// Writes submitted.
    pub write_ops: u64,
    /// Bytes of those.
    pub write_bytes: u64,
    /// Flushes that carry no data.
    pub flush_ops: u64,
    /// Discards, write-zeroes and everything rarer.
    pub other_ops: u64,
    /// Submitted requests that are followed to their completion.
    pub tracked_ops: u64,
    /// Followed requests that completed, also with an error; `tracked_ops - completed_ops` is in flight.
    pub completed_ops: u64,
    /// Of those, the ones that completed with an error.
    pub failed_ops: u64,
    /// Submitted requests that could not be followed because `in_flight` was full.
    pub untracked_ops: u64,
}

impl StorageCounters {
    /// Requests of any kind that were submitted.
    pub const fn submitted(&self) -> u64 {
        self.read_ops + self.write_ops + self.flush_ops + self.other_ops
    }
}

/// A tap, by its network namespace and its index there; an index alone is not unique on a host.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TapKey {
    /// Inode number of the network namespace.
    pub netns: u32,
    /// Interface index inside it.
    pub ifindex: u32,
}

/// One row of `taps`: whose tap it is, and the address that its guest was last seen to use.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TapRow {
    /// QEMU's pid: the key of the VM's row in `vms`.
    pub vm: u32,
    /// IPv4 address from the guest's own ARP frames, octets in the order of the wire; zeros: none yet.
    pub guest_ipv4: [u8; 4],
    /// Ethernet address that goes with it.
    pub guest_mac: [u8; 6],
    /// Keeps the row free of implicit padding.
    pub reserved: u16,
}

/// One row of `in_flight`, keyed by the bio's address: a request between submission and completion.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InFlight {
    /// QEMU's pid.
    pub vm: u32,
    /// Size at submission.
    pub bytes: u32,
}

/// [`ProcessEvent::kind`]: some process called `exec`; whether it is a QEMU, user space finds out.
pub const PROCESS_EXEC: u32 = 1;
/// [`ProcessEvent::kind`]: the main thread of a watched QEMU ended.
pub const PROCESS_EXIT: u32 = 2;

/// A process started or ended: one record of the ring buffer `process_events`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessEvent {
    /// [`PROCESS_EXEC`] or [`PROCESS_EXIT`].
    pub kind: u32,
    /// Its pid (the kernel's thread group id).
    pub pid: u32,
    /// At its end, the status as `wait(2)` encodes it; otherwise 0.
    pub status: i32,
    /// Keeps the record a multiple of eight bytes.
    pub reserved: u32,
}

const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<NetworkCounters>() == 48);
    assert!(size_of::<StorageCounters>() == 80);
    assert!(size_of::<VmRow>() == 128);
    assert!(offset_of!(VmRow, storage) == 48);
    assert!(size_of::<TapKey>() == 8);
    assert!(size_of::<TapRow>() == 16);
    assert!(offset_of!(TapRow, guest_ipv4) == 4);
    assert!(offset_of!(TapRow, guest_mac) == 8);
    assert!(size_of::<InFlight>() == 8);
    assert!(size_of::<ProcessEvent>() == 16);
};

#[cfg(feature = "user")]
mod pod {
    use super::{InFlight, ProcessEvent, TapKey, TapRow, VmRow};

    // SAFETY: each type is `repr(C)`, made of integers only, and without padding (asserted above), so
    // that every bit pattern is a value of it.
    unsafe impl aya::Pod for VmRow {}
    // SAFETY: as for `VmRow`.
    unsafe impl aya::Pod for TapKey {}
    // SAFETY: as for `VmRow`.
    unsafe impl aya::Pod for TapRow {}
    // SAFETY: as for `VmRow`.
    unsafe impl aya::Pod for InFlight {}
    // SAFETY: as for `VmRow`.
    unsafe impl aya::Pod for ProcessEvent {}
}
