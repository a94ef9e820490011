use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Follower, LASTING, Standing};
use crate::{
    notify::event::{Event, EventKind, Subject},
    storage::incident::{Attempt, Incident, Outcome},
};
use flatline_qemu::discover::VmId;

const BEGAN: Duration = Duration::from_secs(1_000_000);
const ID: VmId = VmId { pid: 7, start_ticks: 1 };

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + BEGAN + Duration::from_secs(seconds)
}

fn follower() -> Follower {
    Follower::new("kvm-1".to_owned(), UNIX_EPOCH + BEGAN)
}

fn incident(id: &str, cause: &str) -> Incident {
    let text = |text: &str| text.to_owned();
    Incident { pid: 7, ..Incident::new(text(id), text("web-1"), text(cause), text("why"), at(10)) }
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
    Subject { vm: "web-1".to_owned(), uuid: None, pid: 7 }
}

fn kinds(events: &[Event]) -> Vec<&'static str> {
    events.iter().map(|event| event.kind.as_str()).collect()
}

#[test]
fn a_crash_is_told_once_with_each_restart_and_what_came_of_it() {
    let (mut follower, mut incident) = (follower(), incident("a", "halted"));
    let mut told = Vec::new();
    let mut write = |incident: &Incident| {
        let events = follower.incident(incident, at(20));
        told.extend(events.clone());
        kinds(&events)
    };
    assert_eq!(write(&incident), ["crashed"]);
    assert_eq!(write(&incident), [""; 0]);
    incident.attempts.push(attempt(None));
    assert_eq!(write(&incident), [""; 0]);
    incident.attempts[0].reset_at = Some(at(12));
    assert_eq!(write(&incident), ["restarted"]);
    incident.attempts.push(attempt(Some(at(60))));
    assert_eq!(write(&incident), ["restarted"]);
    incident.outcome = Some(Outcome::Recovered);
    incident.recover_seconds = Some(7.94);
    assert_eq!(write(&incident), ["recovered"]);
    assert_eq!(write(&incident), [""; 0]);
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
    let incident = incident("a", "halted");
    let [first, second] = [follower(), Follower::new("kvm-1".to_owned(), at(5))]
        .map(|mut follower| follower.incident(&incident, at(20)).remove(0).id);
    assert_eq!(first, second);
    let other = Follower::new("kvm-2".to_owned(), at(0)).incident(&incident, at(20)).remove(0).id;
    assert_ne!(first, other);
}

#[test]
fn every_outcome_has_its_event() {
    for (outcome, kind) in [
        (Outcome::NotRecovered, "not-recovered"),
        (Outcome::Refused, "refused"),
        (Outcome::LimitReached, "failed"),
        (Outcome::Observed, "observed"),
    ] {
        let incident = Incident { outcome: Some(outcome), ..incident("a", "silent") };
        assert_eq!(kinds(&follower().incident(&incident, at(20))), ["crashed", kind]);
    }
    let outcome = Some(Outcome::LimitReached);
    let boots_on = Incident { outcome, ..incident("a", "boot-loop") };
    assert_eq!(kinds(&follower().incident(&boots_on, at(20))), ["failed"]);
}

#[test]
fn an_outcome_that_comes_again_is_no_news() {
    let (mut follower, refused) = (follower(), Some(Outcome::Refused));
    let refused = Incident { outcome: refused, ..incident("a", "silent") };
    assert_eq!(kinds(&follower.incident(&refused, at(20))), ["crashed", "refused"]);
    // Convicted anew of the same crash, and refused anew.
    let convicted = Incident { outcome: None, ..refused.clone() };
    assert_eq!(kinds(&follower.incident(&convicted, at(30))), [""; 0]);
    assert_eq!(kinds(&follower.incident(&refused, at(30))), [""; 0]);
}

#[test]
fn what_an_earlier_daemon_told_is_not_told_again_and_what_comes_of_it_is() {
    let mut follower = follower();
    let mut old =
        Incident { detected_at: at(0) - Duration::from_secs(60), ..incident("a", "halted") };
    old.attempts.push(attempt(Some(at(0) - Duration::from_secs(50))));
    old.outcome = Some(Outcome::Recovered);
    assert_eq!(kinds(&follower.incident(&old, at(1))), ["recovered"]);
    let mut open = Incident { id: "b".to_owned(), outcome: None, ..old };
    assert_eq!(kinds(&follower.taken_up(&open, at(1))), ["crashed"]);
    assert_eq!(kinds(&follower.incident(&open, at(2))), [""; 0]);
    open.outcome = Some(Outcome::LimitReached);
    assert_eq!(kinds(&follower.incident(&open, at(3))), ["failed"]);
}

