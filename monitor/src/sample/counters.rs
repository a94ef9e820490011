//! Reads the pinned maps through handles of its own, so that attaching taps, which waits for RCU grace
//! periods, never holds up a reading.

use std::{
    collections::HashMap as StdHashMap,
    net::Ipv4Addr,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use aya::{
    maps::{Array, Map, MapData, MapError, PerCpuArray},
    util::nr_cpus,
};
use monitor_ebpf::{
    InFlightSet, NetworkCounters, StorageCounters, TAP_PROBES, TapRow, VmRow, tap_home,
};

use super::{Missing, Reading, batch, ticks};
use crate::discover::{Tap, VmId};

/// The maps that are read once a tick.
pub struct CounterMaps {
    vms: MapData,
    row: PerCpuArray<MapData, VmRow>,
    // Written only to forget an address.
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

/// How long a VM's requests have been in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InFlightAges {
    /// How many there are.
    pub requests: u64,
    /// The oldest one's age, to the kernel's tick.
    pub oldest: Duration,
    /// Their ages together.
    pub total: Duration,
}

/// The address that a tap's guest was last seen to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TapAddress {
    /// From its ARP frames.
    pub ipv4: Ipv4Addr,
    /// The Ethernet address that it sent them from.
    pub mac: [u8; 6],
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
    pub fn row(&self, vm: VmId, slot: u32) -> Reading<VmRow> {
        match self.row.get(&slot, 0) {
            Ok(lanes) => whose(totals(lanes.iter()), vm),
            Err(error) => Err(Missing::new("its row", format!("map `vms`: {error}"))),
        }
    }

    /// The age at `jiffies` of what is in flight, by slot. Takes a millisecond: for when something seems to be
    /// stalled.
    pub fn in_flight(&self, jiffies: u64) -> Reading<StdHashMap<u32, InFlightAges>> {
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

    /// The address that the guest behind `tap` was last seen to use; `Ok(None)`: none so far.
    pub fn tap_address(&self, tap: &Tap) -> Reading<Option<TapAddress>> {
        match self.find(tap) {
            Ok(Some((_, TapRow { guest_ipv4: [0, 0, 0, 0], .. }))) => Ok(None),
            Ok(Some((_, row))) => {
                Ok(Some(TapAddress { ipv4: row.guest_ipv4.into(), mac: row.guest_mac }))
            }
            Ok(None) => Err(Missing::new("its address", "it is not in the map `taps`")),
            Err(error) => Err(Missing::new("its address", format!("map `taps`: {error}"))),
        }
    }

    /// Forgets what was learned of the guest behind `tap`: a guest that boots anew tests its address for
    /// duplicates, and a probe for it would look like a conflict (RFC 5227, section 2.1.1).
    pub fn forget_address(&self, tap: &Tap) -> Result<(), MapError> {
        match self.find(tap)? {
            Some((index, row)) => {
                self.taps().set(index, TapRow { guest_ipv4: [0; 4], guest_mac: [0; 6], ..row }, 0)
            }
            // Detached meanwhile.
            None => Ok(()),
        }
    }

    fn taps(&self) -> std::sync::MutexGuard<'_, Array<MapData, TapRow>> {
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
            Some(row) => whose(*row, vm),
            None => Err(Missing::new("its row", "its slot was given to it just now")),
        }
    }
}

/// A row that bears another VM's name was given back or handed on: it says nothing of this one.
fn whose(row: VmRow, vm: VmId) -> Reading<VmRow> {
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
                guest_tx_last_jiffies: 7,
            },
            storage: StorageCounters {
                read_ops: 8,
                read_bytes: 9,
                write_ops: 10,
                write_bytes: 11,
                writeback_ops: 12,
                writeback_bytes: 13,
                flush_ops: 14,
                discard_ops: 15,
                discard_bytes: 16,
                other_ops: 17,
                tracked_ops: 18,
                completed_ops: 19,
                failed_ops: 20,
                completion_jiffies: 21,
                untracked_ops: 22,
            },
        }
    }

    #[test]
    fn every_field_of_every_cpu_counts() {
        let mut later = lane();
        later.network.guest_tx_last_jiffies = 500;
        let sum = totals([lane(), later, lane()].iter());
        assert_eq!((sum.pid, sum.start_ticks), (7, 99));
        assert_eq!(sum.network.guest_tx_packets, 3);
        assert_eq!(sum.network.probe_answer_bytes, 18);
        assert_eq!(sum.network.guest_tx_last_jiffies, 500, "the last, not a sum");
        assert_eq!(sum.storage.read_ops, 24);
        assert_eq!(sum.storage.untracked_ops, 66);
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
