use super::*;
use flatline_qemu::qmp::{Lapic, TimerMode, VcpuRegisters, Vectors};

fn vcpu(halted: bool, interrupts_enabled: bool, cpl: u8, ip: u64) -> VcpuSnapshot {
    let registers = VcpuRegisters {
        index: 0,
        ip,
        cpl,
        halted,
        interrupts_enabled,
        paging: true,
        in_upper_half: true,
        general_digest: 7,
    };
    VcpuSnapshot { at: Instant::now(), registers, lapic: None, pic_pending: 0, ran_ns: None }
}

fn lapic(software_enabled: bool, lint0_accepts_external: bool) -> Lapic {
    Lapic {
        software_enabled,
        timer_masked: true,
        timer_vector: 236,
        timer_mode: TimerMode::OneShot,
        timer_initial_count: 0,
        timer_divider: Some(1),
        timer_count: None,
        lint0_accepts_external,
        requested: Vectors::default(),
        in_service: Vectors::default(),
        priority_class: 0,
    }
}

fn with_lapic(
    look: VcpuSnapshot,
    software_enabled: bool,
    lint0_accepts_external: bool,
) -> VcpuSnapshot {
    VcpuSnapshot { lapic: Some(lapic(software_enabled, lint0_accepts_external)), ..look }
}

fn always(look: VcpuSnapshot) -> Vec<Vec<VcpuSnapshot>> {
    vec![vec![look]; LOOKS_PER_ROUND]
}

/// What looks say without a round before.
fn answer(looks: &[Vec<VcpuSnapshot>]) -> Answer {
    classify(looks, None).0
}

/// Looks at a vCPU that runs with interrupts off at one spot, with these interrupts pending in each.
fn masked(pending: &[&[u8]]) -> Vec<Vec<VcpuSnapshot>> {
    let look = |(n, vectors): (usize, &&[u8])| {
        let requested = vectors.iter().copied().collect();
        let lapic = Lapic { requested, ..lapic(true, false) };
        let ran_ns = Some(n as u64 * 50_000_000);
        vec![VcpuSnapshot { lapic: Some(lapic), ran_ns, ..vcpu(false, false, 0, 0x1000) }]
    };
    pending.iter().enumerate().map(look).collect()
}

#[test]
fn a_guest_that_waits_with_interrupts_on_is_healthy() {
    let finding = answer(&always(vcpu(true, true, 0, 0x1000)));
    assert!(matches!(finding, Answer::Lives(_)), "{finding:?}");
}

#[test]
fn a_guest_halted_with_interrupts_off_is_halted_and_one_look_at_user_code_is_enough_against_it() {
    let mut looks = always(vcpu(true, false, 0, 0x1000));
    assert_eq!(answer(&looks), Answer::Halted);
    looks[LOOKS_PER_ROUND - 1][0] = vcpu(false, true, 3, 0x4000);
    assert!(matches!(answer(&looks), Answer::Lives(_)));
}

#[test]
fn a_panicked_linux_is_stuck_though_its_interrupts_are_on_and_it_moves() {
    let spin = |ip| with_lapic(vcpu(false, true, 0, ip), false, false);
    let parked = vcpu(true, false, 0, 0xfd09a);
    let parked =
        VcpuSnapshot { registers: VcpuRegisters { index: 1, ..parked.registers }, ..parked };
    let looks: Vec<_> = [0x1000, 0x9000, 0x1004, 0x5000].map(|ip| vec![spin(ip), parked]).into();
    assert!(matches!(answer(&looks), Answer::Stuck(_)));
}

#[test]
fn a_firmware_guest_on_the_legacy_timer_is_not_stuck_though_its_apic_timer_is_masked() {
    let sti_jmp = with_lapic(vcpu(false, true, 0, 0x7c01), true, true);
    assert!(matches!(answer(&always(sti_jmp)), Answer::Neither(_)));
    let disabled_but_wired = with_lapic(vcpu(false, true, 0, 0x7c01), false, true);
    assert!(matches!(answer(&always(disabled_but_wired)), Answer::Neither(_)));
}

