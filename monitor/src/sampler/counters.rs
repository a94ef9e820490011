//! Counters of the pinned maps, read through handles of its own, so that attaching taps, which waits for RCU grace
//! periods, never holds up a reading.

use std::{
    collections::HashMap as StdHashMap,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use aya::{
    maps::{Array, Map, MapData, MapError, PerCpuArray},
    util::nr_cpus,
};
use monitor_ebpf::{
    InFlightSet, NetworkCounters, StorageCounters, TAP_PROBES, TapRow, VmRow, tap_home,
};

use super::{
    InFlightAges, Missing, Reading,
    addresses::{TapAddresses, without_addresses},
    batch, ticks,
};
use flatline_qemu::discover::{Tap, VmId};

/// The maps that are read once a tick.
pub struct CounterMaps {
    vms: MapData,
    row: PerCpuArray<MapData, VmRow>,
    // Written only to forget addresses.
    taps: Mutex<Array<MapData, TapRow>>,
    in_flight: MapData,
    sets: u32,
    cpus: usize,
}

/// All VMs' rows at one moment, summed over all CPUs.
#[derive(Clone, Debug)]
pub struct VmRows {
    by_slot: Vec<VmRow>,
}

impl CounterMaps {
    /// Opens the maps that were pinned below `bpffs_dir`.
    pub fn open(bpffs_dir: &Path) -> Result<Self, MapError> {
        let map = |name: &str| MapData::from_pin(bpffs_dir.join(name));
        let sets: Array<MapData, InFlightSet> = Array::try_from(Map::Array(map("in_flight")?))?;
        Ok(Self {
            vms: map("vms")?,
            row: PerCpuArray::try_from(Map::PerCpuArray(map("vms")?))?,
            taps: Mutex::new(Array::try_from(Map::Array(map("taps")?))?),
            in_flight: map("in_flight")?,
            sets: sets.len(),
            cpus: nr_cpus().map_err(|(_, error)| MapError::IoError(error))?,
        })
    }

    /// All rows below the slot `slots`, in one system call where the kernel (5.13) has one for it.
    pub fn rows(&self, slots: u32) -> Reading<VmRows> {
        let missing = |error: String| Missing::new("its row", format!("map `vms`: {error}"));
        let mut lanes = vec![VmRow::default(); slots as usize * self.cpus];
        match batch::look_up(&self.vms, slots, &mut lanes) {
            Ok(read) if read == slots => {
                let by_slot = lanes.chunks_exact(self.cpus).map(|lanes| totals(lanes.iter()));
                Ok(VmRows { by_slot: by_slot.collect() })
            }
            Ok(read) => Err(missing(format!("{read} of {slots} rows"))),
            Err(error) if batch::is_unsupported(&error) => {
                let rows = (0..slots).map(|slot| self.row.get(&slot, 0));
                let by_slot = rows.map(|lanes| lanes.map(|lanes| totals(lanes.iter())));
                let by_slot = by_slot.collect::<Result<_, _>>();
                Ok(VmRows { by_slot: by_slot.map_err(|error| missing(error.to_string()))? })
            }
            Err(error) => Err(missing(error.to_string())),
        }
    }

    /// One VM's row.
    pub(crate) fn row(&self, vm: VmId, slot: u32) -> Reading<VmRow> {
        match self.row.get(&slot, 0) {
            Ok(lanes) => of_vm(totals(lanes.iter()), vm),
            Err(error) => Err(Missing::new("its row", format!("map `vms`: {error}"))),
        }
    }

    /// The age at `jiffies` of what is in flight, by slot. Takes a millisecond: for when something seems to be
    /// stalled.
    pub(crate) fn in_flight(&self, jiffies: u64) -> Reading<StdHashMap<u32, InFlightAges>> {
        let failed = |error: String| Missing::new("what is in flight", error);
        let mut sets = vec![InFlightSet::default(); self.sets as usize];
        batch::look_up(&self.in_flight, self.sets, &mut sets)
            .map_err(|error| failed(error.to_string()))?;
        let mut ages: StdHashMap<u32, InFlightAges> = StdHashMap::new();
        for request in sets.iter().flat_map(|set| set.requests).filter(|request| request.bio != 0) {
            let age = ticks(jiffies.saturating_sub(request.submitted_jiffies));
            let of_vm = ages.entry(request.slot).or_default();
            of_vm.requests += 1;
            of_vm.oldest = of_vm.oldest.max(age);
            of_vm.total += age;
        }
        Ok(ages)
    }

    /// The addresses that the guest behind `tap` was last seen to use.
    pub fn tap_addresses(&self, tap: &Tap) -> Reading<TapAddresses> {
        match self.find(tap) {
            Ok(Some((_, row))) => Ok(row.into()),
            Ok(None) => Err(Missing::new("its addresses", "it is not in the map `taps`")),
            Err(error) => Err(Missing::new("its addresses", format!("map `taps`: {error}"))),
        }
    }

    /// Forgets what was learned of the guest behind `tap`: a guest that boots anew tests its addresses for
    /// duplicates, and a probe for one would look like a conflict (RFC 5227, section 2.1.1).
    pub(crate) fn forget_addresses(&self, tap: &Tap) -> Result<(), MapError> {
        match self.find(tap)? {
            Some((index, row)) => self.taps().set(index, without_addresses(row), 0),
            // Detached meanwhile.
            None => Ok(()),
        }
    }

    fn taps(&self) -> MutexGuard<'_, Array<MapData, TapRow>> {
        self.taps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, tap: &Tap) -> Result<Option<(u32, TapRow)>, MapError> {
        let taps = self.taps();
        let mask = taps.len() - 1;
        let home = tap_home(tap.netns, tap.ifindex, mask);
        for step in 0..TAP_PROBES {
            let index = home.wrapping_add(step) & mask;
            let row = taps.get(&index, 0)?;
            if (row.netns, row.ifindex) == (tap.netns, tap.ifindex) {
                return Ok(Some((index, row)));
            }
        }
        Ok(None)
    }
}

