//! VMs and a host for this module's tests.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::api::view::{StatusView, VmView};
use serde_json::json;

/// When the tests take place.
pub(super) fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_795_600_000)
}

/// A VM that has been in `state` for two minutes.
pub(super) fn vm(name: &str, pid: u32, state: &str) -> VmView {
    let since = crate::rfc3339::format(now() - Duration::from_secs(120));
    let vm = json!({"name": name, "uuid": null, "pid": pid, "accelerator": "kvm",
        "run_state": "running", "state": state, "cause": null,
        "reason": format!("it is {state}"), "since": since, "flat_seconds": 0.4,
        "restarts_in_window": 0, "guest_resets_in_window": 0,
        "vcpus": [{"id": 0, "tid": 1, "busy_ratio": 0.25}],
        "network": {"guest_tx_packets": 100, "guest_tx_bytes": 1, "guest_rx_packets": 50,
            "guest_rx_bytes": 1, "guest_last_sent_seconds": 0.5, "probe_answers": 0,
            "arp_answers": 0, "ndp_answers": 0},
        "storage": {"read_ops": 1, "read_bytes": 1, "write_ops": 1, "write_bytes": 1,
            "writeback_ops": 0, "writeback_bytes": 0, "flush_ops": 0, "discard_ops": 0,
            "discard_bytes": 0, "completed_ops": 20, "failed_ops": 0, "completion_seconds": 0.25,
            "in_flight": 0, "oldest_in_flight_seconds": null, "mean_in_flight_seconds": null}});
    serde_json::from_value(vm).expect("a VM")
}

/// A host with these.
pub(super) fn status(vms: Vec<VmView>) -> StatusView {
    let host = json!({"version": "0.1.0", "hostname": "h", "kernel": "6.18",
        "uptime_seconds": 65, "mode": "recover", "vms": vms.len(), "degraded": null, "probes": []});
    StatusView { host: serde_json::from_value(host).expect("a host"), vms }
}
