//! Reads the pinned maps through handles of its own, so that attaching taps, which waits for RCU grace
//! periods, never holds up a reading.

use std::{net::Ipv4Addr, path::Path};

use aya::maps::{HashMap, Map, MapData, MapError, PerCpuHashMap};
use monitor_ebpf::{NetworkCounters, StorageCounters, TapKey, TapRow, VmRow};

use super::{Missing, Reading};
use crate::discover::Tap;

/// The maps that are read once a tick.
pub struct CounterMaps {
    vms: PerCpuHashMap<MapData, u32, VmRow>,
    taps: HashMap<MapData, TapKey, TapRow>,
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
    /// Opens the maps that [`crate::probe::Probes`] pinned below `bpffs_dir`.
    pub fn open(bpffs_dir: &Path) -> Result<Self, MapError> {
        let vms = MapData::from_pin(bpffs_dir.join("vms"))?;
        let taps = MapData::from_pin(bpffs_dir.join("taps"))?;
        Ok(Self {
            vms: PerCpuHashMap::try_from(Map::PerCpuHashMap(vms))?,
            taps: HashMap::try_from(Map::HashMap(taps))?,
        })
    }

    /// The VM's row, summed over all CPUs.
    pub fn vm(&self, pid: u32) -> Reading<VmRow> {
        match self.vms.get(&pid, 0) {
            Ok(lanes) => Ok(totals(lanes.iter())),
            Err(MapError::KeyNotFound) => {
                Err(Missing::new("its row", "it is not in the map `vms`"))
            }
            Err(error) => Err(Missing::new("its row", format!("map `vms`: {error}"))),
        }
    }

    /// The address that the guest behind `tap` was last seen to use; `Ok(None)`: none so far.
    pub fn tap_address(&self, tap: &Tap) -> Reading<Option<TapAddress>> {
        let key = TapKey { netns: tap.netns, ifindex: tap.ifindex };
        match self.taps.get(&key, 0) {
            Ok(TapRow { guest_ipv4: [0, 0, 0, 0], .. }) => Ok(None),
            Ok(row) => Ok(Some(TapAddress { ipv4: row.guest_ipv4.into(), mac: row.guest_mac })),
            Err(error) => Err(Missing::new("its address", format!("map `taps`: {error}"))),
        }
    }

    /// Forgets what was learned of the guest behind `tap`: a guest that boots anew tests its address for
    /// duplicates, and a probe for it would look like a conflict (RFC 5227, section 2.1.1).
    pub fn forget_address(&mut self, vm: u32, tap: &Tap) -> Result<(), MapError> {
        let key = TapKey { netns: tap.netns, ifindex: tap.ifindex };
        // Only where it exists: a tap that was detached meanwhile must not come back.
        const BPF_EXIST: u64 = 2;
        match self.taps.insert(key, TapRow { vm, ..TapRow::default() }, BPF_EXIST) {
            Err(MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
            {
                Ok(())
            }
            result => result,
        }
    }
}

/// Adds up the copies that the CPUs have of a row.
pub fn totals<'a>(lanes: impl Iterator<Item = &'a VmRow>) -> VmRow {
    lanes.fold(VmRow::default(), |sum, lane| {
        let VmRow { network: n, storage: s } = *lane;
        VmRow {
            network: NetworkCounters {
                guest_tx_packets: sum.network.guest_tx_packets + n.guest_tx_packets,
                guest_tx_bytes: sum.network.guest_tx_bytes + n.guest_tx_bytes,
                guest_rx_packets: sum.network.guest_rx_packets + n.guest_rx_packets,
                guest_rx_bytes: sum.network.guest_rx_bytes + n.guest_rx_bytes,
                probe_answers: sum.network.probe_answers + n.probe_answers,
                probe_answer_bytes: sum.network.probe_answer_bytes + n.probe_answer_bytes,
            },
            storage: StorageCounters {
                read_ops: sum.storage.read_ops + s.read_ops,
                read_bytes: sum.storage.read_bytes + s.read_bytes,
                write_ops: sum.storage.write_ops + s.write_ops,
                write_bytes: sum.storage.write_bytes + s.write_bytes,
                flush_ops: sum.storage.flush_ops + s.flush_ops,
                other_ops: sum.storage.other_ops + s.other_ops,
                tracked_ops: sum.storage.tracked_ops + s.tracked_ops,
                completed_ops: sum.storage.completed_ops + s.completed_ops,
                failed_ops: sum.storage.failed_ops + s.failed_ops,
                untracked_ops: sum.storage.untracked_ops + s.untracked_ops,
            },
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_every_cpu_counts() {
        // Each field gets a number of its own, so that one added to another is seen.
        let lane = VmRow {
            network: NetworkCounters {
                guest_tx_packets: 1,
                guest_tx_bytes: 2,
                guest_rx_packets: 3,
                guest_rx_bytes: 4,
                probe_answers: 5,
                probe_answer_bytes: 6,
            },
            storage: StorageCounters {
                read_ops: 7,
                read_bytes: 8,
                write_ops: 9,
                write_bytes: 10,
                flush_ops: 11,
                other_ops: 12,
                tracked_ops: 13,
                completed_ops: 14,
                failed_ops: 15,
                untracked_ops: 16,
            },
        };
        let sum = totals([lane, lane, lane].iter());
        assert_eq!(sum.network.guest_tx_packets, 3);
        assert_eq!(sum.network.probe_answer_bytes, 18);
        assert_eq!(sum.storage.read_ops, 21);
        assert_eq!(sum.storage.untracked_ops, 48);
        assert_eq!(totals([sum].iter()), sum);
    }
}
