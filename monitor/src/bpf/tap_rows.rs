//! Rows of the map `taps`, in which the programs look a tap up: where it may stand, and which user's it is where there is no
//! room for all.

use aya::maps::{Array, Map, MapData, MapError};
use monitor_ebpf::{TAP_PROBES, TapRow, tap_home};

use super::{
    ProbeError,
    attachments::{Key, key_of},
    pins::Pins,
    shares,
    slots::{self, Slots},
    tap_probe::AttachError,
};
use flatline_qemu::discover::Tap;

/// See the module.
pub(super) struct TapRows(Array<MapData, TapRow>);

impl TapRows {
    /// Opens the map, which the host's programs pinned.
    pub(super) fn open(pins: &Pins) -> Result<Self, ProbeError> {
        slots::open(pins, "taps", Map::Array).map(Self)
    }

    /// The row of a tap, which keeps its address if it was the same VM's before.
    pub(super) fn take(&mut self, slot: u32, tap: &Tap) -> Result<u32, AttachError> {
        let its = self.of(key_of(tap))?;
        if let Some((index, row)) = its
            && row.slot == slot
        {
            return Ok(index);
        }
        let index = match its {
            Some((index, _)) => index,
            None => {
                self.of_none(key_of(tap))?.ok_or(ProbeError::Full { key: "probes.max_taps" })?
            }
        };
        let row = TapRow { netns: tap.netns, ifindex: tap.ifindex, slot, ..TapRow::default() };
        self.0.set(index, row, 0)?;
        Ok(index)
    }

    /// Empties a row: without its programs a tap has no figures, and nothing may look like a zero.
    pub(super) fn empty(&mut self, index: u32) {
        let _ = self.0.set(index, TapRow::default(), 0);
    }

    /// The row that bears a tap's name, and where it is.
    pub(super) fn of(&self, key: Key) -> Result<Option<(u32, TapRow)>, MapError> {
        for index in self.places_of(key) {
            let row = self.0.get(&index, 0)?;
            if (row.netns, row.ifindex) == key {
                return Ok(Some((index, row)));
            }
        }
        Ok(None)
    }

    /// All rows that are a tap's.
    pub(super) fn taken(&self) -> Vec<(u32, Key)> {
        let rows = (0..self.0.len()).filter_map(|index| Some((index, self.0.get(&index, 0).ok()?)));
        let taken = rows.filter(|(_, row)| row.ifindex != 0);
        taken.map(|(index, row)| (index, (row.netns, row.ifindex))).collect()
    }

    /// The tap that has to make room before this one of the user `uid` can be given a row; `None`: there is room, or none for
    /// it. Indices of interfaces can be chosen: so those are shared out that are where this one may be.
    pub(super) fn loser_to(&self, slots: &Slots, key: Key, uid: u32) -> Option<Key> {
        let mut held = Vec::new();
        for index in self.places_of(key) {
            let row = self.0.get(&index, 0).ok()?;
            let its = (row.netns, row.ifindex);
            if row.ifindex == 0 || its == key {
                return None;
            }
            if let Some((holder, vm)) = slots.holder_of(row.slot) {
                held.push((holder, (vm.start_ticks, vm.pid, its)));
            }
        }
        shares::loser(&held, uid).map(|(_, _, its)| its)
    }

    /// A row that is no tap's, where this one's may be.
    fn of_none(&self, key: Key) -> Result<Option<u32>, MapError> {
        for index in self.places_of(key) {
            if self.0.get(&index, 0)?.ifindex == 0 {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    /// Where the programs look for a tap's row.
    fn places_of(&self, (netns, ifindex): Key) -> impl Iterator<Item = u32> + use<> {
        let mask = self.0.len() - 1;
        let home = tap_home(netns, ifindex, mask);
        (0..TAP_PROBES).map(move |step| home.wrapping_add(step) & mask)
    }
}
