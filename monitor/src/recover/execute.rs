//! Carries a plan out through QMP, reading the state back, with evidence taken first ([`evidence`]).
//!
//! [`evidence`]: super::evidence

use std::time::{Duration, SystemTime};

use serde_json::json;
use thiserror::Error;

use super::{
    Plan, Refusal, Step,
    evidence::{self, Wanted},
    nmi, plan,
};
use crate::{
    discover::ResetAction,
    program::{Ran, RunError},
    qmp::{QmpError, QmpHandle, RunState, is_up, parse_registers, printable},
};

/// Time for one command. A reset is answered within a millisecond by a QEMU whose main loop runs.
pub(super) const STEP_LIMIT: Duration = Duration::from_secs(5);

/// A restart that was carried out.
#[derive(Clone, Debug)]
pub struct Restart {
    /// When the reset was issued.
    pub at: SystemTime,
    /// The run state before, and after.
    pub run_states: (RunState, RunState),
    /// The guest had come further than its firmware when it crashed.
    pub was_up: bool,
    /// What was done, in QEMU's words.
    pub action: String,
    /// Files for the incident: name and content.
    pub evidence: Files,
    /// What QEMU does at a reset otherwise: to be put back.
    pub put_back: ResetAction,
}

/// Files of evidence: name and content.
pub type Files = Vec<File>;

