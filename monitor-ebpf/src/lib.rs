//! The layout that flatline's eBPF programs and its user space share.
//!
//! Everything here is `repr(C)`, made of integers, and free of implicit padding; sizes and offsets are
//! asserted below, because the two sides are built by different compilers for different targets. A
//! field's name is what `bpftool map dump pinned` prints, so it says its unit where it has one.
//!
//! VMs are counted in *slots*: a program that knows a slot reaches its row by index, which costs a tenth
//! of a look-up by key. User space alone hands slots out, and names in each row the VM that it belongs to.
#![no_std]

pub mod heartbeat;

/// The generation of this layout. Pins of another generation are never read: they are replaced.
pub const LAYOUT_VERSION: u32 = 7;

/// Sender address of flatline's ARP and NDP probes: locally administered, so that no vendor owns it.
///
/// A guest answers a probe to this address, by which the tap program tells the answer from the guest's
/// other traffic.
pub const PROBE_MAC: [u8; 6] = [0x02, 0xf1, 0xa7, 0x11, 0x9e, 0x01];

/// Sender's IPv6 address of flatline's NDP probes: the link-local one that goes with [`PROBE_MAC`] (RFC
/// 4291, appendix A).
pub const PROBE_IPV6: [u8; 16] = {
    let [a, b, c, d, e, f] = PROBE_MAC;
    [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 0x02, b, c, 0xff, 0xfe, d, e, f]
};

/// Lanes of a row of `vms`: a program adds to the one that its CPU's number falls on.
///
/// A host with no more CPUs has each lane to one CPU; on others, additions are atomic. More lanes would cost memory on every
/// host, and one VM's packets, or its requests, are rarely handled by many CPUs at the same moment.
pub const VM_LANES: usize = 2;

/// What one VM's guest did on its network and its storage: one row of `vms`, indexed by the VM's slot.
///
/// User space maps the memory of all rows, and reads it without a system call.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmRow {
    /// To be added up; see [`VM_LANES`].
    pub lanes: [VmLane; VM_LANES],
}

/// A part of a row of `vms`, whose counters only grow. Each block of eight fields is a line of the CPU's cache, with what
/// the same CPU writes at the same time: packets from the guest, packets to it, requests, their completions.
///
/// [`NetworkCounters`] and [`StorageCounters`] say what each counter means.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field has its doc in the counters that it is added up to")]
pub struct VmLane {
    pub guest_tx_packets: u64,
    pub guest_tx_bytes: u64,
    pub guest_tx_last_jiffies: u64,
    pub probe_answers: u64,
    pub probe_answer_bytes: u64,
    pub arp_answers: u64,
    pub ndp_answers: u64,
    pub heartbeats: u64,

    pub guest_rx_packets: u64,
    pub guest_rx_bytes: u64,
    pub heartbeat_bytes: u64,
    pub discard_ops: u64,
    pub discard_bytes: u64,
    pub other_ops: u64,
    pub untracked_ops: u64,
    /// When QEMU's process started, in clock ticks after boot: pids come round again.
    pub start_ticks: u64,

    pub read_ops: u64,
    pub read_bytes: u64,
    pub write_ops: u64,
    pub write_bytes: u64,
    pub writeback_ops: u64,
    pub writeback_bytes: u64,
    pub flush_ops: u64,
    /// Fills the line.
    pub spare: u64,

    pub completed_ops: u64,
    pub failed_ops: u64,
    pub completion_jiffies: u64,
    /// QEMU's pid, the same in each lane; 0: the row is unused. It stands beside what a completion counts, which is for the
    /// VM only if it still has the slot.
    pub pid: u32,
    /// Keeps the next field at a multiple of eight.
    pub reserved: u32,
    /// Fills the last line.
    pub last_spare: [u64; 4],
}

