//! Carries a plan out through QMP, reading the state back, with evidence taken first ([`evidence`]).
//!
//! [`evidence`]: super::evidence

use std::time::{Duration, SystemTime};

use serde_json::json;
use thiserror::Error;

use super::{
    Plan, Refusal, Step,
    evidence::{self, Wanted},
    plan,
};
use crate::{
    discover::ResetAction,
    qmp::{QmpError, QmpHandle, RunState, is_up, parse_registers},
};

/// Time for one command. A reset is answered within a millisecond by a QEMU whose main loop runs.
const STEP_LIMIT: Duration = Duration::from_secs(5);

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
        match self {
            Self::Step { evidence, .. } | Self::NotRunning { evidence, .. } => {
                std::mem::take(evidence).into_vec()
            }
            Self::Refused(_) | Self::StillWriting | Self::Unknown(_) => Files::new(),
        }
    }
}

/// Restarts a crashed guest by the plan for its present run state. `writes` tells how many writes the guest has
/// submitted so far, where that matters: of a guest that said that it panicked.
///
/// # Errors
/// [`RestartError::Refused`], [`RestartError::StillWriting`] and [`RestartError::Unknown`] leave the guest
/// untouched.
pub async fn restart(
    qmp: &QmpHandle,
    configured: ResetAction,
    wanted: &Wanted,
    writes: impl Fn() -> Option<u64>,
) -> Result<Restart, RestartError> {
    let before = qmp.query_status().await.map_err(RestartError::Unknown)?;
    let planned = |run_state| plan(run_state, configured).map_err(RestartError::Refused);
    let mut steps = planned(&before)?.steps;
    // Asked at the same time: an announced crash is to be answered within 100 ms.
    let (writes_on, mut evidence) =
        tokio::join!(still_writing(&before, writes), evidence::gather(qmp, &before, wanted));
    if writes_on {
        return Err(RestartError::StillWriting);
    }
    if evidence::dump_memory(qmp, wanted, &mut evidence).await {
        // It took its time, and somebody may have laid hands on the guest meanwhile.
        Plan { steps } = planned(&qmp.query_status().await.map_err(RestartError::Unknown)?)?;
    }
    let was_up = evidence
        .registers()
        .is_some_and(|text| parse_registers(text).is_ok_and(|vcpus| is_up(&vcpus)));
    // Pictures are compressed while QEMU resets its devices.
    let files = tokio::task::spawn_blocking(|| evidence.into_files());
    let carried_out = carry_out(qmp, &steps, configured).await;
    let evidence = files.await.unwrap_or_default();
    let carried_out = carried_out.and_then(|done| match done.run_state {
        RunState::Running => Ok(done),
        _ => Err(Failed::NotRunning(done.run_state)),
    });
    match carried_out {
        Ok(Done { reset_at, action, run_state }) => Ok(Restart {
            at: reset_at.unwrap_or_else(SystemTime::now),
            run_states: (before, run_state),
            was_up,
            action,
            evidence,
        }),
        Err(Failed::NotRunning(run_state)) => {
            Err(RestartError::NotRunning { run_state, evidence: evidence.into() })
        }
        Err(Failed::Step { step, reset_at, source }) => {
            Err(RestartError::Step { step, reset_at, evidence: evidence.into(), source })
        }
    }
}

/// All steps were taken.
struct Done {
    reset_at: Option<SystemTime>,
    action: String,
    /// What QEMU says now.
    run_state: RunState,
}

/// They were not, or in vain.
enum Failed {
    Step { step: &'static str, reset_at: Option<SystemTime>, source: QmpError },
    NotRunning(RunState),
}

async fn carry_out(
    qmp: &QmpHandle,
    steps: &[Step],
    configured: ResetAction,
) -> Result<Done, Failed> {
    let mut reset_at = None;
    let mut action = Vec::new();
    for step in steps {
        let begin = SystemTime::now();
        let taken = take(qmp, *step, configured).await;
        let name = taken.map_err(|(step, source)| Failed::Step { step, reset_at, source })?;
        if *step == Step::SystemReset {
            // Its answer comes when QEMU has reset every device, which takes it 0.2 s.
            reset_at = Some(begin);
        }
        action.extend(name);
    }
    let run_state = qmp.query_status().await;
    let run_state =
        run_state.map_err(|source| Failed::Step { step: "query-status", reset_at, source })?;
    Ok(Done { reset_at, action: action.join(", "), run_state })
}

/// Takes one step; `Ok(None)` for one that was not needed.
async fn take(
    qmp: &QmpHandle,
    step: Step,
    configured: ResetAction,
) -> Result<Option<&'static str>, (&'static str, QmpError)> {
    let named = |name| move |error| (name, error);
    match step {
        Step::SetRebootAction(action) => {
            let value = match action {
                ResetAction::Reset => "reset",
                ResetAction::Shutdown => "shutdown",
            };
            let arguments = json!({ "reboot": value });
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
async fn settled(qmp: &QmpHandle) -> Result<RunState, QmpError> {
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
async fn still_writing(run_state: &RunState, writes: impl Fn() -> Option<u64>) -> bool {
    const SETTLES: Duration = Duration::from_millis(10);
    const WATCHED: Duration = Duration::from_millis(40);
    if *run_state != RunState::Running || writes().is_none() {
        return false;
    }
    tokio::time::sleep(SETTLES).await;
    let before = writes();
    tokio::time::sleep(WATCHED).await;
    // What can't be read now holds nothing up: the panic is certain.
    matches!((before, writes()), (Some(before), Some(now)) if now > before)
}
