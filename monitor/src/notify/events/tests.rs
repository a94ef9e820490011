use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{Events, Happened};
use crate::{
    identity::{Key, ProcessId},
    notify::{
        event::{Event, EventKind, Subject},
        lasting::LASTING,
    },
    recovery,
    storage::incident::{Attempt, Incident, Outcome},
};
use flatline_qemu::discover::VmId;

const BEGAN: Duration = Duration::from_secs(1_000_000);
const ID: VmId = VmId { pid: 7, start_ticks: 1 };

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + BEGAN + Duration::from_secs(seconds)
}

fn events() -> Events {
    Events::new("kvm-1".to_owned())
}

/// What is told when recovery says this of an incident.
fn say(
    events: &mut Events,
    kind: Happened,
    incident: &Incident,
    seconds: u64,
) -> Option<&'static str> {
    let event = events.of_recovery(recovery::Event { kind, incident }, at(seconds));
    event.map(|event| event.kind.as_str())
}

fn closed(incident: &Incident) -> Happened {
    Happened::Closed(incident.outcome.expect("it has an outcome"))
}

fn incident(id: &str, cause: &str) -> Incident {
    let text = |text: &str| text.to_owned();
    let incident = Incident::new(text(id), text("web-1"), text(cause), text("why"), at(10));
    Incident { pid: 7, uid: Some(1000), ..incident }
}

fn attempt(reset_at: Option<SystemTime>) -> Attempt {
    Attempt {
        begun_at: at(11),
        run_state: "running".to_owned(),
        steps: vec!["system_reset".to_owned()],
        limit: "restart 1 of 3 within 1h".to_owned(),
        reset_at,
    }
}

fn subject() -> Subject {
    Subject { vm: "web-1".to_owned(), uid: Some(1000), pid: 7, ..Subject::default() }
}

fn key(name: &str) -> Key {
    Key::new(Some(1000), None, name)
}

fn kinds(events: &[Event]) -> Vec<&'static str> {
    events.iter().map(|event| event.kind.as_str()).collect()
}

#[test]
fn a_crash_is_told_with_each_restart_and_what_came_of_it() {
    let (mut events, mut incident) = (events(), incident("a", "halted"));
    let mut told = Vec::new();
    let mut say = |kind, incident: &Incident| {
        let event = events.of_recovery(recovery::Event { kind, incident }, at(20));
        told.extend(event.clone());
        event.map(|event| event.kind.as_str())
    };
    assert_eq!(say(Happened::Detected, &incident), Some("crashed"));
    incident.attempts.push(attempt(None));
    assert_eq!(say(Happened::RestartBegun, &incident), None);
    incident.attempts[0].reset_at = Some(at(12));
    assert_eq!(say(Happened::Restarted, &incident), Some("restarted"));
    incident.attempts.push(attempt(Some(at(60))));
    assert_eq!(say(Happened::Restarted, &incident), Some("restarted"));
    incident.outcome = Some(Outcome::Recovered);
    incident.recover_seconds = Some(7.94);
    assert_eq!(say(closed(&incident), &incident), Some("recovered"));
    let attempts: Vec<_> = told.iter().map(|event| event.attempt).collect();
    assert_eq!(attempts, [0, 1, 2, 2]);
    assert_eq!(told[1].reason, "restart 1 of 3 within 1h, by system_reset; it had crashed: why");
    assert_eq!(told[3].reason, "it shows life 7.9 s after its restart; it had crashed: why");
    let mut ids: Vec<_> = told.iter().map(|event| event.id.clone()).collect();
    ids.dedup();
    assert_eq!(ids.len(), 4);
    assert!(ids.iter().all(|id| id.len() == 32 && !id.contains('.')), "{ids:?}");
}

#[test]
fn the_same_event_has_the_same_id_whichever_daemon_tells_it() {
    let incident = &incident("a", "halted");
    let id = |host: &str, seconds| {
        let said = recovery::Event { kind: Happened::Detected, incident };
        let event = Events::new(host.to_owned()).of_recovery(said, at(seconds));
        event.expect("news").id
    };
    assert_eq!(id("kvm-1", 20), id("kvm-1", 25));
    assert_ne!(id("kvm-1", 20), id("kvm-2", 20));
}

#[test]
fn every_outcome_has_its_event() {
    for (outcome, kind) in [
        (Outcome::Recovered, "recovered"),
        (Outcome::NotRecovered, "not-recovered"),
        (Outcome::Refused, "refused"),
        (Outcome::LimitReached, "failed"),
        (Outcome::Observed, "observed"),
    ] {
        let incident = Incident { outcome: Some(outcome), ..incident("a", "silent") };
        assert_eq!(say(&mut events(), closed(&incident), &incident, 20), Some(kind));
    }
    let boots_on = incident("a", "boot-loop");
    assert_eq!(say(&mut events(), Happened::Detected, &boots_on, 20), None);
}

