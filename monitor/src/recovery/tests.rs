//! Recovery without a QEMU: the supervisor, its budgets and holds, a real detector, and effects that the test answers.
//!
//! Only the QMP link is a stand-in: a session that never connects, whose state the test sets.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use tempfile::TempDir;
use tokio::sync::mpsc;

use super::*;
use crate::{
    config::Config,
    identity::Key,
    insight::Insight,
    storage::{
        incident::{Attempt, Incident, Outcome},
        incidents::IncidentStore,
        ledger::{Hold, HoldScope, Ledger},
    },
    vm::{
        Context, Detector, MemoryWatch, MonitorLink, Recorder, Sensors, Vms, WatchedVm,
        detection_policy,
    },
};
use flatline_detector::verdict::{Act, Cause, Input, Monitor, State, Watch};
use flatline_qemu::{
    discover::{Origin, Ownership, Vm, VmId},
    qmp::{self, QmpError, QmpEvent, QmpState, QmpTarget, RunState, Transport},
};

mod locked;
mod overtaken;
mod own_dump;
mod turns;

const SECOND: Duration = Duration::from_secs(1);

struct Rig {
    supervisor: Supervisor,
    config: Config,
    watched: WatchedVm,
    now: Duration,
    wall: SystemTime,
    said: Arc<Mutex<Vec<(EventKind, Incident)>>>,
    _inbox: Box<dyn std::any::Any>,
    _directory: TempDir,
}

fn vm() -> Vm {
    Vm::stand_in(Ownership::bare(), &["/nowhere/q.qmp"])
}

impl Rig {
    fn new(toml: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let listener = said.clone();
        let events = EventSink::new(move |event: Event<'_>| {
            listener.lock().unwrap().push((event.kind, event.incident.clone()));
        });
        let (writer, inbox) = IncidentWriter::without_a_disk(events);
        let store = Arc::new(IncidentStore::open(directory.path()).unwrap());
        let supervisor = Supervisor::new(store, Ledger::open(directory.path()), writer);
        let config = Config::parse(&format!("mode = \"recover\"\n{toml}"), "").unwrap();
        let now = Duration::from_secs(5000);
        let watched = watch(vm(), &config, now, None, RecoveryState::default());
        let (wall, inbox) = (SystemTime::now(), Box::new(inbox));
        Self { supervisor, config, watched, now, wall, said, _inbox: inbox, _directory: directory }
    }

    fn with<T>(
        &mut self,
        act: impl FnOnce(&mut Supervisor, &mut WatchedVm, &Context<'_>) -> T,
    ) -> T {
        let context = Context { config: &self.config, now: self.now, wall: self.wall };
        act(&mut self.supervisor, &mut self.watched, &context)
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.wall += time;
        self.with(Supervisor::tick);
    }

    fn run_state(&mut self, run_state: RunState) {
        self.watched.link.state = QmpState::Ready;
        self.watched.link.run_state = Some(run_state);
    }

    fn panic(&mut self) {
        self.run_state(RunState::GuestPanicked);
        let (monitor, action) = (self.watched.link.monitor(), "pause".to_owned());
        let event = QmpEvent::GuestPanicked { action };
        let act = self.watched.step(&Input::Event { monitor, event }, self.now);
        assert!(matches!(act, Act::Convict(Cause::Panicked)), "{act:?}");
        self.with(|supervisor, watched, context| supervisor.act(watched, &act, context));
    }

    fn case(&self) -> &Case {
        self.watched.recovery.case.as_ref().unwrap()
    }

    /// What was said since this was asked last, but for records.
    fn said(&self) -> Vec<EventKind> {
        let said = std::mem::take(&mut *self.said.lock().unwrap());
        said.iter().map(|(kind, _)| *kind).filter(|kind| *kind != EventKind::Recorded).collect()
    }

    fn is_to_restart(&mut self) -> bool {
        let effects = self.supervisor.take_effects();
        matches!(effects[..], [Effect::Restart { .. }])
    }

    /// The attempts of the restart that was begun, written down as its journal does.
    fn attempts(&mut self, was_told: bool) -> Vec<Attempt> {
        let mut incident = self.case().incident.clone();
        let (begun_at, run_state) = (self.wall, "guest-panicked".to_owned());
        let (steps, limit) = (vec!["system_reset".to_owned()], "restart".to_owned());
        let reset_at = was_told.then_some(self.wall);
        incident.attempts.push(Attempt { begun_at, run_state, steps, limit, reset_at });
        self.supervisor.store.note_restarts(&incident);
        incident.attempts
    }

    fn restart_succeeds(&mut self) {
        let (attempts, at) = (self.attempts(true), self.wall);
        let done = Restart {
            at,
            run_states: (RunState::GuestPanicked, RunState::Running),
            action: "system_reset".to_owned(),
            kept: Kept::default(),
            put_back: flatline_qemu::discover::ResetAction::Reset,
        };
        self.with(|supervisor, watched, context| {
            supervisor.restarted(watched, attempts, Ok(done), context);
        });
    }
}

