//! The lines of `show` on a VM's memory.

use crate::api::view::MemoryView;

use crate::cli::table::{or_dash, time};

/// What its guest tells.
pub(super) fn guest(memory: &MemoryView) -> String {
    if let Some(why) = &memory.guest_missing {
        return format!("not told: {why}");
    }
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "?".to_owned(), mib);
    let count = |number: Option<u64>| or_dash(number.map(|number| number.to_string()));
    let mut text = format!(
        "{} of {} used, {} available; swapped {} in, {} out; {} major faults",
        size(memory.used_bytes),
        size(memory.total_bytes),
        size(memory.available_bytes),
        size(memory.swap_in_bytes),
        size(memory.swap_out_bytes),
        count(memory.major_faults),
    );
    if let Some(rate) = memory.major_faults_per_second {
        text.push_str(&format!(", {rate:.1}/s"));
    }
    if memory.thrashing == Some(true) {
        text.push_str("; thrashing");
    }
    text + &format!(" ({})", time(memory.as_of))
}

/// What its QEMU takes.
pub(super) fn qemu(memory: &MemoryView) -> String {
    let Some(rss) = memory.qemu_rss_bytes else { return "unreadable".to_owned() };
    let mut text = format!("{} resident", mib(rss));
    if let Some(bytes) = memory.qemu_hugetlb_bytes.filter(|bytes| *bytes > 0) {
        text.push_str(&format!(", {} in huge pages", mib(bytes)));
    }
    if let Some(bytes) = memory.qemu_swap_bytes {
        text.push_str(&format!(", {} swapped out", mib(bytes)));
    }
    text
}

/// In MiB, to a tenth.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn what_is_not_told_is_no_zero_and_what_thrashes_is_named() {
        let missing = MemoryView {
            guest_missing: Some("it has no balloon".to_owned()),
            ..MemoryView::default()
        };
        assert_eq!(guest(&missing), "not told: it has no balloon");
        assert_eq!(qemu(&missing), "unreadable");
        let told = MemoryView {
            total_bytes: Some(100 << 20),
            used_bytes: Some(99 << 20),
            available_bytes: Some(1 << 20),
            swap_out_bytes: Some(1 << 19),
            major_faults: Some(7),
            major_faults_per_second: Some(900.0),
            thrashing: Some(true),
            as_of: Some(UNIX_EPOCH + Duration::from_secs(1_795_564_036)),
            qemu_rss_bytes: Some(120 << 20),
            qemu_swap_bytes: Some(0),
            ..MemoryView::default()
        };
        assert_eq!(
            guest(&told),
            "99.0 MiB of 100.0 MiB used, 1.0 MiB available; swapped ? in, 0.5 MiB out; \
             7 major faults, 900.0/s; thrashing (2026-11-24T23:47:16Z)"
        );
        assert_eq!(qemu(&told), "120.0 MiB resident, 0.0 MiB swapped out");
    }
}