#[test]
fn an_outcome_that_comes_again_is_no_news() {
    let (mut events, refused) = (events(), Some(Outcome::Refused));
    let mut refused = Incident { outcome: refused, ..incident("a", "silent") };
    assert_eq!(say(&mut events, closed(&refused), &refused, 20), Some("refused"));
    // Convicted anew of the same crash, and refused anew.
    assert_eq!(say(&mut events, closed(&refused), &refused, 30), None);
    refused.attempts.push(attempt(Some(at(40))));
    assert_eq!(say(&mut events, closed(&refused), &refused, 50), Some("refused"));
}

#[test]
fn what_an_earlier_daemon_told_is_not_told_again_and_what_comes_of_it_is() {
    let mut events = events();
    let mut open =
        Incident { detected_at: at(0) - Duration::from_secs(60), ..incident("a", "halted") };
    open.attempts.push(attempt(Some(at(0) - Duration::from_secs(50))));
    open.outcome = Some(Outcome::Refused);
    assert_eq!(kinds(&events.taken_up(&open, at(1))), ["crashed", "refused"]);
    assert_eq!(say(&mut events, Happened::TakenUp, &open, 1), None);
    assert_eq!(say(&mut events, closed(&open), &open, 2), None);
    open.outcome = Some(Outcome::LimitReached);
    assert_eq!(say(&mut events, closed(&open), &open, 3), Some("failed"));
    assert!(events.any_is_down());
}

#[test]
fn a_vm_that_failed_and_lives_all_the_same_is_told_of_once() {
    let mut events = events();
    let failed = Incident { outcome: Some(Outcome::LimitReached), ..incident("a", "halted") };
    say(&mut events, closed(&failed), &failed, 20);
    assert!(events.any_is_down());
    assert_eq!(events.alive(&key("web-1"), at(9), at(21)), None, "heard before the crash");
    assert_eq!(events.alive(&key("web-2"), at(20), at(21)), None);
    let event = events.alive(&key("web-1"), at(20), at(21)).expect("it lives");
    assert_eq!((event.kind, event.attempt), (EventKind::AliveAgain, 0));
    assert!(!events.any_is_down());
    assert_eq!(events.alive(&key("web-1"), at(22), at(23)), None);
}

#[test]
fn a_vm_that_failed_and_was_stopped_is_told_of_once() {
    let mut events = events();
    assert_eq!(events.ended(subject(), "quit", at(20)), None);
    let failed = Incident { outcome: Some(Outcome::LimitReached), ..incident("a", "halted") };
    say(&mut events, closed(&failed), &failed, 20);
    let ended = events.ended(subject(), "quit", at(21)).expect("it was down");
    assert_eq!((ended.kind, ended.reason.as_str()), (EventKind::Ended, "quit"));
    assert_eq!(events.ended(subject(), "quit", at(22)), None);
}

#[test]
fn a_heartbeat_that_stops_is_told_and_that_it_is_back() {
    for cause in ["userland-dead", "service-dead"] {
        let mut events = events();
        let mut told = Incident { outcome: Some(Outcome::Observed), ..incident("a", cause) };
        assert_eq!(say(&mut events, Happened::AgentLost, &told, 20), Some(cause));
        assert_eq!(events.alive(&key("web-1"), at(30), at(30)), None, "it has not crashed");
        told.recovered_at = Some(at(40));
        assert_eq!(say(&mut events, Happened::AgentBack, &told, 40), Some("beats-again"));
        assert!(!events.any_is_down());
        // One that is restarted for it has crashed like any other.
        let convicted = incident("b", cause);
        assert_eq!(say(&mut events, Happened::Detected, &convicted, 50), Some("crashed"));
    }
}

#[test]
fn a_storm_is_the_hosts() {
    let storm = Incident { vm: "*".to_owned(), pid: 0, ..incident("s", "storm") };
    let said = recovery::Event { kind: Happened::Storm, incident: &storm };
    let event = events().of_recovery(said, at(20)).expect("news");
    assert_eq!((event.kind, event.subject), (EventKind::HostIncident, None));
    assert_eq!((event.cause.as_deref(), event.reason.as_str()), (Some("storm"), "why"));
}

