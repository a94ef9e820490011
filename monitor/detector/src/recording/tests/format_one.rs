//! A recording that was made before [`Silence`](crate::verdict::Silence) was: a guest works, panics, is restarted, shows no
//! life for 75 s, and then works now and then. Its segments begin in states of many kinds.

use std::path::Path;

use super::super::{file::Reader, replay::Replayer};

const RECORDED: &[u8] = include_bytes!("format-1.flr");
/// Those in which its segments begin.
const STATES: [&str; 5] = ["alive", "alive", "crashed", "recovering", "suspect"];

#[test]
fn a_recording_of_format_1_is_read_and_judged_as_it_was() {
    let mut reader = Reader::new(RECORDED, Path::new("format-1.flr")).expect("a recording");
    let mut replayer = Replayer::new(reader.header().clone(), None);
    let mut states = Vec::new();
    while let Some((segment, decoded)) = reader.next_segment().expect("whole") {
        assert!(!decoded.is_whole);
        states.push(decoded.watch.state.name());
        replayer.segment(&segment, decoded);
    }
    assert_eq!(states, STATES);
    let replay = replayer.finish();
    assert!(replay.same, "{replay:#?}");
    assert_eq!((replay.summary.inputs, replay.summary.same_convictions), (437, 1));
}
