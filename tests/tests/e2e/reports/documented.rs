//! The documented fields of each report, and their types.

use super::shape::Shape::{
    self, Bool, Both, List, Number, Object, OneOf, OrNull, Text, Time, Unsigned,
};

const SECONDS: Shape = Number(0.0, 1e9);
const MODE: Shape = OneOf(&["recover", "observe"]);
const CAUSE: Shape = OneOf(&[
    "panicked",
    "halted",
    "spinning",
    "silent",
    "internal-error",
    "qemu-exited",
    "qemu-unresponsive",
]);

pub(super) const STATUS: Shape = Object(&[("host", HOST), ("vms", List(&VM))]);

const HOST: Shape = Object(&[
    ("version", Text),
    ("hostname", OrNull(&Text)),
    ("kernel", Text),
    ("uptime_seconds", Unsigned),
    ("mode", MODE),
    ("vms", Unsigned),
    ("probes", List(&PROBE)),
    ("degraded", OrNull(&Text)),
]);

const PROBE: Shape = Object(&[
    ("name", Text),
    ("required", Bool),
    ("state", OneOf(&["attached", "failed", "unsupported"])),
    ("detail", Text),
]);

const VM: Shape = Object(&[
    ("name", Text),
    ("uuid", OrNull(&Text)),
    ("pid", Unsigned),
    ("accelerator", OneOf(&["kvm", "tcg"])),
    ("run_state", OrNull(&Text)),
    (
        "state",
        OneOf(&[
            "starting",
            "alive",
            "suspect",
            "crashed",
            "recovering",
            "held",
            "failed",
            "unobservable",
        ]),
    ),
    ("cause", OrNull(&CAUSE)),
    ("reason", Text),
    ("since", Time),
    ("flat_seconds", OrNull(&SECONDS)),
    ("restarts_in_window", Unsigned),
    ("hold", OrNull(&Text)),
    ("owner", OWNER),
    ("guest_resets_in_window", Unsigned),
    ("vcpus", List(&VCPU)),
    ("network", OrNull(&NETWORK)),
    ("storage", OrNull(&STORAGE)),
    ("memory", MEMORY),
]);

// A vCPU that ran for a whole second shows as a little more where a sample came late.
const VCPU: Shape =
    Object(&[("id", Unsigned), ("tid", Unsigned), ("busy_ratio", OrNull(&Number(0.0, 1.5)))]);

const OWNER: Shape = Object(&[
    ("kind", Text),
    ("name", OrNull(&Text)),
    ("certain", Bool),
    ("actuator", OrNull(&Text)),
    ("refusal", OrNull(&Text)),
]);

const NETWORK: Shape = Object(&[
    ("guest_tx_packets", Unsigned),
    ("guest_tx_bytes", Unsigned),
    ("guest_rx_packets", OrNull(&Unsigned)),
    ("guest_rx_bytes", OrNull(&Unsigned)),
    ("guest_last_sent_seconds", OrNull(&SECONDS)),
    ("probe_answers", Unsigned),
    ("arp_answers", Unsigned),
    ("ndp_answers", Unsigned),
]);

const STORAGE: Shape = Object(&[
    ("read_ops", Unsigned),
    ("read_bytes", Unsigned),
    ("write_ops", Unsigned),
    ("write_bytes", Unsigned),
    ("writeback_ops", Unsigned),
    ("writeback_bytes", Unsigned),
    ("flush_ops", Unsigned),
    ("discard_ops", Unsigned),
    ("discard_bytes", Unsigned),
    ("completed_ops", Unsigned),
    ("failed_ops", Unsigned),
    ("completion_seconds", SECONDS),
    ("in_flight", Unsigned),
    ("oldest_in_flight_seconds", OrNull(&SECONDS)),
    ("mean_in_flight_seconds", OrNull(&SECONDS)),
]);

const MEMORY: Shape = Object(&[
    ("total_bytes", OrNull(&Unsigned)),
    ("used_bytes", OrNull(&Unsigned)),
    ("available_bytes", OrNull(&Unsigned)),
    ("free_bytes", OrNull(&Unsigned)),
    ("disk_cache_bytes", OrNull(&Unsigned)),
    ("swap_in_bytes", OrNull(&Unsigned)),
    ("swap_out_bytes", OrNull(&Unsigned)),
    ("major_faults", OrNull(&Unsigned)),
    ("minor_faults", OrNull(&Unsigned)),
    ("major_faults_per_second", OrNull(&SECONDS)),
    ("thrashing", OrNull(&Bool)),
    ("as_of", OrNull(&Time)),
    ("guest_missing", OrNull(&Text)),
    ("qemu_rss_bytes", OrNull(&Unsigned)),
    ("qemu_swap_bytes", OrNull(&Unsigned)),
    ("qemu_hugetlb_bytes", OrNull(&Unsigned)),
    ("qemu_as_of", OrNull(&Time)),
]);

