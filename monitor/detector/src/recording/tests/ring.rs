use super::{super::Limits, *};

#[test]
fn the_bytes_stay_within_their_bound_whatever_comes() {
    let most_bytes = 8 << 10;
    let mut live = Live::new(Limits { most_bytes, ..limits() });
    let text = |length: usize| Input::Unseen("x".repeat(length));
    for round in 0..2000 {
        live.second(1, 0.5);
        live.tell(&text(round % 900));
        let bytes = bytes(&live);
        assert!(bytes <= most_bytes, "{bytes} in round {round}");
    }
    let bytes = bytes(&live);
    assert!(bytes > most_bytes / 2, "only {bytes}");
}

/// Bytes that the ring takes.
fn bytes(live: &Live) -> usize {
    live.ring.segments().iter().map(|segment| segment.size()).sum()
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
fn what_few_records_there_are_share_a_segment() {
    let mut live = Live::new(Limits { longest_segment: 300 * SECOND, ..limits() });
    for _ in 0..100 {
        live.now += 30 * SECOND;
        live.tell(&Input::Unseen("a reason".to_owned()));
    }
    let kept = live.now - live.ring.begins().expect("something");
    assert!(kept >= 299 * SECOND && kept <= 660 * SECOND, "{kept:?}");
    let segments = live.ring.segments();
    assert!(segments.len() <= 3, "{}", segments.len());
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
            watch.step(&record.input, &detection(), record.at);
        }
    }
    assert_eq!(watch, live.watch);
}

#[test]
fn a_record_that_does_not_fit_is_left_out_and_counted() {
    let mut live = Live::new(Limits { most_bytes: 8 << 10, ..limits() });
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
    let mut live = Live::new(Limits { keep: Duration::ZERO, most_bytes: 64 << 10, ..limits() });
    for _ in 0..100 {
        live.second(1, 0.5);
    }
    assert!(live.now - live.ring.begins().expect("the open one") <= 10 * SECOND);
    let handed_on: u64 = live.closed.iter().map(|segment| segment.records).sum();
    let open = live.ring.segments().last().map_or(0, |open| open.records);
    assert_eq!(handed_on + open, 100);
}
