use super::facts::{
    CAPABILITIES, capability_set, has_btf_magic, has_btf_name, has_clsact, has_run_time,
    is_initial_uid_map, judge_tap_hook, kernel_version, missing_capabilities, stands_in_for,
};
use super::guests::judge_qmp;
use super::owners::{commands, judge_bounds, judge_program};
use super::programs::judge_kvm;
use super::{Report, Verdict, bpffs, item, kernel, survey};
use crate::bpf::expected_of_kvm;
use crate::config::{Config, TapHook};

fn btf(strings: &[u8]) -> Vec<u8> {
    let mut bytes = 0xeb9f_u16.to_ne_bytes().to_vec();
    bytes.extend([1, 0]);
    let length = u32::try_from(strings.len()).expect("short");
    for field in [24_u32, 0, 8, 8, length] {
        bytes.extend(field.to_ne_bytes());
    }
    bytes.extend(b"\0types\0\0");
    bytes.extend(strings);
    bytes
}

#[test]
fn kernel_releases_are_read_and_old_ones_are_gaps() {
    assert_eq!(kernel_version("6.1.0-13-amd64"), Some((6, 1)));
    assert_eq!(kernel_version("5.10-rc1"), Some((5, 10)));
    assert_eq!(kernel_version("linux"), None);
    let judge = |release: &str| kernel(kernel_version(release), &Ok(release.to_owned())).verdict;
    assert_eq!(judge("5.11.0"), Verdict::Ok);
    assert_eq!(judge("5.10.19"), Verdict::Gap);
    assert_eq!(judge("?"), Verdict::Unknown);
}

#[test]
fn missing_capabilities_are_named() {
    let status = "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t000001fffeffffff\n";
    assert_eq!(missing_capabilities(capability_set(status, "CapEff:").expect("there")), [""; 0]);
    assert_eq!(missing_capabilities(0).len(), 7);
    assert_eq!(missing_capabilities(!(1 << 12)), ["CAP_NET_ADMIN"]);
    assert_eq!(missing_capabilities(!(3 << 38)), [""; 0], "CAP_SYS_ADMIN stands in");
    assert_eq!(missing_capabilities(!(1 << 2)), [""; 0], "CAP_DAC_OVERRIDE stands in");
    assert_eq!(missing_capabilities(!(3 << 1)), ["CAP_DAC_READ_SEARCH"]);
    let without_admin = missing_capabilities(!(1 << 21 | 1 << 38));
    assert_eq!(without_admin, ["CAP_PERFMON", "CAP_SYS_ADMIN"]);
    assert_eq!(capability_set("Name:\tx\n", "CapEff:"), None);
}

#[test]
fn the_unit_has_exactly_the_capabilities_that_are_checked_and_that_no_other_stands_in_for() {
    let unit = include_str!("../../packaging/systemd/flatline.service");
    let lines = unit.lines().filter_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let mut bounded: Vec<_> = lines.flat_map(str::split_whitespace).collect();
    let needed = CAPABILITIES.iter().filter(|capability| stands_in_for(capability).is_none());
    let mut checked: Vec<_> = needed.map(|capability| capability.name).collect();
    bounded.sort_unstable();
    checked.sort_unstable();
    assert_eq!(bounded, checked);
}

#[test]
fn a_command_that_names_no_user_is_told_by_its_rule() {
    let item = |text: &str| commands(&Config::parse(text, "").expect("valid"));
    let command = "command = [\"/bin/again\"]\n";
    let rule = format!("[[vm]]\nmatch = \"web\"\n{command}");
    let told = item(&rule);
    assert_eq!(told.verdict, Verdict::Gap);
    assert_eq!(told.detail, "no user is named for the command of [[vm]] match = \"web\"");
    assert!(told.remedy.contains("user = "), "{}", told.remedy);
    let host = format!("[recovery]\n{command}[[vm]]\nmatch = \"a\"\nflat_for = \"30s\"\n");
    assert_eq!(item(&host).detail, "no user is named for the command of [recovery]");
    for more in ["user = 0\n", "command_user = \"vm\"\n", "actuator = \"qmp\"\n"] {
        assert_eq!(item(&format!("{rule}{more}")).verdict, Verdict::Ok, "{more}");
    }
    assert_eq!(item("").verdict, Verdict::Ok);
}

