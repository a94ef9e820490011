//! Memory of a VM: figures of its guest's kernel, and of the host's kernel about its QEMU.
//!
//! For people and recordings: no verdict rests on it. A guest's figures come through its balloon, and may be missing, or
//! made up: each is bounded, and nothing is computed from one that isn't there.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Reading;

/// The most bytes that a figure may be: x86 addresses no more memory (52 bits).
const MOST_BYTES: u64 = 1 << 52;
/// The most faults: beyond, JSON's numbers are no longer exact.
const MOST_FAULTS: u64 = 1 << 53;

/// A guest with less of its memory available than this share is short of it. What a Linux has left while it thrashes is no
/// zero, since it keeps some files' pages, and its programs come and go: 3 to 12 % of 200 to 80 MiB, measured.
pub(crate) const SCARCE_SHARE: f64 = 0.20;
/// And thrashes with so many major faults a second: each waits for its store, and a rotating disk has some hundred
/// random reads a second to give. A healthy guest has such a rate only while programs start, with memory to spare.
pub(crate) const THRASHING_FAULTS: f64 = 50.0;

/// Memory of a VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// Figures of the guest's kernel.
    pub guest: Reading<GuestMemory>,
    /// How short of memory the guest is; `None` where two readings don't tell.
    pub strain: Option<Strain>,
    /// Memory that its QEMU takes.
    pub qemu: Reading<QemuMemory>,
}

/// Figures of a guest's kernel, told through its balloon; `None` for those that it doesn't tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestMemory {
    /// Time of the figures by QEMU's clock, in seconds since 1970.
    pub told_at: u64,
    /// All memory that its kernel has to give, in bytes.
    pub total: Option<u64>,
    /// Bytes that are not used at all.
    pub free: Option<u64>,
    /// Bytes that could be had without swapping.
    pub available: Option<u64>,
    /// Bytes that hold files' contents, and could be given back.
    pub disk_caches: Option<u64>,
    /// Bytes read back from its swap since it booted.
    pub swap_in: Option<u64>,
    /// Bytes written out to its swap since it booted.
    pub swap_out: Option<u64>,
    /// Page faults that waited for a store, since it booted.
    pub major_faults: Option<u64>,
    /// Page faults that didn't.
    pub minor_faults: Option<u64>,
}

/// Memory of the host that a QEMU takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QemuMemory {
    /// Bytes that are resident, huge pages of hugetlbfs left out.
    pub rss: u64,
    /// Bytes of private memory that are swapped out; what it shares with others (a memfd) is not among them.
    pub swap: Option<u64>,
    /// Bytes in huge pages of hugetlbfs.
    pub hugetlb: Option<u64>,
}

/// A host on which nothing is swapped out and no huge pages are set aside, so that no process has any of either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlainHost {
    /// What each process has in huge pages: nothing, or not told by a kernel that has none.
    hugetlb: Option<u64>,
}

impl PlainHost {
    /// Parses a `/proc/meminfo`; `None` where the host is none, or that can't be told.
    pub fn parse(meminfo: &str) -> Option<Self> {
        let hugetlb = kib(meminfo, "Hugetlb");
        let is_plain = kib(meminfo, "SwapTotal")? == kib(meminfo, "SwapFree")?
            && hugetlb.unwrap_or_default() == 0;
        is_plain.then_some(Self { hugetlb })
    }
}

/// The bytes on the line of this name in a text of the kernel's; `None` where there is none.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.strip_prefix(':')?.trim().strip_suffix(" kB")?.parse().ok()?;
    kib.checked_mul(1024)
}

/// How short of memory a guest is, from two readings of its figures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Strain {
    /// Share of its memory that was available at the later one, 0 to 1.
    pub available: f64,
    /// Major faults a second between the two.
    pub major_faults: f64,
}

