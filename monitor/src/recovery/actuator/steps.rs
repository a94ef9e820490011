//! A plan's steps, taken one after the other, and what was told meanwhile.

use std::time::SystemTime;

use super::{ActuatorStep, RestartContext, checks::CHECK_LIMIT};
use crate::recovery::{Journal, OwnerError, RestartError, Step, execute};
use flatline_qemu::{
    program::{Program, Ran, RunError, run, run_at},
    text::error_chain,
};

/// What was done, and what was told.
pub(super) struct Done {
    pub(super) at: SystemTime,
    pub(super) action: String,
    pub(super) told: String,
}

/// Takes all steps that are no checks. `told` is what was told by these.
pub(super) async fn take_all(
    context: &RestartContext,
    steps: &[ActuatorStep],
    action: &str,
    mut told: String,
    journal: &mut impl Journal,
) -> Result<Done, RestartError> {
    let environment = context.environment(action);
    let place = context.place(steps, action);
    let (mut at, mut done) = (None, Vec::new());
    for step in steps {
        match step {
            ActuatorStep::Check(..) => {}
            ActuatorStep::SetRebootAction(wanted) => {
                let Ok(qmp) = &context.monitor else { continue };
                let step = Step::SetRebootAction(*wanted);
                let set = execute::take(qmp, step, context.vm.reboot_action).await;
                set.map_err(|(step, source)| failed(step, at, source))?;
            }
            ActuatorStep::Tell(program) => {
                let ran = run(program, &[], CHECK_LIMIT).await;
                note(&mut told, program, &ran);
                let ran = ran.map_err(|source| failed("set-action", at, source))?;
                if !is_return(&ran.stdout) {
                    return Err(failed("set-action", at, OwnerError::Answer(ran)));
                }
            }
            ActuatorStep::Run(program) => {
                let begin = SystemTime::now();
                let ran =
                    run_at(program, &environment, context.actuation.command_limit, &place).await;
                note(&mut told, program, &ran);
                // One that failed may have done it all the same.
                if at.is_none() {
                    at = Some(begin);
                    journal.told(begin).await;
                }
                ran.map_err(|source| failed("its owner's program", at, source))?;
                done.push(program.line());
            }
        }
    }
    Ok(Done { at: at.unwrap_or_else(SystemTime::now), action: done.join(", "), told })
}

fn failed(
    step: &'static str,
    reset_at: Option<SystemTime>,
    source: impl Into<OwnerError>,
) -> RestartError {
    RestartError::Owner { step, reset_at, kept: Box::default(), source: source.into() }
}

/// Adds a program and what it wrote to the evidence.
pub(super) fn note(told: &mut String, program: &Program, ran: &Result<Ran, RunError>) {
    told.push_str(&format!("$ {}\n", program.line()));
    let (wrote, failure) = match ran {
        Ok(ran) => (Some(ran), None),
        Err(error) => (error.ran(), Some(error_chain(error))),
    };
    for part in wrote.into_iter().flat_map(|ran| [&ran.stdout, &ran.stderr]) {
        let text = String::from_utf8_lossy(part);
        told.extend(text.chars().filter(|c| *c == '\n' || !c.is_control()));
    }
    if let Some(failure) = failure {
        told.push_str(&format!("{failure}\n"));
    }
}

/// Whether QEMU's reply is a result and no error.
fn is_return(reply: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(reply)
        .is_ok_and(|reply| reply.get("return").is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_with_an_error_is_no_success() {
        assert!(is_return(br#"{"return":{},"id":"libvirt-12"}"#));
        assert!(!is_return(br#"{"id":"x","error":{"class":"CommandNotFound","desc":"d"}}"#));
        assert!(!is_return(b"") && !is_return(b"error: x"));
    }
}
