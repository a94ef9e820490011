//! Whether a QEMU says more than it has any reason to.

use std::time::Duration;

use tokio::time::Instant;

use super::{disconnect::Disconnect, limits::Limits};
use crate::qmp::QmpEvent;

/// Counts what came within the second that began at `since`, and what was skipped on the whole connection.
pub(super) struct Flood {
    since: Instant,
    bytes: usize,
    unasked_bytes: usize,
    messages: u32,
    events: u32,
    skipped_events: u32,
}

impl Flood {
    pub(super) fn new() -> Self {
        Self {
            since: Instant::now(),
            bytes: 0,
            unasked_bytes: 0,
            messages: 0,
            events: 0,
            skipped_events: 0,
        }
    }

    pub(super) fn bytes(&mut self, bytes: usize, limits: &Limits) -> Result<(), Disconnect> {
        if self.since.elapsed() >= Duration::from_secs(1) {
            *self = Self { skipped_events: self.skipped_events, ..Self::new() };
        }
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > limits.bytes_per_second {
            return Err(Disconnect::Refused(format!(
                "flood: {} bytes within a second",
                self.bytes
            )));
        }
        Ok(())
    }

    /// A message of so many bytes answers no command of ours.
    pub(super) fn unasked(&mut self, bytes: usize, limits: &Limits) -> Result<(), Disconnect> {
        self.unasked_bytes = self.unasked_bytes.saturating_add(bytes);
        if self.unasked_bytes > limits.unasked_bytes_per_second {
            return Err(Disconnect::Refused(format!(
                "flood: {} bytes within a second that were not asked for",
                self.unasked_bytes
            )));
        }
        Ok(())
    }

    pub(super) fn message(&mut self, limits: &Limits) -> Result<(), Disconnect> {
        self.messages = self.messages.saturating_add(1);
        if self.messages > limits.messages_per_second {
            let messages = self.messages;
            return Err(Disconnect::Refused(format!("flood: {messages} messages within a second")));
        }
        Ok(())
    }

    /// Whether the event is to be passed on.
    pub(super) fn event(&mut self, event: &QmpEvent, limits: &Limits) -> Result<bool, Disconnect> {
        // However many of those there are, the others have room.
        if event.is_expendable() && self.events >= limits.events_per_second / 2 {
            return Ok(false);
        }
        self.events = self.events.saturating_add(1);
        if self.events <= limits.events_per_second {
            Ok(true)
        } else {
            Err(Disconnect::Refused(format!("flood: {} events within a second", self.events)))
        }
    }

    /// An event was skipped. Answers that are need no such limit: each is to a command of ours.
    pub(super) fn skipped_event(&mut self, limits: &Limits) -> Result<(), Disconnect> {
        self.skipped_events = self.skipped_events.saturating_add(1);
        if self.skipped_events > limits.skipped_events {
            let events = self.skipped_events;
            return Err(Disconnect::Refused(format!("flood: {events} events that are not taken")));
        }
        Ok(())
    }
}