#[test]
fn an_owners_program_is_missed_only_where_there_is_such_an_owner() {
    assert_eq!(judge_program(Some("/usr/bin/virsh".to_owned()), false).0, Verdict::Ok);
    assert_eq!(judge_program(None, false).0, Verdict::Ok);
    assert_eq!(judge_program(None, true).0, Verdict::Gap);
}

#[test]
fn bounds_are_a_gap_only_for_programs_that_start_qemus() {
    let judge = |needed, own, host| judge_bounds(needed, own, host).0;
    assert_eq!(judge(false, Some(1), Some(3)), Verdict::Ok);
    assert_eq!(judge(true, Some(1), Some(3)), Verdict::Gap);
    assert_eq!(judge(true, Some(7), Some(3)), Verdict::Ok);
    assert_eq!(judge(true, None, Some(3)), Verdict::Unknown);
}

#[test]
fn vms_without_a_qmp_socket_are_named_but_not_all_of_many() {
    assert_eq!(judge_qmp(0, &[]).0, Verdict::Unknown);
    assert_eq!(judge_qmp(2, &[]).0, Verdict::Ok);
    let (verdict, detail) = judge_qmp(9, &["a", "b", "c", "d", "e", "f"]);
    assert_eq!(verdict, Verdict::Gap);
    assert_eq!(detail, "6 of 9 QEMUs have no socket: a, b, c, d, e and more");
}

#[test]
fn a_user_namespace_is_told_by_its_map() {
    assert!(is_initial_uid_map("         0          0 4294967295"));
    assert!(!is_initial_uid_map("0 1000 1"));
    assert!(!is_initial_uid_map(""));
}

#[test]
fn a_name_is_found_in_btf_only_whole_and_only_among_the_strings() {
    let bytes = btf(b"\0btf_trace_block_bio_queue\0other\0");
    assert!(has_btf_magic(&bytes) && !has_btf_magic(b"\x7fELF"));
    assert!(has_btf_name(&bytes, "btf_trace_block_bio_queue"));
    assert!(!has_btf_name(&bytes, "btf_trace_block_bio"));
    assert!(!has_btf_name(&bytes, "types"));
    for length in 0..bytes.len() {
        assert!(!has_btf_name(&bytes[..length], "other"), "cut at {length}");
    }
}

#[test]
fn schedstat_without_figures_or_with_a_time_that_stands_is_of_no_use() {
    assert!(has_run_time("113619 10947687 2"));
    assert!(!has_run_time("0 0 0"));
    assert!(!has_run_time(""));
}

#[test]
fn clsact_is_found_built_in_or_loadable_or_cannot_be_told() {
    let both = Some("kernel/net/sched/sch_ingress.ko\nkernel/net/sched/cls_bpf.ko\n");
    let loadable = Some("kernel/net/sched/cls_bpf.ko.xz:\nkernel/net/sched/sch_ingress.ko.xz:\n");
    assert_eq!(has_clsact(both, None, ""), Some(true));
    assert_eq!(has_clsact(Some(""), loadable, ""), Some(true));
    assert_eq!(has_clsact(Some("kernel/net/sched/cls_bpf.ko\n"), Some(""), ""), Some(false));
    assert_eq!(has_clsact(None, Some(""), ""), None);
    let loaded = "cls_bpf 32768 2 - Live 0xffffffffc0a1b000\nsch_ingress 16384 3 - Live 0x0\n";
    assert_eq!(has_clsact(None, None, loaded), Some(true));
    assert_eq!(has_clsact(None, None, "cls_bpf_more 1 0 - Live 0x0\nsch_ingress 1 0 -"), None);
}

