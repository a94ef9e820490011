//! Counters of the pinned maps, read through handles of its own, so that attaching taps, which waits for RCU grace
//! periods, never holds up a reading.

use std::{
    collections::HashMap as StdHashMap,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use aya::maps::{Array, Map, MapData, MapError};
use monitor_ebpf::{InFlightSet, NetworkCounters, TAP_PROBES, TapRow, VmRow, tap_home};
use tracing::debug;

use super::{
    InFlightAges, Missing, Reading,
    addresses::{TapAddresses, without_addresses},
    mapped::{MappableArray, MappedArray},
    ticks,
};
use flatline_qemu::discover::{Tap, VmId};

/// The maps that are read once a tick.
pub struct CounterMaps {
    vms: MappedArray<VmRow>,
    // Written only to forget addresses.
    taps: Mutex<Array<MapData, TapRow>>,
    /// Mapped only while it is read: it is larger than all others together.
    in_flight: MappableArray<InFlightSet>,
}

impl CounterMaps {
    /// Opens the maps that were pinned below `bpffs_dir`.
    pub fn open(bpffs_dir: &Path) -> Result<Self, MapError> {
        let map = |name: &str| MapData::from_pin(bpffs_dir.join(name));
        Ok(Self {
            vms: MappedArray::open(&bpffs_dir.join("vms"))?,
            taps: Mutex::new(Array::try_from(Map::Array(map("taps")?))?),
            in_flight: MappableArray::open(&bpffs_dir.join("in_flight"))?,
        })
    }

    /// The row of a VM that is counted in `slot`; one that bears another VM's name was given back or handed on, and says
    /// nothing of this one.
    pub(crate) fn row(&self, vm: VmId, slot: u32) -> Reading<VmRow> {
        let row = self.vms.get(slot).filter(|row| row.is_of(vm.pid, vm.start_ticks));
        row.ok_or_else(|| Missing::new("its row", "its slot is another VM's"))
    }

    /// What is counted in `slot` on the taps of the VM that has it.
    pub(crate) fn network(&self, slot: u32) -> Option<NetworkCounters> {
        self.vms.get(slot).map(|row| row.network())
    }

    /// All rows, used or not, in the order of their slots.
    pub fn rows(&self) -> impl Iterator<Item = VmRow> + '_ {
        (0..self.vms.len()).map_while(|slot| self.vms.get(slot))
    }

    /// The age at `jiffies` of what is in flight, by slot; of none where that can't be read. Goes through all of the map: for
    /// when something seems to be stalled.
    pub(crate) fn in_flight(&self, jiffies: u64) -> StdHashMap<u32, InFlightAges> {
        let in_flight = match self.in_flight.map() {
            Ok(in_flight) => in_flight,
            Err(error) => {
                debug!("map `in_flight`: {error}");
                return StdHashMap::new();
            }
        };
        let sets = (0..in_flight.len()).filter_map(|set| in_flight.get(set));
        let requests = sets.flat_map(|set| set.requests).filter(|request| request.bio != 0);
        let mut ages: StdHashMap<u32, InFlightAges> = StdHashMap::new();
        for request in requests {
            let age = ticks(request.age(jiffies));
            let of_vm = ages.entry(request.owner.slot()).or_default();
            of_vm.requests += 1;
            of_vm.oldest = of_vm.oldest.max(age);
            of_vm.total += age;
        }
        ages
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
