//! Inputs of the state machine, as values: so that the same inputs give the same decisions,
//! whether they come from a host that is watched or from a recording of one.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Cause, Testimony};
use crate::activity::Activity;
use flatline_samples::{Memory, QmpEvent, RunState};

/// What QEMU's monitor has to say about a VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Monitor {
    /// It answers; the run state that QEMU told last.
    Answers(RunState),
    /// Nothing is known through it, and why: no socket, held by another client, refused.
    Unknown(String),
    /// QEMU has no vCPUs yet, since its guest was not started; the text says what it waits for.
    NotStarted(String),
    /// It answered before, and no longer does.
    Unresponsive(String),
}

/// What one tick shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tick {
    /// What moved during it.
    pub activity: Activity,
    /// QEMU's monitor.
    pub monitor: Monitor,
    /// There is a witness that could be asked while all is well, so that its silence later means something.
    pub calibratable: bool,
    /// Others fell silent at the same moment, and it isn't known yet how many: no guest is convicted of
    /// silence until it is, but for one that is deaf.
    pub undecided: bool,
}

/// One input of the state machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Input {
    /// A tick ended.
    Tick(Arc<Tick>),
    /// A round of questions ended.
    Testimony(Arc<Testimony>),
    /// QEMU told of an event; `monitor` as it is then.
    Event {
        /// QEMU's monitor.
        monitor: Monitor,
        /// What it told.
        event: QmpEvent,
    },
    /// QEMU told its run state.
    RunState(RunState),
    /// A restart of this VM was carried out.
    Restarted {
        /// What it was convicted of.
        cause: Cause,
        /// The guest had come further than its firmware when it crashed, so that it must do so again.
        was_up: bool,
    },
    /// The restart was held back: the guest panicked, and still writes to its disk.
    StillWriting,
    /// The restart was refused for a reason that lies outside of the guest.
    SetAside(String),
    /// Policy allows no more restarts.
    LimitReached {
        /// What it was convicted of last.
        cause: Cause,
        /// Why.
        reason: String,
    },
    /// QEMU's monitor answers again after a conviction without it: the witnesses are asked again.
    Reexamine,
    /// Figures were lost up to now, and why: a silence can only begin here.
    Unseen(String),
    /// Many VMs fell silent at the same moment, and what was seen; `None`: that is over.
    Storm(Option<String>),
    /// An operator released it: what it was convicted of is to be judged anew.
    Released,
    /// What is known of its memory: for people who read the recording. It changes nothing.
    Memory(Arc<Memory>),
    /// Nothing keeps a VM that crashed from being restarted any more, and why: what it was convicted of is to be judged
    /// anew.
    MayBeTouched(String),
    /// It rested, and showed life in each tick meanwhile: see [`Watch::may_rest`](super::Watch::may_rest).
    Lived {
        /// When the last tick ended that showed life.
        until: Duration,
        /// When the last tick ended in which its agent's heart beat, where one is waited for.
        beat: Option<Duration>,
        /// What moved since it came to rest.
        tick: Arc<Tick>,
    },
}

/// The policy by which inputs are judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DetectionPolicy {
    /// The VM's policy.
    pub policy: crate::policy::Policy,
    /// How long a tick should take.
    pub tick: Duration,
}
