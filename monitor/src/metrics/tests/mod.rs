mod documents;
mod formats;
mod incidents;
mod parse;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use monitor_ebpf::{NetworkCounters, StorageCounters};
use tokio::sync::watch;

use super::{
    Beats, Counts, Exposition, Format, IncidentCounts, MapFill, NotificationCounts, ProgramFigures,
    Snapshot, Told, VmFigures,
};
use flatline_detector::{
    policy::Mode,
    verdict::{Cause, State},
};
use flatline_qemu::discover::{Ownership, Vm, VmId};
use flatline_samples::{GuestMemory, Memory, QemuMemory, RunState, Strain, VcpuTime};
use parse::{Family, Sample, open_metrics, sample};

/// A VM of which everything is known.
fn vm(name: &str, pid: u32) -> VmFigures {
    let id = VmId { pid, start_ticks: 1 };
    let uuid = Some("6e3ab7b5-6b5e-4d0c-9a0c-0123456789ab".to_owned());
    let vm = Vm { id, name: name.to_owned(), uuid, ..Vm::stand_in(Ownership::bare(), &[]) };
    VmFigures {
        vm: Arc::new(vm),
        mode: Mode::Observe,
        state: "crashed",
        cause: Some(Cause::Panicked),
        run_state: Some(RunState::GuestPanicked),
        flat: Some(Duration::from_millis(12_500)),
        is_held: true,
        is_counted: true,
        restarts: 3,
        guest_resets_in_window: 2,
        sees_to_guest: true,
        network: Some(NetworkCounters {
            guest_tx_packets: 11,
            guest_tx_bytes: 12,
            guest_rx_packets: 13,
            guest_rx_bytes: 14,
            probe_answers: 15,
            ..NetworkCounters::default()
        }),
        storage: Some(StorageCounters {
            read_ops: 21,
            read_bytes: 22,
            write_ops: 23,
            write_bytes: 24,
            writeback_ops: 25,
            writeback_bytes: 26,
            flush_ops: 27,
            discard_ops: 28,
            discard_bytes: 29,
            tracked_ops: 99,
            completed_ops: 90,
            failed_ops: 4,
            ..StorageCounters::default()
        }),
        oldest_in_flight: Some(Duration::from_secs(7)),
        heartbeats: Some(Beats { beats: 31, failures: 32, malformed: 33, last_seconds: Some(0.5) }),
        memory: Some(Arc::new(Memory {
            guest: Ok(GuestMemory {
                told_at: 46,
                total: Some(41),
                available: Some(42),
                swap_in: Some(43),
                swap_out: Some(44),
                major_faults: Some(45),
                ..GuestMemory::default()
            }),
            strain: Some(Strain { available: 0.01, major_faults: 1000.0 }),
            qemu: Ok(QemuMemory { rss: 47, swap: Some(48), hugetlb: None }),
        })),
        vcpus: Some(vec![vcpu(0), vcpu(1)]),
    }
}

fn vcpu(index: u32) -> VcpuTime {
    VcpuTime { index, tid: 100 + index, run_ns: 1_500_000_000, wait_ns: 250_000_000 }
}

fn snapshot(vms: Vec<VmFigures>) -> Snapshot {
    Snapshot {
        at: UNIX_EPOCH + Duration::from_millis(1_700_000_000_250),
        mode: Mode::Recover,
        is_storm: false,
        is_degraded: true,
        programs: vec![
            ProgramFigures { name: "tap_from_guest", is_attached: true },
            ProgramFigures { name: "threads", is_attached: false },
        ],
        maps: vec![MapFill { map: "vms", used: 2, of: 1024 }],
        uncounted_taps: 1,
        most_vms: 4,
        vms,
    }
}

