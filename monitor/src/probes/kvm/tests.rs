use super::*;
use crate::bpf::ProgramHealth;
use flatline_samples::Missing;

const LONG: Duration = Duration::from_secs(8);

fn row(hook: &'static str, failed: &[&str]) -> ProgramHealth {
    let failure = failed.contains(&hook).then(|| "no such tracepoint".to_owned());
    ProgramHealth { program: "kvm", hook, required: false, failure }
}

/// Those of an x86 KVM, but for some; it has none of arm64's unless that one, too, is among those that could not be attached.
fn hooks(failed: &[&str]) -> KvmHooks {
    let health = SIGNS.map(|hook| row(hook, failed));
    let arm64 = row(ONLY_ARM64[0], &ONLY_ARM64);
    KvmHooks {
        attached: true,
        health: health.into_iter().chain([arm64]).collect(),
        ..KvmHooks::default()
    }
}

/// All that a [`Look`] borrows.
struct Case {
    accelerator: Accelerator,
    hooks: KvmHooks,
    before: Reading<KvmCounters>,
    after: Reading<KvmCounters>,
    elapsed: Duration,
    waited: Option<Duration>,
    took_one: bool,
    set_timer: bool,
    interrupts_are_hidden: bool,
}

/// Judges a guest that acknowledged interrupts before in this boot, after some change to that.
fn judged(moved: KvmCounters, change: impl FnOnce(&mut Case)) -> Answer {
    let before = KvmCounters { wakeups: 1000, apic_eois: 1000, pio: 7, ..still() };
    let after = KvmCounters {
        wakeups: before.wakeups + moved.wakeups,
        apic_eois: before.apic_eois + moved.apic_eois,
        pio: before.pio + moved.pio,
        ..moved
    };
    let mut case = Case {
        accelerator: Accelerator::Kvm,
        hooks: hooks(&[]),
        before: Ok(before),
        after: Ok(after),
        elapsed: LONG,
        waited: Some(Duration::from_secs(2)),
        took_one: true,
        set_timer: false,
        interrupts_are_hidden: false,
    };
    change(&mut case);
    judge(&KvmLook {
        accelerator: &case.accelerator,
        hooks: &case.hooks,
        before: &case.before,
        after: &case.after,
        elapsed: case.elapsed,
        waited: case.waited,
        took_one: case.took_one,
        set_timer: case.set_timer,
        interrupts_are_hidden: case.interrupts_are_hidden,
    })
}

fn still() -> KvmCounters {
    KvmCounters::default()
}

#[test]
fn a_guest_that_acknowledges_sets_its_timer_takes_or_resumes_lives() {
    for (moved, text) in [
        (KvmCounters { apic_eois: 90, pic_eois: 10, ..still() }, "100 interrupts acknowledged"),
        (KvmCounters { timers_set: 3, ..still() }, "3 timers set"),
        (KvmCounters { injected: 1, ..still() }, "1 interrupts taken"),
        (KvmCounters { resumed: 2, wakeups: 2, ..still() }, "2 wakeups from hlt"),
    ] {
        assert_eq!(judged(moved, |_| {}), Answer::Lives(format!("{text} in 8.0 s")));
    }
}

#[test]
fn an_arm64_kvm_is_known_by_its_tracepoint_and_judged_by_what_that_counts() {
    let of_arm64 = |case: &mut Case| {
        case.hooks = hooks(&ONLY_X86);
        case.hooks.health.push(row(ONLY_ARM64[0], &[]));
        case.hooks.health.retain(|row| row.hook != ONLY_ARM64[0] || row.failure.is_none());
    };
    let entries = KvmCounters { resumed: 30_000, wakeups: 30_000, entries: 30_000, ..still() };
    for moved in [entries, KvmCounters { timers_set: 9, ..still() }, still()] {
        let finding = judged(moved, of_arm64);
        assert!(matches!(finding, Answer::Nothing(_)), "{moved:?}: {finding:?}");
    }
    let awoken = KvmCounters { awoken: 1, ..entries };
    assert!(matches!(judged(awoken, of_arm64), Answer::Lives(_)));
    assert!(matches!(
        judged(KvmCounters { resumed: 1, awoken: 0, ..still() }, |_| {}),
        Answer::Lives(_)
    ));
}

#[test]
fn where_kvm_has_neither_architectures_tracepoints_entries_into_the_guest_acquit_nobody() {
    let lacking: Vec<&str> = ONLY_X86.into_iter().chain(ONLY_ARM64).collect();
    let other = |case: &mut Case| case.hooks = hooks(&lacking);
    for moved in
        [KvmCounters { resumed: 30_000, wakeups: 30_000, entries: 30_000, ..still() }, still()]
    {
        let finding = judged(moved, other);
        assert!(matches!(finding, Answer::NotAsked(_)), "{moved:?}: {finding:?}");
    }
    for sign in ONLY_X86 {
        let others: Vec<&str> = lacking.iter().copied().filter(|other| *other != sign).collect();
        assert_eq!(lacks_signs(&hooks(&others)), None, "with {sign}");
    }
    assert_eq!(lacks_signs(&KvmHooks::default()), None);
}

#[test]
fn one_sign_acquits_however_short_the_look_and_however_much_can_not_be_seen() {
    let others = ["kvm_vcpu_wakeup", "kvm_entry", "kvm_inj_virq", "kvm_pio", "kvm_msr"];
    let finding = judged(KvmCounters { apic_eois: 1, ..still() }, |case| {
        case.elapsed = Duration::from_millis(100);
        case.hooks = hooks(&others);
        case.interrupts_are_hidden = true;
    });
    assert!(matches!(finding, Answer::Lives(_)), "{finding:?}");
}

