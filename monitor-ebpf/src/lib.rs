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
mod page;
pub mod placeholder;
mod presence;
mod vm_row;

pub use page::{TAIL_PAGE, first_page};
pub use presence::Presence;
pub use vm_row::{NetworkCounters, StorageCounters, VM_LANES, VmLane, VmRow, VmShared};

/// The generation of this layout. Pins of another generation are never read: they are replaced.
pub const LAYOUT_VERSION: u32 = 10;

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

/// Rows of `kvm`: so many suspects are counted at the same time.
pub const KVM_ROWS: u32 = 128;

/// Threads that a row of `kvm` remembers: one for all CPUs with numbers that end in the same bits.
pub const KVM_WOKEN: usize = 4;

/// Marks a thread in `woken` that had slept: no thread has an id with this bit (`PID_MAX_LIMIT` is 2^22).
pub const KVM_SLEPT: u32 = 1 << 31;

/// What one suspect's vCPUs did under KVM: a row of `kvm`, by QEMU's pid.
///
/// User space puts it in and takes it out: it counts from then to then, and is there for no other VM. All CPUs add to it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvmRow {
    /// When that process started, in clock ticks after boot.
    pub start_ticks: u64,
    /// The vCPU thread that was last woken from `hlt` or `wfi` on one of these CPUs and has not run guest code since, with
    /// [`KVM_SLEPT`] if it had slept; 0: none.
    pub woken: [u32; KVM_WOKEN],
    /// All of its vCPUs together.
    pub counters: KvmCounters,
}

/// What vCPUs did. Some of it only a guest does that takes interrupts; the rest, a dead one may do as well. What an
/// architecture's KVM doesn't trace stays zero.
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
    /// Times that an arm64 guest began to wait for an interrupt (`wfi`): a parked CPU does so all the time, and goes on at
    /// once.
    pub waits: u64,
    /// Of `resumed`, those behind a sleep of the vCPU's thread: what ended that was an interrupt.
    pub awoken: u64,
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

/// A set of `slots`: the QEMUs with pids that end in the same bits. The first rows fill up first, so that nearly all are in
/// one line of the CPU's cache.
///
/// A QEMU that reads a block is looked for here, and a hash map costs five times as much.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotSet {
    /// In no order.
    pub rows: [SlotRow; 16],
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

/// How many sets `slots` has for so many VMs: a power of two, and so many that of pids by chance, less than one in
/// a hundred thousand full hosts has seventeen in a set.
pub const fn slot_sets(vms: u32) -> u32 {
    vms.next_power_of_two().div_ceil(2)
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

/// A set of `in_flight`: requests between submission and completion, found by the bio's address. Two lines of the CPU's cache, of
/// which mostly one is looked at.
///
/// The kernel's memory for bios comes in pages, and those that lie alike share their sets: with four places, six hundred
/// requests at once were enough that some found none.
///
/// A hash map would cost more than all the rest of following a request.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InFlightSet {
    /// In no order.
    pub requests: [InFlight; REQUESTS_OF_SET as usize],
}

/// Places in a set of `in_flight`.
pub const REQUESTS_OF_SET: u32 = 8;

/// Which places of eight sets of `in_flight` are taken: a line of the CPU's cache, in which a completion that is no VM's
/// finds that out.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InFlightMarks {
    /// By set, and place in it; 0: free. A byte for each, so that each is written alone.
    pub is_taken: [[u8; REQUESTS_OF_SET as usize]; MARKED_SETS as usize],
}

/// Sets in a row of `in_flight_marks`.
pub const MARKED_SETS: u32 = 8;

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
    assert!(size_of::<KvmCounters>() == 104);
    assert!(size_of::<KvmRow>() == 128);
    assert!(offset_of!(KvmRow, counters) == 24);
    assert!(size_of::<TapRow>() == 48);
    assert!(offset_of!(TapRow, guest_ipv4) == 12);
    assert!(offset_of!(TapRow, guest_ipv4_mac) == 16);
    assert!(offset_of!(TapRow, guest_ipv4_vlan) == 22);
    assert!(offset_of!(TapRow, guest_ipv6) == 24);
    assert!(offset_of!(TapRow, guest_ipv6_mac) == 40);
    assert!(offset_of!(TapRow, guest_ipv6_vlan) == 46);
    assert!(size_of::<SlotSet>() == 128);
    assert!(size_of::<FileKey>() == 16);
    assert!(size_of::<InFlight>() == 16);
    assert!(size_of::<InFlightSet>() == 128);
    assert!(size_of::<InFlightMarks>() == 64);
    assert!(size_of::<Layout>() == 24);
    assert!(size_of::<ProcessEvent>() == 16);
    assert!(size_of::<ThreadTime>() == 32);
};

#[cfg(feature = "user")]
mod pod {
    use super::{
        FileKey, InFlightSet, KvmRow, Layout, Presence, SlotSet, TapRow, VmRow,
        heartbeat::HeartbeatRow,
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
    unsafe impl aya::Pod for Presence {}
    // SAFETY: as for `VmRow`.
    unsafe impl aya::Pod for InFlightSet {}
    // SAFETY: as for `VmRow`.
    unsafe impl aya::Pod for Layout {}
}
