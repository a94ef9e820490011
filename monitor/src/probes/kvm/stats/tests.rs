use serde_json::{Value, json};

use super::*;

const LONG: Duration = Duration::from_secs(8);

/// A vCPU of a dead x86 guest, with what it does in between.
fn vcpu(index: u32, moved: &[(&str, u64)]) -> Value {
    let figures = ["exits", "halt_exits", "halt_wakeup", "irq_injections", "irq_exits", "io_exits"];
    let figures = figures.into_iter().chain(["mmio_exits", "signal_exits"]);
    let stats = figures.map(|name| {
        let by = moved.iter().find(|(moved, _)| *moved == name).map_or(0, |(_, by)| *by);
        json!({"name": name, "value": 1000 + by})
    });
    let stats: Vec<Value> = stats.collect();
    json!({"provider": "kvm", "qom-path": format!("/machine/{index}"), "stats": stats})
}

fn look<'a>(before: &'a [VcpuStats], after: &'a [VcpuStats]) -> StatsLook<'a> {
    StatsLook {
        before,
        after,
        elapsed: LONG,
        waited: Some(Duration::from_secs(2)),
        lived: true,
        interrupts_are_hidden: false,
    }
}

fn told(vcpus: &[Value]) -> Vec<VcpuStats> {
    VcpuStats::of_reply(&vcpus.to_vec().into()).unwrap()
}

fn judged(moved: &[(&str, u64)], change: impl FnOnce(&mut StatsLook<'_>)) -> Answer {
    let before = told(&[vcpu(0, &[]), vcpu(1, &[])]);
    let after = told(&[vcpu(0, &[]), vcpu(1, moved)]);
    let mut look = look(&before, &after);
    change(&mut look);
    judge(&look)
}

#[test]
fn a_guest_that_takes_interrupts_or_halts_anew_lives_however_short_the_look() {
    for (moved, words) in [
        (("halt_exits", 91), "91 times halted anew"),
        (("irq_injections", 1), "1 interrupts taken"),
    ] {
        let answer = judged(&[moved], |look| {
            (look.elapsed, look.lived) = (Duration::from_millis(500), false);
            look.interrupts_are_hidden = true;
        });
        let words = format!("{words} in 0.5 s, by KVM's own figures");
        assert_eq!(answer, Answer::Lives(words));
    }
}

#[test]
fn exits_of_our_own_looks_of_the_hosts_interrupts_and_of_timers_in_vain_are_silence() {
    let moved = [("exits", 4407), ("signal_exits", 21), ("irq_exits", 1900), ("halt_wakeup", 800)];
    let words = "no interrupt taken in 8.0 s, by KVM's own figures".to_owned();
    assert_eq!(judged(&moved, |_| {}), Answer::Silent(words.clone()));
    assert_eq!(judged(&[], |_| {}), Answer::Silent(words));
}

#[test]
fn silence_says_nothing_where_a_living_guest_might_not_be_seen() {
    let changes: [fn(&mut StatsLook<'_>); 5] = [
        |look| look.elapsed = SHORTEST_SILENCE,
        |look| look.waited = None,
        |look| look.waited = Some(LONG),
        |look| look.lived = false,
        |look| look.interrupts_are_hidden = true,
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let answer = judged(&[], change);
        assert!(matches!(answer, Answer::Nothing(_)), "{number}: {answer:?}");
    }
    for touched in ["io_exits", "mmio_exits"] {
        let answer = judged(&[(touched, 3)], |_| {});
        assert!(matches!(answer, Answer::Nothing(_)), "{touched}: {answer:?}");
    }
}

/// Leaves a figure out of what is told of each vCPU.
fn without(names: &[&str]) -> Answer {
    let told = || {
        let mut vcpus = [vcpu(0, &[]), vcpu(1, &[])];
        for vcpu in &mut vcpus {
            let stats = vcpu["stats"].as_array_mut().unwrap();
            stats.retain(|stat| !names.contains(&stat["name"].as_str().unwrap()));
        }
        told(&vcpus)
    };
    judge(&look(&told(), &told()))
}

#[test]
fn a_figure_that_is_not_told_is_not_zero() {
    for name in ["halt_exits", "irq_injections", "io_exits"] {
        assert!(matches!(without(&[name]), Answer::Nothing(_)), "{name}");
    }
    assert!(matches!(without(&["halt_exits", "irq_injections"]), Answer::NotAsked(_)));
    assert!(matches!(without(&["exits", "irq_exits"]), Answer::Silent(_)), "they mean nothing");
}

#[test]
fn vcpus_that_come_go_or_begin_anew_are_no_silence() {
    let (one, two) = (told(&[vcpu(0, &[])]), told(&[vcpu(0, &[]), vcpu(1, &[])]));
    assert!(matches!(judge(&look(&one, &two)), Answer::NotAsked(_)));
    assert!(matches!(judge(&look(&two[1..], &one)), Answer::NotAsked(_)));
    let more = told(&[vcpu(0, &[("halt_exits", 5)])]);
    assert!(matches!(judge(&look(&more, &one)), Answer::Nothing(_)));
}

#[test]
fn an_arm64_guest_lives_by_sleeps_that_an_interrupt_ended_and_by_no_wait_that_polls() {
    let vcpu = |waits: u64, sleeps: u64| {
        told(&[json!({"stats": [{"name": "wfi_exit_stat", "value": waits},
            {"name": "halt_wakeup", "value": sleeps}, {"name": "exits", "value": waits}]})])
    };
    let idle = judge(&look(&vcpu(5, 5), &vcpu(9, 9)));
    assert_eq!(idle, Answer::Lives("4 interrupts ended a sleep in 8.0 s".to_owned()));
    let parked = judge(&look(&vcpu(5, 5), &vcpu(240_000, 5)));
    assert!(matches!(parked, Answer::Nothing(_)), "{parked:?}");
}
