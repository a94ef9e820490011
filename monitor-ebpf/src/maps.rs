//! The maps. They are BTF-typed, so that `bpftool map dump pinned` prints the fields' names; user space
//! pins them and may set their sizes before they are made.

use aya_ebpf::{
    btf_maps::{HashMap, PerCpuHashMap, RingBuf},
    macros::btf_map,
};
use monitor_ebpf::{InFlight, ProcessEvent, TapKey, TapRow, VmRow};

/// One row a VM, keyed by QEMU's pid; made and removed by user space alone, so that a lookup that fails
/// means *not a VM of ours* and costs nothing more.
#[btf_map]
pub(crate) static VMS: PerCpuHashMap<u32, VmRow, 4096> = PerCpuHashMap::new();

/// Which VM a tap belongs to; made and removed by user space alone.
#[btf_map]
pub(crate) static TAPS: HashMap<TapKey, TapRow, 8192> = HashMap::new();

/// Requests between submission and completion, keyed by the bio's address. A completion comes in
/// interrupt context, where the current task says nothing about the submitter.
#[btf_map]
pub(crate) static IN_FLIGHT: HashMap<u64, InFlight, 65536> = HashMap::new();

/// QEMUs that start and end, for user space to look at.
#[btf_map]
pub(crate) static PROCESS_EVENTS: RingBuf<ProcessEvent, 262144> = RingBuf::new();
