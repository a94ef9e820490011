//! One guest of the fleet: what it is, what is due for it, and what its own QEMU says became of it.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::Value;

use crate::guest::{Guest, GuestConfig};

/// For a Linux to boot beside many others.
pub(super) const BOOT_LIMIT: Duration = Duration::from_secs(180);

/// What a guest is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Linux that idles, and may be crashed or disturbed.
    Idle,
    /// The same with a pvpanic device, for which QEMU pauses it.
    Pvpanic,
    /// Linux that writes or sends a little, every few seconds.
    Trickles(&'static str),
    /// Linux that computes, a minute on and a minute off.
    Computes,
    /// A boot sector that halts with interrupts on.
    BootSector,
    /// Paused through QMP.
    Paused,
    /// Powered off, and its QEMU stays.
    PoweredOff,
    /// Waits for a migration.
    Incoming,
}

/// A guest, with the account of what was done to it.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) kind: Kind,
    pub(super) config: GuestConfig,
    pub(super) guest: Guest,
    /// A fault is under way.
    pub(super) is_at_fault: bool,
    /// Restarts that are due by now.
    pub(super) due_restarts: u32,
    /// Resets of its own on purpose.
    pub(super) own_reboots: u32,
    /// RESET events of QEMU with `guest: false`.
    pub(super) resets: u32,
    started: Instant,
    /// How long its predecessors under the same name ran.
    before: Duration,
}

impl Kind {
    /// The states that a guest of this kind is in, in the end, while nothing is done to it. One that can't
    /// be asked may stay suspected; one that the host starves is held.
    pub(super) fn fitting_states(self) -> &'static [&'static str] {
        match self {
            Self::Idle | Self::Pvpanic | Self::Trickles(_) | Self::Computes | Self::BootSector => {
                &["alive", "suspect", "held"]
            }
            Self::Paused | Self::PoweredOff | Self::Incoming => &["held"],
        }
    }

    /// Whether it is a Linux that takes commands.
    pub(super) fn obeys(self) -> bool {
        matches!(self, Self::Idle | Self::Pvpanic | Self::Trickles(_) | Self::Computes)
    }
}

impl Member {
    /// Starts it, waits until it has booted, and brings it into its kind's state.
    ///
    /// # Errors
    ///
    /// If it does not start, or does not get there.
    pub(super) fn start(kind: Kind, config: GuestConfig) -> Result<Self> {
        let guest = config.start()?;
        let member = Self {
            kind,
            config,
            guest,
            is_at_fault: false,
            due_restarts: 0,
            own_reboots: 0,
            resets: 0,
            started: Instant::now(),
            before: Duration::ZERO,
        };
        if kind.obeys() || matches!(kind, Kind::Paused | Kind::PoweredOff) {
            member.guest.wait_until_booted(BOOT_LIMIT)?;
            member.greet()?;
        }
        match kind {
            Kind::Paused => drop(member.guest.qmp("stop", &Value::Null)?),
            Kind::PoweredOff => member.guest.send("poweroff")?,
            _ => {}
        }
        Ok(member)
    }

    /// Has Linux send a frame, from which its address is known: what it sent while it booted may have been
    /// before its tap was watched.
    pub(super) fn greet(&self) -> Result<()> {
        if self.config.ip.is_some() {
            self.guest.run("net 1", BOOT_LIMIT)?;
        } else if self.config.ip6.is_some() {
            self.guest.run("net6 1", BOOT_LIMIT)?;
        }
        Ok(())
    }

    /// Starts another in the place of a guest that is gone, or of no use any more.
    ///
    /// # Errors
    ///
    /// As [`Self::start`].
    pub(super) fn replace(&mut self) -> Result<()> {
        // Not killed while it runs: that would be a crash of QEMU itself.
        if self.guest.is_running() && self.guest.qmp("quit", &Value::Null).is_ok() {
            self.guest.wait_for_exit(Duration::from_secs(20))?;
        }
        self.guest.kill()?;
        let before = self.before + self.started.elapsed();
        *self = Self { before, ..Self::start(self.kind, self.config.clone())? };
        Ok(())
    }

    pub(super) fn name(&self) -> &str {
        self.guest.name()
    }

    /// How long it was there, its predecessors included.
    pub(super) fn ran_for(&self) -> Duration {
        self.before + self.started.elapsed()
    }

    /// Resets of every kind: what a limit on restarts may count.
    pub(super) fn all_resets(&self) -> u32 {
        self.due_restarts + self.own_reboots
    }

    /// Takes note of QEMU's events; returns how many more resets from outside there were than were due.
    pub(super) fn count_resets(&mut self) -> u32 {
        // A QEMU that hung up without an event was not reset since.
        let events = self.guest.events().unwrap_or_default();
        let from_outside =
            |event: &&Value| event["event"] == "RESET" && event["data"]["guest"] == false;
        let more = events.iter().filter(from_outside).count();
        self.resets += u32::try_from(more).unwrap_or(u32::MAX);
        self.resets.saturating_sub(self.due_restarts)
    }

    /// Whether its Linux takes a command.
    pub(super) fn answers(&self, within: Duration) -> bool {
        self.guest.run("idle", within).is_ok()
    }
}
