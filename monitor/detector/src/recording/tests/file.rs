use std::path::Path;

use super::{
    super::file::{ReadError, Reader, to_bytes},
    *,
};
use crate::recording::record::Record;

/// What can be read of `bytes`, and why not more.
fn read(bytes: &[u8]) -> (Vec<Record>, Option<ReadError>) {
    let mut records = Vec::new();
    let mut reader = match Reader::new(bytes, Path::new("f.flr")) {
        Ok(reader) => reader,
        Err(error) => return (records, Some(error)),
    };
    loop {
        match reader.next_segment() {
            Ok(Some((_, decoded))) => records.extend(decoded.records),
            Ok(None) => return (records, None),
            Err(error) => return (records, Some(error)),
        }
    }
}

fn recorded() -> (Vec<Record>, Vec<u8>) {
    let recording = a_panic_after(150).recording();
    let records = recording.segments.iter().flat_map(|it| it.decode().expect("whole").records);
    (records.collect(), to_bytes(&recording).expect("written"))
}

#[test]
fn a_file_holds_what_was_recorded() {
    let (records, bytes) = recorded();
    let (read, error) = read(&bytes);
    assert!(error.is_none(), "{error:?}");
    assert_eq!(read, records);
    assert_eq!(Reader::new(&bytes[..], Path::new("f")).expect("ours").header(), &header());
}

#[test]
fn a_file_torn_anywhere_gives_whole_records_up_to_there_and_says_where() {
    let (records, bytes) = recorded();
    let mut most = 0;
    let mut boundaries = vec![13];
    while let Some(stored) = boundaries.last().and_then(|at| bytes.get(*at..at + 4)) {
        let stored = u32::from_le_bytes(stored.try_into().expect("four")) as usize;
        boundaries.push(boundaries.last().copied().unwrap_or(0) + 12 + stored);
    }
    assert_eq!(boundaries.last(), Some(&bytes.len()));
    for length in 0..bytes.len() {
        let (read, error) = read(&bytes[..length]);
        assert_eq!(read, records[..read.len()], "{length} bytes");
        most = most.max(read.len());
        match error {
            Some(ReadError::Torn { offset, .. }) => assert!(offset <= length as u64),
            // Between two blocks nothing is torn.
            None => assert!(boundaries[1..].contains(&length), "{length} bytes"),
            Some(ReadError::NotARecording(_)) => assert_eq!(length, 0),
            Some(error) => panic!("{length} bytes: {error:?}"),
        }
    }
    assert!(most > 100);
}

#[test]
fn zeros_at_the_end_are_a_tear() {
    let (records, mut bytes) = recorded();
    bytes.extend([0; 5000]);
    let (read, error) = read(&bytes);
    assert_eq!(read, records);
    assert!(matches!(error, Some(ReadError::Torn { .. })), "{error:?}");
}

#[test]
fn no_flipped_bit_goes_unnoticed() {
    let (records, bytes) = recorded();
    for place in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[place] ^= 1 << (place % 8);
        let (read, error) = read(&flipped);
        assert!(error.is_some(), "byte {place}");
        assert_eq!(read, records[..read.len()], "byte {place}");
        assert!(error.is_some_and(|error| error.to_string().starts_with("f.flr: ")));
    }
}

#[test]
fn a_file_of_another_format_says_which() {
    let (_, mut bytes) = recorded();
    bytes[9] = 77;
    let (_, error) = read(&bytes);
    let error = error.expect("another format").to_string();
    assert!(error.contains("recorded in format 77"), "{error}");
}

#[test]
fn a_block_that_would_inflate_beyond_its_length_is_refused() {
    let (_, bytes) = recorded();
    let header = 13 + 12 + u32::from_le_bytes(bytes[13..17].try_into().expect("4")) as usize;
    let block = super::super::file::block(&vec![0; 1 << 20]).expect("just fits");
    assert!(super::super::file::block(&vec![0; (1 << 20) + 1]).is_err());
    let mut bomb = bytes[..header].to_vec();
    bomb.extend(&block);
    // Says that it holds less than it does, with a sum that fits.
    let (stored, length) = (u32::try_from(block.len() - 12).expect("small"), 100_u32);
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&stored.to_le_bytes());
    hasher.update(&length.to_le_bytes());
    hasher.update(&block[12..]);
    bomb[header + 4..header + 8].copy_from_slice(&length.to_le_bytes());
    bomb[header + 8..header + 12].copy_from_slice(&hasher.finalize().to_le_bytes());
    let (_, error) = read(&bomb);
    let Some(ReadError::Damaged { source, .. }) = error else { panic!("{error:?}") };
    assert_eq!(source.to_string(), "its length is wrong");
}

#[test]
fn moments_that_no_host_lives_to_see_are_refused() {
    let mut live = a_panic_after(10);
    live.watch.boot.began = Duration::MAX;
    live.ring = Ring::new(limits(), 0);
    live.ring.prepare(&live.watch, live.now);
    let (_, error) = read(&to_bytes(&live.recording()).expect("written"));
    assert!(matches!(error, Some(ReadError::Damaged { .. })), "{error:?}");
    let mut header = header();
    header.detection.policy.boot_grace = Duration::MAX;
    let recording = Recording { header: Arc::new(header), segments: Vec::new() };
    let (_, error) = read(&to_bytes(&recording).expect("written"));
    assert!(matches!(error, Some(ReadError::Damaged { .. })), "{error:?}");
}
