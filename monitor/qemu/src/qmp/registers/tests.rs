//! The texts are what QEMU 7.2.22 printed for boot sectors, line ends aside: it sends `\r\n`.

mod texts;

use std::time::Duration;

use super::*;
use texts::*;

fn sent_by_qemu(text: &str) -> String {
    text.replace('\n', "\r\n")
}

/// The digest has a test of its own.
fn registers(text: &str) -> Vec<VcpuRegisters> {
    let vcpus = parse_registers(&sent_by_qemu(text)).unwrap();
    vcpus.into_iter().map(|vcpu| VcpuRegisters { general_digest: 0, ..vcpu }).collect()
}

fn vcpu(index: u32, ip: u64, halted: bool) -> VcpuRegisters {
    VcpuRegisters {
        index,
        ip,
        cpl: 0,
        halted,
        interrupts_enabled: false,
        paging: false,
        in_upper_half: false,
        general_digest: 0,
    }
}

/// What SeaBIOS parks its further vCPUs with: EIP=000fd09a EFL=00000002 HLT=1.
const PARKED: VcpuRegisters = VcpuRegisters {
    index: 1,
    ip: 0xf_d09a,
    cpl: 0,
    halted: true,
    interrupts_enabled: false,
    paging: false,
    in_upper_half: false,
    general_digest: 0,
};

#[test]
fn a_vcpu_in_long_mode_and_one_after_init_are_read() {
    let vcpus = registers(LONG_MODE_AND_INIT_KVM);
    let first = VcpuRegisters { paging: true, ..vcpu(0, 0x7c9e, false) };
    let second = vcpu(1, 0xfff0, false);
    assert_eq!(vcpus, [first, second]);
    assert!(!first.is_at_reset_vector());
    assert!(second.is_at_reset_vector());
}

#[test]
fn a_vcpu_halted_with_interrupts_off_differs_from_one_with_interrupts_on() {
    let dead = vcpu(0, 0x7c02, true);
    assert_eq!(registers(CLI_HLT_TCG), [dead, PARKED]);
    let idle = VcpuRegisters { interrupts_enabled: true, ..dead };
    assert_eq!(registers(STI_HLT_KVM), [idle, PARKED]);
    let busy = VcpuRegisters { ip: 0x7c01, halted: false, ..idle };
    assert_eq!(registers(STI_JMP_KVM), [busy, PARKED]);
}

#[test]
fn the_digest_changes_with_any_general_register_and_with_nothing_else() {
    let digest = |text: &str| parse_registers(text).unwrap()[0].general_digest;
    let before = digest(CLI_HLT_TCG);
    assert_eq!(digest(CLI_HLT_TCG), before);
    for register in ["EAX=", "EBX=", "ESI=", "ESP="] {
        let at = CLI_HLT_TCG.find(register).unwrap() + register.len();
        let digit = if &CLI_HLT_TCG[at..=at] == "f" { "0" } else { "f" };
        let changed = format!("{}{digit}{}", &CLI_HLT_TCG[..at], &CLI_HLT_TCG[at + 1..]);
        assert_ne!(digest(&changed), before, "{register}");
    }
    assert_eq!(digest(&CLI_HLT_TCG.replacen("EIP=00007c02", "EIP=00007c03", 1)), before);
}

#[test]
fn a_vcpu_that_never_ran_is_at_the_reset_vector() {
    let vcpus = registers(NEVER_STARTED_TCG);
    assert!(vcpus.iter().all(VcpuRegisters::is_at_reset_vector));
    assert_eq!(vcpus.iter().map(|vcpu| vcpu.halted).collect::<Vec<_>>(), [false, true]);
}

#[test]
fn user_mode_is_read_from_its_privilege_level() {
    let vcpus = registers(&LONG_MODE_AND_INIT_KVM.replacen("CPL=0", "CPL=3", 1));
    assert_eq!(vcpus.iter().map(|vcpu| vcpu.cpl).collect::<Vec<_>>(), [3, 0]);
}

