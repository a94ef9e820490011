//! The looks are what QEMU 7.2 printed for Linux 6.1 and, of the panic with two vCPUs, 6.12, 250 ms apart, under TCG; what is
//! burnt meanwhile is as under TCG or under KVM.

use super::*;

const PANIC_1: &str = include_str!("looks/panic-1.txt");
/// Its last look met an interrupt.
const PANIC_2: &str = include_str!("looks/panic-2.txt");
const IDLE_2: &str = include_str!("looks/idle-2.txt");
const BUSY_2: &str = include_str!("looks/busy-2.txt");
const HALT_2: &str = include_str!("looks/halt-2.txt");
/// Idles by polling.
const NOHLT_1: &str = include_str!("looks/nohlt-1.txt");

const LONG: Duration = Duration::from_secs(11);

/// Looks at vCPUs that use these shares of the time.
fn looks(text: &str, shares: &[f64]) -> Vec<Vec<ArmSnapshot>> {
    let began = std::time::Instant::now();
    let look = |(n, text): (u32, &str)| -> Vec<ArmSnapshot> {
        let elapsed = LOOK_EVERY * n;
        let vcpus = parse_arm_registers(text).expect("what QEMU printed");
        let snapshot = |(registers, share): (ArmRegisters, &f64)| {
            let nanos = elapsed.mul_f64(*share).as_nanos();
            let wanted_ns = Some(u64::try_from(nanos).expect("a moment"));
            ArmSnapshot { at: began + elapsed, registers, wanted_ns }
        };
        vcpus.into_iter().zip(shares).map(snapshot).collect()
    };
    (0..).zip(text.split("=\n")).map(look).collect()
}

fn still(span: Duration) -> Waits {
    Waits::Still { span, woke_before: true, none_began: true }
}

/// What looks say of vCPUs of which the last one was where it is for so long.
fn after(looks: &[Vec<ArmSnapshot>], waits: Waits, span: Duration) -> Answer {
    let (_, place) = classify(looks, Waits::Unknown, None, false);
    classify(looks, waits, place.map(|place| (place, span)), false).0
}

fn answer(looks: &[Vec<ArmSnapshot>]) -> Answer {
    after(looks, Waits::Unknown, LONG)
}

fn is_neither(answer: &Answer) -> bool {
    matches!(answer, Answer::Neither(_))
}

#[test]
fn an_idle_guest_is_never_held_to_be_dead_though_it_is_halted_with_interrupts_off() {
    for waits in [Waits::Unknown, Waits::Woke, still(LONG)] {
        let found = after(&looks(IDLE_2, &[0.001, 0.001]), waits, LONG);
        assert!(is_neither(&found), "{found:?}");
        // In none of its looks alone, nor where nothing is known of its threads.
        for look in looks(IDLE_2, &[0.0, 0.0]) {
            let unknown = |look: &ArmSnapshot| ArmSnapshot { wanted_ns: None, ..*look };
            let looks = vec![look.iter().map(unknown).collect(); 6];
            assert!(is_neither(&after(&looks, waits, LONG)));
        }
    }
}

#[test]
fn user_code_in_any_look_acquits_unless_its_interrupts_are_masked() {
    let busy = looks(BUSY_2, &[0.0, 0.9]);
    assert_eq!(answer(&busy), Answer::Lives("vCPU 1 runs user code".to_owned()));
    let mut panicked = looks(PANIC_2, &[1.0, 1.0]);
    panicked.extend(looks(BUSY_2, &[1.0, 1.0]).into_iter().take(1));
    assert!(matches!(answer(&panicked), Answer::Lives(_)));
    let mut odd = busy;
    odd.iter_mut().flatten().for_each(|look| look.registers.irqs_masked = true);
    assert!(is_neither(&answer(&odd)));
}

#[test]
fn a_panic_beside_which_parked_vcpus_burn_their_cpus_is_stuck() {
    let panicked = looks(PANIC_2, &[0.99, 0.99]);
    assert!(matches!(answer(&panicked), Answer::Stuck(_)), "one look met an interrupt");
    for waits in [Waits::Unknown, still(Duration::ZERO)] {
        assert!(matches!(after(&panicked, waits, Duration::ZERO), Answer::Stuck(_)));
    }
    // An interrupt ended a sleep.
    assert!(matches!(after(&panicked, Waits::Woke, LONG), Answer::Loops(_)));
    // As powered-off vCPUs sleep, and parked ones under TCG.
    let asleep = looks(PANIC_2, &[0.001, 0.99]);
    assert!(matches!(answer(&asleep), Answer::Loops(_)));
    // Two looks that met something else are none of a loop.
    let mut computes = panicked;
    computes[1][1].registers.sp += 4096;
    assert!(is_neither(&answer(&computes)));
}

#[test]
fn a_single_vcpu_that_loops_is_stuck_only_if_it_waited_before_and_has_not_for_long() {
    let panicked = looks(PANIC_1, &[0.99]);
    assert!(matches!(answer(&panicked), Answer::Loops(_)));
    assert!(matches!(after(&panicked, still(LONG), LONG), Answer::Stuck(_)));
    let short = STILL_FOR - Duration::from_millis(1);
    for (waits, span) in [
        (still(short), LONG),
        (still(LONG), short),
        (Waits::Woke, LONG),
        // As of a guest with waits that KVM doesn't see.
        (Waits::Still { span: LONG, woke_before: false, none_began: true }, LONG),
        (Waits::Still { span: LONG, woke_before: true, none_began: false }, LONG),
    ] {
        let found = after(&panicked, waits, span);
        assert!(matches!(found, Answer::Loops(_)), "{waits:?}, {span:?}: {found:?}");
    }
    let fewer = &panicked[..2];
    assert!(is_neither(&after(fewer, still(LONG), LONG)));
}

