//! What is known of one boot of a guest, and ends with it.

use std::{collections::BTreeSet, time::Duration};

use serde::{Deserialize, Serialize};

use super::{HeartbeatState, WitnessName};

/// What is known of a guest's present boot; all of it is forgotten when the guest is reset.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Boot {
    /// When it began, since the host's start; no other boot of the guest began then.
    pub began: Duration,
    /// Time since then in which the VM was held, which is not counted as boot grace.
    pub(crate) held: Duration,
    /// Its first sign of life.
    pub(crate) first_life: Option<Duration>,
    /// The witnesses that answered about the guest, so that their silence counts against it.
    pub answered: BTreeSet<WitnessName>,
    /// When they were last asked while all was well.
    pub(crate) calibrated: Option<Duration>,
    /// The crash dump of its own that the guest writes, if it does.
    pub(crate) dump: Option<Dump>,
    /// What its agent said, if it has one.
    pub heartbeat: Option<HeartbeatState>,
}

/// A crash dump that a guest is writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dump {
    /// Since when it is known.
    pub(crate) since: Duration,
    /// When it last wrote, or at first, when it said so.
    pub(crate) last_write: Duration,
    /// Time for which it may write nothing.
    pub(crate) quiet_for: Duration,
    /// QEMU's monitor could not be heard all along, so that the reset that ends a dump may have been missed; or no more than the
    /// guest's console tells of it.
    pub(crate) unheard: bool,
}

impl Dump {
    /// A dump that is known since `now`, and may go on without a write for `quiet_for`.
    pub(crate) fn new(now: Duration, quiet_for: Duration) -> Self {
        Self { since: now, last_write: now, quiet_for, unheard: false }
    }
}

impl Boot {
    /// A boot that began at `began`.
    pub(crate) fn new(began: Duration) -> Self {
        Self { began, ..Self::default() }
    }
}
