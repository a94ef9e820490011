//! Maps of the programs. They are BTF-typed, so that `bpftool map dump pinned` prints the fields' names; user space
//! pins them and may set their sizes before they are made.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, HashMap, RingBuf},
    macros::btf_map,
};
use monitor_ebpf::{
    FileKey, InFlightMarks, InFlightSet, KVM_ROWS, KvmRow, Layout, Presence, ProcessEvent, SlotSet,
    TapRow, VmRow, heartbeat::HeartbeatRow,
};

/// User space maps the map's memory, and reads it without a call (5.5). Its rows begin at a page, so that one of 64 bytes is
/// in a single line of the CPU's cache.
const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

/// Memory is taken for entries that there are, and not for all that there may be. For maps to which user space alone adds: a
/// program could be refused it.
const AS_NEEDED: usize = BPF_F_NO_PREALLOC as usize;

/// One row a VM, by its slot.
#[btf_map]
pub(crate) static VMS: Array<VmRow, 1024, MMAPABLE> = Array::new();

/// When each VM last showed a sign of life, in the kernel's ticks, by its slot: it sent a packet, a request of it completed,
/// or its agent said something. All that needs to be known of a VM that is alive.
#[btf_map]
pub(crate) static LIFE: Array<u64, 1024, MMAPABLE> = Array::new();

/// What vCPUs of suspects do under KVM, by QEMU's pid; user space alone makes and removes rows.
#[btf_map]
pub(crate) static KVM: HashMap<u32, KvmRow, { KVM_ROWS as usize }> = HashMap::new();

/// What its guest's agent says, by its slot.
#[btf_map]
pub(crate) static HEARTBEATS: Array<HeartbeatRow, 1024, MMAPABLE> = Array::new();

/// The slot of each QEMU, by its pid; made and removed by user space alone, so that a look-up that fails
/// means *not a VM of ours* and costs nothing more. See [`slot_of`](crate::slots::slot_of).
#[btf_map]
pub(crate) static SLOTS: Array<SlotSet, 512, MMAPABLE> = Array::new();

/// What may be a VM's: asked before `slots` and `files`. Too small to be mapped, and so in memory that the kernel has in its
/// largest pages.
#[btf_map]
pub(crate) static PRESENCE: Array<Presence, 1> = Array::new();

/// Which VM a tap belongs to; rows are filled and emptied by user space alone.
#[btf_map]
pub(crate) static TAPS: Array<TapRow, 4096> = Array::new();

/// The slot of the VM that has a file or block device open for its guest.
#[btf_map]
pub(crate) static FILES: HashMap<FileKey, u32, 8192, AS_NEEDED> = HashMap::new();

/// Requests between submission and completion. A completion comes in interrupt context, where the current
/// task says nothing about the submitter.
#[btf_map]
pub(crate) static IN_FLIGHT: Array<InFlightSet, 16384, MMAPABLE> = Array::new();

/// Which places of `in_flight` are taken: asked before it.
#[btf_map]
pub(crate) static IN_FLIGHT_MARKS: Array<InFlightMarks, 1024> = Array::new();

/// The numbers of the inodes of which user space wants to know when a process executes them.
#[btf_map]
pub(crate) static EXECUTABLES: HashMap<u64, u32, 1024, AS_NEEDED> = HashMap::new();

/// QEMUs that start and end, for user space to look at.
#[btf_map]
pub(crate) static PROCESS_EVENTS: RingBuf<ProcessEvent, 65536> = RingBuf::new();

/// What the pins were made by, and which generation of the block programs counts.
#[btf_map]
pub(crate) static LAYOUT: Array<Layout, 1> = Array::new();
