//! A VM's memory, as JSON.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::rfc3339;
use flatline_samples::{Memory, QemuMemory, Strain};

/// A VM's memory; `None` is what isn't told, or was not read yet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct MemoryView {
    /// All memory that the guest's kernel has to give, in bytes.
    pub total_bytes: Option<u64>,
    /// Of those, all that could not be had.
    pub used_bytes: Option<u64>,
    /// What could be had without swapping.
    pub available_bytes: Option<u64>,
    /// What is unused.
    pub free_bytes: Option<u64>,
    /// What holds files' contents, and could be given back.
    pub disk_cache_bytes: Option<u64>,
    /// Read back from the guest's swap since it booted.
    pub swap_in_bytes: Option<u64>,
    /// Written out to it.
    pub swap_out_bytes: Option<u64>,
    /// Page faults that waited for a store, since the guest booted.
    pub major_faults: Option<u64>,
    /// Those that didn't.
    pub minor_faults: Option<u64>,
    /// Major faults a second, between the guest's last two tellings.
    pub major_faults_per_second: Option<f64>,
    /// Whether the guest does little else than wait for pages that it had to give away.
    pub thrashing: Option<bool>,
    /// When the guest told that.
    #[serde(with = "rfc3339::option", default)]
    pub as_of: Option<SystemTime>,
    /// Why the guest tells nothing, where it doesn't.
    pub guest_missing: Option<String>,
    /// What QEMU has resident on the host, huge pages of hugetlbfs left out.
    pub qemu_rss_bytes: Option<u64>,
    /// What of QEMU's private memory the host has swapped out.
    pub qemu_swap_bytes: Option<u64>,
    /// What QEMU has in huge pages of hugetlbfs.
    pub qemu_hugetlb_bytes: Option<u64>,
    /// When QEMU's figures were read.
    #[serde(with = "rfc3339::option", default)]
    pub qemu_as_of: Option<SystemTime>,
}

/// A VM's memory at some second of its last minutes; `None` is what wasn't told.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct MemoryMomentView {
    /// In which second of the rows.
    pub second: usize,
    /// All memory of the guest, in bytes.
    pub total_bytes: Option<u64>,
    /// What of it could be had without swapping.
    pub available_bytes: Option<u64>,
    /// The guest's major faults a second.
    pub major_faults_per_second: Option<f64>,
    /// What QEMU had resident on the host.
    pub qemu_rss_bytes: Option<u64>,
}

impl MemoryView {
    /// What is known of it; QEMU's figures were read `qemu_read`.
    pub(crate) fn new(memory: &Memory, qemu_read: SystemTime) -> Self {
        let Memory { guest, strain, qemu } = memory;
        let told_at = |at: u64| UNIX_EPOCH.checked_add(Duration::from_secs(at));
        let (as_of, guest_missing) = match guest {
            Ok(guest) => (told_at(guest.told_at), None),
            Err(missing) => (None, Some(missing.why.clone())),
        };
        // All `None` where nothing is known.
        let known = guest.as_ref().copied().unwrap_or_default();
        let QemuMemory { rss: _, swap, hugetlb } = qemu.as_ref().copied().unwrap_or_default();
        Self {
            total_bytes: known.total,
            used_bytes: known.used(),
            available_bytes: known.available,
            free_bytes: known.free,
            disk_cache_bytes: known.disk_caches,
            swap_in_bytes: known.swap_in,
            swap_out_bytes: known.swap_out,
            major_faults: known.major_faults,
            minor_faults: known.minor_faults,
            major_faults_per_second: strain.map(|strain| rounded(strain.major_faults)),
            thrashing: strain.as_ref().map(Strain::is_thrashing),
            as_of,
            guest_missing,
            qemu_rss_bytes: qemu.as_ref().ok().map(|qemu| qemu.rss),
            qemu_swap_bytes: swap,
            qemu_hugetlb_bytes: hugetlb,
            qemu_as_of: qemu.is_ok().then_some(qemu_read),
        }
    }
}

impl MemoryMomentView {
    /// The same of one reading.
    pub(crate) fn new(memory: &Memory, second: usize) -> Self {
        let guest = memory.guest.as_ref().ok();
        Self {
            second,
            total_bytes: guest.and_then(|guest| guest.total),
            available_bytes: guest.and_then(|guest| guest.available),
            major_faults_per_second: memory.strain.map(|strain| rounded(strain.major_faults)),
            qemu_rss_bytes: memory.qemu.as_ref().ok().map(|qemu| qemu.rss),
        }
    }
}

/// To a tenth.
fn rounded(rate: f64) -> f64 {
    (rate * 10.0).round() / 10.0
}
