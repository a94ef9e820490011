mod documents;

use std::time::Duration;

use super::{Config, EvidenceReaders, MemoryDump, Mode, Policy, ProbeLog, Recorder, TapHook};

fn parse(text: &str) -> Config {
    Config::parse(text, "test.toml").expect("valid")
}

fn error(text: &str) -> String {
    Config::parse(text, "test.toml").expect_err("invalid").to_string()
}

fn assert_refused(text: &str, start: &str, part: &str) {
    let error = error(text);
    assert!(error.starts_with(start) && error.contains(part), "{error:?} for {text:?}");
}

#[test]
fn an_empty_file_means_all_defaults() {
    let config = parse("");
    assert_eq!(config.mode, Mode::Recover);
    assert_eq!(config.sample_interval, Duration::from_secs(1));
    assert_eq!(config.policy.flat_for, Duration::from_secs(10));
    assert_eq!(config.policy.unconfirmed_flat_for, Duration::from_secs(120));
    assert_eq!(config.policy.boot_grace, Duration::from_secs(60));
    assert_eq!((config.policy.max_restarts, config.policy.window.as_secs()), (3, 3600));
    assert_eq!(config.probes.tap_hook, TapHook::Auto);
    assert_eq!(config.probes.log, ProbeLog::Off);
    assert_eq!(config.metrics.listen, Some(([127, 0, 0, 1], 9477).into()));
    assert_eq!((config.metrics.page, config.metrics.evidence), (true, EvidenceReaders::Root));
    assert!(config.metrics.hosts.is_empty());
    let Recorder { keep, disk, max_mib } = config.recorder;
    assert_eq!((keep, disk, max_mib), (Duration::from_secs(300), false, 256));
    let evidence = config.evidence_policy;
    assert!(evidence.inject_nmi.is_zero());
    assert_eq!(evidence.memory_dump, MemoryDump::Off);
    let limits = [evidence.evidence_limit, evidence.memory_dump_limit].map(|limit| limit.as_secs());
    assert_eq!(limits, [2, 60]);
    let retention = config.retention;
    assert_eq!(retention.evidence_keep.as_secs(), 90 * 24 * 3600);
    assert_eq!((retention.evidence_max_mib, retention.memory_dump_quota_mib), (1024, 16384));
    assert_eq!(retention.memory_dump_dir.to_str(), Some("/var/lib/flatline/memory"));
    assert_eq!(config.discovery.executables.len(), 10);
    assert!(config.discovery.users.is_empty() && config.vms.is_empty());
    assert_eq!(config.paths.bpffs_dir.to_str(), Some("/sys/fs/bpf/flatline"));
}

/// Every documented key with another value than its default.
const DOCUMENTED: &str = r#"
mode = "observe"
[paths]
state_dir = "/s"
runtime_dir = "/r"
bpffs_dir = "/b"
[discovery]
executables = ["/opt/qemu/*"]
users = ["root", 107]
[probes]
tap_hook = "clsact"
log = "debug"
[detection]
sample_interval = "500ms"
flat_for = "20s"
unconfirmed_flat_for = "3m"
unresponsive_for = "90s"
heartbeat_lost_after = "4s"
boot_grace = "90s"
memory_every = "10s"
[recovery]
max_restarts = 0
window = "2h"
restart_without_heartbeat = true
evidence_limit = "0s"
evidence_keep = "30d"
evidence_max_mib = 64
memory_dump = "on"
memory_dump_limit = "5m"
memory_dump_dir = "/dumps"
memory_dump_quota_mib = 4096
[recorder]
keep = "0s"
disk = true
max_mib = 1
[metrics]
listen = "[::1]:9000"
page = false
hosts = ["hypervisor-1.example.org"]
evidence = "all"
[[vm]]
match = "db-*"
mode = "recover"
flat_for = "30s"
unconfirmed_flat_for = "4m"
unresponsive_for = "0s"
heartbeat_lost_after = "40s"
restart_without_heartbeat = false
boot_grace = "5m"
memory_every = "0s"
max_restarts = 9
window = "1d"
evidence_limit = "500ms"
memory_dump = "off"
memory_dump_limit = "10s"
"#;