#[test]
fn a_vcpu_that_idles_by_polling_loops_too_and_counts_nothing_meanwhile() {
    for waits in [Waits::Unknown, still(LONG)] {
        let found = after(&looks(NOHLT_1, &[0.99]), waits, LONG);
        assert!(is_neither(&found), "{found:?}");
    }
}

#[test]
fn firmware_loops_and_parks_below_and_a_hypervisor_above() {
    let below = |looks: &mut Vec<Vec<ArmSnapshot>>| {
        looks.iter_mut().flatten().for_each(|look| look.registers.in_upper_half = false);
    };
    let above = |looks: &mut Vec<Vec<ArmSnapshot>>| {
        looks.iter_mut().flatten().for_each(|look| look.registers.level = ArmLevel::Other);
    };
    for change in [&below as &dyn Fn(&mut Vec<Vec<ArmSnapshot>>), &above] {
        for text in [PANIC_1, PANIC_2] {
            let mut other = looks(text, &[0.99, 0.99]);
            change(&mut other);
            let found = after(&other, still(LONG), LONG);
            assert!(is_neither(&found), "{found:?}");
        }
        let mut waits_for_a_key = looks(HALT_2, &[0.99, 0.99]);
        change(&mut waits_for_a_key);
        assert!(is_neither(&answer(&waits_for_a_key)));
    }
    // Its registers may be those of its own guest.
    let panicked = looks(PANIC_2, &[0.99, 0.99]);
    assert!(is_neither(&classify(&panicked, Waits::Unknown, None, true).0));
}

#[test]
fn a_halted_kernel_runs_at_one_spot_which_is_evidence_beside_parked_vcpus_that_burn_theirs() {
    let halted = looks(HALT_2, &[0.99, 0.99]);
    assert!(matches!(answer(&halted), Answer::Stuck(_)));
    assert!(is_neither(&after(&halted, Waits::Woke, LONG)));
    let asleep = looks(HALT_2, &[0.99, 0.0]);
    assert!(matches!(answer(&asleep), Answer::Motionless(_)));
    // It waits there, as an idle one does.
    assert!(is_neither(&answer(&looks(HALT_2, &[0.01, 0.99]))));
    // It was elsewhere in the round before.
    let (_, place) = classify(&halted, Waits::Unknown, None, false);
    let mut later = halted;
    later.iter_mut().for_each(|look| look[0].registers.general_digest ^= 1);
    let before = place.map(|place| (place, LONG));
    assert!(is_neither(&classify(&later, Waits::Unknown, before, false).0));
}

#[test]
fn vcpus_that_were_never_started_count_for_nothing() {
    let never = "CPU#1\n PC=0 X00=0\nSP=0\nPSTATE=400003c5 -Z-- EL1h\n";
    let text: Vec<String> = PANIC_1.split("=\n").map(|look| format!("{look}{never}")).collect();
    let panicked = looks(&text.join("=\n"), &[0.99, 0.0]);
    assert!(matches!(after(&panicked, still(LONG), LONG), Answer::Stuck(_)));
    let off = looks(&[never.replace("CPU#1", "CPU#0").as_str(); 3].join("=\n"), &[0.0]);
    assert_eq!(answer(&off), Answer::Neither("no vCPU was started".to_owned()));
    let parked: Vec<Vec<ArmSnapshot>> =
        looks(PANIC_2, &[0.99, 0.99]).iter().map(|look| vec![look[0]]).collect();
    assert!(matches!(answer(&parked), Answer::Motionless(_)), "none is left that could loop");
    let mut plugged = looks(PANIC_2, &[0.99, 0.99]);
    plugged[2].pop();
    assert!(is_neither(&answer(&plugged)));
    assert!(is_neither(&answer(&[])));
}

#[test]
fn a_place_is_left_when_the_vcpu_is_elsewhere_or_the_suspicion_is_another() {
    let began = Instant::now();
    let (_, place) = classify(&looks(PANIC_1, &[0.99]), Waits::Unknown, None, false);
    let mut seen = Seen::default();
    seen.stays_at(place, began);
    let since = |seen: &Seen, at| seen.at_place_for(at).map(|(_, span)| span);
    assert_eq!(since(&seen, began + Duration::from_secs(3)), Some(Duration::from_secs(3)));
    assert_eq!(since(&seen, began + ROUNDS_APART * 2), None);
    seen.stays_at(place, began + Duration::from_secs(3));
    assert_eq!(since(&seen, began + Duration::from_secs(6)), Some(Duration::from_secs(6)));
    let (_, elsewhere) = classify(&looks(HALT_2, &[0.99, 0.0]), Waits::Unknown, None, false);
    seen.stays_at(elsewhere, began + Duration::from_secs(6));
    assert_eq!(since(&seen, began + Duration::from_secs(6)), Some(Duration::ZERO));
    seen.stays_at(None, began + Duration::from_secs(7));
    assert_eq!(since(&seen, began + Duration::from_secs(8)), None);
}
