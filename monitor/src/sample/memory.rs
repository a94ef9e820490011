//! Memory: what a guest tells of its own through the balloon's statistics, and what its QEMU takes of the host's. Never
//! judged, only shown and recorded: a guest that is short of memory is ill, and not dead.

use std::{fs, io::Read as _, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::discover::VmId;

/// The most that is read of a file in `/proc`; `status` has some 1.5 KiB.
const MOST_BYTES: u64 = 16 << 10;
/// A guest with less than this share of its memory to give away has none to spare. One that thrashed over its swap, a program
/// after the other, was measured at 12 %, with 540 major faults a second.
const SCARCE_SHARE: f64 = 0.2;
/// A guest in which somebody waits so often for a page from its disk does little else: a disk that turns gives no more
/// than some hundred of them a second, and a guest with memory to spare needs none for minutes.
const THRASHING_FAULTS_PER_SECOND: f64 = 100.0;

/// What is known of a VM's memory, in bytes where nothing else is said; `None`: not told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// What the guest has, by its own account.
    pub total: Option<u64>,
    /// What it could give to a program without swapping, likewise (`MemAvailable`).
    pub available: Option<u64>,
    /// Read back from its swap since it booted.
    pub swap_in: Option<u64>,
    /// Written to its swap since it booted.
    pub swap_out: Option<u64>,
    /// Times since it booted that somebody had to wait for a page from its disk.
    pub major_faults: Option<u64>,
    /// When the guest said so: seconds since the Unix epoch, by the host's clock.
    pub told_at: Option<u64>,
    /// What its QEMU has of the host's memory.
    pub qemu_rss: Option<u64>,
    /// What of it the host has swapped out.
    pub qemu_swap: Option<u64>,
}

impl Memory {
    /// Takes what the guest said, out of QEMU's `guest-stats`. What QEMU doesn't know is −1 there.
    pub fn take_guest(&mut self, stats: &Value) {
        let number = |value: Option<&Value>| {
            value.and_then(Value::as_u64).filter(|number| *number != u64::MAX)
        };
        let told = |name: &str| number(stats.get("stats").and_then(|stats| stats.get(name)));
        self.told_at = number(stats.get("last-update")).filter(|at| *at != 0);
        if self.told_at.is_none() {
            return self.forget_guest();
        }
        self.total = told("stat-total-memory").filter(|total| *total != 0);
        self.available = told("stat-available-memory");
        self.swap_in = told("stat-swap-in");
        self.swap_out = told("stat-swap-out");
        self.major_faults = told("stat-major-faults");
    }

    /// The guest tells nothing any more, or is another boot.
    pub fn forget_guest(&mut self) {
        let Self { qemu_rss, qemu_swap, .. } = *self;
        *self = Self { qemu_rss, qemu_swap, ..Self::default() };
    }

    /// Takes what its QEMU has.
    pub fn take_qemu(&mut self, process: Option<ProcessMemory>) {
        self.qemu_rss = process.map(|process| process.rss);
        self.qemu_swap = process.map(|process| process.swap);
    }

    /// What the guest uses and couldn't give away.
    pub fn used(&self) -> Option<u64> {
        self.total?.checked_sub(self.available?)
    }

    /// Whether the guest does little but wait for pages that it had to throw away, in words. `before` is what it said
    /// last.
    pub fn thrashing(&self, before: &Self) -> Option<String> {
        let (total, available) = (self.total?, self.available?);
        #[expect(clippy::cast_precision_loss, reason = "a share for people")]
        let share = available as f64 / total as f64;
        let between = self.told_at?.checked_sub(before.told_at?).filter(|seconds| *seconds > 0)?;
        let faults = self.major_faults?.checked_sub(before.major_faults?)?;
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = faults as f64 / between as f64;
        (share < SCARCE_SHARE && rate >= THRASHING_FAULTS_PER_SECOND).then(|| {
            format!(
                "it is thrashing: {:.0} % of its memory is left, and {rate:.0} times a second somebody \
                 waits for a page from its disk",
                share * 100.0
            )
        })
    }
}

/// What a process has of the host's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessMemory {
    /// Resident: its own, and what it shares.
    pub rss: u64,
    /// Swapped out.
    pub swap: u64,
}

/// Reads it from `/proc/PID/status`; `None` if it can't be read, or the process has ended.
pub fn process_memory(vm: VmId) -> Option<ProcessMemory> {
    let mut text = String::new();
    let file = fs::File::open(format!("/proc/{}/status", vm.pid)).ok()?;
    file.take(MOST_BYTES).read_to_string(&mut text).ok()?;
    parse_status(&text)
}