/// A VM of this user that claims the same as any other here.
fn vm_of(uid: u32) -> Vm {
    Vm {
        id: VmId { pid: uid, start_ticks: 1 },
        origin: Origin { uid, ..Origin::default() },
        ..vm()
    }
}

fn watch(
    vm: Vm,
    config: &Config,
    now: Duration,
    state: Option<(State, String)>,
    recovery: RecoveryState,
) -> WatchedVm {
    let (notices, _) = mpsc::channel(1);
    let target =
        QmpTarget { vm: vm.id, sockets: vm.qmp_sockets.clone(), threads: vm.threads, uid: 0 };
    let qmp =
        qmp::spawn(Transport::Keep(target), notices, qmp::Limits::default(), qmp::Room::default());
    let detection = detection_policy(config, &vm);
    let watch = match state {
        Some((state, reason)) => Watch::resume(now, SECOND * 3600, state, reason),
        None => Watch::begin(now, SECOND * 3600, detection.policy.boot_grace),
    };
    WatchedVm {
        link: MonitorLink::new(&vm, Some(qmp), false),
        sensors: Sensors::new(None, Insight::begin(&vm), None),
        detector: Detector::new(detection, watch, Recorder::off()),
        recovery,
        memory: MemoryWatch::new(Duration::ZERO, None, now),
        resting: None,
        key: Key::of(&vm),
        vm: Arc::new(vm),
    }
}

#[tokio::test]
async fn a_panic_is_detected_and_restarted_and_its_life_closes_the_case() {
    let mut rig = Rig::new("");
    rig.panic();
    assert_eq!(rig.said(), [EventKind::Detected]);
    assert!(rig.is_to_restart() && rig.watched.recovery.is_restarting());
    rig.restart_succeeds();
    assert!(matches!(rig.case().stage, Stage::AwaitingLife { .. }));
    let effects = rig.supervisor.take_effects();
    assert!(matches!(effects[..], [Effect::ForgetBoot(_)]), "{effects:?}");
    rig.pass(SECOND * 3);
    rig.with(|supervisor, watched, context| supervisor.act(watched, &Act::Recovered, context));
    assert_eq!(rig.said(), [EventKind::Closed(Outcome::Recovered)]);
    assert_eq!(rig.case().incident.recover_seconds, Some(3.0));
}

#[tokio::test]
async fn restarts_of_one_crash_are_paused_between_and_end_at_the_limit() {
    let mut rig = Rig::new("[recovery]\nmax_restarts = 2\npause = \"10s\"\n");
    rig.panic();
    assert!(rig.is_to_restart());
    rig.restart_succeeds();
    drop(rig.supervisor.take_effects());
    rig.panic();
    assert!(matches!(rig.case().stage, Stage::Pausing { .. }), "{:?}", rig.case());
    rig.pass(SECOND * 9);
    assert!(!rig.is_to_restart());
    rig.pass(SECOND * 2);
    assert!(rig.is_to_restart());
    rig.restart_succeeds();
    rig.pass(SECOND * 60);
    rig.panic();
    assert_eq!(rig.case().stage, Stage::Closed);
    assert!(matches!(rig.watched.detector.watch.state, State::Failed { .. }));
    let said = rig.said();
    assert_eq!(said, [EventKind::Detected, EventKind::Closed(Outcome::LimitReached)]);
}

