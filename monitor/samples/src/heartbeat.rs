//! Heartbeats of guests' agents, counted.

use std::time::Duration;

/// What one guest's agent said: counters that only grow, and its last frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heartbeats {
    /// Beats that came; a guest with several cards sends each on every one.
    pub beats: u64,
    /// Frames that say that its check failed.
    pub failures: u64,
    /// Frames that say that its guest goes down in good order.
    pub leavings: u64,
    /// Frames that begin like a beat and are none.
    pub malformed: u64,
    /// Its last frame; `None` where none came.
    pub last: Option<LastBeat>,
}

/// A moment, by the clock of the program that noted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A tap's program: the kernel's ticks.
    Jiffies(u64),
    /// This daemon: time since the host's start.
    At(Duration),
}

/// The last frame of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastBeat {
    /// When it came.
    pub heard: Heard,
    /// The guest goes down in good order.
    pub leaving: bool,
    /// Its check failed.
    pub failed: bool,
    /// Time from one beat to the next, by its own account.
    pub interval: Duration,
    /// A number that another boot does not have.
    pub boot: u64,
    /// The frame's number in that boot.
    pub sequence: u64,
    /// Name of what it checks, printable; empty where it checks nothing.
    pub check: String,
}
