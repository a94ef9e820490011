use serde_json::json;

use super::*;

const NOT_TOLD: u64 = u64::MAX;

#[test]
fn what_linux_tells_qemu_is_understood_and_what_it_does_not_tell_is_missing() {
    // As QEMU 7.2 has it of a Linux 6.1.
    let reply = json!({"stats": {"stat-htlb-pgalloc": 0, "stat-swap-out": 4096,
        "stat-available-memory": 21_504_000, "stat-htlb-pgfail": 0, "stat-free-memory": 9_011_200,
        "stat-minor-faults": 7016, "stat-major-faults": 12, "stat-total-memory": 56_094_720,
        "stat-swap-in": NOT_TOLD, "stat-disk-caches": 26_763_264}, "last-update": 1_795_564_036_u64});
    let expected = GuestMemory {
        told_at: 1_795_564_036,
        total: Some(56_094_720),
        free: Some(9_011_200),
        available: Some(21_504_000),
        disk_caches: Some(26_763_264),
        swap_in: None,
        swap_out: Some(4096),
        major_faults: Some(12),
        minor_faults: Some(7016),
    };
    let memory = GuestMemory::parse(&reply, 1_795_564_040).unwrap();
    assert_eq!(memory, expected);
    assert_eq!(memory.used(), Some(56_094_720 - 21_504_000));
}

#[test]
fn a_guest_that_tells_nothing_has_no_figures_and_not_zeros() {
    let untold = json!({"stat-total-memory": NOT_TOLD, "stat-major-faults": NOT_TOLD});
    assert_eq!(GuestMemory::parse(&json!({"stats": untold, "last-update": 5}), 9), None);
    let told = json!({"stat-total-memory": 5});
    for reply in [
        json!({"stats": told, "last-update": 0}),
        json!({"stats": told}),
        json!({"last-update": 5}),
        json!({"stats": told, "last-update": "5"}),
        json!([]),
        json!(null),
    ] {
        assert_eq!(GuestMemory::parse(&reply, 9), None, "{reply}");
    }
    assert!(GuestMemory::parse(&json!({"stats": told, "last-update": 5}), 9).is_some());
}

#[test]
fn figures_that_no_guest_can_have_are_missing_and_a_time_to_come_is_now() {
    let reply = json!({"stats": {"stat-total-memory": MOST_BYTES + 1, "stat-free-memory": -1,
        "stat-available-memory": 1.5, "stat-disk-caches": "much", "stat-swap-in": [7],
        "stat-major-faults": MOST_FAULTS + 1, "stat-minor-faults": MOST_FAULTS,
        "stat-x": 1}, "last-update": u64::MAX});
    let expected =
        GuestMemory { told_at: 9, minor_faults: Some(MOST_FAULTS), ..GuestMemory::default() };
    assert_eq!(GuestMemory::parse(&reply, 9), Some(expected));
}

#[test]
fn more_available_than_there_is_gives_neither_a_use_nor_a_share() {
    let memory = GuestMemory { total: Some(5), available: Some(6), ..GuestMemory::default() };
    assert_eq!((memory.used(), memory.available_share()), (None, None));
    let none = GuestMemory { total: Some(0), available: Some(0), ..GuestMemory::default() };
    assert_eq!(none.available_share(), None);
}

#[test]
fn a_status_gives_what_is_resident_and_what_is_swapped_out() {
    let status = "Name:\tqemu\\nVmRSS:\t1 kB\nVmHWM:\t  900000 kB\nVmRSS:\t  123456 kB\n\
                  RssAnon:\t  100000 kB\nVmSwap:\t     512 kB\nHugetlbPages:\t 2048 kB\n";
    let expected = QemuMemory { rss: 123_456 << 10, swap: Some(512 << 10), hugetlb: Some(2 << 20) };
    assert_eq!(QemuMemory::parse(status), Some(expected));
    let without = QemuMemory { rss: 0, swap: None, hugetlb: None };
    assert_eq!(QemuMemory::parse("VmRSS:\t0 kB\n"), Some(without));
    for status in ["", "VmRSS:\t1 MB\n", "VmRSS:\t-1 kB\n", "VmRSS:\t99999999999999999999 kB\n"] {
        assert_eq!(QemuMemory::parse(status), None, "{status}");
    }
}