#[test]
fn a_vms_condition_is_told_once_it_lasts_and_when_it_is_over() {
    let mut events = events();
    let mut stand = |condition, second: u64| {
        let moment = Duration::from_secs(second);
        kinds(&events.of_vm(ID, subject, condition, (moment, at(second))))
    };
    let blind = || Some((EventKind::Unobservable, "no tap".to_owned()));
    let host = || Some((EventKind::HostFault, "storage".to_owned()));
    let lasting = LASTING.as_secs();
    assert_eq!(stand(blind(), 0), [""; 0]);
    assert_eq!(stand(None, 1), [""; 0]);
    assert_eq!(stand(blind(), 2), [""; 0]);
    assert_eq!(stand(blind(), 1 + lasting), [""; 0]);
    assert_eq!(stand(blind(), 2 + lasting), ["unobservable"]);
    assert_eq!(stand(blind(), 60), [""; 0]);
    assert_eq!(stand(host(), 61), ["observable-again"]);
    assert_eq!(stand(host(), 61 + lasting), ["host-fault"]);
    assert_eq!(stand(None, 100), ["host-fault-over"]);
    assert_eq!(stand(None, 101), [""; 0]);
    stand(blind(), 200);
    stand(blind(), 300);
    let gone = events.no_longer_watched(ID, subject(), at(301)).expect("it was told");
    assert_eq!(gone.kind, EventKind::ObservableAgain);
    assert_eq!(events.no_longer_watched(ID, subject(), at(302)), None);
}

#[test]
fn each_sensor_is_told_by_its_name() {
    let mut events = events();
    let lost = |names: &[&str]| {
        names.iter().map(|name| ((*name).to_owned(), "why".to_owned())).collect::<BTreeMap<_, _>>()
    };
    let mut look = |names: &[&str], second: u64| {
        let news = events.of_sensors(lost(names), Duration::from_secs(second), at(second));
        news.iter().map(|e| format!("{} {}", e.kind.as_str(), e.sensor)).collect::<Vec<_>>()
    };
    assert_eq!(look(&["a"], 0), [""; 0]);
    assert_eq!(look(&["a", "b"], 10), ["sensor-lost a"]);
    assert_eq!(look(&["b"], 20), ["sensor-back a", "sensor-lost b"]);
    assert_eq!(look(&[], 21), ["sensor-back b"]);
    assert_eq!(look(&[], 22), [""; 0]);
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut events = events();
    let outcome = Some(Outcome::Refused);
    let of_root = Incident { uid: Some(0), outcome, ..incident("first", "halted") };
    say(&mut events, closed(&of_root), &of_root, 20);
    for number in 0..10_000 {
        let (uuid, outcome) = (Some(format!("u-{number}")), Some(Outcome::Refused));
        let refused = Incident { uuid, outcome, ..incident(&number.to_string(), "halted") };
        say(&mut events, closed(&refused), &refused, 20);
    }
    let bounds = (super::OUTCOMES_MAX, super::DOWN_MAX);
    assert_eq!((events.outcomes.len(), events.down.len()), bounds);
    let root = Key::new(Some(0), None, "web-1");
    assert!(events.alive(&root, at(30), at(30)).is_some(), "one user has no other's forgotten");
}

#[test]
fn a_vm_of_another_user_that_is_called_alike_is_not_the_one_that_is_down() {
    let mut events = events();
    let failed = Incident { outcome: Some(Outcome::LimitReached), ..incident("a", "halted") };
    say(&mut events, closed(&failed), &failed, 20);
    assert_eq!(events.alive(&Key::new(Some(2000), None, "web-1"), at(20), at(21)), None);
    let stranger = Subject { uid: Some(2000), ..subject() };
    assert_eq!(events.ended(stranger, "quit", at(22)), None);
    assert!(events.any_is_down());
}

#[test]
fn a_vm_that_was_down_is_known_still_once_it_is_counted_by_its_process() {
    let mut events = events();
    let outcome = Some(Outcome::LimitReached);
    let failed = Incident { outcome, start_ticks: 5, ..incident("a", "halted") };
    say(&mut events, closed(&failed), &failed, 20);
    let process = |pid| key("web-1").of_process(Some(ProcessId { pid, start_ticks: 5 }));
    assert_eq!(events.alive(&process(8), at(20), at(21)), None, "it was the other one");
    assert!(events.alive(&process(7), at(20), at(21)).is_some());
    assert!(!events.any_is_down());
}

#[test]
fn that_several_claim_to_be_a_vm_is_told_once_and_when_it_is_over() {
    let mut events = events();
    let of = |pid| {
        let counted_for = Some(ProcessId { pid, start_ticks: 1 });
        Subject { pid, counted_for, ..subject() }
    };
    assert_eq!(events.duplicate_over(of(7), at(1)), None);
    let told = events.duplicate(of(7), "why".to_owned(), at(2)).expect("news");
    assert_eq!((told.kind, told.reason.as_str()), (EventKind::DuplicateIdentity, "why"));
    assert_eq!(events.duplicate(of(8), "why".to_owned(), at(3)), None);
    let over = events.duplicate_over(of(8), at(4)).expect("news");
    assert_eq!(over.kind, EventKind::DuplicateIdentityOver);
    assert_eq!(over.subject.map(|it| it.key()), told.subject.map(|it| it.key()));
}
