//! Restarts of QEMUs that are made up here, over real Unix sockets.

use std::sync::{Arc, Mutex};

use serde_json::json;

use super::*;
use crate::recovery::{
    Stand,
    evidence::tests::made_up_qemu::{healthy, qemu, wanted},
};

/// Commands in the order in which they came, those that only ask left out.
type Done = Arc<Mutex<Vec<String>>>;

/// What was written down.
#[derive(Default)]
struct Noted(Vec<&'static str>);

impl Journal for Noted {
    async fn begun(&mut self, _: &RunState, _: Vec<String>) {
        self.0.push("begun");
    }

    async fn told(&mut self, _: SystemTime) {
        self.0.push("told");
    }
}

/// Restarts a guest whose QEMU tells one of `states` for each question for it, the last one from then on.
async fn restart_through(
    states: &[&'static str],
    overtaken: &Overtaken,
) -> (Result<Restart, RestartError>, Noted, Done) {
    let done = Done::default();
    let (seen, mut left) = (done.clone(), states.to_vec());
    let qemu = qemu(move |command, arguments, descriptor| match command {
        "query-status" => {
            let state = if left.len() > 1 { left.remove(0) } else { left[0] };
            Some(Ok(json!({ "status": state })))
        }
        "set-action" | "system_reset" | "cont" => {
            seen.lock().unwrap().push(command.to_owned());
            Some(Ok(json!({})))
        }
        _ => healthy(command, arguments, descriptor),
    })
    .await;
    let wanted = wanted(&qemu, Duration::from_secs(20));
    let mut noted = Noted::default();
    let reset = ResetAction::Reset;
    let result = restart(&qemu.handle, reset, &wanted, overtaken, || None, &mut noted).await;
    (result, noted, done)
}

#[tokio::test]
async fn the_plan_is_made_of_the_run_state_after_the_evidence() {
    // One for the session itself, one before the evidence, one after it.
    let panicked = ["guest-panicked", "guest-panicked"];
    let none = Overtaken::default();
    let states = [&panicked[..], &["paused"]].concat();
    let (result, noted, done) = restart_through(&states, &none).await;
    let error = result.unwrap_err();
    assert!(
        matches!(&error, RestartError::Refused(why) if why.0.contains("on purpose")),
        "{error}"
    );
    assert_eq!(error.stand(), Stand::Untouched);
    assert!(noted.0.is_empty() && done.lock().unwrap().is_empty(), "{done:?}");

    let states = ["guest-panicked", "prelaunch", "running"];
    let (result, noted, done) = restart_through(&[&panicked[..], &states].concat(), &none).await;
    let restart = result.unwrap();
    assert_eq!(restart.action, "system_reset, cont");
    assert_eq!(restart.run_states, (RunState::GuestPanicked, RunState::Running));
    assert!(restart.kept.files.iter().any(|(name, _)| *name == "registers.txt"));
    assert_eq!(noted.0, ["begun", "told"]);
    assert_eq!(*done.lock().unwrap(), ["set-action", "system_reset", "cont"]);
}

#[tokio::test]
async fn a_guest_that_was_reset_meanwhile_is_not_reset_again_and_its_evidence_is_kept() {
    let overtaken = Overtaken::default();
    overtaken.note(false);
    let states = ["guest-panicked", "guest-panicked", "running"];
    let (result, noted, done) = restart_through(&states, &overtaken).await;
    let mut error = result.unwrap_err();
    assert!(matches!(error, RestartError::Overtaken { .. }), "{error:?}");
    assert_eq!((error.stand(), error.is_silence()), (Stand::Untouched, false));
    assert!(noted.0.is_empty() && done.lock().unwrap().is_empty(), "{done:?}");
    let files = error.take_kept().files;
    assert!(files.iter().any(|(name, _)| *name == "registers.txt"), "{files:?}");
}

#[test]
fn nothing_counts_as_reset_before_qemu_was_told() {
    let command = |name: &str| name.to_owned();
    let limit = Duration::from_secs(5);
    let late = || QmpError::Timeout { command: command("x"), limit };
    let cut = || QmpError::Disconnected { command: command("x") };
    let none = || QmpError::NotConnected { reason: command("x") };
    let no = || {
        let (class, desc) = (command("GenericError"), command("no"));
        QmpError::Command { command: command("x"), class, desc }
    };
    let at = SystemTime::now();
    let told = Stand::Told { at, action: "system_reset" };
    let open = |reset_at| Stand::Open { reset_at };
    for (step, reset_at, source, stand) in [
        ("set-action", None, late(), Stand::Untouched),
        ("set-action", None, cut(), Stand::Untouched),
        ("set-action", None, no(), Stand::Untouched),
        ("system_reset", None, none(), Stand::Untouched),
        ("system_reset", None, no(), Stand::Untouched),
        ("system_reset", None, QmpError::Busy, Stand::Untouched),
        ("system_reset", None, late(), open(None)),
        ("system_reset", None, cut(), open(None)),
        ("cont", Some(at), late(), open(Some(at))),
        ("cont", Some(at), none(), open(Some(at))),
        ("cont", Some(at), no(), told),
    ] {
        let text = format!("{step}: {source}");
        assert_eq!(failed(step, reset_at, source).stand(), stand, "{text}");
    }
    let (run_state, kept) = (RunState::Prelaunch, Box::default());
    let error = RestartError::NotRunning { run_state, reset_at: Some(at), kept };
    assert_eq!((error.stand(), error.is_silence()), (told, false));
    let error = RestartError::Lost { kept: Box::default(), source: none() };
    assert_eq!((error.stand(), error.is_silence()), (Stand::Untouched, true));
    assert_eq!(RestartError::Unknown(none()).stand(), Stand::Untouched);
    assert!(failed("set-action", None, late()).is_silence());
    assert!(!failed("set-action", None, no()).is_silence());
}