#[test]
fn kvms_tracepoints_are_told_one_by_one() {
    let absent = || Err(std::io::ErrorKind::NotFound.into());
    assert_eq!(judge_kvm(None, absent(), false).0, Verdict::Unknown);
    let expected = expected_of_kvm(std::env::consts::ARCH);
    let count = expected.len();
    assert_eq!(judge_kvm(None, absent(), true), (Verdict::Gap, format!("none of {count}")));
    let name = |tracepoint: &&str| format!("btf_trace_{tracepoint}\0");
    let all: Vec<String> = expected.iter().map(name).collect();
    let (some, rest) = (all[1..].concat(), all[0].clone());
    assert_eq!(judge_kvm(None, Ok(btf(all.concat().as_bytes())), true).0, Verdict::Ok);
    assert_eq!(judge_kvm(Some(&btf(all.concat().as_bytes())), absent(), true).0, Verdict::Ok);
    let both = judge_kvm(Some(&btf(rest.as_bytes())), Ok(btf(some.as_bytes())), true);
    assert_eq!(both.0, Verdict::Ok, "{}", both.1);
    let lacking = judge_kvm(None, Ok(btf(some.as_bytes())), true);
    assert_eq!(lacking.0, Verdict::Gap);
    let text = format!("{} of {count}; this kernel has no kvm_vcpu_wakeup", count - 1);
    assert_eq!(lacking.1, text);
    let denied = Err(std::io::ErrorKind::PermissionDenied.into());
    assert_eq!(judge_kvm(None, denied, true).0, Verdict::Unknown);
}

#[test]
fn the_tap_hook_is_a_gap_only_if_what_was_asked_for_is_known_to_be_missing() {
    let judge = |wanted, tcx, clsact| judge_tap_hook(wanted, tcx, || clsact).0;
    assert_eq!(judge(TapHook::Auto, Some(true), Some(false)), Verdict::Ok);
    assert_eq!(judge(TapHook::Auto, Some(false), Some(true)), Verdict::Ok);
    assert_eq!(judge(TapHook::Auto, Some(false), None), Verdict::Unknown);
    assert_eq!(judge(TapHook::Auto, Some(false), Some(false)), Verdict::Gap);
    assert_eq!(judge(TapHook::Tcx, Some(false), Some(true)), Verdict::Gap);
    assert_eq!(judge(TapHook::Tcx, None, Some(true)), Verdict::Unknown);
    assert_eq!(judge(TapHook::Clsact, Some(true), Some(false)), Verdict::Gap);
}

#[test]
fn a_directory_on_another_file_system_is_a_gap_that_says_what_to_mount() {
    let item = bpffs("/proc/flatline/maps".as_ref());
    assert_eq!(item.verdict, Verdict::Gap);
    assert!(item.detail.contains("mount -t bpf bpf /sys/fs/bpf"), "{}", item.detail);
}

#[test]
fn only_a_required_gap_makes_a_host_unfit() {
    let with = |required, verdict| Report { items: vec![item("x", required, verdict, "y", "z")] };
    assert_eq!(with(true, Verdict::Gap).first_gap(), Some("x: y".to_owned()));
    for fit in [with(false, Verdict::Gap), with(true, Verdict::Unknown), with(true, Verdict::Ok)] {
        assert_eq!(fit.first_gap(), None);
    }
}

#[test]
fn every_answer_of_this_host_is_one_line() {
    let report = survey(&Config::parse("", "").expect("defaults"));
    assert!(report.items.len() >= 30);
    for item in report.items {
        assert!(!item.detail.is_empty() && !item.detail.contains('\n'), "{item:?}");
        assert!(!item.without.is_empty() && !item.needed_for.is_empty(), "{item:?}");
        assert_eq!(item.remedy.is_empty(), item.verdict == Verdict::Ok, "{item:?}");
    }
}
