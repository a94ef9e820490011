//! The check that stands before each beat: a program that has to end well, and in time.

use crate::{
    arguments::Words,
    sys::{self, Child},
};

/// No wait is longer.
const LONG_MS: u64 = 3_600_000;

/// A check, and how it does.
pub(crate) struct Check<'a> {
    command: Words<'a>,
    running: Option<(Child, u64)>,
    /// It could not be begun, or hangs where it can't be ended.
    failed: bool,
}

impl<'a> Check<'a> {
    /// One that runs this command; without words, there is none.
    pub(crate) fn new(command: &Words<'a>) -> Self {
        Self { command: *command, running: None, failed: false }
    }

    /// Whether nothing is checked.
    pub(crate) fn is_none(&self) -> bool {
        self.command.get().is_empty()
    }

    /// Begins it, to end by `until_ms`, unless the last one has not ended.
    pub(crate) fn begin(&mut self, until_ms: u64) {
        if self.is_none() || self.running.is_some() {
            return;
        }
        match Child::start(self.command.get()) {
            Some(child) => self.running = Some((child, until_ms)),
            None => self.failed = true,
        }
    }

    /// How long it may be waited for.
    pub(crate) fn wait_ms(&self, now_ms: u64) -> u64 {
        match &self.running {
            Some((_, until_ms)) => until_ms.saturating_sub(now_ms),
            None => LONG_MS,
        }
    }

    /// What came of it, once, when that is known.
    pub(crate) fn outcome(&mut self, now_ms: u64) -> Option<bool> {
        if core::mem::take(&mut self.failed) {
            return Some(false);
        }
        let (child, until_ms) = self.running.as_mut()?;
        if let Some(well) = child.ended() {
            self.running = None;
            return Some(well);
        }
        if now_ms < *until_ms {
            return None;
        }
        // One that hangs in the kernel stays, and is waited for again: it fails for as long as it does.
        child.kill();
        *until_ms = now_ms + sys::SECOND_MS;
        Some(false)
    }

    /// Ends what runs still.
    pub(crate) fn end(&mut self) {
        if let Some((child, _)) = &mut self.running {
            child.kill();
        }
    }
}
