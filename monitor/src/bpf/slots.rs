//! Slots of the VMs: a VM's row in every map, which the programs reach by index.
//!
//! A look-up by key would cost 10 ns where an index costs 2. A row names its VM (pid and start time), so that one which was
//! handed on is never misread. Where they run short, they are shared out by user (`shares`).

use std::{
    collections::{HashMap as StdHashMap, HashSet, VecDeque},
    mem,
    os::unix::fs::MetadataExt as _,
};

use aya::maps::{Array, HashMap, Map, MapData, MapError};
use monitor_ebpf::{FileKey, NetworkCounters, SlotRow, SlotSet, VmRow, heartbeat::HeartbeatRow};
use tracing::debug;

use super::{ProbeError, pins::Pins, presence::PresenceMap, shares};
use flatline_qemu::discover::VmId;

/// Hands slots out, and keeps the maps in step: `vms`, `life`, `heartbeats`, `slots`, `files` and `presence`.
pub(super) struct Slots {
    rows: Array<MapData, VmRow>,
    life: Array<MapData, u64>,
    heartbeats: Array<MapData, HeartbeatRow>,
    by_pid: ByPid,
    owners: HashMap<MapData, FileKey, u32>,
    presence: PresenceMap,
    taken: StdHashMap<VmId, Taken>,
    /// The one that has been free for the longest comes first: what is still on its way for its last owner
    /// must not be counted for the next.
    free: VecDeque<u32>,
}

struct Taken {
    slot: u32,
    /// The user of its process.
    uid: u32,
    /// What it has open for its guest, whether that counts or not.
    files: Vec<FileKey>,
}

/// The map `slots`.
struct ByPid(Array<MapData, SlotSet>);

impl ByPid {
    /// All pids with their slots.
    fn all(&self) -> Result<StdHashMap<u32, u32>, MapError> {
        let mut all = StdHashMap::new();
        for set in self.0.iter() {
            let rows = set?.rows.into_iter().filter(|row| row.pid != 0);
            all.extend(rows.map(|row| (row.pid, row.slot)));
        }
        Ok(all)
    }

    /// Notes a process. `Ok(false)`: there is no room for it.
    fn insert(&mut self, pid: u32, slot: u32) -> Result<bool, MapError> {
        self.exchange(pid, SlotRow { pid, slot })
    }

    /// Whether there is room for a process; else those that have it all.
    fn room_for(&self, pid: u32) -> Result<(), Vec<u32>> {
        let rows =
            self.0.get(&(pid & (self.0.len() - 1)), 0).map(|set| set.rows).unwrap_or_default();
        if rows.iter().any(|row| row.pid == 0 || row.pid == pid) {
            return Ok(());
        }
        Err(rows.iter().map(|row| row.pid).collect())
    }

    fn remove(&mut self, pid: u32) -> Result<(), MapError> {
        self.exchange(pid, SlotRow::default()).map(drop)
    }

    /// Puts `new` in place of the process' row, or into a free one.
    fn exchange(&mut self, pid: u32, new: SlotRow) -> Result<bool, MapError> {
        let index = pid & (self.0.len() - 1);
        let mut set = self.0.get(&index, 0)?;
        let its = set.rows.iter().position(|row| row.pid == pid);
        let place = its.or_else(|| set.rows.iter().position(|row| row.pid == 0));
        let Some(place) = place else { return Ok(false) };
        set.rows[place] = new;
        self.0.set(index, set, 0)?;
        Ok(true)
    }
}

impl Slots {
    /// Opens the pinned maps, with the VMs that an earlier daemon left in them.
    pub(super) fn open(pins: &Pins) -> Result<Self, ProbeError> {
        let mut slots = Self {
            rows: open(pins, "vms", Map::Array)?,
            life: open(pins, "life", Map::Array)?,
            heartbeats: open(pins, "heartbeats", Map::Array)?,
            by_pid: ByPid(open(pins, "slots", Map::Array)?),
            owners: open(pins, "files", Map::HashMap)?,
            presence: PresenceMap::open(pins)?,
            taken: StdHashMap::new(),
            free: VecDeque::new(),
        };
        slots.take_over().map_err(|source| ProbeError::Map { map: "vms", source })?;
        Ok(slots)
    }

