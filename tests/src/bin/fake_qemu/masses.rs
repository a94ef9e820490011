//! What a process may have thousands of: open files, threads, and taps that it makes again and again.

use std::{fs::File, sync::mpsc, thread, time::Duration};

use anyhow::{Context as _, Result};
use flatline_tests::netns::make_tap;
use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::gettid,
};

/// A thread here does nothing.
const STACK_BYTES: usize = 16 << 10;
/// How long a set of taps is held before it is made anew.
const HOLDS_TAPS_FOR: Duration = Duration::from_secs(3);

/// Opens the file at `path` so often, for reading and writing, or as often as its user may; they stay open.
pub(super) fn open(path: &str, count: usize) -> Result<Vec<File>> {
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })?;
    let first = File::options().create(true).truncate(true).read(true).write(true).open(path);
    let mut files = vec![first.with_context(|| format!("cannot make {path}"))?];
    while files.len() < count
        && let Ok(file) = File::options().read(true).write(true).open(path)
    {
        files.push(file);
    }
    Ok(files)
}

/// Starts so many threads called as vCPUs are, or as many as its user may; their ids.
pub(super) fn start(count: usize) -> Vec<i32> {
    let mut ids = Vec::new();
    let (sender, receiver) = mpsc::channel();
    for index in 0..count {
        let sender = sender.clone();
        let name = format!("CPU {index}/TCG");
        let started = thread::Builder::new().name(name).stack_size(STACK_BYTES).spawn(move || {
            let _ = sender.send(gettid().as_raw_nonzero().get());
            loop {
                thread::park();
            }
        });
        if started.is_err() {
            break;
        }
        ids.extend(receiver.recv());
    }
    ids
}

/// Makes so many taps, `tap1` and so on, again and again.
pub(super) fn remake_taps(count: usize) {
    thread::spawn(move || {
        loop {
            let taps: Vec<_> =
                (1..=count).map_while(|n| make_tap(&format!("tap{n}")).ok()).collect();
            thread::sleep(HOLDS_TAPS_FOR);
            drop(taps);
        }
    });
}
