//! What guests' agents said, as the taps' programs noted it: read from memory that is shared with them.

use std::{mem::offset_of, path::Path, time::Duration};

use aya::maps::MapError;
use monitor_ebpf::heartbeat::{FLAG_CHECK_FAILED, FLAG_LEAVING, HeartbeatRow};

use super::{Heard, Heartbeats, LastBeat, Missing, Reading, mapped::MappedArray};
use flatline_qemu::discover::VmId;

/// The figure's name where it is missing.
const WHAT: &str = "heartbeats";

/// Reads the map `heartbeats`.
pub(crate) struct HeartbeatReader(MappedArray<HeartbeatRow>);

impl HeartbeatReader {
    /// Opens the map that was pinned below `bpffs_dir`.
    ///
    /// # Errors
    /// If there is none, or it has another form.
    pub(crate) fn open(bpffs_dir: &Path) -> Result<Self, MapError> {
        MappedArray::open(&bpffs_dir.join("heartbeats")).map(Self)
    }

    /// When an agent of the VM in `slot` last said anything, in the kernel's ticks, whichever VM that is.
    pub(crate) fn last_jiffies(&self, slot: u32) -> Option<u64> {
        self.0.part(slot, offset_of!(HeartbeatRow, last_jiffies))
    }

    /// When the guest's agent of the VM in `slot` last said anything, in the kernel's ticks, 0 for never; and whether that was
    /// a beat, and no word of its guest's end or of a check that failed. `None` for a row that is another VM's.
    pub(crate) fn last_said(&self, vm: VmId, slot: u32) -> Option<(u64, bool)> {
        let row = self.0.get(slot)?;
        ((row.pid, row.start_ticks) == (vm.pid, vm.start_ticks))
            .then_some((row.last_jiffies, row.flags == 0))
    }

    /// What the guest's agent of the VM in `slot` said. A row that bears another VM's name says nothing of this one.
    pub(crate) fn of(&self, vm: VmId, slot: u32) -> Reading<Heartbeats> {
        let its = |row: &HeartbeatRow| (row.pid, row.start_ticks) == (vm.pid, vm.start_ticks);
        let row = self.0.get(slot).filter(its);
        row.map(heartbeats).ok_or_else(|| Missing::new(WHAT, "its slot is another VM's"))
    }
}

fn heartbeats(row: HeartbeatRow) -> Heartbeats {
    Heartbeats {
        beats: row.beats,
        failures: row.failures,
        leavings: row.leavings,
        malformed: row.malformed,
        last: (row.last_jiffies != 0).then(|| LastBeat {
            heard: Heard::Jiffies(row.last_jiffies),
            leaving: row.flags & u32::from(FLAG_LEAVING) != 0,
            failed: row.flags & u32::from(FLAG_CHECK_FAILED) != 0,
            interval: Duration::from_millis(row.interval_ms.into()),
            boot: row.boot,
            sequence: row.sequence,
            check: name(&row.check),
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

    fn row() -> HeartbeatRow {
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
    fn a_row_says_what_its_guests_agent_said_last_in_plain_letters() {
        let last = LastBeat {
            heard: Heard::Jiffies(50),
            leaving: false,
            failed: false,
            interval: Duration::from_millis(1500),
            boot: 0xabcd,
            sequence: 6,
            check: "we?b".to_owned(),
        };
        let said =
            Heartbeats { beats: 1, failures: 2, leavings: 3, malformed: 4, last: Some(last) };
        assert_eq!(heartbeats(row()), said);
        let leaving = HeartbeatRow { flags: FLAG_LEAVING.into(), ..row() };
        assert!(heartbeats(leaving).last.is_some_and(|last| last.leaving));
    }

    #[test]
    fn an_agent_that_never_said_anything_has_no_last_word() {
        let silent = HeartbeatRow { pid: 7, start_ticks: 99, ..HeartbeatRow::default() };
        assert_eq!(heartbeats(silent), Heartbeats::default());
    }
}
