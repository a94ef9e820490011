//! Heartbeats of guests' agents, as the taps' programs noted them: read only where an agent sent anything.

use std::{path::Path, time::Duration};

use aya::{
    maps::{Map, MapData, MapError, PerCpuArray},
    util::nr_cpus,
};
use monitor_ebpf::heartbeat::{FLAG_CHECK_FAILED, FLAG_LEAVING, HeartbeatRow};

use super::{Heard, Heartbeats, LastBeat, Missing, Reading, batch};
use flatline_qemu::discover::VmId;

/// The figure's name where it is missing.
const WHAT: &str = "heartbeats";

/// Reads the map `heartbeats`.
pub(crate) struct HeartbeatReader {
    rows: PerCpuArray<MapData, HeartbeatRow>,
    map: MapData,
    cpus: usize,
}

/// All VMs' rows at one moment, as the CPUs have them.
pub(crate) struct HeartbeatRows {
    lanes: Vec<HeartbeatRow>,
    cpus: usize,
}

impl HeartbeatReader {
    /// Opens the map that was pinned below `bpffs_dir`.
    ///
    /// # Errors
    /// If there is none, or it has another form.
    pub(crate) fn open(bpffs_dir: &Path) -> Result<Self, MapError> {
        let map = || MapData::from_pin(bpffs_dir.join("heartbeats"));
        Ok(Self {
            rows: PerCpuArray::try_from(Map::PerCpuArray(map()?))?,
            map: map()?,
            cpus: nr_cpus().map_err(|(_, error)| MapError::IoError(error))?,
        })
    }

    /// All rows below the slot `slots`, in one system call where the kernel (5.13) has one for it.
    pub(crate) fn rows(&self, slots: u32) -> Reading<HeartbeatRows> {
        let cpus = self.cpus;
        let mut lanes = vec![HeartbeatRow::default(); slots as usize * cpus];
        match batch::look_up(&self.map, slots, &mut lanes) {
            Ok(read) if read == slots => Ok(HeartbeatRows { lanes, cpus }),
            Ok(read) => Err(Missing::new(WHAT, format!("{read} of {slots} rows"))),
            Err(error) if batch::is_unsupported(&error) => {
                let rows = (0..slots).map(|slot| self.rows.get(&slot, 0));
                let rows = rows.collect::<Result<Vec<_>, _>>().map_err(|error| missing(&error))?;
                let lanes = rows.iter().flat_map(|lanes| lanes.iter().copied()).collect();
                Ok(HeartbeatRows { lanes, cpus })
            }
            Err(error) => Err(missing(&error)),
        }
    }

    /// One VM's row.
    pub(crate) fn of(&self, vm: VmId, slot: u32) -> Reading<Heartbeats> {
        of_vm(&self.rows.get(&slot, 0).map_err(|error| missing(&error))?, vm)
    }
}

impl HeartbeatRows {
    /// What was said of a VM that is counted in `slot`.
    pub(crate) fn of(&self, vm: VmId, slot: u32) -> Reading<Heartbeats> {
        let begin = slot as usize * self.cpus;
        match self.lanes.get(begin..begin + self.cpus) {
            Some(lanes) => of_vm(lanes, vm),
            None => Err(Missing::new(WHAT, "its slot was given to it just now")),
        }
    }
}

fn missing(error: &dyn std::fmt::Display) -> Missing {
    Missing::new(WHAT, format!("map `heartbeats`: {error}"))
}

/// Checks that a row is this VM's: one that bears another VM's name says nothing of this one.
fn of_vm(lanes: &[HeartbeatRow], vm: VmId) -> Reading<Heartbeats> {
    if lanes.iter().any(|lane| (lane.pid, lane.start_ticks) != (vm.pid, vm.start_ticks)) {
        return Err(Missing::new(WHAT, "its slot is another VM's"));
    }
    Ok(totals(lanes))
}