impl VmRow {
    /// A row of a VM that did nothing so far.
    pub const fn of(pid: u32, start_ticks: u64) -> Self {
        const ZERO: VmLane = VmLane {
            guest_tx_packets: 0,
            guest_tx_bytes: 0,
            guest_tx_last_jiffies: 0,
            probe_answers: 0,
            probe_answer_bytes: 0,
            arp_answers: 0,
            ndp_answers: 0,
            heartbeats: 0,
            guest_rx_packets: 0,
            guest_rx_bytes: 0,
            heartbeat_bytes: 0,
            discard_ops: 0,
            discard_bytes: 0,
            other_ops: 0,
            untracked_ops: 0,
            start_ticks: 0,
            read_ops: 0,
            read_bytes: 0,
            write_ops: 0,
            write_bytes: 0,
            writeback_ops: 0,
            writeback_bytes: 0,
            flush_ops: 0,
            spare: 0,
            completed_ops: 0,
            failed_ops: 0,
            completion_jiffies: 0,
            pid: 0,
            reserved: 0,
            last_spare: [0; 4],
        };
        Self { lanes: [VmLane { pid, start_ticks, ..ZERO }; VM_LANES] }
    }

    /// Whether it is the row of this process.
    pub fn is_of(&self, pid: u32, start_ticks: u64) -> bool {
        self.lanes.iter().all(|lane| (lane.pid, lane.start_ticks) == (pid, start_ticks))
    }

    fn sum(&self, counter: impl Fn(&VmLane) -> u64) -> u64 {
        self.lanes.iter().map(counter).sum()
    }

    /// Packets of all lanes.
    pub fn network(&self) -> NetworkCounters {
        let last = self.lanes.iter().map(|lane| lane.guest_tx_last_jiffies).max();
        NetworkCounters {
            guest_tx_packets: self.sum(|lane| lane.guest_tx_packets),
            guest_tx_bytes: self.sum(|lane| lane.guest_tx_bytes),
            guest_rx_packets: self.sum(|lane| lane.guest_rx_packets),
            guest_rx_bytes: self.sum(|lane| lane.guest_rx_bytes),
            probe_answers: self.sum(|lane| lane.probe_answers),
            probe_answer_bytes: self.sum(|lane| lane.probe_answer_bytes),
            arp_answers: self.sum(|lane| lane.arp_answers),
            ndp_answers: self.sum(|lane| lane.ndp_answers),
            heartbeats: self.sum(|lane| lane.heartbeats),
            heartbeat_bytes: self.sum(|lane| lane.heartbeat_bytes),
            guest_tx_last_jiffies: last.unwrap_or_default(),
        }
    }

    /// Requests of all lanes.
    pub fn storage(&self) -> StorageCounters {
        let mut counters = StorageCounters {
            read_ops: self.sum(|lane| lane.read_ops),
            read_bytes: self.sum(|lane| lane.read_bytes),
            write_ops: self.sum(|lane| lane.write_ops),
            write_bytes: self.sum(|lane| lane.write_bytes),
            writeback_ops: self.sum(|lane| lane.writeback_ops),
            writeback_bytes: self.sum(|lane| lane.writeback_bytes),
            flush_ops: self.sum(|lane| lane.flush_ops),
            discard_ops: self.sum(|lane| lane.discard_ops),
            discard_bytes: self.sum(|lane| lane.discard_bytes),
            other_ops: self.sum(|lane| lane.other_ops),
            tracked_ops: 0,
            completed_ops: self.sum(|lane| lane.completed_ops),
            failed_ops: self.sum(|lane| lane.failed_ops),
            completion_jiffies: self.sum(|lane| lane.completion_jiffies),
            untracked_ops: self.sum(|lane| lane.untracked_ops),
        };
        // Each that was submitted is one or the other: a counter less to add to.
        counters.tracked_ops = counters.submitted().saturating_sub(counters.untracked_ops);
        counters
    }
}

/// Packets that crossed a VM's taps. A GSO packet counts once, with all its bytes, as the kernel's own
/// tap counters have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetworkCounters {
    /// Sent by the guest (the tap's *ingress* on the host), answers to probes included.
    pub guest_tx_packets: u64,
    /// Bytes of those, with their Ethernet headers, but without the VLAN tag that the kernel has taken off.
    pub guest_tx_bytes: u64,
    /// Sent to the guest (the tap's *egress* on the host), flatline's probes included.
    pub guest_rx_packets: u64,
    /// Bytes of those, with their Ethernet headers.
    pub guest_rx_bytes: u64,
    /// All that the guest sent because flatline had probed it, and that was therefore taken out of its
    /// traffic: life only in answer to a question. Answers to ARP and NDP probes, and the frames by which a
    /// guest finds out, for some seconds after an NDP probe, whether flatline is still there.
    pub probe_answers: u64,
    /// Bytes of those.
    pub probe_answer_bytes: u64,
    /// Of `probe_answers`, the answers to ARP probes.
    pub arp_answers: u64,
    /// Of `probe_answers`, the answers to NDP probes themselves.
    pub ndp_answers: u64,
    /// The guest's heartbeats, which were taken out of its traffic as well.
    pub heartbeats: u64,
    /// Bytes of those.
    pub heartbeat_bytes: u64,
    /// When the guest last sent anything but such answers and beats, in the kernel's ticks; 0: never.
    pub guest_tx_last_jiffies: u64,
}