/// What is served of it.
fn text(snapshot: Snapshot, format: Format) -> String {
    let (_sender, latest) = watch::channel(Some(Arc::new(snapshot)));
    let counts = Counts::default();
    counts.ticked(Duration::ZERO, Duration::from_millis(2), Duration::from_secs(1));
    counts.ticked(Duration::from_millis(501), Duration::from_secs(3), Duration::from_secs(1));
    let incidents = IncidentCounts::new(UNIX_EPOCH);
    incidents.note(&incidents::recovered("a", "silent", UNIX_EPOCH));
    let notifications = NotificationCounts::default();
    notifications.begin("pager");
    notifications.note("pager", Told::Delivered, 2);
    notifications.waiting("pager", 5);
    let exposition = Exposition::new(latest, &Arc::default(), &counts, &incidents, &notifications);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let text = runtime.block_on(exposition.text(format)).expect("there was a tick");
    String::from_utf8(text.to_vec()).expect("UTF-8")
}

fn served(vms: Vec<VmFigures>) -> BTreeMap<String, Family> {
    open_metrics(&text(snapshot(vms), Format::OpenMetrics))
}

/// The family's only sample that has all these labels.
fn value(families: &BTreeMap<String, Family>, family: &str, labels: &[(&str, &str)]) -> f64 {
    let samples = of(families, family).into_iter().filter(|sample| {
        let has =
            |(name, value): &(&str, &str)| sample.labels.get(*name).is_some_and(|v| v == value);
        labels.iter().all(has)
    });
    let samples: Vec<_> = samples.collect();
    assert_eq!(samples.len(), 1, "{family} {labels:?}: {samples:?}");
    samples[0].value
}

fn of(families: &BTreeMap<String, Family>, family: &str) -> Vec<Sample> {
    families.get(family).map(|family| family.samples.clone()).unwrap_or_default()
}

#[test]
fn figures_of_a_vm_are_served_as_they_are() {
    let families = served(vec![vm("web-1", 7)]);
    let value = |family: &str, labels: &[(&str, &str)]| {
        value(&families, &format!("flatline_{family}"), labels)
    };
    let same = |figure: f64, wanted: f64| assert!((figure - wanted).abs() < 1e-9, "{figure}");
    for (family, figure) in [
        ("vm_flat_seconds", 12.5),
        ("vm_held", 1.0),
        ("vm_restarts", 3.0),
        ("vm_guest_resets_in_window", 2.0),
        ("vm_network_transmit_packets", 11.0),
        ("vm_network_transmit_bytes", 12.0),
        ("vm_network_receive_packets", 13.0),
        ("vm_network_receive_bytes", 14.0),
        ("vm_probe_answers", 15.0),
        ("vm_storage_writeback_operations", 25.0),
        ("vm_storage_writeback_bytes", 26.0),
        ("vm_storage_completed_operations", 90.0),
        ("vm_storage_failed_operations", 4.0),
        ("vm_storage_in_flight", 9.0),
        ("vm_storage_oldest_in_flight_seconds", 7.0),
        ("vm_heartbeats", 31.0),
        ("vm_heartbeat_check_failures", 32.0),
        ("vm_heartbeats_malformed", 33.0),
        ("vm_memory_total_bytes", 41.0),
        ("vm_memory_available_bytes", 42.0),
        ("vm_memory_swap_in_bytes", 43.0),
        ("vm_memory_swap_out_bytes", 44.0),
        ("vm_memory_major_faults", 45.0),
        ("vm_memory_told_timestamp_seconds", 46.0),
        ("vm_memory_thrashing", 1.0),
        ("vm_qemu_memory_resident_bytes", 47.0),
        ("vm_qemu_memory_swapped_bytes", 48.0),
        ("vm_heartbeat_age_seconds", 0.5),
    ] {
        same(value(family, &[("vm", "web-1"), ("pid", "7")]), figure);
    }
    for (operation, ops, bytes) in
        [("read", 21.0, Some(22.0)), ("write", 23.0, Some(24.0)), ("flush", 27.0, None)]
    {
        same(value("vm_storage_operations", &[("operation", operation)]), ops);
        if let Some(bytes) = bytes {
            same(value("vm_storage_bytes", &[("operation", operation)]), bytes);
        }
    }
    same(value("vm_vcpu_seconds", &[("vcpu", "1")]), 1.5);
    same(value("vm_vcpu_wait_seconds", &[("vcpu", "0")]), 0.25);
    same(value("vm_cause", &[("cause", "panicked")]), 1.0);
    same(value("vm_run_state", &[("run_state", "guest-panicked")]), 1.0);
    same(value("vm_state", &[("state", "crashed")]), 1.0);
    let states = of(&families, "flatline_vm_state");
    assert_eq!(states.len(), State::NAMES.len());
    same(states.iter().map(|sample| sample.value).sum(), 1.0);
    same(value("vms", &[("state", "crashed")]), 1.0);
    let labels = [("accelerator", "kvm"), ("owner", "bare"), ("mode", "observe"), ("pid", "7")];
    same(value("vm", &labels), 1.0);
}

