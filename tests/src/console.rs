//! What a process says: drained by a thread at once, kept with the time of each line.
//!
//! Draining is not a nicety. A guest with a serial console that is not read stops at its next message, in
//! the middle of a panic too, and would look crashed through the harness's own fault.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::interrupt;

/// A place in a log, and when it was taken.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    line: usize,
    at: Instant,
}

/// A growing log, shared between the thread that fills it and its readers.
#[derive(Clone, Debug)]
pub struct Log {
    shared: Arc<Shared>,
    start: Instant,
}

#[derive(Debug, Default)]
struct Shared {
    text: Mutex<Text>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct Text {
    /// The last line may still be growing.
    lines: Vec<(Instant, String)>,
    line_is_open: bool,
    sources: usize,
}

impl Default for Log {
    fn default() -> Self {
        Self::new()
    }
}

impl Log {
    /// An empty log whose time starts now.
    pub fn new() -> Self {
        Self { shared: Arc::default(), start: Instant::now() }
    }

    /// Reads `source` to its end on a thread of its own.
    pub fn drain(&self, mut source: impl Read + Send + 'static) {
        self.lock().sources += 1;
        let log = self.clone();
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            loop {
                match source.read(&mut chunk) {
                    Ok(0) => break,
                    Ok(length) => log.append(&chunk[..length]),
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
            log.lock().sources -= 1;
            log.shared.grown.notify_all();
        });
    }

    fn append(&self, bytes: &[u8]) {
        let now = Instant::now();
        let mut text = self.lock();
        for piece in String::from_utf8_lossy(bytes).split_inclusive('\n') {
            let content = piece.trim_end_matches(['\n', '\r']);
            if text.line_is_open
                && let Some((_, line)) = text.lines.last_mut()
            {
                line.push_str(content);
            } else {
                text.lines.push((now, content.to_owned()));
            }
            text.line_is_open = !piece.ends_with('\n');
        }
        drop(text);
        self.shared.grown.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Text> {
        // The text is whole after each push, whatever its writer did later.
        self.shared.text.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The beginning.
    pub fn start(&self) -> Mark {
        Mark { line: 0, at: self.start }
    }

    /// The place where the log ends now. A line that is still growing counts as before it.
    pub fn mark(&self) -> Mark {
        Mark { line: self.lock().lines.len(), at: Instant::now() }
    }

    /// Waits until a line after `mark` contains `wanted`; returns the time from the mark to that line.
    ///
    /// # Errors
    ///
    /// After `timeout`, on a signal, or when the log's sources ended without it: with the log's tail.
    pub fn wait_for(&self, mark: Mark, wanted: &str, timeout: Duration) -> Result<Duration> {
        let timeout = interrupt::patient(timeout);
        let end = Instant::now() + timeout;
        let mut text = self.lock();
        loop {
            let found = text.lines.iter().skip(mark.line).find(|(_, line)| line.contains(wanted));
            if let Some((at, _)) = found {
                return Ok(at.saturating_duration_since(mark.at));
            }
            let ended = text.sources == 0;
            if ended || Instant::now() >= end {
                let tail = text.lines.iter().rev().take(20).rev();
                let tail: Vec<&str> = tail.map(|(_, line)| line.as_str()).collect();
                let why = if ended { "the log ended" } else { "timeout" };
                bail!(
                    "no {wanted:?} within {timeout:?} ({why}); the log ends with:\n{}",
                    tail.join("\n")
                );
            }
            interrupt::check()?;
            text = self
                .shared
                .grown
                .wait_timeout(text, Duration::from_millis(100))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// In how many lines after `mark` the text stands.
    pub fn count(&self, mark: Mark, wanted: &str) -> usize {
        self.lock().lines.iter().skip(mark.line).filter(|(_, line)| line.contains(wanted)).count()
    }

    /// Everything so far, each line with the seconds since the start.
    pub fn text(&self) -> String {
        let mut all = String::new();
        for (at, line) in &self.lock().lines {
            let seconds = at.saturating_duration_since(self.start).as_secs_f64();
            all.push_str(&format!("{seconds:8.3} {line}\n"));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_comes_in_pieces_is_one_line() {
        let log = Log::new();
        log.append(b"one\r\ntw");
        log.append(b"o\nthree");
        let lines: Vec<String> = log.lock().lines.iter().map(|(_, line)| line.clone()).collect();
        assert_eq!(lines, ["one", "two", "three"]);
    }

    #[test]
    fn what_stood_before_the_mark_is_not_found_after_it() {
        let log = Log::new();
        log.append(b"READY\n");
        let mark = log.mark();
        assert!(log.wait_for(mark, "READY", Duration::ZERO).is_err());
        assert_eq!(log.count(log.start(), "READY"), 1);
        log.append(b"READY\n");
        assert!(log.wait_for(mark, "READY", Duration::ZERO).is_ok());
    }
}
