//! Resets that come before ours, without a QEMU.

use super::*;

impl Rig {
    /// It panics, and is reset while its restart is prepared, which ends with `error`.
    fn overtaken(&mut self, by_guest: bool, error: RestartError) {
        self.panic();
        assert!(self.is_to_restart());
        self.watched.recovery.overtaken.note(by_guest);
        let attempts = self.case().incident.attempts.clone();
        self.with(|supervisor, watched, context| {
            supervisor.restarted(watched, attempts, Err(error), context);
        });
        let effects = self.supervisor.take_effects();
        let is_anew = matches!(effects[..], [Effect::AskRunState(_), Effect::ForgetBoot(_)]);
        assert!(is_anew, "{effects:?}");
        assert_eq!(self.watched.detector.watch.state, State::Starting);
    }

    fn lives(&mut self) {
        self.watched.detector.watch.state = State::Alive;
        self.watched.detector.watch.liveness.heard = Some(self.now);
        self.pass(SECOND);
    }
}

fn overtaken() -> RestartError {
    RestartError::Overtaken { kept: Box::default() }
}

#[tokio::test]
async fn a_guest_that_another_reset_is_not_reset_again_and_has_recovered_once_it_lives() {
    let timeout = QmpError::Timeout { command: "query-status".to_owned(), limit: SECOND };
    // Whatever the task came to, nothing was touched, and the guest was reset.
    for error in [overtaken(), RestartError::Unknown(timeout)] {
        let mut rig = Rig::new("");
        rig.overtaken(false, error);
        assert_eq!(rig.case().stage, Stage::ResetByAnother);
        rig.pass(SECOND * 5);
        assert!(!rig.is_to_restart());
        rig.lives();
        let Incident { outcome, attempts, action, reason, .. } = &rig.case().incident;
        assert_eq!((*outcome, action), (Some(Outcome::Recovered), &None));
        assert!(attempts.is_empty() && reason.ends_with("another reset it before flatline did"));
        assert_eq!(rig.said(), [EventKind::Detected, EventKind::Closed(Outcome::Recovered)]);
        let counted = rig.supervisor.restarts_in_window(&rig.watched, rig.wall);
        assert!(counted.is_empty(), "{counted:?}");
    }
}

#[tokio::test]
async fn a_guest_that_reset_itself_before_it_was_restarted_is_counted_as_any_reset_of_its_own() {
    let mut rig = Rig::new("");
    rig.overtaken(true, overtaken());
    assert_eq!(rig.case().stage, Stage::ResetItself);
    rig.pass(SECOND * 5);
    rig.lives();
    let reason = &rig.case().incident.reason;
    assert!(reason.ends_with("after that it reset itself"), "{reason}");
    assert_eq!(rig.supervisor.restarts_in_window(&rig.watched, rig.wall).len(), 1);
}

#[tokio::test]
async fn one_that_shows_no_life_after_anothers_reset_is_restarted_for_the_same_crash() {
    let mut rig = Rig::new("");
    rig.overtaken(false, overtaken());
    let id = rig.case().incident.id.clone();
    rig.said();
    rig.pass(SECOND * 30);
    rig.panic();
    assert!(rig.is_to_restart());
    assert_eq!((rig.case().incident.id.clone(), rig.said()), (id, vec![]), "of the same crash");
}

#[tokio::test]
async fn a_reset_after_the_restart_was_told_is_the_restarts_own() {
    let mut rig = Rig::new("");
    rig.panic();
    assert!(rig.is_to_restart());
    rig.watched.recovery.overtaken.note(false);
    rig.restart_succeeds();
    assert!(matches!(rig.case().stage, Stage::AwaitingLife { .. }));
    // What was before the next one says nothing of it.
    drop(rig.supervisor.take_effects());
    rig.pass(SECOND * 400);
    rig.panic();
    assert!(rig.is_to_restart());
    assert_eq!(rig.watched.recovery.overtaken.by_guest(), None);
}
