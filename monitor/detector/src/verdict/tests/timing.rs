//! How long after the crash it is convicted: for each way of dying, wherever within a tick it dies.
//!
//! The promise is `flat_for` and three seconds, counted from the crash itself: with ticks of a second that are
//! up to 50 ms late, and rounds of questions that take 0.65 s. Where only its witnesses' silence speaks
//! against it, and no level of its vCPUs, that silence has to last for as long again.

use std::time::Duration;

use super::rig::{FLAT_TICKS, Guest, ROUND, Rig, TICK, answered, healthy};
use crate::verdict::Cause;

const PROMISE: Duration = Duration::from_millis(3_000);
const LATEST: u64 = 50;
const PHASE: u64 = 50;

/// How the level of a vCPU comes about over a tick that was partly lived.
fn mixed(dead: &[(f64, f64)], alive: f64, lived: f64) -> Vec<(f64, f64)> {
    let mix = |(n, (busy, waiting)): (usize, &(f64, f64))| {
        let own = if n == 0 { alive } else { 0.0 };
        (lived * own + (1.0 - lived) * busy, (1.0 - lived) * waiting)
    };
    dead.iter().enumerate().map(mix).collect()
}

/// A guest that dies `phase` after a tick: how long after that it is convicted, and as what. Until then it sends
/// packets, and its vCPU is as busy as `alive`. `late`: by how much each tick ends late.
fn convicted_after(
    dies: fn(&mut Guest),
    alive: f64,
    phase: Duration,
    late: impl Fn(u32) -> Duration,
) -> (Duration, Cause) {
    let mut rig = Rig::calibrated();
    let begin = rig.now;
    let crash = begin + TICK * 3 + phase;
    let mut dead = rig.guest.clone();
    dies(&mut dead);
    let shares = dead.activity.vcpus.clone().unwrap();
    let shares: Vec<_> = shares.iter().map(|vcpu| (vcpu.busy, vcpu.waiting)).collect();
    let mut before = begin;
    for n in 1..60 {
        let at = begin + TICK * n + late(n);
        let elapsed = at - before;
        let lived = crash.saturating_sub(before).min(elapsed);
        rig.guest.activity.elapsed = elapsed;
        rig.guest.level(&mixed(&shares, alive, lived.as_secs_f64() / elapsed.as_secs_f64()));
        rig.guest.sends(u64::from(!lived.is_zero()));
        if lived < elapsed {
            (rig.guest.arp, rig.guest.registers) = (dead.arp.clone(), dead.registers.clone());
        } else {
            (rig.guest.arp, rig.guest.registers) = (answered(), healthy());
        }
        rig.tick();
        before = at;
        if let Some((when, cause)) = rig.conviction() {
            return (when.saturating_sub(crash), cause);
        }
    }
    panic!("not convicted: {}", rig.watch.reason);
}

/// By how much each tick is late, by its number.
type Jitter = Box<dyn Fn(u32) -> Duration>;

/// What a way of dying does to a guest.
type Dies = fn(&mut Guest);

/// Jitter patterns, by the number of the tick.
fn jitters() -> Vec<(&'static str, Jitter)> {
    let ms = Duration::from_millis;
    vec![
        ("on the dot", Box::new(move |_| ms(0))),
        ("always late", Box::new(move |_| ms(LATEST))),
        ("every other late", Box::new(move |n| ms(LATEST * u64::from(n % 2)))),
        ("late until it dies", Box::new(move |n| ms(if n <= 4 { LATEST } else { 0 }))),
        ("late once it is dead", Box::new(move |n| ms(if n <= 3 { 0 } else { LATEST }))),
        (
            "any",
            Box::new(move |n| ms(u64::from(n.wrapping_mul(2_654_435_761) >> 8) % (LATEST + 1))),
        ),
    ]
}

#[test]
fn a_crash_is_convicted_within_three_seconds_after_the_window_wherever_in_a_tick_it_falls() {
    let pinned_and_silent: fn(&mut Guest) = |guest| {
        guest.fall_silent();
        guest.level(&[(0.95, 0.0)]);
    };
    let ways: [(Dies, Cause, u32); 4] = [
        (Guest::halt, Cause::Halted, 1),
        (Guest::spin, Cause::Spinning, 1),
        (pinned_and_silent, Cause::Silent, 1),
        (Guest::fall_silent, Cause::Silent, 2),
    ];
    for (dies, expected, windows) in ways {
        let window = TICK * FLAT_TICKS * windows;
        let mut longest = Duration::ZERO;
        let mut shortest = Duration::MAX;
        for alive in [0.0024, 0.3, 1.0] {
            for phase in (0..1_000).step_by(usize::try_from(PHASE).unwrap()) {
                for (jitter, late) in jitters() {
                    // A crash on the dot of a tick is in its last moment.
                    let phase = Duration::from_millis(phase + 1);
                    let (after, cause) = convicted_after(dies, alive, phase, late);
                    let case = format!("{expected}, busy {alive}, {phase:?}, {jitter}: {after:?}");
                    assert_eq!(cause, expected, "{case}");
                    assert!(after <= window + PROMISE, "{case}");
                    longest = longest.max(after);
                    shortest = shortest.min(after);
                }
            }
        }
        // Half a tick of each window is let off, and never more.
        assert!(shortest >= window - TICK / 2 * windows + ROUND, "{expected}: {shortest:?}");
        assert!(longest >= window + TICK, "{expected}, {longest:?}: the phases show nothing");
    }
}