    fn take_over(&mut self) -> Result<(), MapError> {
        let mut known = self.by_pid.all()?;
        let handed_out: HashSet<u32> = known.values().copied().collect();
        self.free.extend((0..self.rows.len()).filter(|slot| !handed_out.contains(slot)));
        known.retain(|pid, slot| match self.rows.get(slot, 0) {
            Ok(VmRow { lanes: [lane, ..], shared }) if lane.pid == *pid => {
                let vm = VmId { pid: *pid, start_ticks: shared.start_ticks };
                let taken = Taken { slot: *slot, uid: uid_of(*pid), files: Vec::new() };
                self.taken.insert(vm, taken);
                false
            }
            _ => true,
        });
        for (pid, slot) in known {
            self.by_pid.remove(pid)?;
            self.free.push_back(slot);
        }
        for owned in self.owners.iter().collect::<Result<Vec<_>, _>>()? {
            let owner = self.taken.values_mut().find(|taken| taken.slot == owned.1);
            match owner {
                Some(owner) => owner.files.push(owned.0),
                None => self.owners.remove(&owned.0)?,
            }
        }
        self.show_present()
    }

    /// Has `presence` say what there is, and no more.
    fn show_present(&mut self) -> Result<(), MapError> {
        let pids = self.taken.keys().map(|vm| vm.pid);
        self.presence.replace(pids, self.taken.values().flat_map(|taken| &taken.files))
    }

    /// The slot that a VM has.
    pub(super) fn of(&self, vm: VmId) -> Option<u32> {
        self.taken.get(&vm).map(|taken| taken.slot)
    }

    /// Packets that the guest in a slot sent, as the programs counted them.
    pub(super) fn sent(&self, slot: u32) -> Result<u64, MapError> {
        Ok(self.network(slot)?.guest_tx_packets)
    }

    /// What the programs counted on the taps of a slot.
    pub(super) fn network(&self, slot: u32) -> Result<NetworkCounters, MapError> {
        Ok(self.rows.get(&slot, 0)?.network())
    }

    /// The VM that is counted in `slot`.
    pub(super) fn vm_in(&self, slot: u32) -> Option<VmId> {
        self.holder_of(slot).map(|(_, vm)| vm)
    }

    /// The VM that is counted in `slot`, and the user of its QEMU.
    pub(super) fn holder_of(&self, slot: u32) -> Option<(u32, VmId)> {
        let holder = self.taken.iter().find(|(_, taken)| taken.slot == slot);
        holder.map(|(vm, taken)| (taken.uid, *vm))
    }

    /// The VMs that have a slot.
    pub(super) fn vms(&self) -> Vec<VmId> {
        self.taken.keys().copied().collect()
    }

    /// The VM that has to make room before this one of the user `uid` can be given a slot; `None`: there is room, or none for
    /// it.
    pub(super) fn loser_to(&self, vm: VmId, uid: u32) -> Option<VmId> {
        if self.taken.contains_key(&vm) {
            return None;
        }
        let order = |vm: &VmId| (vm.start_ticks, vm.pid);
        let all = |taken: &mut dyn Iterator<Item = (&VmId, &Taken)>| {
            taken.map(|(vm, taken)| (taken.uid, order(vm))).collect::<Vec<_>>()
        };
        let held = match self.by_pid.room_for(vm.pid) {
            Ok(()) if !self.free.is_empty() => return None,
            Ok(()) => all(&mut self.taken.iter()),
            // Pids can be chosen: those of one set are shared out likewise.
            Err(pids) => all(&mut self.taken.iter().filter(|(vm, _)| pids.contains(&vm.pid))),
        };
        shares::loser(&held, uid).map(|(start_ticks, pid)| VmId { pid, start_ticks })
    }

    /// The VM's slot, a new one with a row of zeros if it has none: from now on it counts.
    ///
    /// # Errors
    /// [`ProbeError::Full`] where all are taken, and its user has its share of them.
    pub(super) fn take(&mut self, vm: VmId, uid: u32) -> Result<u32, ProbeError> {
        if let Some(taken) = self.taken.get_mut(&vm) {
            taken.uid = uid;
            return Ok(taken.slot);
        }
        let full = || ProbeError::Full { key: "probes.max_vms" };
        let slot = self.free.pop_front().ok_or_else(full)?;
        let failed = |source| ProbeError::Map { map: "vms", source };
        let made = match self.write(slot, vm) {
            // The row first: a program that finds the slot finds the row.
            Ok(()) => self
                .presence
                .add_process(vm.pid)
                .and_then(|()| self.by_pid.insert(vm.pid, slot))
                .map_err(failed)
                .and_then(|is_in| is_in.then_some(()).ok_or_else(full)),
            Err(error) => Err(failed(error)),
        };
        match made {
            Ok(()) => {
                self.taken.insert(vm, Taken { slot, uid, files: Vec::new() });
                Ok(slot)
            }
            Err(error) => {
                self.free.push_front(slot);
                Err(error)
            }
        }
    }