#[test]
fn figures_of_the_daemon_are_served_as_they_are() {
    let families = served(Vec::new());
    let value = |family: &str, labels: &[(&str, &str)]| {
        value(&families, &format!("flatline_{family}"), labels).to_string()
    };
    assert_eq!(value("last_tick_timestamp_seconds", &[]), "1700000000.25");
    assert_eq!((value("mode", &[("mode", "recover")]), value("degraded", &[])), two("1", "1"));
    assert_eq!((value("mode", &[("mode", "observe")]), value("storm", &[])), two("0", "0"));
    assert_eq!(value("ebpf_program_attached", &[("program", "threads")]), "0");
    assert_eq!(value("map_entries", &[("map", "vms")]), "2");
    assert_eq!(value("map_entries_max", &[("map", "vms")]), "1024");
    assert_eq!((value("ticks", &[]), value("ticks_late", &[])), two("2", "1"));
    assert_eq!(value("build", &[("version", env!("CARGO_PKG_VERSION"))]), "1");
    let ticks = of(&families, "flatline_tick_duration_seconds");
    let bucket = |le: &str| {
        let it = ticks.iter().find(|sample| sample.labels.get("le").is_some_and(|at| at == le));
        it.expect("a bucket").value.to_string()
    };
    assert_eq!((bucket("0.001"), bucket("0.0025")), two("0", "1"));
    assert_eq!((bucket("1.0"), bucket("+Inf")), two("1", "2"));
}

fn two(a: &str, b: &str) -> (String, String) {
    (a.to_owned(), b.to_owned())
}

#[test]
fn what_could_not_be_read_has_no_series() {
    let unreadable = VmFigures {
        state: "unobservable",
        cause: None,
        run_state: None,
        flat: None,
        sees_to_guest: false,
        network: None,
        storage: None,
        oldest_in_flight: None,
        heartbeats: None,
        memory: None,
        vcpus: None,
        ..vm("dark", 8)
    };
    let both = served(vec![vm("web-1", 7), unreadable.clone()]);
    let only = served(vec![unreadable]);
    let known = ["vm", "vm_state", "vm_held", "vm_restarts", "vm_guest_resets_in_window"];
    let mut all = 0;
    for name in both.keys().filter_map(|name| name.strip_prefix("flatline_")) {
        if name != "vm" && !name.starts_with("vm_") {
            continue;
        }
        all += 1;
        let family = format!("flatline_{name}");
        let has_series = of(&both, &family).iter().any(|sample| sample.labels["vm"] == "dark");
        assert_eq!(has_series, known.contains(&name), "{family}");
        assert_eq!(only.contains_key(&family), known.contains(&name), "{family} alone");
    }
    assert!(all > 25, "{all}");
}

#[test]
fn a_hostile_name_is_one_label_of_bounded_length() {
    let name = format!("\"}} 1\n# EOF\nflatline_x{{a=\"\\\u{1b}[31m\r\0{}", "x".repeat(5000));
    let mut hostile = vm(&name, 7);
    let mut inner = Arc::unwrap_or_clone(hostile.vm);
    inner.uuid = Some("\\\"\n".repeat(2000));
    hostile.vm = Arc::new(inner);
    let families = served(vec![hostile]);
    for sample in families.values().flat_map(|family| &family.samples) {
        for value in sample.labels.values() {
            assert!(value.chars().count() <= 128 && !value.chars().any(char::is_control));
        }
    }
    let vm = &of(&families, "flatline_vm_held")[0].labels["vm"];
    assert!(vm.starts_with("\"} 1\u{fffd}# EOF\u{fffd}flatline_x{a=\"\\\u{fffd}[31m"), "{vm}");
}

