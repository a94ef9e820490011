//! Parsing what `/proc` says of a process.

use std::path::PathBuf;

use super::{
    ThreadIds, VcpuThread, VcpuThreads, innermost, parse_stat, start_ticks,
    vcpu_threads_from_names, without_deleted,
};
use crate::discover::DiscoverError;

const AFTER_NAME: &str = "S 7 8 9 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 4 0 123456789 1 2";

#[test]
fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
    for name in ["qemu", "CPU 0/KVM", "a) R 1 (b", ")", ""] {
        let stat = parse_stat(&format!("42 ({name}) {AFTER_NAME}")).expect("a stat line");
        assert_eq!(stat.comm, name);
        assert_eq!((stat.state, stat.parent, stat.session), ('S', 7, 9));
        assert_eq!(stat.start_ticks, 123_456_789);
    }
}

#[test]
fn a_short_or_garbled_stat_is_refused() {
    for text in ["", "42", "42 (x", "42 (x)", "42 (x) S 7 8 9", "42 (x) SS 7 8 9 0"] {
        assert_eq!(parse_stat(text), None, "{text}");
    }
    assert_eq!(parse_stat(&format!("42 (x) {}", AFTER_NAME.replace("123456789", "-1"))), None);
}

#[test]
fn an_upgraded_executable_keeps_its_path() {
    assert_eq!(without_deleted(PathBuf::from("/bin/q (deleted)")), PathBuf::from("/bin/q"));
    assert_eq!(without_deleted(PathBuf::from("/bin/q")), PathBuf::from("/bin/q"));
}

#[test]
fn threads_are_sorted_by_vcpu_and_others_ignored() {
    let named = [("CPU 10/KVM", 30), ("call_rcu", 11), ("CPU 2/KVM", 31), ("CPU x/KVM", 32)]
        .map(|(name, tid)| (name.to_owned(), tid));
    let expected = vec![VcpuThread { index: 2, tid: 31 }, VcpuThread { index: 10, tid: 30 }];
    assert_eq!(vcpu_threads_from_names(&named), VcpuThreads::Each(expected));
}

#[test]
fn one_thread_for_all_and_none_at_all_are_told_apart() {
    let single = [("ALL CPUs/TCG".to_owned(), 12)];
    assert_eq!(vcpu_threads_from_names(&single), VcpuThreads::OneForAll(12));
    let unnamed = [("qemu-system-x86".to_owned(), 12)];
    assert_eq!(vcpu_threads_from_names(&unnamed), VcpuThreads::Unnamed);
}

#[test]
fn a_thread_in_a_namespace_of_its_own_has_the_last_id_of_its_line() {
    assert_eq!(innermost("Name:\tq\nNSpid:\t4711\t12\t3\n"), Some((3, 3)));
    assert_eq!(innermost("NSpid:\t4711\n"), Some((1, 4711)));
    assert_eq!(innermost("Name:\tq\n"), None);
    assert_eq!(innermost("NSpid:\t4711\tx\n"), None);
}

#[test]
fn in_the_same_namespace_ids_are_the_same_and_strangers_have_none() {
    let own = std::process::id();
    let ids = ThreadIds::of(own).expect("our own threads");
    assert_eq!((ids.here(own), ids.here(u32::MAX)), (Some(own), None));
    let elsewhere = ThreadIds { pid: own, inner: Some([(3, 12)].into()) };
    assert_eq!((elsewhere.here(3), elsewhere.here(own)), (Some(12), None));
}

#[test]
fn a_pid_that_does_not_exist_is_gone() {
    assert!(matches!(start_ticks(u32::MAX), Err(DiscoverError::Gone { pid: u32::MAX })));
}

#[test]
fn of_more_descriptors_than_are_looked_at_it_is_said_that_there_are_more() {
    let own = std::process::id();
    let _open = [1, 2, 3].map(|_| std::fs::File::open("/dev/null").unwrap());
    let cut = super::descriptors_up_to(own, 2).unwrap();
    assert!(cut.is_cut && cut.each.len() <= 2, "{cut:?}");
    assert!(!super::descriptors(own).unwrap().is_cut);
}