/// Requests (bios) that were submitted to the block layer for a VM, and what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StorageCounters {
    /// Reads submitted.
    pub read_ops: u64,
    /// Bytes of those.
    pub read_bytes: u64,
    /// Writes submitted, written back pages included.
    pub write_ops: u64,
    /// Bytes of those.
    pub write_bytes: u64,
    /// Of the writes, those by which the host wrote back pages of the VM's images.
    pub writeback_ops: u64,
    /// Bytes of those.
    pub writeback_bytes: u64,
    /// Flushes that carry no data.
    pub flush_ops: u64,
    /// Discards.
    pub discard_ops: u64,
    /// Bytes of those.
    pub discard_bytes: u64,
    /// Write-zeroes and everything rarer.
    pub other_ops: u64,
    /// Submitted requests that are followed to their completion: all but `untracked_ops`.
    pub tracked_ops: u64,
    /// Followed requests that completed, also with an error; `tracked_ops - completed_ops` is in flight.
    pub completed_ops: u64,
    /// Of those, the ones that completed with an error.
    pub failed_ops: u64,
    /// Time that the completed ones took together, in the kernel's ticks.
    pub completion_jiffies: u64,
    /// Submitted requests that could not be followed because their set of `in_flight` was full.
    pub untracked_ops: u64,
}

impl StorageCounters {
    /// Requests of any kind that were submitted.
    pub const fn submitted(&self) -> u64 {
        self.read_ops + self.write_ops + self.flush_ops + self.discard_ops + self.other_ops
    }
}

/// Rows of `kvm`: so many suspects are counted at the same time.
pub const KVM_ROWS: u32 = 128;

/// Threads that a row of `kvm` remembers: one for all CPUs with numbers that end in the same bits.
pub const KVM_WOKEN: usize = 8;

/// What one suspect's vCPUs did under KVM: a row of `kvm`, by QEMU's pid.
///
/// User space puts it in and takes it out: it counts from then to then, and is there for no other VM. All CPUs add to it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvmRow {
    /// When that process started, in clock ticks after boot.
    pub start_ticks: u64,
    /// The vCPU thread that was last woken from `hlt` on one of these CPUs and has not run guest code since; 0: none.
    pub woken: [u32; KVM_WOKEN],
    /// All of its vCPUs together.
    pub counters: KvmCounters,
}

/// What vCPUs did. Some of it only a guest does that takes interrupts; the rest, a dead one may do as well.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvmCounters {
    /// Ends of `hlt`, whatever for: a dead guest's vCPU is woken by each look at its registers.
    pub wakeups: u64,
    /// Of those, the ones after which guest code ran.
    pub resumed: u64,
    /// Entries into guest code: a guest that spins for good has them as well.
    pub entries: u64,
    /// Interrupts that KVM injected, which it does only to a vCPU that takes them.
    pub injected: u64,
    /// Interrupts that the guest told its local APIC to be done with.
    pub apic_eois: u64,
    /// Interrupts that it told a PC's old interrupt controller to be done with.
    pub pic_eois: u64,
    /// Timers that it set to fire.
    pub timers_set: u64,
    /// Accesses to ports.
    pub pio: u64,
    /// Accesses to devices' memory.
    pub mmio: u64,
    /// Exits to QEMU that no signal to the vCPU's thread brought about.
    pub userspace_exits: u64,
    /// Changes of interrupt lines by QEMU itself.
    pub set_irqs: u64,
}

