use std::path::Path;

use flatline_detector::recording::{file::Reader, replay::Replayer};

use super::{
    super::history::{history, moments},
    *,
};
use crate::{
    api::view::{MarkKind, MarkView, MemoryMomentView},
    history::{Rate, RateHistory, Recent, TickRates},
};
use flatline_qemu::discover::{Ownership, Vm};
use flatline_samples::Missing;

#[test]
fn figures_stand_in_the_second_in_which_they_were_counted() {
    let mut live = Live::new(limits());
    for second in 0..20_u32 {
        live.second(u64::from(second == 15) * 7, 0.25);
    }
    let view = history(&live.ring.segments(), live.now, 300 * SECOND, None);
    assert_eq!((view.seconds, view.packets_from_guest.len()), (19, 19));
    assert_eq!(view.packets_from_guest[13..16], [Some(0.0), Some(7.0), Some(0.0)]);
    assert_eq!(view.vcpu[3], Some(0.25));
    assert_eq!(history(&live.ring.segments(), live.now, 5 * SECOND, None).seconds, 5);
}

#[test]
fn a_figure_that_is_missing_is_none_and_not_zero() {
    let mut live = Live::new(limits());
    for second in 0..20 {
        live.now += SECOND;
        let Input::Tick(tick) = tick(0, 0.25) else { unreachable!() };
        let mut tick = Arc::unwrap_or_clone(tick);
        if second == 10 {
            tick.activity.storage = Err(Missing::new("storage", "torn"));
        }
        live.tell(&Input::Tick(Arc::new(tick)));
    }
    // No daemon watched for a while.
    live.now += 3 * SECOND;
    live.second(1, 0.5);
    let view = history(&live.ring.segments(), live.now, 300 * SECOND, None);
    let of = |row: &[Option<f64>]| row[8..].to_vec();
    let (zero, one) = (Some(0.0), Some(1.0));
    assert_eq!(of(&view.completed)[..5], [zero, None, zero, zero, zero]);
    assert_eq!(of(&view.packets_from_guest)[10..], [zero, None, None, one]);
}

#[test]
fn memory_stands_in_the_second_in_which_it_was_read_and_decides_nothing() {
    let mut live = Live::new(limits());
    for second in 0..20_u64 {
        live.second(1, 0.25);
        if second == 15 {
            let before = live.watch.clone();
            live.tell(&Input::Memory(Arc::new(memory(1_800_000_015, 5))));
            assert_eq!(live.watch, before);
        }
    }
    let view = history(&live.ring.segments(), live.now, 300 * SECOND, None);
    let expected = MemoryMomentView {
        second: 15,
        total_bytes: Some(100),
        available_bytes: Some(5),
        major_faults_per_second: Some(0.5),
        qemu_rss_bytes: Some(4096),
    };
    assert_eq!(view.memory, [expected]);
    assert!(view.marks.is_empty(), "{:?}", view.marks);
    assert!(history(&live.ring.segments(), live.now, 3 * SECOND, None).memory.is_empty());
}

#[test]
fn what_was_decided_is_marked() {
    let mut live = a_panic_after(50);
    live.now += SECOND;
    live.tell(&Input::Restarted {
        cause: flatline_detector::verdict::Cause::Spinning,
        was_up: false,
    });
    for _ in 0..5 {
        live.second(2, 0.4);
    }
    let view = history(&live.ring.segments(), live.now, 300 * SECOND, None);
    let kinds: Vec<MarkKind> = view.marks.iter().map(|mark| mark.kind).collect();
    use MarkKind::{Life, Restart, Suspicion, Verdict};
    assert_eq!(kinds, [Suspicion, Verdict, Restart, Life]);
    assert!(view.marks[1].text.contains("a vCPU was pinned"), "{:?}", view.marks[1]);
    assert!(view.marks.is_sorted_by_key(|mark| mark.second));
    let moments = moments(&live.ring.segments());
    assert_eq!(moments.iter().map(|moment| moment.kind).collect::<Vec<_>>(), kinds);
    assert!(moments.is_sorted_by_key(|moment| moment.at));
    let told =
        |(moment, mark): (&super::super::history::Moment, &MarkView)| moment.text == mark.text;
    assert!(moments.iter().zip(&view.marks).all(told));
}

#[test]
fn a_recording_of_format_1_has_a_moment_for_each_decision() {
    const RECORDED: &[u8] = include_bytes!("../../../detector/src/recording/tests/format-1.flr");
    let mut reader = Reader::new(RECORDED, Path::new("format-1.flr")).expect("a recording");
    let mut replayer = Replayer::new(reader.header().clone(), None);
    let mut segments = Vec::new();
    while let Some((segment, decoded)) = reader.next_segment().expect("whole") {
        replayer.segment(&segment, decoded);
        segments.push(Arc::new(segment));
    }
    assert_eq!(moments(&segments).len(), replayer.finish().lines.len());
}

#[test]
fn a_rest_is_drawn_by_its_ticks_as_far_as_they_are_known_and_else_by_its_mean() {
    let mut live = Live::new(limits());
    live.second(1, 0.5);
    live.now += 6 * SECOND;
    let Input::Tick(tick) = tick(12, 0.5) else { unreachable!() };
    let mut tick = Arc::unwrap_or_clone(tick);
    tick.activity.elapsed = 6 * SECOND;
    live.tell(&Input::Lived { until: live.now, beat: None, tick: Arc::new(tick) });
    let vm = Arc::new(Vm::stand_in(Ownership::bare(), &[]));
    let ticks = RateHistory::new(SECOND);
    for (second, packets) in [(3, 0.0), (2, 8.0), (1, 0.0), (0, 1.0)] {
        ticks.tick(live.now - second * SECOND);
        let rates = TickRates::UNKNOWN.with(Rate::PacketsFromGuest, Some(packets));
        ticks.append([(&vm, rates)].into_iter());
    }
    let segments = live.ring.segments();
    let rates = |recent: Option<Recent>| {
        let view = history(&segments, live.now, 300 * SECOND, recent.as_ref());
        (view.packets_from_guest, view.vcpu)
    };
    let (mean, vcpu) = (Some(2.0), vec![Some(0.5); 6]);
    assert_eq!(rates(None), (vec![mean; 6], vcpu.clone()));
    let drawn = vec![mean, mean, Some(0.0), Some(8.0), Some(0.0), Some(1.0)];
    assert_eq!(rates(ticks.recent(vm.id)), (drawn, vcpu));
    // The last two ticks were not looked at so far.
    ticks.tick(live.now + SECOND);
    ticks.tick(live.now + 2 * SECOND);
    let (drawn, _) = rates(ticks.recent(vm.id));
    assert_eq!(drawn[2..], [Some(0.0), Some(8.0), Some(0.0), Some(1.0)]);
}