#[test]
fn one_interrupt_pending_in_every_look_is_stuck_at_one_spot_while_it_ran() {
    assert!(matches!(answer(&masked(&[&[236], &[49, 236], &[49, 236]])), Answer::Stuck(_)));
    let mut legacy = masked(&[&[], &[], &[]]);
    legacy.iter_mut().for_each(|look| look[0].pic_pending = 0b11);
    assert!(matches!(answer(&legacy), Answer::Stuck(_)));
    for ran_ns in [None, Some(4_999_999)] {
        let mut starved = masked(&[&[236], &[236], &[236]]);
        starved[1][0].ran_ns = ran_ns;
        assert!(matches!(answer(&starved), Answer::Motionless(_)), "{ran_ns:?}");
    }
    let mut kept_away = masked(&[&[236], &[236], &[236]]);
    for look in &mut kept_away {
        look[0].lapic = look[0].lapic.map(|lapic| Lapic { priority_class: 14, ..lapic });
    }
    assert!(matches!(answer(&kept_away), Answer::Motionless(_)));
}

#[test]
fn one_spot_with_nothing_pending_all_along_is_no_evidence() {
    for pending in [[&[][..], &[], &[]], [&[], &[236], &[236]], [&[], &[], &[236]]] {
        let finding = answer(&masked(&pending));
        assert!(matches!(finding, Answer::Motionless(_)), "{pending:?}: {finding:?}");
    }
}

#[test]
fn interrupts_off_and_moving_on_is_neither() {
    let mut counts = masked(&[&[236], &[236], &[236]]);
    counts[2][0].registers.general_digest = 8;
    assert!(matches!(answer(&counts), Answer::Neither(_)));
    let mut moves = masked(&[&[236], &[236], &[236]]);
    moves[1][0].registers.ip += 65;
    assert!(matches!(answer(&moves), Answer::Neither(_)));
    let mut near = masked(&[&[236], &[236], &[236]]);
    near[1][0].registers.ip += 64;
    assert!(matches!(answer(&near), Answer::Stuck(_)));
}

#[test]
fn an_interrupt_that_was_pending_and_is_not_any_more_was_taken() {
    let looks = masked(&[&[], &[236], &[]]);
    assert_eq!(answer(&looks), Answer::Lives("vCPU 0 takes interrupts (236)".to_owned()));
    // Its local APIC was disabled or reset in between, which forgets what was pending.
    let mut disabled = masked(&[&[], &[236], &[]]);
    disabled[2][0].lapic = Some(lapic(false, false));
    assert!(!matches!(answer(&disabled), Answer::Lives(_)));
    let mut unread = masked(&[&[], &[236], &[]]);
    unread[2][0].lapic = None;
    assert!(!matches!(answer(&unread), Answer::Lives(_)));
}

/// As [`masked`], each with its interrupt pending, after some change to each local APIC.
fn masked_with(change: impl Fn(usize, &mut Lapic)) -> Vec<Vec<VcpuSnapshot>> {
    let mut looks = masked(&[&[236], &[236], &[236]]);
    for (n, look) in looks.iter_mut().enumerate() {
        if let Some(lapic) = &mut look[0].lapic {
            change(n, lapic);
        }
    }
    looks
}

#[test]
fn a_vcpu_that_sets_its_timer_or_serves_interrupts_lives_whatever_is_pending_whenever_qemu_looks() {
    assert!(matches!(answer(&masked_with(|_, _| {})), Answer::Stuck(_)));
    // The kernel of a guest hypervisor, whose timer is pending in half of the looks, sets it each time.
    let sets = masked_with(|n, lapic| lapic.timer_initial_count = 62_000 + n as u64);
    assert_eq!(answer(&sets), Answer::Lives("vCPU 0 sets its local APIC".to_owned()));
    let serves = masked_with(|n, lapic| lapic.in_service = (49..49 + u8::from(n > 0)).collect());
    assert!(matches!(answer(&serves), Answer::Lives(_)));
    let priority = masked_with(|n, lapic| lapic.priority_class = u8::from(n > 0));
    assert!(matches!(answer(&priority), Answer::Lives(_)));
}