/// One row of `taps`: which tap it is, of which VM, and the addresses that its guest was last seen to use.
///
/// Each address goes with the VLAN (802.1Q) that it was seen in; 0: none, since no VLAN has that number.
///
/// A tap's row stands at [`tap_home`], or in one of the next [`TAP_PROBES`]` - 1`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TapRow {
    /// Inode number of the tap's network namespace; an interface index alone is not unique on a host.
    pub netns: u32,
    /// Interface index inside it; 0: the row is free.
    pub ifindex: u32,
    /// The VM's slot.
    pub slot: u32,
    /// IPv4 address from the guest's own ARP frames, octets in the order of the wire; zeros: none yet.
    pub guest_ipv4: [u8; 4],
    /// Ethernet address that goes with it.
    pub guest_ipv4_mac: [u8; 6],
    /// VLAN that goes with it.
    pub guest_ipv4_vlan: u16,
    /// IPv6 address from the guest's own NDP frames, likewise: the link-local one, once it was seen.
    pub guest_ipv6: [u8; 16],
    /// Ethernet address that goes with it.
    pub guest_ipv6_mac: [u8; 6],
    /// VLAN that goes with it.
    pub guest_ipv6_vlan: u16,
}

/// Rows in which a tap may stand. Taps of one namespace have indices in a row, so that nearly all stand
/// in their first.
pub const TAP_PROBES: u32 = 8;

/// The first row in which a tap may stand, out of `mask + 1`, a power of two.
#[inline(always)]
pub const fn tap_home(netns: u32, ifindex: u32, mask: u32) -> u32 {
    netns.wrapping_mul(0x9e37_79b1).wrapping_add(ifindex) & mask
}

/// A set of `slots`: the QEMUs with pids that end in the same bits. As long as a line of the CPU's cache.
///
/// Every process on the host that reads a block is looked for here, and a hash map costs five times as much.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotSet {
    /// In no order.
    pub rows: [SlotRow; 8],
}

/// Which slot a QEMU is counted in.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotRow {
    /// Its pid; 0: the row is free.
    pub pid: u32,
    /// Its slot.
    pub slot: u32,
}

/// How many sets `slots` has for so many VMs: a power of two, and so many that of pids by chance, one in
/// a hundred thousand full hosts has nine in a set.
pub const fn slot_sets(vms: u32) -> u32 {
    vms.next_power_of_two() * 2
}

/// A key of `files`: a file or block device whose pages the host may write back.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileKey {
    /// The inode's number; for a block device, 0.
    pub inode: u64,
    /// The kernel's number (`major << 20 | minor`) of the file system's device, or of the block device.
    pub device: u32,
    /// Keeps the key free of implicit padding.
    pub reserved: u32,
}

/// A set of `in_flight`: four requests between submission and completion, found by the bio's address. As long as a line of
/// the CPU's cache.
///
/// A hash map would cost more than all the rest of following a request.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InFlightSet {
    /// In no order.
    pub requests: [InFlight; 4],
}

/// A request in flight, or a free place for one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InFlight {
    /// The bio's address; 0: free.
    pub bio: u64,
    /// When it was submitted, the lower half of the kernel's ticks: no other clock is as cheap.
    pub submitted_jiffies: u32,
    /// The VM that it was submitted for.
    pub owner: Owner,
}

impl InFlight {
    /// How long ago it was submitted at `jiffies`, in the kernel's ticks; 0 if that was after.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the lower half, as it was noted")]
    pub const fn age(&self, jiffies: u64) -> u64 {
        // Half a turn of the counter is three months at the fastest tick.
        let age = (jiffies as u32).wrapping_sub(self.submitted_jiffies).cast_signed();
        if age > 0 { age.unsigned_abs() as u64 } else { 0 }
    }
}

/// Which VM a request belongs to: its slot and, since that may be handed on before the request completes, the lower bits
/// of QEMU's pid.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner(pub u32);

impl Owner {
    /// Enough for as many slots as there can be (`probes.max_vms`).
    const SLOT_BITS: u32 = 20;

    /// The QEMU with this pid, in this slot.
    #[inline(always)]
    pub const fn new(slot: u32, pid: u32) -> Self {
        Self(slot | pid << Self::SLOT_BITS)
    }

    /// The VM's slot.
    #[inline(always)]
    pub const fn slot(self) -> u32 {
        self.0 & ((1 << Self::SLOT_BITS) - 1)
    }
}

