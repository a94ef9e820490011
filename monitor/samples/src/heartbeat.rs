//! What guests' agents said.

use std::time::Duration;

/// What one guest's agent said: counters that only grow, and the last of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heartbeats {
    /// Beats that came, each as often as the guest has cards.
    pub beats: u64,
    /// Times that it said that its check failed.
    pub failures: u64,
    /// Times that it said that its guest goes down in good order.
    pub leavings: u64,
    /// Frames that begin like a beat and are none.
    pub malformed: u64,
    /// What it said last.
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

/// What an agent said last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastBeat {
    /// When.
    pub heard: Heard,
    /// The guest goes down in good order.
    pub leaving: bool,
    /// Its check failed.
    pub failed: bool,
    /// From one beat to the next, by its own account.
    pub interval: Duration,
    /// A number that another boot does not have.
    pub boot: u64,
    /// Its number in that boot.
    pub sequence: u64,
    /// What it checks, printable; empty: nothing.
    pub check: String,
}
