//! A case: a conviction that is being dealt with, and how far it has come.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::Overtaken;
use crate::{identity::Key, storage::incident::Incident};
use flatline_detector::verdict::DetectionPolicy;
use flatline_qemu::discover::Vm;

/// A conviction that is being dealt with.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) incident: Incident,
    pub(crate) stage: Stage,
    /// When it was convicted, or taken up: a guest that lives after that lives after all.
    pub(crate) since: Duration,
    /// Why it was convicted, without what came of that.
    pub(crate) grounds: String,
    pub(crate) tries: Tries,
    /// Why its owner has it locked, as it was told, since it was tried to restart it.
    pub(crate) locked: Option<String>,
}

impl Case {
    pub(crate) fn new(incident: Incident, stage: Stage, since: Duration) -> Self {
        let grounds = incident.reason.clone();
        Self { incident, stage, since, grounds, tries: Tries::default(), locked: None }
    }
}

/// Restarts that came to nothing, because QEMU could not be told of them or did not answer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tries {
    in_vain: u32,
    /// Time since the host's start before which there is no other.
    pub(crate) not_before: Duration,
    /// QEMU fell silent in one of them: it is told to reset the guest, and asked for nothing else.
    pub(crate) is_curt: bool,
}

impl Tries {
    /// After the first such try, and after many: it doubles.
    const PAUSE: Duration = Duration::from_secs(5);
    const LONGEST_PAUSE: Duration = Duration::from_secs(300);

    /// One came to nothing at `now`.
    pub(crate) fn fail(&mut self, is_silence: bool, now: Duration) {
        let pause = Self::PAUSE.saturating_mul(2_u32.saturating_pow(self.in_vain));
        self.in_vain = self.in_vain.saturating_add(1);
        self.not_before = now + pause.min(Self::LONGEST_PAUSE);
        self.is_curt |= is_silence;
    }
}

/// How far a case has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// An earlier daemon was ended in the middle of its restart, or QEMU did not answer in the middle of it: what is left of
    /// that is seen from its run state.
    Resuming,
    /// It is to be restarted, but not before this moment.
    Pausing {
        /// Time since the host's start.
        until: Duration,
    },
    /// It is to be restarted, as soon as there is a place among its host's restarts.
    AwaitingPlace,
    /// The restart is under way.
    Restarting,
    /// Restarted; waiting for life.
    AwaitingLife {
        /// When the reset was issued.
        since: SystemTime,
    },
    /// QEMU could not be told; it will be as soon as it listens.
    WaitingForMonitor,
    /// The guest writes its own crash dump; it is restarted once that is done, unless it resets itself.
    WaitingForDump,
    /// It did, or reset itself before it was restarted, and is to show life.
    ResetItself,
    /// Another reset it before flatline did, and it is to show life.
    ResetByAnother,
    /// It is on hold; once that is over, it is judged anew.
    OnHold,
    /// Nothing was done, or not enough, and it may be convicted once more: of the same crash, if it shows no life before.
    Reopened,
    /// Nothing more is to be done.
    Closed,
}

impl Stage {
    /// Whether another conviction, before the guest showed life, is of the same crash.
    pub(crate) fn is_open(self) -> bool {
        match self {
            Self::Resuming
            | Self::Pausing { .. }
            | Self::AwaitingPlace
            | Self::AwaitingLife { .. }
            | Self::WaitingForMonitor
            | Self::WaitingForDump
            | Self::ResetItself
            | Self::ResetByAnother
            | Self::OnHold
            | Self::Reopened => true,
            Self::Restarting | Self::Closed => false,
        }
    }
}

/// What recovery remembers of a VM.
#[derive(Debug, Default)]
pub(crate) struct RecoveryState {
    /// The conviction that is being dealt with, or that was last. In a box: most VMs never have one.
    pub(crate) case: Option<Box<Case>>,
    /// What was reported of its agent without a restart, as long as that is so.
    pub(crate) reported: Option<Incident>,
    /// Restarts that this daemon began.
    pub(crate) restarts: u64,
    /// Resets that came while its last restart was prepared.
    pub(crate) overtaken: Overtaken,
    /// An earlier daemon restarted it, and may not have told QEMU again what to do at a reset.
    pub(crate) put_back: bool,
}

impl RecoveryState {
    /// Whether something is still to be done, or waited for, with its last conviction.
    pub(crate) fn has_case_to_do(&self) -> bool {
        self.case.as_ref().is_some_and(|case| case.stage != Stage::Closed)
    }

    /// Whether QEMU is being told to restart the guest just now.
    pub(crate) fn is_restarting(&self) -> bool {
        self.case.as_ref().is_some_and(|case| case.stage == Stage::Restarting)
    }

    /// Whether it may have been told so, and what came of it is not known yet.
    pub(crate) fn is_resuming(&self) -> bool {
        self.case.as_ref().is_some_and(|case| case.stage == Stage::Resuming)
    }
}

/// A VM without a QEMU, of which one is expected.
#[derive(Debug)]
pub(crate) struct Respawn {
    pub(crate) vm: Arc<Vm>,
    pub(crate) key: Key,
    pub(crate) detection: DetectionPolicy,
    pub(crate) incident: Incident,
    pub(crate) progress: Progress,
}

/// How far its start has come. Moments are times since the host's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It is not to be started before this moment.
    Pausing(Duration),
    /// It is to be started, as soon as there is a place among its host's restarts.
    AwaitingPlace,
    /// Its owner is being told.
    Starting,
    /// Its owner was told, and a QEMU is to be found until this moment.
    Expected(Duration),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_tries_came_to_nothing_the_longer_it_is_until_the_next() {
        let (mut tries, now) = (Tries::default(), Duration::from_secs(1000));
        assert!(tries.not_before.is_zero() && !tries.is_curt);
        let mut pauses = Vec::new();
        for number in 0..40 {
            tries.fail(number == 1, now);
            assert_eq!(tries.is_curt, number >= 1);
            pauses.push((tries.not_before - now).as_secs());
        }
        assert_eq!(pauses[..8], [5, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(pauses[39], 300);
    }
}