#[test]
fn every_key_of_the_documented_example_is_taken() {
    let config = parse(DOCUMENTED);
    assert_eq!(config.mode, Mode::Observe);
    assert_eq!(config.paths.runtime_dir.to_str(), Some("/r"));
    assert_eq!(config.discovery.users, [0, 107]);
    assert_eq!(config.probes.tap_hook, TapHook::Clsact);
    assert_eq!(config.probes.log, ProbeLog::Debug);
    assert_eq!(config.sample_interval, Duration::from_millis(500));
    assert_eq!(config.policy.max_restarts, 0);
    assert_eq!(
        config.metrics.listen.map(|address| address.to_string()).as_deref(),
        Some("[::1]:9000")
    );
    assert_eq!((config.metrics.page, config.metrics.evidence), (false, EvidenceReaders::All));
    assert_eq!(config.metrics.hosts, ["hypervisor-1.example.org"]);
    assert_eq!(config.recorder, Recorder { keep: Duration::ZERO, disk: true, max_mib: 1 });
    let policy = config.policy_for("db-1", 0);
    assert_eq!(policy.mode, Mode::Recover);
    assert_eq!(policy.flat_for.as_secs(), 30);
    assert_eq!(policy.unconfirmed_flat_for.as_secs(), 240);
    assert_eq!(policy.boot_grace.as_secs(), 300);
    let heart = |policy: &Policy| {
        (policy.heartbeat_lost_after.map(|span| span.as_secs()), policy.restart_without_heartbeat)
    };
    assert_eq!((heart(&config.policy), heart(&policy)), ((Some(4), true), (Some(40), false)));
    assert_eq!(heart(&parse("").policy), (None, false));
    assert_eq!((policy.max_restarts, policy.window.as_secs()), (9, 86400));
    let every = |name| config.memory_every_for(name, 0).as_secs();
    assert_eq!((every("web"), every("db-1")), (10, 0));
    let evidence = |name| {
        let policy = config.evidence_policy_for(name, 0);
        let limits = [policy.evidence_limit, policy.memory_dump_limit];
        (limits.map(|limit| limit.as_millis()), policy.memory_dump)
    };
    assert_eq!(evidence("web"), ([0, 300_000], MemoryDump::On));
    assert_eq!(evidence("db-1"), ([500, 10_000], MemoryDump::Off));
    let retention = &config.retention;
    assert_eq!(retention.evidence_keep.as_secs(), 30 * 24 * 3600);
    assert_eq!((retention.evidence_max_mib, retention.memory_dump_quota_mib), (64, 4096));
    assert_eq!(retention.memory_dump_dir.to_str(), Some("/dumps"));
}

#[test]
fn the_first_matching_rule_wins_and_keeps_what_it_does_not_name() {
    let config = parse(
        "[recovery]\nmax_restarts = 7\n[[vm]]\nmatch = \"db-1\"\nflat_for = \"30s\"\n\
         [[vm]]\nmatch = \"db-*\"\nflat_for = \"40s\"\nmode = \"observe\"\n",
    );
    let first = config.policy_for("db-1", 0);
    assert_eq!((first.flat_for.as_secs(), first.mode, first.max_restarts), (30, Mode::Recover, 7));
    let second = config.policy_for("db-2", 0);
    assert_eq!((second.flat_for.as_secs(), second.mode), (40, Mode::Observe));
    assert_eq!(config.policy_for("web", 0), config.policy);
}

#[test]
fn an_unknown_key_is_an_error_with_line_and_key() {
    assert_refused("\nmodus = 1\n", "test.toml:2: modus: ", "unknown field `modus`");
    assert_refused(
        "[detection]\n\nflat_fro = \"9s\"\n",
        "test.toml:3: detection.flat_fro: ",
        "unknown field",
    );
    assert_refused("[other]\nx = 1\n", "test.toml:1: other: ", "unknown field");
    assert_refused(
        "[[vm]]\nmatch = \"a\"\n[[vm]]\nmatch = \"b\"\nx = 1\n",
        "test.toml:5: vm[1].x: ",
        "unknown field",
    );
}

