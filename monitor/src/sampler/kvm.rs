//! Counters of KVM's tracepoints: read only while a VM is suspected, and never a part of the tick's sample.

use std::{fs, path::Path};

use aya::{
    maps::{Map, MapData, MapError, PerCpuArray},
    util::nr_cpus,
};
use monitor_ebpf::{KvmCounters, KvmRow};

use super::{Missing, Reading, batch};
use flatline_qemu::discover::VmId;

/// The figures' name where they are missing.
const WHAT: &str = "what its vCPUs do under KVM";
/// Where KVM says whether the processor delivers interrupts past it, by vendor.
const INTERRUPTS_HIDDEN: [&str; 2] =
    ["/sys/module/kvm_intel/parameters/enable_apicv", "/sys/module/kvm_amd/parameters/avic"];

/// Reads the map `kvm`.
pub struct KvmReader {
    rows: PerCpuArray<MapData, KvmRow>,
    map: MapData,
    cpus: usize,
}

impl KvmReader {
    /// Opens the map that was pinned below `bpffs_dir`.
    pub fn open(bpffs_dir: &Path) -> Result<Self, MapError> {
        let map = || MapData::from_pin(bpffs_dir.join("kvm"));
        Ok(Self {
            rows: PerCpuArray::try_from(Map::PerCpuArray(map()?))?,
            map: map()?,
            cpus: nr_cpus().map_err(|(_, error)| MapError::IoError(error))?,
        })
    }

    /// What the vCPUs of the VM in `slot` did while the tracepoints were attached.
    pub fn of(&self, vm: VmId, slot: u32) -> Reading<KvmCounters> {
        let lanes = self.rows.get(&slot, 0).map_err(|error| missing(&error))?;
        if lanes.iter().any(|lane| (lane.pid, lane.start_ticks) != (vm.pid, vm.start_ticks)) {
            return Err(Missing::new(WHAT, "its slot is another VM's"));
        }
        Ok(totals(lanes.iter()))
    }

    /// What the vCPUs of all VMs did together: what never happened to any of them can't be waited for.
    pub fn of_all(&self) -> Reading<KvmCounters> {
        let slots = self.rows.len();
        let mut lanes = vec![KvmRow::default(); slots as usize * self.cpus];
        match batch::look_up(&self.map, slots, &mut lanes) {
            Ok(read) if read == slots => Ok(totals(lanes.iter())),
            Ok(read) => Err(Missing::new(WHAT, format!("{read} of {slots} rows"))),
            Err(error) => Err(missing(&error)),
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

fn missing(error: &dyn std::error::Error) -> Missing {
    Missing::new(WHAT, format!("map `kvm`: {error}"))
}

/// Adds up the copies that the CPUs have of a row.
fn totals<'a>(lanes: impl Iterator<Item = &'a KvmRow>) -> KvmCounters {
    lanes.fold(KvmCounters::default(), |sum, KvmRow { counters: lane, .. }| KvmCounters {
        wakeups: sum.wakeups + lane.wakeups,
        resumed: sum.resumed + lane.resumed,
        entries: sum.entries + lane.entries,
        injected: sum.injected + lane.injected,
        apic_eois: sum.apic_eois + lane.apic_eois,
        pic_eois: sum.pic_eois + lane.pic_eois,
        timers_set: sum.timers_set + lane.timers_set,
        pio: sum.pio + lane.pio,
        mmio: sum.mmio + lane.mmio,
        userspace_exits: sum.userspace_exits + lane.userspace_exits,
        set_irqs: sum.set_irqs + lane.set_irqs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_of_every_cpu_counts() {
        let counters = KvmCounters {
            wakeups: 1,
            resumed: 2,
            entries: 3,
            injected: 4,
            apic_eois: 5,
            pic_eois: 6,
            timers_set: 7,
            pio: 8,
            mmio: 9,
            userspace_exits: 10,
            set_irqs: 11,
        };
        let lane = KvmRow { pid: 7, woken: 70, start_ticks: 99, counters };
        let twice = KvmCounters {
            wakeups: 2,
            resumed: 4,
            entries: 6,
            injected: 8,
            apic_eois: 10,
            pic_eois: 12,
            timers_set: 14,
            pio: 16,
            mmio: 18,
            userspace_exits: 20,
            set_irqs: 22,
        };
        assert_eq!(totals([lane, lane].iter()), twice);
    }
}
