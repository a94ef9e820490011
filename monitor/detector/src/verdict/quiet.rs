//! How long a guest has really shown nothing, and how much of that it was held for.
//!
//! The window of a [`Liveness`] says what of a silence may speak against the guest, and begins anew after
//! each hold. The end of a hold is no sign of life, though: what was known of the guest before is known still, and what
//! people are told is what was observed.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Liveness, State};

/// A guest's silence as it was observed. Moments are times since the host's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quiet {
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

impl Quiet {
    /// A silence that begins at `now`.
    pub(crate) fn begin(now: Duration) -> Self {
        Self { life: now, since: now, held: Duration::ZERO, suspected: false }
    }

    /// What format 1 of recordings tells of it.
    pub(crate) fn of_old(liveness: &Liveness, state: &State) -> Self {
        Self {
            life: liveness.heard.unwrap_or(liveness.last_life),
            since: liveness.last_life,
            held: Duration::ZERO,
            suspected: is_accused(state),
        }
    }

    /// How long it has shown nothing though it could have.
    pub fn silence(&self, now: Duration) -> Duration {
        now.saturating_sub(self.since)
    }

    /// How long ago it was last seen or heard to live, whatever happened since.
    pub fn since_life(&self, now: Duration) -> Duration {
        now.saturating_sub(self.life)
    }

    /// That it was held since its last sign of life, and for how long, where it was.
    pub(super) fn held_in_words(&self) -> Option<String> {
        let seconds = self.held.as_secs_f64();
        (!self.held.is_zero())
            .then(|| format!("; held for {seconds:.1} s since its last sign of life"))
    }

    /// Up to `now`, it could show no life, or nobody could see it: that is no silence. It doesn't undo what was known.
    pub(super) fn pause(&mut self, now: Duration) {
        if !self.suspected {
            self.since = now;
        }
    }
}

/// Whether something is held against a guest in this state.
pub(super) fn is_accused(state: &State) -> bool {
    match state {
        State::Suspect { .. } | State::Crashed { .. } | State::Failed { .. } => true,
        State::Starting
        | State::Alive
        | State::Recovering { .. }
        | State::Held
        | State::Unobservable => false,
    }
}