/// Adds up the copies that the CPUs have of a row.
fn totals(lanes: &[HeartbeatRow]) -> Heartbeats {
    let sum = |of: fn(&HeartbeatRow) -> u64| lanes.iter().map(of).sum();
    // Several CPUs may have heard something in the same tick; going down is said after the last beat.
    let order = |lane: &&HeartbeatRow| (lane.last_jiffies, lane.sequence, lane.flags);
    let last = lanes.iter().max_by_key(order).filter(|lane| lane.last_jiffies != 0);
    Heartbeats {
        beats: sum(|lane| lane.beats),
        failures: sum(|lane| lane.failures),
        leavings: sum(|lane| lane.leavings),
        malformed: sum(|lane| lane.malformed),
        last: last.map(|lane| LastBeat {
            heard: Heard::Jiffies(lane.last_jiffies),
            leaving: lane.flags & u32::from(FLAG_LEAVING) != 0,
            failed: lane.flags & u32::from(FLAG_CHECK_FAILED) != 0,
            interval: Duration::from_millis(lane.interval_ms.into()),
            boot: lane.boot,
            sequence: lane.sequence,
            check: name(&lane.check),
        }),
    }
}

/// A check's name: a guest may write anything there.
pub(super) fn name(bytes: &[u8]) -> String {
    let text = bytes.iter().copied().take_while(|byte| *byte != 0);
    text.map(|byte| if matches!(byte, b' '..=b'~') { char::from(byte) } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use monitor_ebpf::heartbeat::CHECK_NAME_BYTES;

    use super::*;

    fn lane() -> HeartbeatRow {
        let mut check = [0; CHECK_NAME_BYTES];
        check[..4].copy_from_slice(b"we\x1bb");
        HeartbeatRow {
            pid: 7,
            interval_ms: 1500,
            start_ticks: 99,
            beats: 1,
            failures: 2,
            leavings: 3,
            malformed: 4,
            last_jiffies: 50,
            boot: 0xabcd,
            sequence: 6,
            flags: 0,
            reserved: 0,
            check,
        }
    }

    #[test]
    fn counters_are_added_up_and_the_last_word_is_the_latest() {
        let later = HeartbeatRow { last_jiffies: 51, sequence: 7, interval_ms: 2000, ..lane() };
        let last = LastBeat {
            heard: Heard::Jiffies(51),
            leaving: false,
            failed: false,
            interval: Duration::from_secs(2),
            boot: 0xabcd,
            sequence: 7,
            check: "we?b".to_owned(),
        };
        let sum = Heartbeats { beats: 2, failures: 4, leavings: 6, malformed: 8, last: Some(last) };
        assert_eq!(totals(&[later, lane()]), sum);
        assert_eq!(totals(&[lane(), later]), sum);
    }

    #[test]
    fn going_down_comes_after_a_beat_of_the_same_moment() {
        let leaving = HeartbeatRow { flags: FLAG_LEAVING.into(), ..lane() };
        for lanes in [[leaving, lane()], [lane(), leaving]] {
            assert!(totals(&lanes).last.is_some_and(|last| last.leaving));
        }
    }

    #[test]
    fn an_agent_that_never_said_anything_has_no_last_word() {
        let silent = HeartbeatRow { pid: 7, start_ticks: 99, ..HeartbeatRow::default() };
        assert_eq!(totals(&[silent, silent]), Heartbeats::default());
    }

    #[test]
    fn a_row_of_another_vm_is_missing_and_not_silent() {
        let rows = HeartbeatRows { lanes: vec![lane(), lane()], cpus: 2 };
        assert!(rows.of(VmId { pid: 7, start_ticks: 99 }, 0).is_ok());
        for (pid, start_ticks, slot) in [(7, 98, 0), (8, 99, 0), (7, 99, 1)] {
            assert!(rows.of(VmId { pid, start_ticks }, slot).is_err());
        }
    }
}
