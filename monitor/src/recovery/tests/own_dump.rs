//! Guests that save a dump of their own, without a QEMU.

use super::*;

impl Rig {
    fn event(&mut self, event: QmpEvent) {
        let input = Input::Event { monitor: self.watched.link.monitor(), event };
        let act = self.watched.step(&input, self.now);
        self.with(|supervisor, watched, context| supervisor.act(watched, &act, context));
        self.pass(SECOND);
    }

    /// It announces its dump.
    fn dumps(&mut self) {
        self.run_state(RunState::Running);
        self.event(QmpEvent::GuestCrashloaded);
        assert_eq!(self.said(), [EventKind::Detected]);
        assert_eq!((self.case().stage, self.is_to_restart()), (Stage::WaitingForDump, false));
    }

    fn restarts_used_up(&self) -> usize {
        self.supervisor.restarts_in_window(&self.watched, self.wall).len()
    }
}

#[tokio::test]
async fn a_guest_that_saves_its_dump_and_resets_itself_has_recovered_and_its_reset_counts_once() {
    let mut rig = Rig::new("");
    rig.dumps();
    let id = rig.case().incident.id.clone();
    rig.pass(SECOND * 20);
    rig.event(QmpEvent::Reset { guest: true });
    assert_eq!((rig.case().stage, rig.said()), (Stage::ResetItself, vec![]));
    rig.watched.detector.watch.state = State::Alive;
    rig.watched.detector.watch.liveness.heard = Some(rig.now);
    rig.pass(SECOND);
    let Incident { outcome, recovered_at, attempts, action_at, reason, .. } =
        rig.case().incident.clone();
    assert_eq!((rig.case().incident.id.clone(), outcome), (id, Some(Outcome::Recovered)));
    assert!(recovered_at.is_some() && attempts.is_empty() && action_at.is_none());
    assert!(reason.ends_with("its own crash dump; after that it reset itself"), "{reason}");
    assert_eq!(rig.said(), [EventKind::Closed(Outcome::Recovered)]);
    assert_eq!((rig.restarts_used_up(), rig.is_to_restart()), (1, false), "its own reset");
}

#[tokio::test]
async fn a_crash_kernel_that_comes_to_nothing_is_restarted_for_the_same_incident_and_counts_once() {
    let mut rig = Rig::new("");
    rig.dumps();
    let id = rig.case().incident.id.clone();
    rig.panic();
    assert_eq!((rig.case().incident.id.clone(), rig.said()), (id, vec![]), "of the same crash");
    assert!(rig.is_to_restart());
    rig.restart_succeeds();
    rig.pass(SECOND * 3);
    // What its firmware does belongs to that reset.
    rig.event(QmpEvent::Reset { guest: true });
    rig.with(|supervisor, watched, context| supervisor.act(watched, &Act::Recovered, context));
    assert_eq!(rig.said(), [EventKind::Closed(Outcome::Recovered)]);
    assert_eq!(rig.restarts_used_up(), 1);
}