pub(super) const SHOW: Shape = Both(
    &VM,
    &Object(&[
        ("executable", Text),
        ("uid", Unsigned),
        ("start_ticks", Unsigned),
        ("owner_evidence", List(&Text)),
        ("also_restarted_by", List(&PEER)),
        ("qmp", Text),
        ("taps", List(&TAP)),
        ("disks", List(&Text)),
        ("unseen_networks", OrNull(&Text)),
        ("unseen_storage", OrNull(&Text)),
        ("signals", List(&SIGNAL)),
        ("policy", POLICY),
        ("history", OrNull(&HISTORY)),
        ("notes", List(&Text)),
    ]),
);

const PEER: Shape =
    Object(&[("peer", Text), ("acts", Text), ("flatline", Text), ("known_by", Text)]);

const TAP: Shape = Object(&[
    ("name", Text),
    ("netns", Text),
    ("ifindex", Unsigned),
    ("attached", Bool),
    ("hook", OneOf(&["tcx", "clsact", "ingress", ""])),
    ("detail", Text),
]);

const SIGNAL: Shape = Object(&[
    ("name", Text),
    ("value", Text),
    ("threshold", Text),
    ("since", OrNull(&Text)),
    ("verdict", Text),
]);

const HISTORY: Shape = Object(&[
    ("seconds", Unsigned),
    ("packets_from_guest", List(&OrNull(&SECONDS))),
    ("completed", List(&OrNull(&SECONDS))),
    ("vcpu", List(&OrNull(&SECONDS))),
    ("vcpu_wanted", List(&OrNull(&SECONDS))),
    ("in_flight", List(&OrNull(&SECONDS))),
    ("probe_answers", List(&OrNull(&SECONDS))),
    ("memory", List(&MEMORY_MOMENT)),
    ("marks", List(&MARK)),
]);

const MEMORY_MOMENT: Shape = Object(&[
    ("second", Unsigned),
    ("total_bytes", OrNull(&Unsigned)),
    ("available_bytes", OrNull(&Unsigned)),
    ("major_faults_per_second", OrNull(&SECONDS)),
    ("qemu_rss_bytes", OrNull(&Unsigned)),
]);

const MARK: Shape = Object(&[("second", Unsigned), ("kind", Text), ("text", Text)]);

const POLICY: Shape = Object(&[
    ("mode", MODE),
    ("flat_for", Text),
    ("unconfirmed_flat_for", Text),
    ("unresponsive_for", Text),
    ("boot_grace", Text),
    ("max_restarts", Unsigned),
    ("window", Text),
    ("pause", Text),
]);

pub(super) const INCIDENT: Shape = Object(&[
    ("id", Text),
    ("vm", Text),
    ("uuid", OrNull(&Text)),
    ("pid", Unsigned),
    ("cause", CAUSE),
    ("reason", Text),
    ("last_sign_of_life", OrNull(&Time)),
    ("detected_at", Time),
    ("action", OrNull(&Text)),
    ("action_at", OrNull(&Time)),
    (
        "outcome",
        OrNull(&OneOf(&["recovered", "not-recovered", "observed", "limit-reached", "refused"])),
    ),
    ("recovered_at", OrNull(&Time)),
    ("detect_seconds", OrNull(&SECONDS)),
    ("held_seconds", OrNull(&SECONDS)),
    ("recover_seconds", OrNull(&SECONDS)),
    ("evidence", List(&Text)),
    ("start_ticks", Unsigned),
    ("was_up", Bool),
    ("attempts", List(&ATTEMPT)),
]);

const ATTEMPT: Shape = Object(&[
    ("begun_at", Time),
    ("run_state", Text),
    ("steps", List(&Text)),
    ("limit", Text),
    ("reset_at", OrNull(&Time)),
]);

pub(super) const CHECK: Shape = Object(&[(
    "items",
    List(&Object(&[
        ("name", Text),
        ("required", Bool),
        ("verdict", OneOf(&["ok", "gap", "unknown"])),
        ("detail", Text),
        ("needed_for", Text),
        ("without", Text),
        ("remedy", Text),
    ])),
)]);
