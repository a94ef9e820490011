use super::{
    super::replay::{Replay, Replayer},
    *,
};
use crate::{policy::Policy, verdict::Cause};

fn replay(recording: &Recording, policy: Option<Policy>) -> Replay {
    let mut replayer = Replayer::new((*recording.header).clone(), policy);
    for segment in &recording.segments {
        replayer.segment(segment, segment.decode().expect("whole"));
    }
    replayer.finish()
}

fn flat_for(seconds: u64) -> Option<Policy> {
    Some(Policy { flat_for: Duration::from_secs(seconds), ..detection().policy })
}

fn notes(replay: &Replay) -> Vec<&str> {
    replay.lines.iter().filter_map(|line| line.note.as_deref()).collect()
}

#[test]
fn on_the_recorded_terms_every_decision_is_the_same() {
    let mut live = a_panic_after(100);
    live.now += SECOND;
    live.tell(&Input::Restarted { cause: Cause::Spinning, was_up: false });
    for _ in 0..30 {
        live.second(2, 0.4);
    }
    let replay = replay(&live.recording(), None);
    assert!(replay.same && replay.lines.iter().all(|line| line.same), "{replay:#?}");
    let what: Vec<&str> = replay
        .lines
        .iter()
        .filter_map(|line| line.replay.as_ref().map(|decision| decision.what.as_str()))
        .collect();
    assert_eq!(
        what,
        [
            "alive -> suspect",
            "suspect -> crashed (spinning)",
            "crashed -> recovering (spinning)",
            "recovering -> alive: recovered"
        ]
    );
    assert_eq!(replay.summary.same_convictions, 1);
    assert_eq!(replay.summary.inputs, live.acts.len() as u64);
}

#[test]
fn a_longer_flat_for_convicts_later_by_exactly_the_difference() {
    let live = a_panic_after(100);
    let replay = replay(&live.recording(), flat_for(17));
    assert!(!replay.same);
    assert_eq!((replay.summary.later_convictions, replay.summary.missing_convictions), (1, 0));
    let convicted = |of_live: bool| {
        let decision = |line: &super::super::replay::Line| {
            if of_live { line.live.clone() } else { line.replay.clone() }
        };
        let crashed = |line: &&super::super::replay::Line| {
            decision(line).is_some_and(|it| it.what == "suspect -> crashed (spinning)")
        };
        replay.lines.iter().find(crashed).expect("a conviction").at
    };
    assert_eq!(convicted(false).duration_since(convicted(true)).expect("later"), 7 * SECOND);
    assert!(notes(&replay).contains(&"the replay convicts it 7.0 s later than it was live"));
}

#[test]
fn a_restart_that_the_replay_would_not_have_made_is_told_to_it_and_said() {
    let mut live = Live::new(limits());
    for _ in 0..50 {
        live.second(1, 0.1);
    }
    while !matches!(live.second(0, 0.99), Act::Convict(_)) {}
    live.now += SECOND;
    live.tell(&Input::Restarted { cause: Cause::Spinning, was_up: false });
    for _ in 0..20 {
        live.second(2, 0.4);
    }
    let replay = replay(&live.recording(), flat_for(20));
    assert_eq!((replay.summary.missing_convictions, replay.same), (1, false));
    let notes = notes(&replay);
    let expected = "restarted live; by then, the replay had not convicted it: it was alive";
    assert!(notes.contains(&expected), "{notes:?}");
}

#[test]
fn a_shorter_flat_for_says_that_the_witnesses_were_asked_no_earlier() {
    let replay = replay(&a_panic_after(100).recording(), flat_for(4));
    let notes = notes(&replay);
    assert!(notes.iter().any(|note| note.contains("asked later than that")), "{notes:?}");
    assert!(replay.summary.unasked_rounds >= 5, "{:?}", replay.summary);
    assert_eq!(replay.summary.same_convictions + replay.summary.earlier_convictions, 1);
}

#[test]
fn a_gap_makes_it_begin_anew_and_is_said() {
    let mut recording = a_panic_after(200).recording();
    let mut third = (*recording.segments[2]).clone();
    third.lost = 9;
    recording.segments[2] = Arc::new(third);
    recording.segments.remove(1);
    let replay = replay(&recording, None);
    assert!(replay.same, "{replay:#?}");
    assert_eq!(replay.summary.gaps, 1);
    assert_eq!(notes(&replay), ["9 records are missing before this: begins anew here"]);
}

#[test]
fn a_gap_that_is_hidden_shows_as_a_difference() {
    let mut recording = a_panic_after(200).recording();
    recording.segments.remove(1);
    assert!(!replay(&recording, None).same);
}