#[tokio::test]
async fn a_restart_of_which_qemu_never_heard_counts_towards_no_limit_and_is_tried_again() {
    let mut rig = Rig::new("[recovery]\nmax_restarts = 1\n");
    rig.panic();
    assert!(rig.is_to_restart());
    let attempts = rig.attempts(false);
    let error = RestartError::Unknown(QmpError::Timeout {
        command: "query-status".to_owned(),
        limit: SECOND,
    });
    rig.with(|supervisor, watched, context| {
        supervisor.restarted(watched, attempts, Err(error), context);
    });
    assert_eq!(rig.case().stage, Stage::WaitingForMonitor);
    assert_eq!(rig.said(), [EventKind::Detected, EventKind::Closed(Outcome::Refused)]);
    rig.pass(SECOND * 4);
    assert!(!rig.is_to_restart());
    rig.pass(SECOND * 2);
    assert!(rig.is_to_restart());
}

#[tokio::test]
async fn a_vm_on_hold_is_not_touched_and_is_judged_anew_after_it() {
    let mut rig = Rig::new("");
    let hold = Hold { since: rig.wall, until: Some(rig.wall + SECOND * 30) };
    let key = rig.watched.key.clone();
    rig.supervisor.hold(HoldScope::Vm(&key), hold);
    rig.panic();
    assert_eq!(rig.said(), [EventKind::Detected, EventKind::Closed(Outcome::Observed)]);
    assert!(!rig.is_to_restart() && rig.case().stage == Stage::OnHold);
    rig.pass(SECOND * 29);
    assert_eq!(rig.case().stage, Stage::OnHold);
    rig.pass(SECOND * 2);
    assert_eq!(rig.case().stage, Stage::Reopened);
    rig.panic();
    assert!(rig.is_to_restart());
    assert_eq!(rig.said(), [], "of the same crash");
}

#[tokio::test]
async fn a_daemon_that_only_observes_records_a_crash_and_has_nothing_done() {
    let mut rig = Rig::new("");
    rig.watched.detector.detection.policy.mode = flatline_detector::policy::Mode::Observe;
    rig.panic();
    assert_eq!(rig.said(), [EventKind::Detected, EventKind::Closed(Outcome::Observed)]);
    assert!(rig.supervisor.take_effects().is_empty());
}