#[test]
fn a_value_of_the_wrong_type_is_an_error_with_line_and_key() {
    assert_refused("mode = \"maybe\"\n", "test.toml:1: mode: ", "unknown variant `maybe`");
    assert_refused(
        "[detection]\nflat_for = 10\n",
        "test.toml:2: detection.flat_for: ",
        "expected a string",
    );
    assert_refused(
        "[discovery]\nusers = [1.5]\n",
        "test.toml:2: discovery.users: ",
        "a user's name or number",
    );
    assert_refused("[probes]\ntap_hook = \"xdp\"\n", "test.toml:2: probes.tap_hook: ", "`clsact`");
}

#[test]
fn text_that_is_no_toml_is_an_error_with_its_line() {
    assert_refused("mode = \"observe\"\nflat for\n", "test.toml:2: ", "");
    assert_refused("mode = \"observe\"\nmode = \"observe\"\n", "test.toml:2: ", "duplicate key");
}

#[test]
fn durations_out_of_bounds_are_refused_by_the_name_of_their_key() {
    for (key, value) in [
        ("detection.sample_interval", "99ms"),
        ("detection.sample_interval", "61s"),
        ("detection.flat_for", "0s"),
        ("detection.flat_for", "999ms"),
        ("detection.flat_for", "2d"),
        ("detection.unconfirmed_flat_for", "1y"),
        ("detection.boot_grace", "0s"),
        ("detection.memory_every", "999ms"),
        ("detection.memory_every", "2h"),
        ("recovery.window", "1s"),
        ("recovery.window", "soon"),
        ("recovery.evidence_limit", "31s"),
        ("recovery.evidence_keep", "59m"),
        ("recovery.memory_dump_limit", "0s"),
        ("recovery.memory_dump_limit", "2h"),
    ] {
        let (table, name) = key.split_once('.').expect("two parts");
        let text = format!("[{table}]\n{name} = \"{value}\"\n");
        assert_refused(&text, &format!("test.toml:2: {key}: "), value);
    }
}

#[test]
fn values_that_contradict_each_other_are_refused_where_they_were_written() {
    assert_refused(
        "[detection]\nsample_interval = \"6s\"\n",
        "test.toml:2: detection.sample_interval: ",
        "flat_for (10s) must be at least twice",
    );
    assert_refused(
        "[detection]\nsample_interval = \"6s\"\nflat_for = \"11s\"\n",
        "test.toml:3: detection.flat_for: ",
        "twice",
    );
    assert_refused(
        "[detection]\nflat_for = \"5m\"\n",
        "test.toml:2: detection.flat_for: ",
        "unconfirmed_flat_for (2m) must not be shorter",
    );
    assert_refused(
        "[[vm]]\nmatch = \"a\"\nunconfirmed_flat_for = \"5s\"\n",
        "test.toml:3: vm[0].unconfirmed_flat_for: ",
        "must not be shorter than flat_for (10s)",
    );
}

#[test]
fn a_rule_must_name_its_vms_and_may_not_change_the_host_wide_interval() {
    assert_refused(
        "mode = \"observe\"\n[[vm]]\nflat_for = \"20s\"\n",
        "test.toml:2: vm[0]: ",
        "`match` is missing",
    );
    assert_refused(
        "[[vm]]\nmatch = \"a\"\nsample_interval = \"2s\"\n",
        "test.toml:3: vm[0].sample_interval: ",
        "sampled together",
    );
    for (key, value) in [
        ("evidence_keep", "\"30d\""),
        ("evidence_max_mib", "1"),
        ("memory_dump_dir", "\"/d\""),
        ("memory_dump_quota_mib", "1"),
    ] {
        assert_refused(
            &format!("[[vm]]\nmatch = \"a\"\n{key} = {value}\n"),
            &format!("test.toml:3: vm[0].{key}: "),
            "set it in [recovery]",
        );
    }
}

