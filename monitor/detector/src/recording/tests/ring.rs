use std::time::Instant;

use super::{super::Limits, *};

#[test]
fn the_bytes_stay_within_their_bound_whatever_comes() {
    let most_bytes = 8 << 10;
    let mut live = Live::new(Limits { keep: 300 * SECOND, most_bytes });
    let text = |length: usize| Input::Unseen("x".repeat(length));
    for round in 0..2000 {
        live.second(1, 0.5);
        live.tell(&text(round % 900));
        assert!(live.ring.bytes() <= most_bytes, "{} in round {round}", live.ring.bytes());
    }
    assert!(live.ring.bytes() > most_bytes / 2, "only {}", live.ring.bytes());
}

#[test]
fn the_time_is_kept_and_not_much_more() {
    let mut live = Live::new(limits());
    for _ in 0..1000 {
        live.second(1, 0.5);
    }
    let kept = live.now - live.ring.begins().expect("something");
    assert!(kept >= 299 * SECOND && kept <= 361 * SECOND, "{kept:?}");
}

#[test]
fn segments_follow_each_other_without_a_gap_and_their_checkpoints_are_the_state() {
    let live = a_panic_after(200);
    let segments = live.ring.segments();
    assert!(segments.len() >= 4, "{}", segments.len());
    let mut watch = segments[0].decode().expect("whole").watch;
    for segment in segments {
        assert_eq!(segment.lost, 0);
        let decoded = segment.decode().expect("whole");
        assert_eq!(decoded.watch, watch);
        for record in decoded.records {
            watch.take(&record.input, &detection(), record.at);
        }
    }
    assert_eq!(watch, live.watch);
}

#[test]
fn a_record_that_does_not_fit_is_left_out_and_counted() {
    let mut live = Live::new(Limits { keep: 300 * SECOND, most_bytes: 8 << 10 });
    live.second(1, 0.5);
    live.tell(&Input::Unseen("x".repeat(2000)));
    live.second(1, 0.5);
    let segments = live.ring.segments();
    assert_eq!(
        segments.iter().map(|it| (it.lost, it.records)).collect::<Vec<_>>(),
        [(0, 1), (1, 1)]
    );
}

#[test]
fn nothing_is_kept_where_nothing_is_to_be_but_all_is_handed_on() {
    let mut live = Live::new(Limits { keep: Duration::ZERO, most_bytes: 64 << 10 });
    for _ in 0..100 {
        live.second(1, 0.5);
    }
    assert!(live.now - live.ring.begins().expect("the open one") <= 10 * SECOND);
    let handed_on: u64 = live.closed.iter().map(|segment| segment.records).sum();
    let open = live.ring.segments().last().map_or(0, |open| open.records);
    assert_eq!(handed_on + open, 100);
}

/// Measures; with `--release --ignored --nocapture`.
#[test]
#[ignore = "measures, and asserts nothing"]
#[expect(clippy::disallowed_methods, reason = "it measures")]
fn what_a_record_costs() {
    for vcpus in [1_u32, 16] {
        let mut live = Live::new(limits());
        let input = |second: u32| {
            let Input::Tick(tick) = tick(0, 0.0) else { unreachable!() };
            let mut tick = Arc::unwrap_or_clone(tick);
            let share = |nanos: u32| Duration::from_nanos(nanos.into()).as_secs_f64();
            let vcpu = |index| VcpuActivity {
                index,
                tid: 100_000 + index,
                busy: share(2_400_000 + (second * 7919 + index * 104_729) % 600_000),
                waiting: share(20_000 + second * 31 % 9000),
            };
            tick.activity.vcpus = Ok((0..vcpus).map(vcpu).collect());
            Input::Tick(Arc::new(tick))
        };
        let inputs: Vec<Input> = (0..300_000).map(|second| input(second % 7_000)).collect();
        let mut spent = [Duration::ZERO; 2];
        for input in &inputs {
            live.now += SECOND + Duration::from_micros(137);
            let began = Instant::now();
            live.ring.prepare(&live.watch, live.now);
            live.ring.note(live.now, input, &Act::Nothing, None);
            spent[0] += began.elapsed();
            let began = Instant::now();
            std::hint::black_box(live.watch.state.name());
            spent[1] += began.elapsed();
            if let Input::Tick(tick) = input {
                live.watch.last = Some((live.now, tick.clone()));
            }
        }
        let records: u64 = live.ring.segments().iter().map(|it| it.records).sum();
        let [spent, clock] = spent.map(|spent| spent.as_secs_f64() / 300_000.0 * 1e6);
        let file = super::super::file::to_bytes(&live.recording()).expect("written").len();
        println!(
            "{vcpus} vCPUs: {:.3} µs a record (the clock's {clock:.3} taken off); {records} records in {} bytes, \
             {file} as a file",
            spent - clock,
            live.ring.bytes(),
        );
    }
}