impl VmRows {
    /// The row of a VM that is counted in `slot`.
    pub fn of(&self, vm: VmId, slot: u32) -> Reading<VmRow> {
        match self.by_slot.get(slot as usize) {
            Some(row) => of_vm(*row, vm),
            None => Err(Missing::new("its row", "its slot was given to it just now")),
        }
    }
}

/// Checks that a row is this VM's: one that bears another VM's name was given back or handed on, and says nothing of this
/// one.
fn of_vm(row: VmRow, vm: VmId) -> Reading<VmRow> {
    if (row.pid, row.start_ticks) == (vm.pid, vm.start_ticks) {
        Ok(row)
    } else {
        Err(Missing::new("its row", "its slot is another VM's"))
    }
}

/// Adds up the copies that the CPUs have of a row.
pub fn totals<'a>(lanes: impl Iterator<Item = &'a VmRow>) -> VmRow {
    lanes.fold(VmRow::default(), |sum, lane| {
        let VmRow { pid, reserved, start_ticks, network: n, storage: s } = *lane;
        VmRow {
            pid,
            reserved,
            start_ticks,
            network: NetworkCounters {
                guest_tx_packets: sum.network.guest_tx_packets + n.guest_tx_packets,
                guest_tx_bytes: sum.network.guest_tx_bytes + n.guest_tx_bytes,
                guest_rx_packets: sum.network.guest_rx_packets + n.guest_rx_packets,
                guest_rx_bytes: sum.network.guest_rx_bytes + n.guest_rx_bytes,
                probe_answers: sum.network.probe_answers + n.probe_answers,
                probe_answer_bytes: sum.network.probe_answer_bytes + n.probe_answer_bytes,
                arp_answers: sum.network.arp_answers + n.arp_answers,
                ndp_answers: sum.network.ndp_answers + n.ndp_answers,
                heartbeats: sum.network.heartbeats + n.heartbeats,
                heartbeat_bytes: sum.network.heartbeat_bytes + n.heartbeat_bytes,
                guest_tx_last_jiffies: sum
                    .network
                    .guest_tx_last_jiffies
                    .max(n.guest_tx_last_jiffies),
            },
            storage: StorageCounters {
                read_ops: sum.storage.read_ops + s.read_ops,
                read_bytes: sum.storage.read_bytes + s.read_bytes,
                write_ops: sum.storage.write_ops + s.write_ops,
                write_bytes: sum.storage.write_bytes + s.write_bytes,
                writeback_ops: sum.storage.writeback_ops + s.writeback_ops,
                writeback_bytes: sum.storage.writeback_bytes + s.writeback_bytes,
                flush_ops: sum.storage.flush_ops + s.flush_ops,
                discard_ops: sum.storage.discard_ops + s.discard_ops,
                discard_bytes: sum.storage.discard_bytes + s.discard_bytes,
                other_ops: sum.storage.other_ops + s.other_ops,
                tracked_ops: sum.storage.tracked_ops + s.tracked_ops,
                completed_ops: sum.storage.completed_ops + s.completed_ops,
                failed_ops: sum.storage.failed_ops + s.failed_ops,
                completion_jiffies: sum.storage.completion_jiffies + s.completion_jiffies,
                untracked_ops: sum.storage.untracked_ops + s.untracked_ops,
            },
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each field gets a number of its own, so that one added to another is seen.
    fn lane() -> VmRow {
        VmRow {
            pid: 7,
            reserved: 0,
            start_ticks: 99,
            network: NetworkCounters {
                guest_tx_packets: 1,
                guest_tx_bytes: 2,
                guest_rx_packets: 3,
                guest_rx_bytes: 4,
                probe_answers: 5,
                probe_answer_bytes: 6,
                arp_answers: 24,
                ndp_answers: 7,
                heartbeats: 25,
                heartbeat_bytes: 26,
                guest_tx_last_jiffies: 8,
            },
            storage: StorageCounters {
                read_ops: 9,
                read_bytes: 10,
                write_ops: 11,
                write_bytes: 12,
                writeback_ops: 13,
                writeback_bytes: 14,
                flush_ops: 15,
                discard_ops: 16,
                discard_bytes: 17,
                other_ops: 18,
                tracked_ops: 19,
                completed_ops: 20,
                failed_ops: 21,
                completion_jiffies: 22,
                untracked_ops: 23,
            },
        }
    }

    #[test]
    fn every_field_of_every_cpu_counts() {
        let mut later = lane();
        later.network.guest_tx_last_jiffies = 500;
        let sum = totals([lane(), later, lane()].iter());
        let (once, storage) = (lane().network, lane().storage);
        let thrice = VmRow {
            network: NetworkCounters {
                guest_tx_packets: 3 * once.guest_tx_packets,
                guest_tx_bytes: 3 * once.guest_tx_bytes,
                guest_rx_packets: 3 * once.guest_rx_packets,
                guest_rx_bytes: 3 * once.guest_rx_bytes,
                probe_answers: 3 * once.probe_answers,
                probe_answer_bytes: 3 * once.probe_answer_bytes,
                arp_answers: 3 * once.arp_answers,
                ndp_answers: 3 * once.ndp_answers,
                heartbeats: 3 * once.heartbeats,
                heartbeat_bytes: 3 * once.heartbeat_bytes,
                // The last, not a sum.
                guest_tx_last_jiffies: 500,
            },
            storage: StorageCounters {
                read_ops: 3 * storage.read_ops,
                read_bytes: 3 * storage.read_bytes,
                write_ops: 3 * storage.write_ops,
                write_bytes: 3 * storage.write_bytes,
                writeback_ops: 3 * storage.writeback_ops,
                writeback_bytes: 3 * storage.writeback_bytes,
                flush_ops: 3 * storage.flush_ops,
                discard_ops: 3 * storage.discard_ops,
                discard_bytes: 3 * storage.discard_bytes,
                other_ops: 3 * storage.other_ops,
                tracked_ops: 3 * storage.tracked_ops,
                completed_ops: 3 * storage.completed_ops,
                failed_ops: 3 * storage.failed_ops,
                completion_jiffies: 3 * storage.completion_jiffies,
                untracked_ops: 3 * storage.untracked_ops,
            },
            ..lane()
        };
        assert_eq!(sum, thrice);
        assert_eq!(totals([sum].iter()), sum);
    }

    #[test]
    fn a_row_of_another_vm_is_missing_and_not_zero() {
        let rows = VmRows { by_slot: vec![lane()] };
        assert!(rows.of(VmId { pid: 7, start_ticks: 99 }, 0).is_ok());
        for (pid, start_ticks, slot) in [(7, 98, 0), (8, 99, 0), (7, 99, 1)] {
            assert!(rows.of(VmId { pid, start_ticks }, slot).is_err());
        }
    }
}