#[test]
fn patterns_paths_users_counts_and_addresses_are_checked() {
    assert_refused("[[vm]]\nmatch = \"a[\"\n", "test.toml:2: vm[0].match: ", "not a valid pattern");
    assert_refused("[[vm]]\nmatch = \"\"\n", "test.toml:2: vm[0].match: ", "is empty");
    let executables = "[discovery]\nexecutables = ";
    assert_refused(&format!("{executables}[]"), "test.toml:2: discovery.executables: ", "is empty");
    assert_refused(
        &format!("{executables}[\n\"/a\",\n\"qemu\"]"),
        "test.toml:4: discovery.executables[1]: ",
        "absolute",
    );
    assert_refused("[paths]\nstate_dir = \"x\"", "test.toml:2: paths.state_dir: ", "absolute");
    assert_refused(
        "[discovery]\nusers = [\"no-such-user\"]",
        "test.toml:2: discovery.users[0]: ",
        "no user `no-such-user`",
    );
    assert_refused("[discovery]\nusers = [-1]", "test.toml:2: discovery.users[0]: ", "no user id");
    for count in ["-1", "1001"] {
        let text = format!("[recovery]\nmax_restarts = {count}");
        assert_refused(&text, "test.toml:2: recovery.max_restarts: ", "between 0 and 1000");
    }
    assert_refused(
        "[recorder]\nkeep = \"2h\"",
        "test.toml:2: recorder.keep: ",
        "between 0s and 1h",
    );
    assert_refused("[recorder]\nmax_mib = 0", "test.toml:2: recorder.max_mib: ", "between 1 and");
    for key in ["evidence_max_mib", "memory_dump_quota_mib"] {
        assert_refused(
            &format!("[recovery]\n{key} = 0"),
            &format!("test.toml:2: recovery.{key}: "),
            "between 1 and",
        );
    }
    let dump = "[recovery]\nmemory_dump";
    assert_refused(&format!("{dump} = true"), "test.toml:2: recovery.memory_dump: ", "");
    assert_refused(
        &format!("{dump}_dir = \"d\""),
        "test.toml:2: recovery.memory_dump_dir: ",
        "abs",
    );
    for wrong in ["9477", "127.0.0.1", "localhost:9477", "127.0.0.1:0", "[::1]:0", "Off", " "] {
        let text = format!("[metrics]\nlisten = \"{wrong}\"");
        assert_refused(&text, "test.toml:2: metrics.listen: ", "port");
    }
    for wrong in ["", "hypervisor:9477", "http://hypervisor", "*", "a b"] {
        let text = format!("[metrics]\nhosts = [\"ok\", \"{wrong}\"]");
        assert_refused(&text, "test.toml:2: metrics.hosts[1]: ", "without a port");
    }
    assert_refused("[metrics]\nevidence = true", "test.toml:2: metrics.evidence: ", "");
}

#[test]
fn metrics_can_be_turned_off() {
    for off in ["", "off"] {
        assert_eq!(parse(&format!("[metrics]\nlisten = \"{off}\"")).metrics.listen, None);
    }
}

#[test]
fn a_star_in_an_executable_pattern_does_not_cross_a_directory() {
    let scope = parse("").discovery.scope();
    assert!(scope.has_executable("/usr/bin/qemu-system-x86_64".as_ref()));
    assert!(!scope.has_executable("/usr/bin/qemu-system-x/../../../tmp/evil".as_ref()));
    assert!(!scope.has_executable("/tmp/usr/bin/kvm".as_ref()));
}

#[test]
fn only_listed_users_are_allowed_unless_none_is_listed() {
    assert!(parse("").discovery.scope().has_user(4242));
    let scope = parse("[discovery]\nusers = [107]").discovery.scope();
    assert!(scope.has_user(107) && !scope.has_user(0));
}

#[test]
fn a_named_file_must_exist() {
    let error = Config::load(Some("/nonexistent/flatline.toml".as_ref())).expect_err("missing");
    assert!(error.to_string().contains("/nonexistent/flatline.toml"));
}