#[test]
fn who_failed_and_lives_all_the_same_is_told_of_once() {
    let mut follower = follower();
    let failed = Incident { outcome: Some(Outcome::LimitReached), ..incident("a", "halted") };
    follower.incident(&failed, at(20));
    assert!(follower.any_is_down());
    assert_eq!(follower.alive("web-1", at(9), at(21)), None, "heard before the crash");
    assert_eq!(follower.alive("web-2", at(20), at(21)), None);
    let event = follower.alive("web-1", at(20), at(21)).expect("it lives");
    assert_eq!((event.kind, event.attempt), (EventKind::AliveAgain, 0));
    assert!(!follower.any_is_down());
    assert_eq!(follower.alive("web-1", at(22), at(23)), None);
    // What is written of it later is no news any more.
    let refused = Incident { outcome: Some(Outcome::Refused), ..failed };
    assert_eq!(kinds(&follower.incident(&refused, at(24))), [""; 0]);
}

#[test]
fn who_failed_and_was_stopped_by_somebody_is_told_of_once() {
    let mut follower = follower();
    assert_eq!(follower.ended(subject(), "quit", at(20)), None);
    let failed = Incident { outcome: Some(Outcome::LimitReached), ..incident("a", "halted") };
    follower.incident(&failed, at(20));
    let ended = follower.ended(subject(), "quit", at(21)).expect("it was down");
    assert_eq!((ended.kind, ended.reason.as_str()), (EventKind::Ended, "quit"));
    assert_eq!(follower.ended(subject(), "quit", at(22)), None);
}

#[test]
fn a_heart_that_stops_is_told_and_that_it_beats_again() {
    for (cause, kind) in [("userland-dead", "userland-dead"), ("service-dead", "service-dead")] {
        let mut follower = follower();
        let mut told = Incident { outcome: Some(Outcome::Observed), ..incident("a", cause) };
        assert_eq!(kinds(&follower.incident(&told, at(20))), [kind]);
        assert_eq!(follower.alive("web-1", at(30), at(30)), None, "it has not crashed");
        told.recovered_at = Some(at(40));
        assert_eq!(kinds(&follower.incident(&told, at(40))), ["beats-again"]);
        assert!(!follower.any_is_down());
        // One that is restarted for it has crashed like any other.
        let convicted = incident("b", cause);
        assert_eq!(kinds(&follower.incident(&convicted, at(50))), ["crashed"]);
    }
}

#[test]
fn a_storm_is_the_hosts_and_told_once() {
    let mut follower = follower();
    let storm = Incident { vm: "*".to_owned(), pid: 0, ..incident("s", "storm") };
    let events = follower.incident(&storm, at(20));
    assert_eq!(kinds(&events), ["host-incident"]);
    assert_eq!(events[0].subject, None);
    assert_eq!(kinds(&follower.incident(&storm, at(21))), [""; 0]);
}

#[test]
fn how_a_vm_stands_is_told_once_it_lasts_and_when_it_is_over() {
    let mut follower = follower();
    let mut stand = |standing: Standing, second: u64| {
        let moment = Duration::from_secs(second);
        kinds(&follower.standing(ID, subject, standing, (moment, at(second))))
    };
    let blind = || Standing::Unobservable("no tap".to_owned());
    let host = || Standing::HostFault("storage".to_owned());
    let lasting = LASTING.as_secs();
    assert_eq!(stand(blind(), 0), [""; 0]);
    assert_eq!(stand(Standing::Fine, 1), [""; 0]);
    assert_eq!(stand(blind(), 2), [""; 0]);
    assert_eq!(stand(blind(), 1 + lasting), [""; 0]);
    assert_eq!(stand(blind(), 2 + lasting), ["unobservable"]);
    assert_eq!(stand(blind(), 60), [""; 0]);
    assert_eq!(stand(host(), 61), ["observable-again"]);
    assert_eq!(stand(host(), 61 + lasting), ["host-fault"]);
    assert_eq!(stand(Standing::Fine, 100), ["host-fault-over"]);
    assert_eq!(stand(Standing::Fine, 101), [""; 0]);
    stand(blind(), 200);
    stand(blind(), 300);
    let gone = follower.gone(ID, subject(), at(301)).expect("it was told");
    assert_eq!(gone.kind, EventKind::ObservableAgain);
    assert_eq!(follower.gone(ID, subject(), at(302)), None);
}

#[test]
fn each_sensor_is_told_by_its_name() {
    let mut follower = follower();
    let lost = |names: &[&str]| {
        names.iter().map(|name| ((*name).to_owned(), "why".to_owned())).collect::<Vec<_>>()
    };
    let mut look = |names: &[&str], second: u64| {
        let events = follower.sensors(lost(names), Duration::from_secs(second), at(second));
        events.iter().map(|e| format!("{} {}", e.kind.as_str(), e.sensor)).collect::<Vec<_>>()
    };
    assert_eq!(look(&["a"], 0), [""; 0]);
    assert_eq!(look(&["a", "b"], 10), ["sensor-lost a"]);
    assert_eq!(look(&["b"], 20), ["sensor-back a", "sensor-lost b"]);
    assert_eq!(look(&[], 21), ["sensor-back b"]);
    assert_eq!(look(&[], 22), [""; 0]);
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut follower = follower();
    for number in 0..10_000 {
        let uuid = Some(format!("u-{number}"));
        follower.incident(&Incident { uuid, ..incident(&number.to_string(), "halted") }, at(20));
    }
    assert_eq!((follower.told.len(), follower.down.len()), (super::REMEMBERED, super::DOWN_MAX));
}
