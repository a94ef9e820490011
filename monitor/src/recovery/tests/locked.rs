//! Guests that their owner has locked: what a restart finds out of that is given here.

use super::*;

const BACKUP: &str = "Proxmox VE has it locked (backup)";

impl Rig {
    /// The restart that was begun comes back with this, and nothing was written down.
    fn restart_finds(&mut self, error: RestartError) {
        assert!(self.is_to_restart());
        let attempts = self.case().incident.attempts.clone();
        self.with(|supervisor, watched, context| {
            supervisor.restarted(watched, attempts, Err(error), context);
        });
    }

    fn finds_lock(&mut self, why: &str) {
        self.restart_finds(RestartError::Locked(why.to_owned()));
    }
}

#[tokio::test]
async fn a_locked_guest_is_told_once_looked_at_again_and_judged_anew_when_it_is_free() {
    let mut rig = Rig::new("[recovery]\nmax_restarts = 1\n");
    rig.panic();
    rig.finds_lock(BACKUP);
    let refused = EventKind::Closed(Outcome::Refused);
    assert_eq!(rig.said(), [EventKind::Detected, refused]);
    for _ in 0..100 {
        assert!(rig.case().incident.reason.ends_with(BACKUP), "{}", rig.case().incident.reason);
        assert!(rig.watched.detector.watch.reason.ends_with(BACKUP));
        rig.pass(SECOND * 9);
        assert!(!rig.is_to_restart());
        rig.pass(SECOND);
        rig.finds_lock(BACKUP);
    }
    assert_eq!((rig.said(), rig.watched.recovery.restarts), (vec![], 0));
    assert_eq!(rig.case().incident.outcome, Some(Outcome::Refused));
    // Another work on it follows.
    rig.pass(SECOND * 10);
    rig.finds_lock("Proxmox VE has it locked (migrate)");
    assert_eq!(rig.said(), [refused]);

    rig.pass(SECOND * 10);
    rig.restart_finds(RestartError::Unlocked);
    assert_eq!(rig.case().stage, Stage::Reopened);
    assert!(matches!(rig.watched.detector.watch.state, State::Suspect { .. }));
    rig.pass(SECOND * 10);
    assert!(!rig.is_to_restart(), "before it is convicted again");
    rig.panic();
    assert!(rig.is_to_restart());
    rig.restart_succeeds();
    assert_eq!(rig.watched.recovery.restarts, 1);
    assert_eq!(rig.said(), [], "of the same crash");
}

#[tokio::test]
async fn the_try_after_a_lock_knows_of_it() {
    let mut rig = Rig::new("");
    rig.panic();
    let effects = rig.supervisor.take_effects();
    let [Effect::Restart { context, .. }] = &effects[..] else { panic!("{effects:?}") };
    assert!(!context.was_locked);
    let error = RestartError::Locked(BACKUP.to_owned());
    rig.with(|supervisor, watched, context| {
        supervisor.restarted(watched, Vec::new(), Err(error), context);
    });
    rig.pass(SECOND * 10);
    let effects = rig.supervisor.take_effects();
    let [Effect::Restart { context, .. }] = &effects[..] else { panic!("{effects:?}") };
    assert!(context.was_locked);
}

#[tokio::test]
async fn a_guest_that_lives_while_it_is_locked_is_not_restarted_after_it() {
    let mut rig = Rig::new("");
    rig.panic();
    rig.finds_lock(BACKUP);
    rig.now += SECOND;
    rig.watched.detector.watch.state = State::Alive;
    rig.watched.detector.watch.liveness.heard = Some(rig.now);
    rig.pass(SECOND * 10);
    assert!(!rig.is_to_restart() && rig.case().stage == Stage::Closed);
}

#[tokio::test]
async fn a_vm_whose_qemu_is_gone_is_started_once_its_lock_has_gone_but_not_after_a_long_time() {
    let toml =
        "[recovery]\nactuator = \"command\"\ncommand = [\"/bin/true\"]\nstart_exited = true\n";
    let mut rig = Rig::new(toml);
    let mut vms = Vms::default();
    rig.with(|supervisor, watched, context| supervisor.qemu_ended(watched, Some(9), &vms, context));
    let id = rig.watched.vm.id;
    let mut tries = 0;
    loop {
        let effects = rig.supervisor.take_effects();
        let [Effect::Start { .. }] = &effects[..] else { break };
        tries += 1;
        let error = RestartError::Locked(BACKUP.to_owned());
        rig.with(|supervisor, _, context| {
            supervisor.started(&mut vms, id, Vec::new(), Err(error), context);
        });
        rig.pass(SECOND * 10);
        rig.with(|supervisor, _, context| supervisor.start_due(&vms, context));
    }
    assert_eq!(tries, 1 + 15 * 60 / 10);
    assert_eq!(rig.said(), [EventKind::Detected, EventKind::Closed(Outcome::Refused)]);
}