#[test]
fn an_operating_system_is_told_from_firmware_by_user_code_or_a_kernel_in_the_upper_half() {
    assert!(!is_up(&registers(LONG_MODE_AND_INIT_KVM)), "a boot loader in long mode");
    assert!(!is_up(&registers(CLI_HLT_TCG)), "a boot sector");
    let kernel = LONG_MODE_AND_INIT_KVM.replacen("RIP=0000000000007c9e", "RIP=ffffffff81000000", 1);
    assert!(is_up(&registers(&kernel)));
    let user = LONG_MODE_AND_INIT_KVM.replacen("CPL=0", "CPL=3", 1);
    assert!(is_up(&registers(&user)));
    let unpaged = kernel.replacen("CR0=80000011", "CR0=00000011", 1);
    assert!(!is_up(&registers(&unpaged)), "nothing is mapped there without paging");
    let kernel_32 = CLI_HLT_TCG.replacen("EIP=00007c02", "EIP=c0100000", 1).replacen(
        "CR0=00000010",
        "CR0=80000011",
        1,
    );
    assert!(is_up(&registers(&kernel_32)));
}

#[test]
fn a_missing_or_mangled_field_of_any_vcpu_is_an_error_that_names_it() {
    let cases = [
        (" HLT=1", "", "HLT"),
        (" HLT=1", " HLT=2", "HLT"),
        (" HLT=1", " HLT=", "HLT"),
        (" CPL=0", "", "CPL"),
        (" CPL=0", " CPL=4", "CPL"),
        (" CPL=0", " CPL=-1", "CPL"),
        (" EFL=00000002", "", "EFL"),
        ("CR0=00000011", "", "CR0"),
        ("CR0=00000011", "CR0=x", "CR0"),
        ("EIP=000fd09a", "EIP=", "EIP"),
        ("EIP=000fd09a", "EIP=10000000000000000", "EIP"),
    ];
    let second = CLI_HLT_TCG.find("CPU#1").unwrap();
    for (present, mangled, field) in cases {
        let (first, rest) = CLI_HLT_TCG.split_at(second);
        assert!(rest.contains(present), "{present}");
        let text = format!("{first}{}", rest.replacen(present, mangled, 1));
        let expected = RegistersError::Field { index: 1, field };
        assert_eq!(parse_registers(&text), Err(expected), "{mangled:?}");
    }
}

#[test]
fn a_text_that_is_cut_short_is_an_error_or_lacks_whole_vcpus() {
    // The last field of a vCPU that is needed, whole or not: a number cut short is a number still.
    let needed = "CR0=0";
    for cut in 0..CLI_HLT_TCG.len() {
        let text = &CLI_HLT_TCG[..cut];
        let whole = text.matches(needed).count();
        match parse_registers(text) {
            Ok(vcpus) => assert_eq!(vcpus.len(), whole, "cut at {cut}"),
            Err(_) => assert!(whole < 2, "cut at {cut}"),
        }
    }
}

#[test]
fn other_architectures_and_other_texts_are_an_error() {
    let arm = "\nCPU#0\n PC=0000000040000000 X00=0000000000000000 X01=0000000000000000\n";
    assert_eq!(parse_registers(arm), Err(RegistersError::NotX86 { index: 0 }));
    assert_eq!(parse_registers(""), Err(RegistersError::NoVcpus));
    assert_eq!(parse_registers("unknown command: 'x'\r\n"), Err(RegistersError::NoVcpus));
    assert_eq!(parse_registers("CPU#x\nEIP=0"), Err(RegistersError::NoIndex));
}

#[test]
fn more_vcpus_than_qemu_has_are_an_error() {
    let vcpu = "CPU#0\nEIP=0 EFL=2 [-] CPL=0 HLT=1\nCR0=11\n";
    assert_eq!(parse_registers(&vcpu.repeat(MAX_VCPUS)).unwrap().len(), MAX_VCPUS);
    let text = vcpu.repeat(MAX_VCPUS + 1);
    assert_eq!(parse_registers(&text), Err(RegistersError::TooManyVcpus));
}

#[test]
fn the_first_vcpus_lapic_takes_external_interrupts_and_a_parked_ones_is_off() {
    let first = Lapic {
        software_enabled: true,
        timer_masked: true,
        timer_mode: TimerMode::OneShot,
        timer_initial_count: 0,
        timer_divider: Some(2),
        timer_count: Some(0),
        timer_vector: 0,
        lint0_accepts_external: true,
        requested: Vectors::default(),
        in_service: Vectors::default(),
        priority_class: 0,
    };
    assert_eq!(parse_lapic(&sent_by_qemu(FIRST_LAPIC)), Ok(first));
    let parked = Lapic { software_enabled: false, lint0_accepts_external: false, ..first };
    assert_eq!(parse_lapic(&sent_by_qemu(PARKED_LAPIC)), Ok(parked));
}