#[test]
fn wakeups_in_vain_entries_and_raised_lines_are_silence() {
    let moved = KvmCounters { wakeups: 800, entries: 5000, set_irqs: 2, ..still() };
    let text = "no interrupt taken in 8.0 s (800 wakeups in vain, 2 changes of interrupt lines)";
    assert_eq!(judged(moved, |_| {}), Answer::Silent(text.to_owned()));
}

#[test]
fn a_guest_takes_interrupts_if_kvm_injects_them_or_it_acknowledges_them() {
    let before = KvmCounters { injected: 5, ..still() };
    assert!(!takes_interrupts(&before, &KvmCounters { timers_set: 9, resumed: 9, ..before }));
    assert!(!takes_interrupts(&before, &still()), "its counters began anew");
    assert!(takes_interrupts(&before, &KvmCounters { injected: 6, ..before }));
    assert!(takes_interrupts(&before, &KvmCounters { apic_eois: 1, ..before }));
    assert!(takes_interrupts(&before, &KvmCounters { pic_eois: 1, ..before }));
}

#[test]
fn the_vcpu_that_the_host_let_wait_longest_tells_how_long_a_guest_could_take_none() {
    let waits = |seconds: [u64; 2]| Some(seconds.map(Duration::from_secs));
    let between = |before: Option<[Duration; 2]>, after: Option<[Duration; 2]>| {
        longest_wait(
            before.as_ref().map(|waits| &waits[..]),
            after.as_ref().map(|waits| &waits[..]),
        )
    };
    assert_eq!(between(waits([1, 7]), waits([9, 8])), Some(Duration::from_secs(8)));
    assert_eq!((between(None, waits([9, 8])), between(waits([1, 7]), None)), (None, None));
    assert_eq!(longest_wait(Some(&[Duration::ZERO]), Some(&[])), None, "a vCPU was unplugged");
}

#[test]
fn a_guest_that_only_touches_devices_neither_lives_nor_is_silent() {
    for moved in [
        KvmCounters { pio: 12, ..still() },
        KvmCounters { mmio: 1, ..still() },
        KvmCounters { userspace_exits: 1, ..still() },
    ] {
        assert!(matches!(judged(moved, |_| {}), Answer::Nothing(_)), "{moved:?}");
    }
}

#[test]
fn silence_says_nothing_where_a_living_guest_might_not_be_seen() {
    assert!(matches!(judged(still(), |_| {}), Answer::Silent(_)));
    for sign in SIGNS {
        let finding = judged(still(), |case| case.hooks = hooks(&[sign]));
        assert!(matches!(finding, Answer::Nothing(_)), "without {sign}: {finding:?}");
    }
    for finding in [
        judged(still(), |case| case.elapsed = SHORTEST_SILENCE - Duration::from_millis(1)),
        judged(still(), |case| case.interrupts_are_hidden = true),
        judged(still(), |case| case.took_one = false),
        judged(still(), |case| case.waited = None),
        judged(still(), |case| {
            case.waited = Some(LONG - SHORTEST_SILENCE + Duration::from_millis(1))
        }),
    ] {
        assert!(matches!(finding, Answer::Nothing(_)), "{finding:?}");
    }
}

/// Judges one whose processor delivers interrupts past KVM, and that sets its timer, unless `change` has it otherwise.
fn with_hidden(moved: KvmCounters, change: impl FnOnce(&mut Case)) -> Answer {
    judged(moved, |case| {
        (case.interrupts_are_hidden, case.took_one, case.set_timer) = (true, false, true);
        case.elapsed = hidden::SHORTEST_SILENCE * 2;
        change(case);
    })
}

#[test]
fn where_interrupts_are_hidden_a_guest_lives_by_its_timer_or_by_going_on_behind_hlt() {
    for moved in [
        KvmCounters { timers_set: 1, ..still() },
        KvmCounters { resumed: 1, wakeups: 1, ..still() },
        KvmCounters { apic_eois: 1, ..still() },
    ] {
        assert!(matches!(with_hidden(moved, |_| {}), Answer::Lives(_)), "{moved:?}");
    }
}

#[test]
fn where_interrupts_are_hidden_only_a_guest_that_set_its_timer_is_silent_without_and_only_for_long()
{
    let moved = KvmCounters { wakeups: 800, entries: 9000, set_irqs: 3, ..still() };
    assert!(matches!(with_hidden(moved, |_| {}), Answer::Silent(_)), "a dead one is found");
    for answer in [
        with_hidden(moved, |case| case.set_timer = false),
        with_hidden(moved, |case| case.elapsed = hidden::SHORTEST_SILENCE),
        with_hidden(moved, |case| case.hooks = hooks(&["kvm_msr"])),
    ] {
        assert!(matches!(answer, Answer::Nothing(_)), "{answer:?}");
    }
}

#[test]
fn a_question_that_was_not_asked_is_no_silence() {
    let gone = || Err(Missing::new("its row", "gone"));
    let signs = KvmCounters { apic_eois: 5, ..still() };
    for finding in [
        judged(signs, |case| case.accelerator = Accelerator::Tcg),
        judged(signs, |case| case.hooks.attached = false),
        judged(signs, |case| case.before = gone()),
        judged(signs, |case| case.after = gone()),
        judged(signs, |case| case.after = Ok(still())),
    ] {
        assert!(matches!(finding, Answer::NotAsked(_)), "{finding:?}");
    }
}
