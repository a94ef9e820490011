//! Counters of KVM's tracepoints: read only while a VM is suspected, and never a part of the tick's sample.

use std::{fs, path::Path};

use aya::maps::{HashMap, Map, MapData, MapError};
use monitor_ebpf::{KvmCounters, KvmRow};

use super::{Missing, Reading};
use flatline_qemu::discover::VmId;

/// The figures' name where they are missing.
const WHAT: &str = "what its vCPUs do under KVM";
/// Where KVM says whether the processor delivers interrupts past it, by vendor.
const INTERRUPTS_HIDDEN: [&str; 2] =
    ["/sys/module/kvm_intel/parameters/enable_apicv", "/sys/module/kvm_amd/parameters/avic"];

/// Reads the map `kvm`.
pub struct KvmReader {
    rows: HashMap<MapData, u32, KvmRow>,
}

impl KvmReader {
    /// Opens the map that was pinned below `bpffs_dir`.
    pub fn open(bpffs_dir: &Path) -> Result<Self, MapError> {
        let map = MapData::from_pin(bpffs_dir.join("kvm"))?;
        Ok(Self { rows: HashMap::try_from(Map::HashMap(map))? })
    }

    /// What the VM's vCPUs did since it is counted.
    pub fn of(&self, vm: VmId) -> Reading<KvmCounters> {
        match self.rows.get(&vm.pid, 0) {
            Ok(row) if row.start_ticks == vm.start_ticks => Ok(row.counters),
            Ok(_) | Err(MapError::KeyNotFound) => Err(Missing::new(WHAT, "it is not counted")),
            Err(error) => Err(Missing::new(WHAT, format!("map `kvm`: {error}"))),
        }
    }
}

/// Whether the processor delivers interrupts to vCPUs without KVM seeing it (APICv, AVIC). A VM may be
/// without it all the same; then more is seen than this says.
pub fn interrupts_are_hidden() -> bool {
    let says_yes =
        |path| fs::read_to_string(path).is_ok_and(|text| matches!(text.trim(), "Y" | "1"));
    INTERRUPTS_HIDDEN.into_iter().any(says_yes)
}