type File = (&'static str, Vec<u8>);

/// Why a guest was not restarted, or not as planned.
#[derive(Debug, Error)]
pub enum RestartError {
    /// There is a reason not to; nothing was touched.
    #[error("{0}")]
    Refused(Refusal),
    /// It panicked, and goes on writing to its disk: it saves a dump of its own. Nothing was touched.
    #[error("the guest is still writing")]
    StillWriting,
    /// The run state couldn't be learned; nothing was touched.
    #[error("QEMU does not tell its run state")]
    Unknown(#[source] QmpError),
    /// A step failed.
    #[error("{step} failed")]
    Step {
        /// The command.
        step: &'static str,
        /// When the reset was issued before that, if it was.
        reset_at: Option<SystemTime>,
        /// Files for the incident.
        evidence: Box<[File]>,
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
        /// Files for the incident.
        evidence: Box<[File]>,
        /// What went wrong.
        #[source]
        source: OwnerError,
    },
    /// All steps were taken, and the guest does not run.
    #[error("after the restart its run state is {run_state}")]
    NotRunning {
        /// What it is.
        run_state: RunState,
        /// Files for the incident.
        evidence: Box<[File]>,
    },
}

impl RestartError {
    /// The evidence that was gathered all the same.
    pub fn take_evidence(&mut self) -> Files {
        self.evidence().map(|evidence| std::mem::take(evidence).into_vec()).unwrap_or_default()
    }

    /// The same with this evidence, where there is any.
    pub(super) fn with_evidence(mut self, files: Files) -> Self {
        if let Some(evidence) = self.evidence() {
            *evidence = files.into();
        }
        self
    }

    fn evidence(&mut self) -> Option<&mut Box<[File]>> {
        match self {
            Self::Step { evidence, .. }
            | Self::Owner { evidence, .. }
            | Self::NotRunning { evidence, .. } => Some(evidence),
            Self::Refused(_) | Self::StillWriting | Self::Unknown(_) | Self::NotAsked(_) => None,
        }
    }
}

fn failed(step: &'static str, reset_at: Option<SystemTime>, source: QmpError) -> RestartError {
    RestartError::Step { step, reset_at, evidence: Box::default(), source }
}

/// Why a step by an owner's means failed.
#[derive(Debug, Error)]
pub enum OwnerError {
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

/// Where the progress of a restart is written down: whoever is ended in the middle of one leaves word of it. What can't
/// be written in time holds nothing up.
pub trait Journal {
    /// Before anything is touched: these steps are to be taken, out of this run state.
    fn begun(
        &mut self,
        run_state: &RunState,
        steps: Vec<String>,
    ) -> impl Future<Output = ()> + Send;
    /// QEMU was told to reset the guest, which stands still until this is over, or boots already.
    fn told(&mut self, at: SystemTime) -> impl Future<Output = ()> + Send;
}

/// Restarts a crashed guest by the plan for its present run state. `writes` tells how many writes the guest has
/// submitted so far.
///
/// # Errors
/// [`RestartError::Refused`], [`RestartError::StillWriting`] and [`RestartError::Unknown`] leave the guest
/// untouched.
pub async fn restart(
    qmp: &QmpHandle,
    configured: ResetAction,
    wanted: &Wanted,
    writes: impl Fn() -> Option<u64>,
    journal: &mut impl Journal,
) -> Result<Restart, RestartError> {
    let before = qmp.query_status().await.map_err(RestartError::Unknown)?;
    let planned = |run_state: &RunState| plan(run_state).map_err(RestartError::Refused);
    let mut steps = planned(&before)?.steps;
    // Asked at the same time: an announced crash is to be answered within 100 ms.
    let (writes_on, mut evidence) = tokio::join!(
        still_writing(&before, &writes, wanted),
        evidence::gather(qmp, &before, wanted)
    );
    if writes_on {
        return Err(RestartError::StillWriting);
    }
    if evidence::dump_memory(qmp, wanted, &mut evidence).await {
        // It took its time, and somebody may have laid hands on the guest meanwhile.
        Plan { steps } = planned(&qmp.query_status().await.map_err(RestartError::Unknown)?)?;
    }
    match nmi::own_dump(qmp, &before, wanted, &writes).await {
        nmi::Came::NotSent => {}
        nmi::Came::Dump => return Err(RestartError::StillWriting),
        nmi::Came::Nothing => {
            let now = qmp.query_status().await.map_err(RestartError::Unknown)?;
            Plan { steps } = planned(&now)?;
        }
    }
    let was_up = evidence
        .registers()
        .is_some_and(|text| parse_registers(text).is_ok_and(|vcpus| is_up(&vcpus)));
    let mut words: Vec<String> = steps.iter().map(|step| step.words()).collect();
    if configured == ResetAction::Shutdown {
        words.push(format!("{}, once it has settled", Step::SetRebootAction(configured).words()));
    }
    journal.begun(&before, words).await;
    // Pictures are compressed while QEMU resets its devices.
    let files = tokio::task::spawn_blocking(|| evidence.into_files());
    let carried_out = carry_out(qmp, &steps, configured, journal).await;
    let evidence = files.await.unwrap_or_default();
    match carried_out {
        Ok((reset_at, action, after)) => Ok(Restart {
            at: reset_at.unwrap_or_else(SystemTime::now),
            run_states: (before, after),
            was_up,
            action,
            evidence,
            put_back: configured,
        }),
        Err(error) => Err(error.with_evidence(evidence)),
    }
}

/// Takes the steps that are left of a restart which an earlier daemon was ended in; returns what was done, in QEMU's
/// words.
///
/// # Errors
/// [`RestartError::Step`] and [`RestartError::NotRunning`].
pub async fn finish(
    qmp: &QmpHandle,
    steps: &[Step],
    configured: ResetAction,
    journal: &mut impl Journal,
) -> Result<String, RestartError> {
    carry_out(qmp, steps, configured, journal).await.map(|(_, action, _)| action)
}

async fn carry_out(
    qmp: &QmpHandle,
    steps: &[Step],
    configured: ResetAction,
    journal: &mut impl Journal,
) -> Result<(Option<SystemTime>, String, RunState), RestartError> {
    let mut reset_at = None;
    let mut action = Vec::new();
    for step in steps {
        let begin = SystemTime::now();
        let taken = take(qmp, *step, configured).await;
        let name = taken.map_err(|(step, source)| failed(step, reset_at, source))?;
        if *step == Step::SystemReset {
            // Its answer comes when QEMU has reset every device, which takes it 0.2 s.
            reset_at = Some(begin);
            journal.told(begin).await;
        }
        action.extend(name);
    }
    let after = qmp.query_status().await;
    let after = after.map_err(|source| failed("query-status", reset_at, source))?;
    if after != RunState::Running {
        return Err(RestartError::NotRunning { run_state: after, evidence: Box::default() });
    }
    Ok((reset_at, action.join(", "), after))
}

/// Tells QEMU again what it was `configured` to do at a reset.
///
/// # Errors
/// If QEMU refuses, or can't be told.
pub async fn put_back(qmp: &QmpHandle, configured: ResetAction) -> Result<(), QmpError> {
    let step = Step::SetRebootAction(configured);
    take(qmp, step, configured).await.map(drop).map_err(|(_, error)| error)
}

/// Takes one step; `Ok(None)` for one that was not needed.
pub(super) async fn take(
    qmp: &QmpHandle,
    step: Step,
    configured: ResetAction,
) -> Result<Option<&'static str>, (&'static str, QmpError)> {
    let named = |name| move |error| (name, error);
    match step {
        Step::SetRebootAction(action) => {
            let arguments = json!({ "reboot": action.as_str() });
            match qmp.execute("set-action", Some(arguments), STEP_LIMIT).await {
                Ok(_) => Ok(None),
                // QEMU before 6.0 has no such command; where it resets on reboot anyway, none is needed.
                Err(QmpError::Command { .. }) if configured == ResetAction::Reset => Ok(None),
                Err(error) => Err(("set-action", error)),
            }
        }
        Step::SystemReset => {
            let reset = qmp.execute("system_reset", None, STEP_LIMIT).await;
            reset.map(|_| Some("system_reset")).map_err(named("system_reset"))
        }
        Step::ContinueFromPrelaunch => {
            let run_state = settled(qmp).await.map_err(named("query-status"))?;
            if run_state == RunState::Running {
                return Ok(None);
            }
            let cont = qmp.execute("cont", None, STEP_LIMIT).await;
            cont.map(|_| Some("cont")).map_err(named("cont"))
        }
    }
}

/// The run state once the reset, which QEMU carries out in its main loop, has taken effect.
pub(super) async fn settled(qmp: &QmpHandle) -> Result<RunState, QmpError> {
    const POLLS: u32 = 40;
    let mut run_state = qmp.query_status().await?;
    for _ in 0..POLLS {
        if matches!(run_state, RunState::Running | RunState::Prelaunch) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
        run_state = qmp.query_status().await?;
    }
    Ok(run_state)
}

/// Whether a guest that runs on after its panic still writes. What it had submitted by then is given the time to
/// come through first.
pub(super) async fn still_writing(
    run_state: &RunState,
    writes: impl Fn() -> Option<u64>,
    wanted: &Wanted,
) -> bool {
    const SETTLES: Duration = Duration::from_millis(10);
    const WATCHED: Duration = Duration::from_millis(40);
    if *run_state != RunState::Running || !wanted.announced || writes().is_none() {
        return false;
    }
    tokio::time::sleep(SETTLES).await;
    let before = writes();
    tokio::time::sleep(WATCHED).await;
    // What can't be read now holds nothing up: the panic is certain.
    matches!((before, writes()), (Some(before), Some(now)) if now > before)
}