fn parse_status(text: &str) -> Option<ProcessMemory> {
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    Some(ProcessMemory { rss: bytes("VmRSS:")?, swap: bytes("VmSwap:")? })
}

/// How often a guest is asked: each time costs it an interrupt, and QEMU some 20 commands.
pub const ASKED_EVERY: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const STATUS: &str = "Name:\tqemu\nVmPeak:\t  900 kB\nVmRSS:\t  262144 kB\nRssAnon:\t 1 kB\nVmSwap:\t     64 kB\n";

    /// As QEMU 7.2 tells it of a Linux 6.1 without swap.
    fn stats() -> Value {
        json!({"last-update": 1_795_564_036_u64, "stats": {
            "stat-htlb-pgalloc": 0, "stat-swap-out": 0, "stat-available-memory": 96_763_904,
            "stat-htlb-pgfail": 0, "stat-free-memory": 95_000_000, "stat-minor-faults": 4000,
            "stat-major-faults": 7, "stat-total-memory": 120_000_512, "stat-swap-in": 0,
            "stat-disk-caches": u64::MAX}})
    }

    fn memory(at: u64, available: u64, faults: u64) -> Memory {
        let (total, told_at) = (Some(1000), Some(at));
        let (available, major_faults) = (Some(available), Some(faults));
        Memory { total, available, major_faults, told_at, ..Memory::default() }
    }

    #[test]
    fn what_the_guest_tells_is_taken_and_what_it_does_not_is_none() {
        let mut memory = Memory::default();
        memory.take_guest(&stats());
        assert_eq!(memory.used(), Some(120_000_512 - 96_763_904));
        assert_eq!((memory.major_faults, memory.swap_in), (Some(7), Some(0)));
        let mut without = stats();
        without["stats"]["stat-available-memory"] = json!(u64::MAX);
        memory.take_guest(&without);
        assert_eq!((memory.used(), memory.total), (None, Some(120_000_512)));
    }

    #[test]
    fn a_guest_that_never_answered_or_lies_has_no_figures() {
        for stats in [
            json!({"last-update": 0, "stats": {"stat-total-memory": u64::MAX}}),
            json!({"stats": {"stat-total-memory": 5}}),
            json!({"last-update": "now", "stats": []}),
            json!([]),
        ] {
            let mut memory = memory(1, 2, 3);
            memory.take_guest(&stats);
            assert_eq!(memory, Memory::default(), "{stats}");
        }
        let mut lies = stats();
        lies["stats"]["stat-total-memory"] = json!(5);
        let mut memory = Memory::default();
        memory.take_guest(&lies);
        assert_eq!(memory.used(), None);
        lies["stats"]["stat-total-memory"] = json!(-5);
        memory.take_guest(&lies);
        assert_eq!(memory.total, None);
    }

    #[test]
    fn only_scarce_memory_and_many_faults_together_are_thrashing() {
        let before = memory(100, 10, 1_000);
        let thrashes = memory(130, 10, 100_000);
        let words = thrashes.thrashing(&before).expect("it thrashes");
        assert!(words.contains("1 % of its memory") && words.contains("3300 times"), "{words}");
        assert_eq!(memory(130, 300, 100_000).thrashing(&before), None, "it has memory left");
        assert_eq!(memory(130, 10, 3_000).thrashing(&before), None, "it hardly waits");
        assert_eq!(memory(100, 10, 100_000).thrashing(&before), None, "it said nothing new");
        assert_eq!(memory(130, 10, 0).thrashing(&before), None, "it booted meanwhile");
        assert_eq!(Memory::default().thrashing(&before), None);
    }

    #[test]
    fn a_status_without_memory_is_a_process_that_ended() {
        let expected = ProcessMemory { rss: 262_144 * 1024, swap: 64 * 1024 };
        assert_eq!(parse_status(STATUS), Some(expected));
        assert_eq!(parse_status("Name:\tqemu\nState:\tZ\n"), None);
        assert_eq!(parse_status("VmRSS:\t99999999999999999999 kB\nVmSwap:\t1 kB\n"), None);
        assert_eq!(parse_status(&STATUS.replace("kB", "MB")), None);
        let own = VmId { pid: std::process::id(), start_ticks: 0 };
        assert!(process_memory(own).is_some_and(|memory| memory.rss > 0));
    }
}
