//! What setup decides, on machines that aren't this one.

use super::*;

const ROOT: Means = Means { apt: true, root: true };

/// A machine that lacks only a compiler: the one thing that can't be made up.
fn without_a_compiler() -> Facts {
    Facts {
        absent: Vec::new(),
        linker: Some("bpf-linker 0.10.3".to_owned()),
        toolchain: Err(vec!["rustc: has no core".to_owned()]),
        bpf_clippy: false,
        guest_kernel: true,
    }
}

fn lack(cure: Cure, required: bool) -> Missing {
    Missing { what: "something".to_owned(), cure, required }
}

#[test]
fn a_compiler_comes_from_apt_where_apt_has_one() {
    let lacks = missing(&without_a_compiler());
    assert_eq!(lacks.len(), 1, "{lacks:?}");
    let plan = plan(&lacks, ROOT, |_| true);
    assert_eq!(plan.packages, BPF_PACKAGES);
    assert!(plan.by_hand.is_empty());
}

#[test]
fn a_compiler_that_apt_lacks_is_left_to_the_person_with_everything_else() {
    let facts = Facts { linker: None, absent: vec!["ip"], ..without_a_compiler() };
    let plan = plan(&missing(&facts), ROOT, |_| false);
    assert_eq!(
        plan.by_hand,
        ["apt-get install --no-install-recommends iproute2", INSTALL_NIGHTLY, INSTALL_LINKER]
    );
}

#[test]
fn a_linker_of_another_series_is_missing() {
    for version in ["bpf-linker 0.9.15", "bpf-linker 0.100.0", "something else"] {
        let facts = Facts { linker: Some(version.to_owned()), ..without_a_compiler() };
        let lacks = missing(&facts);
        assert!(lacks.iter().any(|lack| lack.cure == Cure::Linker), "{version}");
    }
}

#[test]
fn qemu_is_asked_for_together_with_its_tools() {
    let facts = Facts { absent: vec!["qemu-system-x86_64"], ..without_a_compiler() };
    let plan = plan(&missing(&facts)[..1], ROOT, |_| true);
    assert_eq!(plan.packages, ["qemu-system-x86", "qemu-utils"]);
}

#[test]
fn an_ordinary_user_gets_every_command_to_type() {
    let lacks = [lack(Cure::Packages(&["cpio"]), true), lack(Cure::Linker, true)];
    let plan = plan(&lacks, Means { apt: true, root: false }, |_| true);
    assert_eq!(plan.by_hand, ["sudo apt-get install --no-install-recommends cpio", INSTALL_LINKER]);
}

#[test]
fn a_linker_alone_needs_no_root() {
    let plan = plan(&[lack(Cure::Linker, true)], Means { apt: false, root: false }, |_| false);
    assert!(plan.linker && plan.by_hand.is_empty(), "{plan:?}");
}

#[test]
fn what_is_optional_is_never_left_to_the_person() {
    let lacks = [lack(Cure::Packages(CLIPPY_PACKAGES), false)];
    assert_eq!(plan(&lacks, ROOT, |_| true).optional_packages, CLIPPY_PACKAGES);
    let without_root = Means { apt: true, root: false };
    assert_eq!(plan(&lacks, without_root, |_| true), Plan::default());
    assert_eq!(plan(&lacks, ROOT, |_| false), Plan::default());
}

#[test]
fn a_machine_that_cannot_fetch_a_guest_kernel_says_how_to_name_one() {
    let plan = plan(&[lack(Cure::Kernel, true)], ROOT, |_| true);
    assert!(plan.by_hand[0].contains("FLATLINE_GUEST_KERNEL"), "{plan:?}");
}

#[test]
fn a_program_with_a_loader_is_not_static() {
    let this = std::env::current_exe().expect("this test's program");
    assert!(!is_static(&this), "cargo links tests against the C library");
    let mut elf = vec![0; 64 + 56];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[32] = 64;
    elf[54] = 56;
    elf[56] = 1;
    elf[64] = 1; // PT_LOAD
    assert!(asks_for_no_loader(&elf));
    elf[64] = 3; // PT_INTERP
    assert!(!asks_for_no_loader(&elf));
    assert!(!asks_for_no_loader(&elf[..70]) && !asks_for_no_loader(b"#!/bin/sh"));
}
