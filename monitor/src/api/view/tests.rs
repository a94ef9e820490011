//! What scripts hold on to.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json, value::Serializer};

use super::{MemoryView, PolicyView, ShowView, StatusView, VmView};
use crate::config::Config;
use flatline_samples::{GuestMemory, Memory, Missing, QemuMemory, Strain};

fn vm() -> Value {
    json!({"name": "web-1", "uuid": null, "pid": 4711, "uid": 107, "accelerator": "kvm",
        "owner": {"kind": "proxmox", "name": "100", "certain": true, "actuator": "proxmox",
            "refusal": null}, "run_state": "running", "state": "alive", "cause": null,
        "reason": "guest sent 12 packets", "since": "2026-11-22T10:00:00Z",
        "flat_seconds": 0.4, "restarts_in_window": 0, "hold": null, "guest_resets_in_window": 0,
        "vcpus": [{"id": 0, "tid": 4715, "busy_ratio": 0.003}],
        "network": {"guest_tx_packets": 1, "guest_tx_bytes": 1, "guest_rx_packets": 1,
            "guest_rx_bytes": 1, "guest_last_sent_seconds": 0.5, "probe_answers": 0,
            "arp_answers": 0, "ndp_answers": 0},
        "storage": {"read_ops": 1, "read_bytes": 1, "write_ops": 1, "write_bytes": 1,
            "writeback_ops": 0, "writeback_bytes": 0, "flush_ops": 0, "discard_ops": 0,
            "discard_bytes": 0, "completed_ops": 2, "failed_ops": 0,
            "completion_seconds": 0.25, "in_flight": 0, "oldest_in_flight_seconds": null,
            "mean_in_flight_seconds": null},
        "heartbeat": {"beats": 3, "failures": 0, "malformed": 0, "last_seconds": 0.5,
            "interval_seconds": 1.0, "boot": "00000000000000ff", "sequence": 3, "leaving": false,
            "check": "web"},
        "memory": {"total_bytes": 1000, "used_bytes": 900, "available_bytes": 100,
            "free_bytes": 50, "disk_cache_bytes": 50, "swap_in_bytes": 0, "swap_out_bytes": null,
            "major_faults": 7, "minor_faults": 8, "major_faults_per_second": 0.5,
            "thrashing": false, "as_of": "2026-11-22T10:00:00Z", "guest_missing": null,
            "qemu_rss_bytes": 5000, "qemu_swap_bytes": null, "qemu_hugetlb_bytes": 0,
            "qemu_as_of": "2026-11-22T10:00:01Z"}})
}

#[test]
fn a_status_keeps_every_name_of_the_documented_json() {
    let text = json!({"host": {"version": "0.1.0", "hostname": "h", "kernel": "6.18",
        "uptime_seconds": 5, "mode": "observe", "vms": 1, "degraded": null,
        "probes": [{"name": "tap", "required": true, "state": "attached", "detail": ""}]},
        "vms": [vm()]});
    let view: StatusView = serde_json::from_value(text.clone()).expect("documented");
    assert_eq!(serde_json::to_value(view).expect("serialisable"), text);
}

#[test]
fn show_is_one_flat_object_with_the_fields_of_status_and_more() {
    let policy = Config::parse("", "").expect("defaults").policy;
    let policy = PolicyView::serialize(&policy, Serializer).expect("JSON");
    let mut text = vm();
    for (key, value) in [
        ("executable", json!("/usr/bin/kvm")),
        ("start_ticks", json!(12)),
        ("owner_evidence", json!(["it is in the control group /qemu.slice/100.scope"])),
        (
            "also_restarted_by",
            json!([{"peer": "pve-ha-lrm", "acts": "a", "flatline": "f", "known_by": "k"}]),
        ),
        ("qmp", json!("connected")),
        (
            "taps",
            json!([{"name": "tap0", "netns": "host", "ifindex": 3, "attached": true,
            "hook": "tcx", "detail": ""}]),
        ),
        ("disks", json!(["/d"])),
        ("unseen_networks", Value::Null),
        ("unseen_storage", Value::Null),
        (
            "signals",
            json!([{"name": "n", "value": "v", "threshold": "t", "since": null,
            "verdict": "alive"}]),
        ),
        ("policy", policy),
        (
            "history",
            json!({"seconds": 2, "packets_from_guest": [0.0, null],
            "packets_to_guest": [7.0, null], "completed": [1.5, 0.0],
            "vcpu": [0.002, 1.0], "vcpu_wanted": [0.002, 1.0],
            "in_flight": [0.0, 0.0], "probe_answers": [null, null],
            "memory": [{"second": 1, "total_bytes": 1000, "available_bytes": null,
                "major_faults_per_second": 0.5, "qemu_rss_bytes": 5000}],
            "marks": [{"second": 1, "kind": "suspicion", "text": "t"}]}),
        ),
        (
            "memory_dump",
            json!({"since": "2026-11-22T10:00:00Z", "completed_bytes": 5, "total_bytes": 10,
            "written_bytes": 2}),
        ),
        ("notes", json!([])),
    ] {
        text[key] = value;
    }
    assert_eq!(text["policy"]["unconfirmed_flat_for"], "2m");
    let view: ShowView = serde_json::from_value(text.clone()).expect("documented");
    assert_eq!(serde_json::to_value(view).expect("serialisable"), text);
}

#[test]
fn a_memory_of_which_nothing_is_known_has_nulls_and_says_why() {
    let missing = |why: &str| Missing::new("its memory", why);
    let memory = Memory {
        guest: Err(missing("it has no balloon")),
        strain: None,
        qemu: Err(missing("gone")),
    };
    let view = serde_json::to_value(MemoryView::new(&memory, SystemTime::now())).expect("JSON");
    let known: Vec<_> = view.as_object().expect("an object").iter().collect();
    let known: Vec<_> = known.into_iter().filter(|(_, value)| !value.is_null()).collect();
    assert_eq!(known, [(&"guest_missing".to_owned(), &json!("it has no balloon"))]);
    // A daemon that tells no memory yet is understood.
    let mut older = vm();
    older.as_object_mut().expect("an object").remove("memory");
    let older: VmView = serde_json::from_value(older).expect("an older VM");
    assert_eq!(older.memory, MemoryView::default());
}

#[test]
fn a_thrashing_guests_memory_keeps_every_figure_and_is_named_as_that() {
    let guest = GuestMemory {
        told_at: 1_795_564_036,
        total: Some(1000),
        available: Some(20),
        swap_in: Some(7),
        ..GuestMemory::default()
    };
    let strain = Strain { available: 0.02, major_faults: 123.456 };
    let qemu = QemuMemory { rss: 5000, swap: Some(0), hugetlb: None };
    let memory = Memory { guest: Ok(guest), strain: Some(strain), qemu: Ok(qemu) };
    let view = MemoryView::new(&memory, SystemTime::UNIX_EPOCH);
    let expected = MemoryView {
        total_bytes: Some(1000),
        used_bytes: Some(980),
        available_bytes: Some(20),
        swap_in_bytes: Some(7),
        major_faults_per_second: Some(123.5),
        thrashing: Some(true),
        as_of: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_564_036)),
        qemu_rss_bytes: Some(5000),
        qemu_swap_bytes: Some(0),
        qemu_as_of: Some(SystemTime::UNIX_EPOCH),
        ..MemoryView::default()
    };
    assert_eq!(view, expected);
}
