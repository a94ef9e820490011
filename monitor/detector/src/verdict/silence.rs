//! A guest's silence as it was observed, and how much of it was held.
//!
//! The window of a [`Liveness`] says what of a silence may speak against the guest, and begins anew after
//! each hold. The end of a hold is no sign of life, though: what was known of the guest before is known still, and what
//! people are told is what was observed.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Liveness, State};

/// A guest's silence as it was observed. Moments are times since the host's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silence {
    /// When the guest was last seen or heard to live; at first, when watching or its boot began.
    pub life: Duration,
    /// Since when it has shown nothing though it could have: `life`, or the end of the last pause of a guest that was
    /// neither suspected nor convicted before it.
    pub(crate) since: Duration,
    /// Time since `life` in which no verdict could be given.
    pub held: Duration,
    /// It was suspected or convicted since `life`.
    pub suspected: bool,
}

impl Silence {
    /// A silence that begins at `now`.
    pub(crate) fn begin(now: Duration) -> Self {
        Self { life: now, since: now, held: Duration::ZERO, suspected: false }
    }

    /// The silence that format 1 of recordings has not, told from the rest of the state.
    pub(crate) fn of_format_one(liveness: &Liveness, state: &State) -> Self {
        Self {
            life: liveness.heard.unwrap_or(liveness.last_life),
            since: liveness.last_life,
            held: Duration::ZERO,
            suspected: state.is_accused(),
        }
    }

    /// How long the guest has shown nothing though it could have.
    pub fn length(&self, now: Duration) -> Duration {
        now.saturating_sub(self.since)
    }

    /// Time since the guest was last seen or heard to live, whatever happened since.
    pub fn since_life(&self, now: Duration) -> Duration {
        now.saturating_sub(self.life)
    }

    /// The time in which the guest was held since its last sign of life, in words; `None` where it was not.
    pub(super) fn held_in_words(&self) -> Option<String> {
        let seconds = self.held.as_secs_f64();
        (!self.held.is_zero())
            .then(|| format!("; held for {seconds:.1} s since its last sign of life"))
    }

    /// Leaves out the time up to `now`, in which the guest could show no life, or could not be seen. That doesn't undo
    /// what was known.
    pub(super) fn pause(&mut self, now: Duration) {
        if !self.suspected {
            self.since = now;
        }
    }
}
