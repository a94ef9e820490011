//! Entry point by which fuzzers and unit tests hand any bytes to the parsers of recordings.

use std::path::Path;

use super::{
    FORMAT, Header, OLDEST_FORMAT, Segment,
    file::{PREAMBLE_BYTES, Reader},
    record::take,
    replay::Replayer,
};

/// Takes the bytes as a file; and, since no fuzzer hits a checksum, as a header with a segment of that VM behind it,
/// which is judged once more.
pub fn recording(mut bytes: &[u8]) {
    if let Ok(mut reader) = Reader::new(bytes, Path::new("fuzzed")) {
        assert!(bytes.len() >= PREAMBLE_BYTES);
        while let Ok(Some((segment, decoded))) = reader.next_segment() {
            judge(reader.header(), &segment, decoded);
        }
    }
    let Ok(header) = take::<Header>(&mut bytes) else { return };
    if super::limits::detection(&header.detection).is_err() {
        return;
    }
    for format in OLDEST_FORMAT..=FORMAT {
        let Ok(segment) = Segment::from_bytes(bytes, format) else { return };
        if let Ok(decoded) = segment.decode() {
            judge(&header, &segment, decoded);
        }
    }
}

fn judge(header: &Header, segment: &Segment, decoded: super::Decoded) {
    let mut replayer = Replayer::new(header.clone(), None);
    replayer.segment(segment, decoded);
    let replay = replayer.finish();
    assert_eq!(replay.pid, header.pid);
}