    /// Gives the slot's rows to a VM, with zeros for counters; pid 0 stands for no VM.
    fn write(&mut self, slot: u32, vm: VmId) -> Result<(), MapError> {
        let VmId { pid, start_ticks } = vm;
        self.rows.set(slot, VmRow::of(pid, start_ticks), 0)?;
        self.life.set(slot, 0, 0)?;
        let silent = HeartbeatRow { pid, start_ticks, ..HeartbeatRow::default() };
        self.heartbeats.set(slot, silent, 0)
    }

    /// Makes `files` the ones whose written back pages count for the VM. One that another VM has as well counts
    /// for neither: whichever it was given to would seem to live by what the other does.
    pub(super) fn own(&mut self, vm: VmId, files: &[FileKey]) -> Result<(), ProbeError> {
        let Some(taken) = self.taken.get_mut(&vm) else { return Ok(()) };
        let before = mem::replace(&mut taken.files, files.to_vec());
        let gone = before.iter().filter(|file| !files.contains(file));
        let come = files.iter().filter(|file| !before.contains(file));
        let mut result = Ok(());
        for file in gone.chain(come) {
            if let Err(source) = self.assign(*file) {
                // Whatever is not in its list is tried again the next time.
                if let Some(taken) = self.taken.get_mut(&vm) {
                    taken.files.retain(|kept| kept != file);
                }
                result = Err(ProbeError::Map { map: "files", source });
            }
        }
        if before.iter().any(|file| !files.contains(file))
            && let Err(error) = self.show_present()
        {
            debug!("strangers are looked for where files of VM {vm} were: {error}");
        }
        result
    }

    /// Counts what is written back to a file for the only VM that has it open, or for none.
    fn assign(&mut self, file: FileKey) -> Result<(), MapError> {
        let mut owners = self.taken.values().filter(|taken| taken.files.contains(&file));
        match (owners.next(), owners.next()) {
            (Some(only), None) => {
                self.presence.add_file(&file)?;
                self.owners.insert(file, only.slot, 0)
            }
            _ => {
                // It is not there if it never counted.
                let _ = self.owners.remove(&file);
                Ok(())
            }
        }
    }

    /// Takes the slot back, and empties its row, so that it is no VM's.
    pub(super) fn forget(&mut self, vm: VmId) {
        let Some(Taken { slot, files, .. }) = self.taken.remove(&vm) else { return };
        if let Err(error) = self.by_pid.remove(vm.pid) {
            debug!("no slot of VM {vm} to remove: {error}");
        }
        for file in files {
            if let Err(error) = self.assign(file) {
                debug!("what is written back to a file of VM {vm} can't be another's: {error}");
            }
        }
        if let Err(error) = self.write(slot, VmId { pid: 0, start_ticks: 0 }) {
            debug!("the row of VM {vm} could not be emptied: {error}");
        }
        if let Err(error) = self.show_present() {
            debug!("strangers are looked for where VM {vm} was: {error}");
        }
        self.free.push_back(slot);
    }
}

/// The user of a process that an earlier daemon counted, until it is found again.
fn uid_of(pid: u32) -> u32 {
    std::fs::metadata(format!("/proc/{pid}")).map_or(u32::MAX, |of| of.uid())
}

/// Opens a pinned map as one of the kind that it is.
///
/// # Errors
/// [`ProbeError::Map`] where it is not pinned, or is of another kind.
pub(super) fn open<T: TryFrom<Map, Error = MapError>>(
    pins: &Pins,
    map: &'static str,
    kind: fn(MapData) -> Map,
) -> Result<T, ProbeError> {
    let opened = MapData::from_pin(pins.map(map)).and_then(|data| T::try_from(kind(data)));
    opened.map_err(|source| ProbeError::Map { map, source })
}