fn told(told_at: u64, available: u64, major_faults: u64) -> GuestMemory {
    GuestMemory {
        told_at,
        total: Some(1000),
        available: Some(available),
        major_faults: Some(major_faults),
        ..GuestMemory::default()
    }
}

fn thrashes(before: &GuestMemory, now: &GuestMemory) -> bool {
    Strain::between(before, now).is_some_and(|strain| strain.is_thrashing())
}

#[test]
fn a_guest_thrashes_only_with_little_memory_and_many_major_faults_together() {
    // 30 s apart: 1,500 faults are 50 a second.
    let before = told(100, 400, 70);
    assert!(thrashes(&before, &told(130, 199, 1570)));
    assert!(!thrashes(&before, &told(130, 200, 1570)), "enough memory");
    assert!(!thrashes(&before, &told(130, 199, 1569)), "few faults");
    assert!(!thrashes(&before, &told(160, 199, 1570)), "the same faults in twice the time");
    let strain = Strain::between(&before, &told(130, 12, 28_270)).unwrap();
    assert_eq!(strain.describe(), "thrashing: 1.2 % of its memory available, 940 major faults/s");
    let calm = Strain::between(&before, &told(130, 500, 70)).unwrap();
    assert_eq!(calm.describe(), "50.0 % of its memory available, 0 major faults/s");
}

#[test]
fn without_two_tellings_of_one_boot_with_all_figures_nothing_is_said() {
    let (before, now) = (told(100, 400, 70), told(130, 1, 100_000));
    assert!(thrashes(&before, &now));
    assert_eq!(Strain::between(&now, &now), None, "the same telling");
    assert_eq!(Strain::between(&now, &before), None, "the clock was put back");
    assert_eq!(Strain::between(&told(100, 1, 200_000), &now), None, "it booted meanwhile");
    for lacking in [
        GuestMemory { available: None, ..now },
        GuestMemory { total: None, ..now },
        GuestMemory { major_faults: None, ..now },
    ] {
        assert_eq!(Strain::between(&before, &lacking), None);
    }
    let unknown = GuestMemory { major_faults: None, ..before };
    assert_eq!(Strain::between(&unknown, &now), None);
    // A first telling that lacks the rest is enough.
    assert!(thrashes(&GuestMemory { total: None, available: None, ..before }, &now));
}

#[test]
fn a_host_without_swap_and_huge_pages_in_use_is_plain_and_its_processes_have_none() {
    let host = |used: u64, huge: &str| {
        let free = 2048 - used;
        format!("MemTotal: 9 kB\nSwapTotal:    2048 kB\nSwapFree:  {free} kB\n{huge}")
    };
    assert_eq!(PlainHost::parse(&host(4, "Hugetlb: 0 kB\n")), None);
    assert_eq!(PlainHost::parse(&host(0, "Hugetlb: 2048 kB\n")), None);
    assert_eq!(PlainHost::parse("MemTotal: 9 kB\nSwapTotal: 0 kB\n"), None);
    let plain = PlainHost::parse(&host(0, "HugePages_Total: 0\nHugetlb:  0 kB\n")).unwrap();
    let memory = QemuMemory::parse_statm("5000 300 20 7 0 900 0\n", 4096, plain);
    let expected = QemuMemory { rss: 300 * 4096, swap: Some(0), hugetlb: Some(0) };
    assert_eq!(memory, Some(expected));
    let without = PlainHost::parse(&host(0, "")).unwrap();
    let memory = QemuMemory::parse_statm("5000 300 20 7 0 900 0\n", 4096, without).unwrap();
    assert_eq!(memory.hugetlb, None);
    // One that has ended, and what is none.
    for statm in ["0 0 0 0 0 0 0\n", "", "9", "9 x"] {
        assert_eq!(QemuMemory::parse_statm(statm, 4096, plain), None, "{statm}");
    }
}
