//! The fuzzers' entries, tried with a bounded number of random bytes where no fuzzer runs.
//!
//! Bytes alone rarely get past the first check of a parser: most inputs are the fuzzers' own seeds, changed here
//! and there. `PROPTEST_CASES` sets how many are tried for each entry.

use std::{fs, path::PathBuf};

use proptest::{
    collection::vec,
    prelude::{Just, Strategy, any, prop_oneof},
    sample::{Index, select},
    test_runner::{Config, FileFailurePersistence, TestRunner},
};

use super::ENTRIES;

/// Inputs for each entry in a run that isn't told how many.
const CASES: u32 = 300;

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus-seeds").join(name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// A change to an input.
#[derive(Clone, Debug)]
enum Change {
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, u8),
    /// A piece of it once more, elsewhere.
    Repeat(Index, Index, u8),
    Cut(Index),
}

fn change() -> impl Strategy<Value = Change> {
    let telling =
        prop_oneof![any::<u8>(), select(b"\0\n\r\t \"'\\{}[],:;=-+/%0123456789f".to_vec())];
    let some = prop_oneof![
        vec(any::<u8>(), 0..8),
        select(vec![b"18446744073709551616".to_vec(), b"-1".to_vec(), b"\xff\xfe".to_vec()]),
        select(vec![b"1e999".to_vec(), b"\xe2\x80\xae".to_vec(), vec![b'['; 200], vec![b'9'; 400]]),
    ];
    prop_oneof![
        4 => (any::<Index>(), telling).prop_map(|(at, byte)| Change::Set(at, byte)),
        2 => (any::<Index>(), some).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        2 => (any::<Index>(), any::<u8>()).prop_map(|(at, count)| Change::Remove(at, count)),
        2 => (any::<Index>(), any::<Index>(), any::<u8>())
            .prop_map(|(from, to, count)| Change::Repeat(from, to, count)),
        1 => any::<Index>().prop_map(Change::Cut),
    ]
}

fn apply(mut bytes: Vec<u8>, changes: &[Change]) -> Vec<u8> {
    for change in changes {
        let length = bytes.len();
        let place = |at: &Index| at.index(length + 1);
        let end = |from: usize, count: u8| (from + usize::from(count)).min(length);
        match change {
            Change::Set(at, byte) => {
                if let Some(old) = bytes.get_mut(place(at)) {
                    *old = *byte;
                }
            }
            Change::Insert(at, some) => {
                bytes.splice(place(at)..place(at), some.iter().copied());
            }
            Change::Remove(at, count) => {
                bytes.drain(place(at)..end(place(at), *count));
            }
            Change::Repeat(from, to, count) => {
                let piece = bytes[place(from)..end(place(from), *count)].to_vec();
                bytes.splice(place(to)..place(to), piece);
            }
            Change::Cut(at) => bytes.truncate(place(at)),
        }
    }
    bytes
}

#[test]
fn no_bytes_break_a_parser() {
    let told = std::env::var_os("PROPTEST_CASES").is_some();
    for (name, entry) in ENTRIES {
        let seeds = seeds(name);
        assert!(!seeds.is_empty(), "{name} has no seeds");
        seeds.iter().for_each(|seed| entry(seed));
        let inputs = prop_oneof![
            4 => (select(seeds), vec(change(), 1..8))
                .prop_map(|(seed, changes)| apply(seed, &changes)),
            1 => vec(any::<u8>(), 0..512),
            1 => Just(Vec::new()),
        ];
        let kept = format!("{}/proptest-regressions/{name}.txt", env!("CARGO_MANIFEST_DIR"));
        let default = Config::default();
        let config = Config {
            cases: if told { default.cases } else { CASES },
            failure_persistence: Some(Box::new(FileFailurePersistence::Direct(kept.leak()))),
            ..default
        };
        let result = TestRunner::new(config).run(&inputs, |bytes| {
            entry(&bytes);
            Ok(())
        });
        if let Err(error) = result {
            panic!("{name}: {error}");
        }
    }
}

#[test]
fn every_entry_has_a_target_and_every_target_an_entry() {
    let fuzz = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    let targets = fs::read_dir(fuzz.join("fuzz_targets")).unwrap();
    let mut targets: Vec<_> = targets
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    targets.sort();
    let entries: Vec<_> = ENTRIES.iter().map(|(name, _)| *name).collect();
    assert_eq!(targets, entries);
    for name in entries {
        assert!(manifest.contains(&format!("name = \"{name}\"\n")), "{name} is not in Cargo.toml");
    }
}
