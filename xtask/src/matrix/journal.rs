//! What was played of a matrix so far, a line each: one that takes over an hour is broken off now and then, and
//! goes on with `--resume`.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use flatline_tests::scenario::Outcome;
use serde::{Deserialize, Serialize};

/// Where and with what it was played: nothing else is the same matrix.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    daemon_crc32: u32,
    kernel: String,
}

/// One run that was played to its end.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) scenario: String,
    pub(super) outcome: Outcome,
}

/// The open file.
#[derive(Debug)]
pub(super) struct Journal(File);

impl Journal {
    /// Begins a new one, for this daemon's executable.
    pub(super) fn begin(path: &Path, daemon: &Path) -> Result<Self> {
        let head = head(daemon)?;
        let mut file = File::create(path).with_context(|| path.display().to_string())?;
        writeln!(file, "{}", serde_json::to_string(&head)?)?;
        Ok(Self(file))
    }

    /// Goes on with the one that is there, and returns what was played.
    pub(super) fn resume(path: &Path, daemon: &Path) -> Result<(Self, Vec<Entry>)> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("{}: no matrix was broken off", path.display()))?;
        let entries = parse(&text, &head(daemon)?)?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let file = OpenOptions::new().append(true).open(path)?;
        // What was being written when it was broken off is no line.
        file.set_len(u64::try_from(whole)?)?;
        Ok((Self(file), entries))
    }

    /// Adds a run.
    pub(super) fn note(&mut self, scenario: &str, outcome: &Outcome) -> Result<()> {
        let entry = Entry { scenario: scenario.to_owned(), outcome: outcome.clone() };
        Ok(writeln!(self.0, "{}", serde_json::to_string(&entry)?)?)
    }
}

fn head(daemon: &Path) -> Result<Head> {
    let program = std::fs::read(daemon).with_context(|| daemon.display().to_string())?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
    Ok(Head { daemon_crc32: crc32fast::hash(&program), kernel })
}

/// Reads the whole lines of a journal that must have this head.
fn parse(text: &str, head: &Head) -> Result<Vec<Entry>> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut lines = whole.lines();
    let found: Head = serde_json::from_str(lines.next().unwrap_or_default())
        .context("the matrix that was broken off has no head")?;
    if found != *head {
        bail!("the matrix that was broken off was played with another daemon or kernel");
    }
    lines.map(|line| Ok(serde_json::from_str(line)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_played_is_known_again_and_a_torn_line_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let (path, daemon) = (dir.path().join("journal"), dir.path().join("daemon"));
        std::fs::write(&daemon, "a program").unwrap();
        let outcome = Outcome { verdict: "crashed".to_owned(), ..Outcome::default() };
        let mut journal = Journal::begin(&path, &daemon).unwrap();
        journal.note("panic", &outcome).unwrap();
        write!(journal.0, "{{\"scenario\": \"ha").unwrap();
        for times in 1..3 {
            let (mut journal, entries) = Journal::resume(&path, &daemon).unwrap();
            assert_eq!(entries.len(), times);
            assert!(entries.iter().all(|entry| entry.scenario == "panic"));
            assert_eq!(entries[0].outcome.verdict, "crashed");
            journal.note("panic", &outcome).unwrap();
        }
        std::fs::write(&daemon, "another program").unwrap();
        let error = Journal::resume(&path, &daemon).unwrap_err().to_string();
        assert!(error.contains("another daemon"), "{error}");
    }
}