fn with_line(field: &str, line: &str) -> String {
    let replace = |old: &str| {
        let is_it = old.starts_with(field) && old[field.len()..].starts_with('\t');
        format!("{}\n", if is_it { line } else { old })
    };
    FIRST_LAPIC.lines().map(replace).collect()
}

#[test]
fn a_running_timer_is_read_with_its_mode_and_count() {
    let text = with_line("LVTT", PERIODIC_LVTT).replace(IDLE_TIMER, PERIODIC_TIMER);
    let lapic = parse_lapic(&text).unwrap();
    assert!(!lapic.timer_masked);
    assert_eq!(lapic.timer_mode, TimerMode::Periodic);
    assert_eq!(lapic.timer_initial_count, 0x1000_0000);
    assert_eq!(lapic.timer_count, Some(PERIODIC_COUNT));
    assert_eq!(lapic.timer_period(), Some(Duration::from_nanos(0x1000_0000 * 16)));
    let untold = parse_lapic(&text.replace("divide by 16", "")).unwrap();
    assert_eq!(untold.timer_period(), None);
}

#[test]
fn a_tsc_deadline_timer_has_no_count() {
    let lapic = parse_lapic(&with_line("LVTT", TSC_DEADLINE_LVTT)).unwrap();
    assert!(!lapic.timer_masked);
    assert_eq!(lapic.timer_mode, TimerMode::TscDeadline);
    assert_eq!((lapic.timer_count, lapic.timer_period()), (None, None));
}

#[test]
fn a_count_that_old_qemus_do_not_print_is_missing_and_not_zero() {
    let lapic = parse_lapic(&FIRST_LAPIC.replace(" current_count = 0", "")).unwrap();
    assert_eq!((lapic.timer_initial_count, lapic.timer_count), (0, None));
}

#[test]
fn lint0_masked_or_with_another_delivery_mode_takes_no_external_interrupts() {
    for register in ["0x00018700", "0x00008400", "0x00008000"] {
        let lapic = parse_lapic(&with_line("LVT0", &format!("LVT0\t {register} x"))).unwrap();
        assert!(!lapic.lint0_accepts_external, "{register}");
    }
}

#[test]
fn a_lapic_that_lacks_a_line_is_an_error_that_names_it() {
    for field in ["LVT0", "LVTT", "SPIV", "Timer", "ISR", "IRR"] {
        let expected = RegistersError::LapicField { field };
        assert_eq!(parse_lapic(&with_line(field, "")), Err(expected));
    }
    for text in ["No CPU available\r\n", "local apic state not available\r\n", ""] {
        let expected = RegistersError::LapicField { field: "LVT0" };
        assert_eq!(parse_lapic(text), Err(expected));
    }
}

#[test]
fn what_waits_in_a_lapic_is_pending_where_its_priority_lets_it_in() {
    let text = with_line("IRR", "IRR\t 49(level) 236 ").replace("TPR 0x00", "TPR 0x30");
    let lapic = parse_lapic(&sent_by_qemu(&text)).unwrap();
    assert_eq!(lapic.requested, Vectors::from_iter([49, 236]));
    assert_eq!(lapic.pending(), Vectors::from_iter([236]));
    assert_eq!(lapic.requested.to_string(), "49, 236");
    let disabled = text.replace("SPIV\t 0x000001ff", "SPIV\t 0x000000ff");
    assert_eq!(parse_lapic(&disabled).unwrap().pending(), Vectors::default());
}

#[test]
fn a_mangled_request_or_priority_is_an_error_and_not_none_pending() {
    for line in ["IRR\t ", "IRR\t 256", "IRR\t none", "IRR\t 3 x"] {
        let expected = RegistersError::LapicField { field: "IRR" };
        assert_eq!(parse_lapic(&with_line("IRR", line)), Err(expected), "{line}");
    }
    for tpr in ["TPR", "TPR x", "TPR 0x100"] {
        let text = FIRST_LAPIC.replace("TPR 0x00", tpr);
        let expected = RegistersError::LapicField { field: "TPR" };
        assert_eq!(parse_lapic(&text), Err(expected), "{tpr}");
    }
}