#[test]
fn vms_of_one_name_have_series_of_their_own_and_a_pid_that_was_reused_only_one() {
    let mut older = vm("web-1", 9);
    older.restarts = 77;
    let mut newer = vm("web-1", 9);
    let newer_vm = Vm { id: VmId { pid: 9, start_ticks: 5 }, ..Arc::unwrap_or_clone(newer.vm) };
    newer.vm = Arc::new(newer_vm);
    let families = served(vec![vm("web-1", 7), older, newer]);
    let restarts = of(&families, "flatline_vm_restarts");
    assert_eq!(restarts.len(), 2);
    assert!(restarts.iter().all(|sample| sample.value < 77.0), "{restarts:?}");
}

#[test]
fn a_vm_that_vanished_has_no_series_in_the_next_snapshot() {
    let (sender, latest) = watch::channel(None);
    let exposition = Exposition::new(
        latest,
        &Arc::default(),
        &Counts::default(),
        &IncidentCounts::new(UNIX_EPOCH),
        &NotificationCounts::default(),
    );
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let text = || runtime.block_on(exposition.text(Format::OpenMetrics));
    assert_eq!(text(), None, "before the first tick");
    sender.send_replace(Some(Arc::new(snapshot(vec![vm("web-1", 7), vm("web-2", 8)]))));
    let first = text().expect("there was a tick");
    let again = text().expect("there was a tick");
    assert_eq!(first.as_ptr(), again.as_ptr(), "made twice of one snapshot");
    sender.send_replace(Some(Arc::new(snapshot(vec![vm("web-2", 8)]))));
    let later = text().expect("there was a tick");
    let has = |text: &[u8], name: &str| std::str::from_utf8(text).expect("UTF-8").contains(name);
    assert!(has(&first, "\"web-1\"") && has(&first, "\"web-2\""));
    assert!(!has(&later, "web-1") && has(&later, "\"web-2\""));
}

#[test]
fn however_many_vms_and_vcpus_there_are_series_are_bounded() {
    let mut vms: Vec<_> = (1..=50).map(|pid| vm(&format!("vm-{pid}"), pid)).collect();
    for figures in &mut vms[..48] {
        figures.is_counted = false;
    }
    vms[49].vcpus = Some((0..5000).map(|index| vcpu(index % 4000)).collect());
    vms[49].run_state = Some(RunState::Other("made-up-4711".to_owned()));
    let families = served(vms);
    let named: Vec<_> =
        of(&families, "flatline_vm_held").into_iter().map(|s| s.labels["vm"].clone()).collect();
    assert_eq!(named, ["vm-49", "vm-50", "vm-1", "vm-2"], "those that are counted come first");
    assert_eq!(value(&families, "flatline_vms", &[("state", "crashed")]).to_string(), "50");
    assert_eq!(value(&families, "flatline_vms_uncounted", &[]).to_string(), "48");
    let vcpus = of(&families, "flatline_vm_vcpu_seconds");
    assert_eq!(vcpus.iter().filter(|sample| sample.labels["vm"] == "vm-50").count(), 256);
    let labels = [("vm", "vm-50"), ("run_state", "other")];
    assert_eq!(value(&families, "flatline_vm_run_state", &labels).to_string(), "1");
}

#[test]
fn every_state_is_among_the_names() {
    let tally = flatline_detector::verdict::Tally::default;
    let (cause, deadline) = (Cause::Halted, Duration::ZERO);
    let states = [
        State::Starting,
        State::Alive,
        State::Suspect { tally: tally() },
        State::Crashed { cause },
        State::Recovering { cause, deadline, tally: tally(), was_up: false },
        State::Held,
        State::Failed { cause },
        State::Unobservable,
    ];
    assert_eq!(states.map(|state| state.name()), State::NAMES);
}