impl GuestMemory {
    /// Parses a balloon's `guest-stats` (QEMU's virtio-balloon); `now` is the host's clock in seconds since 1970. `None` where
    /// they say nothing: a guest without a driver, or one that wasn't asked yet.
    pub fn parse(reply: &Value, now: u64) -> Option<Self> {
        let told_at = reply.get("last-update").and_then(Value::as_u64).filter(|at| *at > 0)?;
        let stats = reply.get("stats")?;
        // QEMU has all bits set in what the guest didn't tell (`reset_stats` in hw/virtio/virtio-balloon.c).
        let figure = |name: &str, most: u64| {
            stats.get(name).and_then(Value::as_u64).filter(|figure| *figure <= most)
        };
        let bytes = |name| figure(name, MOST_BYTES);
        let memory = Self {
            // A time to come is one that was made up, or a clock that was put back.
            told_at: told_at.min(now),
            total: bytes("stat-total-memory"),
            free: bytes("stat-free-memory"),
            available: bytes("stat-available-memory"),
            disk_caches: bytes("stat-disk-caches"),
            swap_in: bytes("stat-swap-in"),
            swap_out: bytes("stat-swap-out"),
            major_faults: figure("stat-major-faults", MOST_FAULTS),
            minor_faults: figure("stat-minor-faults", MOST_FAULTS),
        };
        (memory != Self { told_at: memory.told_at, ..Self::default() }).then_some(memory)
    }

    /// Bytes that are used: all that couldn't be had. `None` where that can't be told.
    pub fn used(&self) -> Option<u64> {
        self.total?.checked_sub(self.available?)
    }

    /// Share of its memory that is available.
    fn available_share(&self) -> Option<f64> {
        let (total, available) = (self.total.filter(|total| *total > 0)?, self.available?);
        (available <= total).then(|| count(available) / count(total))
    }
}

impl QemuMemory {
    /// Parses a `/proc/PID/status`; `None` for a process that has no memory, as one that ends.
    pub fn parse(status: &str) -> Option<Self> {
        // The kernel escapes newlines in a name, so that none can pose as a line.
        Some(Self {
            rss: kib(status, "VmRSS")?,
            swap: kib(status, "VmSwap"),
            hugetlb: kib(status, "HugetlbPages"),
        })
    }

    /// The same from a `/proc/PID/statm`, in pages of so many bytes, of a process on such a host.
    pub fn parse_statm(statm: &str, page_bytes: u64, host: PlainHost) -> Option<Self> {
        let resident: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
        let rss = resident.checked_mul(page_bytes).filter(|rss| *rss > 0)?;
        Some(Self { rss, swap: Some(0), hugetlb: host.hugetlb })
    }
}

impl Strain {
    /// The strain between two readings of one guest; `None` where either lacks a figure, or the two are one, or of two
    /// boots.
    pub fn between(before: &GuestMemory, now: &GuestMemory) -> Option<Self> {
        let elapsed = now.told_at.checked_sub(before.told_at).filter(|seconds| *seconds > 0)?;
        let faults = now.major_faults?.checked_sub(before.major_faults?)?;
        Some(Self {
            available: now.available_share()?,
            major_faults: count(faults) / count(elapsed),
        })
    }

    /// Whether the guest does little else than wait for pages that it had to give away: such a guest hardly answers, and
    /// lives all the same.
    pub fn is_thrashing(&self) -> bool {
        self.available < SCARCE_SHARE && self.major_faults >= THRASHING_FAULTS
    }

    /// The same in words, such as `thrashing: 1.2 % of its memory available, 940 major faults/s`.
    pub fn describe(&self) -> String {
        let Self { available, major_faults } = self;
        let share = available * 100.0;
        let word = if self.is_thrashing() { "thrashing: " } else { "" };
        format!("{word}{share:.1} % of its memory available, {major_faults:.0} major faults/s")
    }
}

#[expect(clippy::cast_precision_loss, reason = "all figures are bounded by 2^53, or times")]
fn count(figure: u64) -> f64 {
    figure as f64
}

#[cfg(test)]
mod tests;
