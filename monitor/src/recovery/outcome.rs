//! What comes of a restart: that it was carried out, or why it wasn't, and what can be said of the guest then.

use std::time::SystemTime;

use thiserror::Error;

use super::Refusal;
use flatline_qemu::{
    discover::ResetAction,
    program::{Ran, RunError},
    qmp::QmpError,
};
use flatline_samples::{RunState, printable};

/// A restart that was carried out.
#[derive(Clone, Debug)]
pub(crate) struct Restart {
    /// When the reset was issued.
    pub(crate) at: SystemTime,
    /// The run state before, and after.
    pub(crate) run_states: (RunState, RunState),
    /// What was done, in QEMU's words.
    pub(crate) action: String,
    /// What was learned of the guest before.
    pub(crate) kept: Kept,
    /// What QEMU does at a reset otherwise: to be put back.
    pub(crate) put_back: ResetAction,
}

/// Files of evidence: name and content.
pub(crate) type Files = Vec<(&'static str, Vec<u8>)>;

/// What was learned of a guest before its restart, whatever came of that.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kept {
    /// Files for the incident.
    pub(crate) files: Files,
    /// Whether the guest had come further than its firmware when it crashed; `None` if that was not seen.
    pub(crate) was_up: Option<bool>,
}

/// Why a guest was not restarted, or not as planned.
#[derive(Debug, Error)]
pub(crate) enum RestartError {
    /// There is a reason not to; nothing was touched.
    #[error("{0}")]
    Refused(Refusal),
    /// Its owner has it locked, or doesn't tell; nothing was touched, and it is to be tried again.
    #[error("{0}")]
    Locked(String),
    /// Its owner no longer has it locked, and nothing was touched so far: it is to be judged anew.
    #[error("its owner has unlocked it")]
    Unlocked,
    /// It panicked, and goes on writing to its disk: it saves a dump of its own. Nothing was touched.
    #[error("the guest is still writing")]
    StillWriting,
    /// The run state couldn't be learned; nothing was touched.
    #[error("QEMU does not tell its run state")]
    Unknown(#[source] QmpError),
    /// The guest was reset while this was prepared, by itself or by another; nothing was touched.
    #[error("it was reset meanwhile")]
    Overtaken {
        /// What was learned by then.
        kept: Box<Kept>,
    },
    /// QEMU did not answer any more once it had been asked for evidence; nothing was touched.
    #[error("QEMU does not tell its run state since it was asked for evidence")]
    Lost {
        /// What was learned by then.
        kept: Box<Kept>,
        /// What became of the last question.
        #[source]
        source: QmpError,
    },
    /// A step failed.
    #[error("{step} failed")]
    Step {
        /// The command.
        step: &'static str,
        /// When the reset was issued before that, if it was.
        reset_at: Option<SystemTime>,
        /// What was learned of the guest before.
        kept: Box<Kept>,
        /// What QEMU said, if anything.
        #[source]
        source: QmpError,
    },
    /// A program of its owner's could not be asked what has to be known first; nothing was touched.
    #[error("its owner can't be asked")]
    NotAsked(#[source] RunError),
    /// A step by its owner's means failed.
    #[error("{step} failed")]
    Owner {
        /// The step.
        step: &'static str,
        /// When the first program was run that may have reset it, if one was.
        reset_at: Option<SystemTime>,
        /// What was learned of the guest before.
        kept: Box<Kept>,
        /// What went wrong.
        #[source]
        source: OwnerError,
    },
    /// All steps were taken, and the guest does not run.
    #[error("after the restart its run state is {run_state}")]
    NotRunning {
        /// What it is.
        run_state: RunState,
        /// When the reset was issued.
        reset_at: Option<SystemTime>,
        /// What was learned of the guest before.
        kept: Box<Kept>,
    },
}

/// What a restart that failed has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stand {
    /// The guest was not reset, and nothing was told to.
    Untouched,
    /// QEMU was told to reset the guest, or may have been, and has not answered: its run state will tell what is left.
    Open {
        /// When it was, where that is certain.
        reset_at: Option<SystemTime>,
    },
    /// The guest was reset, or its owner's program was run for that, and then something failed.
    Told {
        /// When.
        at: SystemTime,
        /// What was done.
        action: &'static str,
    },
}

impl RestartError {
    /// What was learned of the guest all the same.
    pub(crate) fn take_kept(&mut self) -> Kept {
        self.kept().map(|kept| std::mem::take(&mut **kept)).unwrap_or_default()
    }

    /// The same with this, where it has any.
    pub(super) fn with(mut self, what: Kept) -> Self {
        if let Some(kept) = self.kept() {
            **kept = what;
        }
        self
    }

    fn kept(&mut self) -> Option<&mut Box<Kept>> {
        match self {
            Self::Overtaken { kept }
            | Self::Lost { kept, .. }
            | Self::Step { kept, .. }
            | Self::Owner { kept, .. }
            | Self::NotRunning { kept, .. } => Some(kept),
            Self::Refused(_)
            | Self::Locked(_)
            | Self::Unlocked
            | Self::StillWriting
            | Self::Unknown(_)
            | Self::NotAsked(_) => None,
        }
    }

    /// What the restart has come to.
    pub(crate) fn stand(&self) -> Stand {
        const RESET: &str = "system_reset";
        match self {
            Self::Refused(_)
            | Self::Locked(_)
            | Self::Unlocked
            | Self::StillWriting
            | Self::Unknown(_)
            | Self::Overtaken { .. }
            | Self::Lost { .. }
            | Self::NotAsked(_)
            | Self::Owner { reset_at: None, .. }
            | Self::NotRunning { reset_at: None, .. } => Stand::Untouched,
            Self::Step { reset_at: None, step, source, .. } => {
                let is_open = *step == RESET && source.is_in_doubt();
                if is_open { Stand::Open { reset_at: None } } else { Stand::Untouched }
            }
            Self::Step { reset_at: Some(at), source, .. } if !source.is_answer() => {
                Stand::Open { reset_at: Some(*at) }
            }
            Self::Owner { reset_at: Some(at), step, .. } => Stand::Told { at: *at, action: step },
            Self::Step { reset_at: Some(at), .. } | Self::NotRunning { reset_at: Some(at), .. } => {
                Stand::Told { at: *at, action: RESET }
            }
        }
    }

    /// Whether QEMU did not answer, so that it is not to be asked for evidence once more.
    pub(crate) fn is_silence(&self) -> bool {
        match self {
            Self::Lost { .. } => true,
            Self::Step { source, .. } => !source.is_answer(),
            Self::Owner { source: OwnerError::Qmp(source), .. } => !source.is_answer(),
            Self::Refused(_)
            | Self::Locked(_)
            | Self::Unlocked
            | Self::StillWriting
            | Self::Unknown(_)
            | Self::Overtaken { .. }
            | Self::NotAsked(_)
            | Self::Owner { .. }
            | Self::NotRunning { .. } => false,
        }
    }
}

/// Why a step by an owner's means failed.
#[derive(Debug, Error)]
pub(crate) enum OwnerError {
    /// Its program.
    #[error(transparent)]
    Program(#[from] RunError),
    /// QEMU.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// QEMU refused what its owner passed on.
    #[error("QEMU did not accept it: {}", printable(&String::from_utf8_lossy(&.0.stdout), 300))]
    Answer(Ran),
}