/// The only row of `layout`: what the pinned maps and links were made by.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// [`LAYOUT_VERSION`].
    pub version: u32,
    /// Which generation of the block programs counts; others that are attached wait or are on their way
    /// out, so that programs can be exchanged without missing a request or counting it twice.
    pub generation: u32,
    /// A digest of the maps' sizes.
    pub sizes: u64,
    /// A digest of the programs, and of how much they log.
    pub programs: u64,
}

/// [`ProcessEvent::kind`]: some process called `exec` and may be a QEMU; whether it is, user space finds out.
pub const PROCESS_EXEC: u32 = 1;
/// [`ProcessEvent::kind`]: the main thread of a watched QEMU ended.
pub const PROCESS_EXIT: u32 = 2;

/// A key of `executables` that no file's inode has: every program is told of.
pub const ANY_EXECUTABLE: u64 = 0;

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

/// One thread of a watched QEMU: a record of what reading the iterator `threads` gives.
///
/// The first record is none: its `tid` is 0, and it tells what time the reading began, `run_ns` by
/// `CLOCK_MONOTONIC` and `wait_ns` in the kernel's ticks.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadTime {
    /// QEMU's pid.
    pub pid: u32,
    /// The thread's id.
    pub tid: u32,
    /// `task_struct.__state`: 0 runnable, 1 and 2 asleep, 4 and 8 stopped, bit 15 frozen.
    pub state: u32,
    /// Keeps the next field at a multiple of eight.
    pub reserved: u32,
    /// Time spent running, in ns; of a thread that runs now, as of the last scheduler tick.
    pub run_ns: u64,
    /// Time spent runnable but waiting for a CPU, in ns.
    pub wait_ns: u64,
}

const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<VmLane>() == 256);
    assert!(offset_of!(VmLane, guest_rx_packets) == 64);
    assert!(offset_of!(VmLane, read_ops) == 128);
    assert!(offset_of!(VmLane, completed_ops) == 192);
    assert!(offset_of!(VmLane, pid) == 216);
    assert!(size_of::<VmRow>() == 512);
    assert!(size_of::<KvmCounters>() == 88);
    assert!(size_of::<KvmRow>() == 128);
    assert!(offset_of!(KvmRow, counters) == 40);
    assert!(size_of::<TapRow>() == 48);
    assert!(offset_of!(TapRow, guest_ipv4) == 12);
    assert!(offset_of!(TapRow, guest_ipv4_mac) == 16);
    assert!(offset_of!(TapRow, guest_ipv4_vlan) == 22);
    assert!(offset_of!(TapRow, guest_ipv6) == 24);
    assert!(offset_of!(TapRow, guest_ipv6_mac) == 40);
    assert!(offset_of!(TapRow, guest_ipv6_vlan) == 46);
    assert!(size_of::<SlotSet>() == 64);
    assert!(size_of::<FileKey>() == 16);
    assert!(size_of::<InFlight>() == 16);
    assert!(size_of::<InFlightSet>() == 64);
    assert!(size_of::<Layout>() == 24);
    assert!(size_of::<ProcessEvent>() == 16);
    assert!(size_of::<ThreadTime>() == 32);
};

#[cfg(feature = "user")]
mod pod {
    use super::{
        FileKey, InFlightSet, KvmRow, Layout, SlotSet, TapRow, VmRow, heartbeat::HeartbeatRow,
    };

    // SAFETY: each type is `repr(C)`, made of integers only, and without padding (asserted above), so
    // that every bit pattern is a value of it.
    unsafe impl aya::Pod for VmRow {}
    // SAFETY: as for `VmRow`.
    unsafe impl aya::Pod for KvmRow {}
    // SAFETY: as for `VmRow`.
    unsafe impl aya::Pod for HeartbeatRow {}
    // SAFETY: as for `VmRow`.
    unsafe impl aya::Pod for TapRow {}
    // SAFETY: as for `VmRow`.
    unsafe impl aya::Pod for SlotSet {}
    // SAFETY: as for `VmRow`.
    unsafe impl aya::Pod for FileKey {}
    // SAFETY: as for `VmRow`.
    unsafe impl aya::Pod for InFlightSet {}
    // SAFETY: as for `VmRow`.
    unsafe impl aya::Pod for Layout {}
}
