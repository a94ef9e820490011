//! What scripts hold on to.

use serde_json::{Value, json};

use super::{PolicyView, ShowView, StatusView};
use crate::config::Config;

fn vm() -> Value {
    json!({"name": "web-1", "uuid": null, "pid": 4711, "accelerator": "kvm",
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
        "memory": {"total_bytes": 5, "used_bytes": 2, "available_bytes": 3, "swap_in_bytes": 0,
            "swap_out_bytes": 0, "major_faults": 7, "as_of": "2026-11-22T10:00:00Z",
            "qemu_rss_bytes": 6, "qemu_swap_bytes": 0, "thrashing": null}})
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
    let policy = PolicyView::from(&Config::parse("", "").expect("defaults").policy);
    let mut text = vm();
    for (key, value) in [
        ("executable", json!("/usr/bin/kvm")),
        ("uid", json!(107)),
        ("start_ticks", json!(12)),
        ("owner_evidence", json!(["it is in the control group /qemu.slice/100.scope"])),
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
        ("policy", serde_json::to_value(policy).expect("serialisable")),
        (
            "history",
            json!({"seconds": 2, "packets_from_guest": [0.0, null],
            "packets_to_guest": [7.0, null], "completed": [1.5, 0.0],
            "vcpu": [0.002, 1.0], "vcpu_wanted": [0.002, 1.0],
            "in_flight": [0.0, 0.0], "probe_answers": [null, null],
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
