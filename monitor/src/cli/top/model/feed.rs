//! Whether what is shown is as it is, or as it was when the daemon last answered.

use std::fmt;
use std::time::{Duration, Instant};

use crate::cli::table::brief;

/// Until when an answer is fresh, in intervals between two questions.
const FRESH_INTERVALS: u32 = 3;
/// The least time between two questions: a daemon that samples faster isn't asked faster.
const INTERVAL_MIN: Duration = Duration::from_millis(500);
/// An answer that is late by less than this is none that a person has to know of.
const LATE: Duration = Duration::from_secs(2);

/// What is shown is old.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli::top) struct Stale {
    /// How old.
    pub(in crate::cli::top) age: Duration,
    /// Why no newer answer came; empty while one is waited for.
    pub(in crate::cli::top) why: String,
}

impl fmt::Display for Stale {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = if self.why.is_empty() { "the daemon doesn't answer" } else { &self.why };
        write!(to, "STALE, {} old: {why}", brief(self.age))
    }
}

/// What is known of the daemon's answers.
#[derive(Debug)]
pub(in crate::cli::top) struct Feed {
    /// When the last one came; when this began, before the first one.
    answered_at: Instant,
    /// When the figures of that one were new.
    figures_at: Option<Instant>,
    /// Why the last question has no answer.
    complaint: Option<String>,
    /// Time from one question to the next.
    pub(in crate::cli::top) interval: Duration,
    now: Instant,
}

impl Feed {
    /// One that has no answer yet.
    pub(super) fn new(now: Instant) -> Self {
        let interval = Duration::from_secs(1);
        Self { answered_at: now, figures_at: None, complaint: None, interval, now }
    }

    /// The daemon samples so often.
    pub(in crate::cli::top) fn set_interval(&mut self, interval: Duration) {
        self.interval = interval.max(INTERVAL_MIN);
    }

    pub(super) fn tick(&mut self, now: Instant) {
        self.now = now;
    }

    pub(super) fn failed(&mut self, why: String, now: Instant) {
        self.complaint = Some(why);
        // The next figures are those of more than a tick, which can't be told apart.
        self.figures_at = None;
        self.now = now;
    }

    /// An answer came, with figures that are `new` or those of before. Returns how much later the figures are than
    /// those before; `None` where that isn't known.
    pub(super) fn answered(&mut self, now: Instant, new: bool) -> Option<Duration> {
        self.complaint = None;
        self.answered_at = now;
        self.now = now;
        if !new {
            return None;
        }
        let before = self.figures_at.replace(now);
        before.map(|before| now.saturating_duration_since(before))
    }

    /// How old what is shown is, if it is older than it should be.
    pub(in crate::cli::top) fn stale(&self) -> Option<Stale> {
        let age = self.now.saturating_duration_since(self.answered_at);
        let late = age > self.interval * FRESH_INTERVALS && age > LATE;
        let why = self.complaint.clone();
        (late || why.is_some()).then(|| Stale { age, why: why.unwrap_or_default() })
    }
}
