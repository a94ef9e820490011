//! The states of a VM, and the causes that it can be convicted of.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::Tally;

/// Why a guest counts as crashed. The names are those of `status --json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Cause {
    /// The guest said so itself.
    Panicked,
    /// KVM gave up on it.
    InternalError,
    /// Its watchdog device fired, and QEMU paused it.
    Watchdog,
    /// Every vCPU stopped for good.
    Halted,
    /// A vCPU is pinned where no interrupt can reach it, and nothing else moves.
    Spinning,
    /// What used to answer no longer does.
    Silent,
    /// It resets itself again and again.
    BootLoop,
    /// Its QEMU ended without being asked to.
    QemuExited,
    /// Its QEMU hangs.
    QemuUnresponsive,
    /// Its kernel lives, and its user space does not.
    UserlandDead,
    /// What its agent checks has failed, by the agent's account.
    ServiceDead,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Panicked,
        Self::InternalError,
        Self::Watchdog,
        Self::Halted,
        Self::Spinning,
        Self::Silent,
        Self::BootLoop,
        Self::QemuExited,
        Self::QemuUnresponsive,
        Self::UserlandDead,
        Self::ServiceDead,
    ];

    /// The name in `status --json`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Panicked => "panicked",
            Self::InternalError => "internal-error",
            Self::Watchdog => "watchdog",
            Self::Halted => "halted",
            Self::Spinning => "spinning",
            Self::Silent => "silent",
            Self::BootLoop => "boot-loop",
            Self::QemuExited => "qemu-exited",
            Self::QemuUnresponsive => "qemu-unresponsive",
            Self::UserlandDead => "userland-dead",
            Self::ServiceDead => "service-dead",
        }
    }

    /// Whether the kernel lives all the same, so that no packet of the guest speaks against this cause.
    pub fn is_of_user_space(self) -> bool {
        matches!(self, Self::UserlandDead | Self::ServiceDead)
    }

    /// The cause of that name, if there is one.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cause| cause.as_str() == name)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The state of a VM, with what belongs to it. Moments are times since the host's start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum State {
    /// Within the boot grace, and no sign of life so far.
    Starting,
    /// Showed a sign of life within `flat_for`, or was acquitted since.
    Alive,
    /// Silent for `flat_for`; being asked.
    Suspect {
        /// What was answered so far.
        tally: Tally,
    },
    /// Convicted; nothing was done yet, or nothing may be.
    Crashed {
        /// As what.
        cause: Cause,
    },
    /// Restarted; waiting for a sign of life.
    Recovering {
        /// What it was convicted of.
        cause: Cause,
        /// When its time to show life is over, and it is asked.
        deadline: Duration,
        /// What was answered since then.
        tally: Tally,
        /// It had come further than its firmware before, and must do so again to count as recovered.
        was_up: bool,
    },
    /// No verdict is to be given.
    Held,
    /// The restart limit is reached: a person is needed.
    Failed {
        /// What it was convicted of last.
        cause: Cause,
    },
    /// A figure that the verdict needs can't be read.
    Unobservable,
}

impl State {
    /// All names in `status --json`, in an order that stays: recordings have a name's index.
    pub const NAMES: [&str; 8] =
        ["starting", "alive", "suspect", "crashed", "recovering", "held", "failed", "unobservable"];

    /// The name in `status --json`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Alive => "alive",
            Self::Suspect { .. } => "suspect",
            Self::Crashed { .. } => "crashed",
            Self::Recovering { .. } => "recovering",
            Self::Held => "held",
            Self::Failed { .. } => "failed",
            Self::Unobservable => "unobservable",
        }
    }

    /// What it was convicted of, where it was.
    pub fn cause(&self) -> Option<Cause> {
        match self {
            Self::Recovering { cause, .. } => Some(*cause),
            state => state.conviction(),
        }
    }

    /// What it stands convicted of, where no restart was begun.
    pub(super) fn conviction(&self) -> Option<Cause> {
        match self {
            Self::Crashed { cause } | Self::Failed { cause } => Some(*cause),
            Self::Starting
            | Self::Alive
            | Self::Suspect { .. }
            | Self::Recovering { .. }
            | Self::Held
            | Self::Unobservable => None,
        }
    }

    /// Whether it stands convicted, and no restart was begun.
    pub(super) fn is_convicted(&self) -> bool {
        self.conviction().is_some()
    }

    /// Whether it is suspected or stands convicted.
    pub(super) fn is_accused(&self) -> bool {
        matches!(self, Self::Suspect { .. }) || self.is_convicted()
    }

    /// What was answered so far of a guest that is asked.
    pub(super) fn tally(&self) -> Option<Tally> {
        match self {
            Self::Suspect { tally } | Self::Recovering { tally, .. } => Some(*tally),
            Self::Starting
            | Self::Alive
            | Self::Crashed { .. }
            | Self::Held
            | Self::Failed { .. }
            | Self::Unobservable => None,
        }
    }
}