#[test]
fn a_kernel_that_takes_interrupts_and_does_nothing_else_is_not_acquitted_by_them() {
    // A soft lockup: interrupts are on, and taken.
    let mut looks = masked(&[&[], &[236], &[]]);
    looks.iter_mut().for_each(|look| look[0].registers.interrupts_enabled = true);
    assert!(matches!(answer(&looks), Answer::Neither(_)));
}

#[test]
fn a_periodic_timer_that_ran_out_without_its_interrupt_pending_was_taken() {
    let with_timer = |period_ms: u64, masked_timer: bool, requested: &[u8]| {
        let mut looks = masked(&[&[], &[], requested]);
        let began = looks[0][0].at;
        for (n, look) in (0..).zip(&mut looks) {
            let lapic = look[0].lapic.unwrap_or_else(|| lapic(true, false));
            look[0].at = began + LOOK_EVERY * n;
            look[0].lapic = Some(Lapic {
                timer_masked: masked_timer,
                timer_mode: TimerMode::Periodic,
                timer_initial_count: period_ms * 1_000_000,
                ..lapic
            });
        }
        answer(&looks)
    };
    assert!(matches!(with_timer(100, false, &[]), Answer::Lives(_)));
    // It hasn't run out yet, or can't interrupt.
    assert!(matches!(with_timer(300, false, &[]), Answer::Motionless(_)));
    assert!(matches!(with_timer(100, true, &[]), Answer::Motionless(_)));
    let mut untaken = masked(&[&[236], &[236], &[236]]);
    for look in &mut untaken {
        let lapic = look[0].lapic.unwrap_or_else(|| lapic(true, false));
        let timer_mode = TimerMode::Periodic;
        look[0].lapic =
            Some(Lapic { timer_masked: false, timer_mode, timer_initial_count: 1000, ..lapic });
    }
    assert!(matches!(answer(&untaken), Answer::Stuck(_)));
}

#[test]
fn what_was_pending_in_the_round_before_or_where_it_stood_counts_on() {
    let before = |looks: &[Vec<VcpuSnapshot>]| {
        let (_, spots) = classify(looks, None);
        Before { at: Instant::now(), spots, looks: looks[looks.len() - 1].clone() }
    };
    let nothing = masked(&[&[], &[], &[]]);
    assert!(matches!(classify(&nothing, Some(&before(&nothing))).0, Answer::Motionless(_)));
    let pending = before(&masked(&[&[], &[], &[236]]));
    assert!(matches!(classify(&nothing, Some(&pending)).0, Answer::Lives(_)));
    let mut elsewhere = masked(&[&[], &[], &[]]);
    elsewhere.iter_mut().for_each(|look| look[0].registers.general_digest = 8);
    let (answer, spots) = classify(&elsewhere, Some(&before(&nothing)));
    assert!(matches!(answer, Answer::Neither(_)), "{answer:?}");
    assert_eq!(spots.len(), 1, "the next round compares with this one");
}

#[test]
fn a_dead_vcpu_beside_a_healthy_one_neither_convicts_nor_acquits() {
    let idle = vcpu(true, true, 0, 0x2000);
    let idle = VcpuSnapshot { registers: VcpuRegisters { index: 1, ..idle.registers }, ..idle };
    for pending in [[&[236][..], &[236], &[236]], [&[], &[], &[]]] {
        let mut looks = masked(&pending);
        looks.iter_mut().for_each(|look| look.push(idle));
        assert!(matches!(answer(&looks), Answer::Neither(_)), "{pending:?}");
    }
}