#[tokio::test]
async fn a_restart_that_an_earlier_daemon_began_goes_on_from_the_run_state() {
    for (run_state, was_told) in [
        (RunState::GuestPanicked, false),
        (RunState::Prelaunch, true),
        (RunState::Running, true),
        (RunState::Running, false),
    ] {
        let mut rig = Rig::new("");
        rig.panic();
        drop(rig.supervisor.take_effects());
        let attempts = rig.attempts(was_told);
        let left = Incident { attempts, ..rig.case().incident.clone() };
        let vm = vm();
        rig.supervisor.left.insert((vm.id.pid, vm.id.start_ticks), left);
        rig.said();
        let detection = detection_policy(&rig.config, &vm);
        let (state, recovery) = rig.with(|supervisor, _, context| {
            supervisor.begin(&vm, SECOND * 3600, &detection, context)
        });
        assert_eq!(rig.said(), [EventKind::TakenUp]);
        rig.watched = watch(vm, &rig.config, rig.now, state, recovery);
        rig.pass(SECOND);
        assert!(rig.watched.recovery.is_resuming(), "before its run state is known");
        rig.run_state(run_state.clone());
        rig.pass(SECOND);
        let effects = rig.supervisor.take_effects();
        match (&run_state, &effects[..]) {
            (RunState::GuestPanicked, [Effect::Restart { .. }])
            | (RunState::Prelaunch, [Effect::Finish { .. }]) => {}
            (RunState::Running, [Effect::ForgetBoot(_)]) => {
                assert!(matches!(rig.case().stage, Stage::AwaitingLife { .. }));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_qemu_that_was_killed_is_started_again_and_its_successor_is_waited_for() {
    let toml =
        "[recovery]\nactuator = \"command\"\ncommand = [\"/bin/true\"]\nstart_exited = true\n";
    let mut rig = Rig::new(toml);
    let vms = Vms::default();
    let words = rig.with(|supervisor, watched, context| {
        supervisor.qemu_ended(watched, Some(9), &vms, context)
    });
    assert_eq!((words, rig.said()), (None, vec![EventKind::Detected]));
    let effects = rig.supervisor.take_effects();
    assert!(matches!(effects[..], [Effect::Start { .. }]), "{effects:?}");
    let (next, detection) = (vm(), detection_policy(&rig.config, &vm()));
    let (state, recovery) = rig.with(|supervisor, _, context| {
        supervisor.begin(&next, Duration::ZERO, &detection, context)
    });
    assert!(matches!(state, Some((State::Recovering { .. }, _))), "{state:?}");
    assert!(matches!(recovery.case.unwrap().stage, Stage::AwaitingLife { .. }));
}

#[tokio::test]
async fn a_qemu_that_was_stopped_is_left_so() {
    let mut rig = Rig::new("[recovery]\ncommand = [\"/bin/true\"]\nstart_exited = true\n");
    let vms = Vms::default();
    let words = rig.with(|supervisor, watched, context| {
        supervisor.qemu_ended(watched, Some(15), &vms, context)
    });
    assert!(words.is_some() && rig.said().is_empty());
    assert!(rig.supervisor.take_effects().is_empty());
    assert!(matches!(rig.watched.link.monitor(), Monitor::Unknown(_)));
}

#[tokio::test]
async fn restarts_that_another_users_process_uses_up_are_its_own() {
    let mut rig = Rig::new("[recovery]\nmax_restarts = 2\n");
    let mut stranger = watch(vm_of(2000), &rig.config, rig.now, None, RecoveryState::default());
    for _ in 0..2 {
        rig.with(|supervisor, _, context| supervisor.guest_reset(&mut stranger, 1, context));
    }
    let wall = rig.wall;
    let used_up = |rig: &Rig, vm: &WatchedVm| rig.supervisor.restarts_in_window(vm, wall).len();
    assert_eq!((used_up(&rig, &stranger), used_up(&rig, &rig.watched)), (2, 0));
    rig.panic();
    assert!(rig.is_to_restart());
    assert_eq!(rig.case().incident.uid, Some(0));
}

#[tokio::test]
async fn several_of_one_user_are_counted_apart_and_with_what_was_before() {
    let mut rig = Rig::new("");
    let twin = Vm { id: VmId { pid: 1, start_ticks: 1 }, ..vm() };
    let mut twin = watch(twin, &rig.config, rig.now, None, RecoveryState::default());
    let reset = |rig: &mut Rig, twin: &mut WatchedVm| {
        rig.with(|supervisor, _, context| supervisor.guest_reset(twin, 1, context));
    };
    reset(&mut rig, &mut twin);
    rig.panic();
    rig.restart_succeeds();
    rig.with(|supervisor, watched, _| {
        supervisor.count_by_process(watched);
        supervisor.count_by_process(&mut twin);
    });
    reset(&mut rig, &mut twin);
    let used_up = |vm: &WatchedVm| rig.supervisor.restarts_in_window(vm, rig.wall).len();
    assert_eq!((used_up(&rig.watched), used_up(&twin)), (2, 2));
}

#[tokio::test]
async fn only_a_qemu_of_its_own_user_keeps_one_that_ended_from_being_started() {
    for (uid, owner, is_started) in [
        (2000, Ownership::bare(), true),
        (1000, Ownership::bare(), false),
        (0, Ownership::bare(), false),
    ] {
        let toml = "[[vm]]\nmatch = \"*\"\nuser = 1000\nactuator = \"command\"\n\
                    command = [\"/bin/true\"]\nstart_exited = true\n";
        let mut rig = Rig::new(toml);
        rig.watched = watch(vm_of(1000), &rig.config, rig.now, None, RecoveryState::default());
        let other = Vm { ownership: owner, id: VmId { pid: 5, start_ticks: 5 }, ..vm_of(uid) };
        let mut vms = Vms::default();
        let id = other.id;
        vms.insert(id, watch(other, &rig.config, rig.now, None, RecoveryState::default()));
        rig.with(|supervisor, watched, context| {
            supervisor.qemu_ended(watched, Some(9), &vms, context)
        });
        let effects = rig.supervisor.take_effects();
        assert_eq!(matches!(effects[..], [Effect::Start { .. }]), is_started, "{uid}: {effects:?}");
        // No more does another user's process take its place.
        let detection = detection_policy(&rig.config, &vm_of(2001));
        let adopted = rig.with(|supervisor, _, context| {
            supervisor.begin(&vm_of(2001), Duration::ZERO, &detection, context)
        });
        assert!(adopted.1.case.is_none());
    }
}
