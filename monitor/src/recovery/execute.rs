//! Carries a plan out through QMP, reading the state back, with evidence taken first ([`evidence`]).
//!
//! [`evidence`]: super::evidence

use std::time::{Duration, Instant, SystemTime};

use serde_json::json;

use super::{
    Overtaken, Restart, RestartError, Step,
    evidence::{self, Wanted},
    nmi, plan,
};
use flatline_qemu::{
    discover::ResetAction,
    qmp::{QmpError, QmpHandle},
};
use flatline_samples::RunState;

/// Time for one command. A reset is answered within a millisecond by a QEMU whose main loop runs.
pub(super) const STEP_LIMIT: Duration = Duration::from_secs(5);
/// Once it has been asked for evidence, QEMU gets so long to answer again: it may be busy with an answer that is not
/// waited for any more, or the connection is made anew.
pub(super) const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// A reset that is not answered is waited for so long: one waits for requests that are in flight, as long as they are.
const RESET_WITHIN: Duration = Duration::from_secs(60);
/// From one question whether there is a connection to the next.
const ASKED_EVERY: Duration = Duration::from_millis(100);

fn failed(step: &'static str, reset_at: Option<SystemTime>, source: QmpError) -> RestartError {
    RestartError::Step { step, reset_at, kept: Box::default(), source }
}

/// Record of a restart's progress: a daemon that is ended in the middle of one leaves word of it. What can't
/// be written in time holds nothing up.
pub(crate) trait Journal {
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
/// Which of them leave the guest untouched says [`RestartError::stand`].
pub(crate) async fn restart(
    qmp: &QmpHandle,
    configured: ResetAction,
    wanted: &Wanted,
    overtaken: &Overtaken,
    writes: impl Fn() -> Option<u64>,
    journal: &mut impl Journal,
) -> Result<Restart, RestartError> {
    let before = qmp.query_status().await.map_err(RestartError::Unknown)?;
    plan(&before).map_err(RestartError::Refused)?;
    // Asked at the same time: an announced crash is to be answered within 100 ms.
    let (writes_on, mut evidence) = tokio::join!(
        still_writing(&before, &writes, wanted),
        evidence::gather(qmp, &before, wanted)
    );
    if writes_on {
        return Err(RestartError::StillWriting);
    }
    evidence::dump_memory(qmp, wanted, &mut evidence).await;
    if nmi::own_dump(qmp, &before, wanted, &writes).await == nmi::Came::Dump {
        return Err(RestartError::StillWriting);
    }
    // All of that took its time: an operator may have stopped the guest meanwhile, and QEMU may be late with an answer
    // or have lost the connection over one.
    let now = match answering(qmp, ANSWERS_WITHIN).await {
        Ok(run_state) => run_state,
        Err(source) => {
            return Err(RestartError::Lost { kept: Box::new(evidence.keep().await), source });
        }
    };
    if let Err(error) = overtaken.none_yet() {
        return Err(error.with(evidence.keep().await));
    }
    let steps = plan(&now).map_err(RestartError::Refused)?;
    let mut words: Vec<String> = steps.iter().map(|step| step.words()).collect();
    if configured == ResetAction::Shutdown {
        words.push(format!("{}, once it has settled", Step::SetRebootAction(configured).words()));
    }
    journal.begun(&before, words).await;
    // Pictures are compressed while QEMU resets its devices.
    let kept = evidence.keep();
    let carried_out = carry_out(qmp, &steps, configured, journal).await;
    let kept = kept.await;
    match carried_out {
        Ok((reset_at, action)) => Ok(Restart {
            at: reset_at.unwrap_or_else(SystemTime::now),
            run_states: (before, RunState::Running),
            action,
            kept,
            put_back: configured,
        }),
        Err(error) => Err(error.with(kept)),
    }
}

/// The run state, as soon as QEMU answers, for `patience` at most and the time of one more question.
///
/// # Errors
/// What became of the last question.
pub(super) async fn answering(qmp: &QmpHandle, patience: Duration) -> Result<RunState, QmpError> {
    let begun = Instant::now();
    loop {
        match qmp.query_status().await {
            Err(error) if !error.is_answer() && begun.elapsed() < patience => {}
            answer => return answer,
        }
        tokio::time::sleep(ASKED_EVERY).await;
    }
}

/// Takes the steps that are left of a restart which an earlier daemon was ended in; returns what was done, in QEMU's
/// words.
///
/// # Errors
/// [`RestartError::Step`] and [`RestartError::NotRunning`].
pub(crate) async fn finish(
    qmp: &QmpHandle,
    steps: &[Step],
    configured: ResetAction,
    journal: &mut impl Journal,
) -> Result<String, RestartError> {
    carry_out(qmp, steps, configured, journal).await.map(|(_, action)| action)
}

async fn carry_out(
    qmp: &QmpHandle,
    steps: &[Step],
    configured: ResetAction,
    journal: &mut impl Journal,
) -> Result<(Option<SystemTime>, String), RestartError> {
    let mut reset_at = None;
    let mut action = Vec::new();
    for step in steps {
        let begin = SystemTime::now();
        let name = match take(qmp, *step, configured).await {
            Ok(name) => name,
            Err((name, late @ QmpError::Timeout { .. })) if *step == Step::SystemReset => {
                // QEMU takes commands in their order: once it answers a later one, it has taken this one.
                if !answers_in_order(qmp, RESET_WITHIN).await {
                    return Err(failed(name, None, late));
                }
                Some(name)
            }
            Err((name, source)) => return Err(failed(name, reset_at, source)),
        };
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
        return Err(RestartError::NotRunning { run_state: after, reset_at, kept: Box::default() });
    }
    Ok((reset_at, action.join(", ")))
}

/// Whether QEMU answers on the connection that there is, for `patience` at most and the time of one more question: there
/// is a question on its way at any moment, so that no other connection can take its place unnoticed.
async fn answers_in_order(qmp: &QmpHandle, patience: Duration) -> bool {
    let begun = Instant::now();
    loop {
        match qmp.query_status().await {
            Err(QmpError::Timeout { .. }) if begun.elapsed() < patience => {}
            answer => return answer.is_ok(),
        }
    }
}

/// Tells QEMU again what it was `configured` to do at a reset.
///
/// # Errors
/// If QEMU refuses, or can't be told.
pub(crate) async fn put_back(qmp: &QmpHandle, configured: ResetAction) -> Result<(), QmpError> {
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

#[cfg(test)]
mod tests;