#[test]
fn a_dead_vcpu_beside_one_that_may_only_wait_is_no_dead_guest() {
    let mut looks = masked(&[&[236], &[236], &[236]]);
    let second = masked(&[&[], &[], &[]]);
    for (look, other) in looks.iter_mut().zip(second) {
        let registers = VcpuRegisters { index: 1, ..other[0].registers };
        look.push(VcpuSnapshot { registers, ..other[0] });
    }
    assert!(matches!(answer(&looks), Answer::Motionless(_)));
}

#[test]
fn a_vcpu_that_was_never_started_counts_for_nothing() {
    let waiting = vcpu(false, false, 0, 0xfff0);
    let waiting =
        VcpuSnapshot { registers: VcpuRegisters { index: 1, ..waiting.registers }, ..waiting };
    let idle = vcpu(true, true, 0, 0x2000);
    let looks = vec![vec![idle, waiting]; LOOKS_PER_ROUND];
    assert!(matches!(answer(&looks), Answer::Lives(_)));
}

#[test]
fn no_vcpu_and_a_changing_number_of_them_are_no_evidence() {
    assert!(matches!(answer(&[]), Answer::NotAsked(_)));
    assert!(matches!(answer(&[vec![]]), Answer::NotAsked(_)));
    let stopped = vcpu(true, false, 0, 0);
    let looks = [vec![stopped], vec![stopped, stopped]];
    assert!(matches!(answer(&looks), Answer::Neither(_)));
}

/// A look at a vCPU for each of its standings.
fn standings() -> [VcpuSnapshot; 6] {
    [
        vcpu(true, true, 0, 0x1000),
        vcpu(false, true, 3, 0x1000),
        vcpu(true, false, 0, 0x1000),
        with_lapic(vcpu(false, true, 0, 0x1000), true, true),
        with_lapic(vcpu(false, false, 0, 0x1000), true, false),
        with_lapic(vcpu(false, true, 0, 0x1000), false, false),
    ]
}

#[test]
fn looks_that_are_settled_acquit_whatever_further_ones_show() {
    let states: Vec<VcpuRunState> = standings().iter().map(VcpuSnapshot::standing).collect();
    use VcpuRunState::{Idle, Kernel, Masked, Stopped, Unreachable, User};
    assert_eq!(states, [Idle, User, Stopped, Kernel, Masked, Unreachable]);
    let second = |look: VcpuSnapshot| {
        let registers = VcpuRegisters { index: 1, ..look.registers };
        VcpuSnapshot { registers, ..look }
    };
    let of_both = || {
        let each = |first| standings().map(|other| vec![first, second(other)]);
        standings().into_iter().flat_map(each)
    };
    let mut settled = 0;
    for first in of_both() {
        if !is_settled(std::slice::from_ref(&first)) {
            continue;
        }
        settled += 1;
        for (third, fourth) in
            of_both().flat_map(|third| of_both().map(move |it| (third.clone(), it)))
        {
            let all = [first.clone(), third, fourth];
            let finding = answer(&all);
            assert!(matches!(finding, Answer::Lives(_)), "{all:?}: {finding:?}");
        }
    }
    // One of both waits or runs user code, and the other is not masked or unreachable.
    assert_eq!(settled, 2 * 4 + 2 * 2);
}

#[test]
fn what_may_be_dead_or_is_not_the_same_vcpus_is_looked_at_on() {
    assert!(!is_settled(&[]) && !is_settled(&[vec![]]));
    let [idle, _, stopped, kernel, masked, unreachable] = standings();
    for look in [vec![idle, masked], vec![unreachable, idle], vec![stopped, kernel], vec![kernel]] {
        assert!(!is_settled(&[look]));
    }
    assert!(!is_settled(&[vec![masked], vec![masked, idle]]));
    // It was dead in one look, and not in the next.
    assert!(is_settled(&[vec![masked], vec![idle]]));
}
