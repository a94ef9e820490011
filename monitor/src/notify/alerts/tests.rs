use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::{AGAIN_EVERY, Alerts, FIRES_FOR, LONGEST, Next};
use crate::{
    identity::ProcessId,
    notify::event::{Event, EventKind, Subject},
    storage::incident::Incident,
};

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn moment(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn alerts(most: usize) -> Alerts {
    Alerts::new("kvm-1".to_owned(), most)
}

fn event(kind: EventKind, vm: &str, seconds: u64) -> Event {
    let (vm, uuid) = (vm.to_owned(), Some(format!("uuid-of-{vm}")));
    let subject = Subject { vm, uuid, uid: Some(1000), pid: 7, ..Subject::default() };
    let event = Event::of_vm(kind, at(seconds), subject, "why".to_owned());
    Event { cause: Some("halted".to_owned()), ..event }
}

/// What is sent at that second.
fn sent(alerts: &mut Alerts, seconds: u64) -> Vec<Value> {
    match alerts.next(moment(seconds), at(seconds)) {
        Next::Deliver(batch) => batch,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_crash_fires_again_and_again_until_it_is_over_and_is_then_sent_with_its_end() {
    let mut alerts = alerts(9);
    assert_eq!(alerts.next(moment(0), at(0)), Next::Nothing);
    alerts.take(&event(EventKind::Crashed, "a", 10), true);
    let batch = sent(&mut alerts, 10);
    let labels = &batch[0]["labels"];
    assert_eq!(labels["alertname"], "FlatlineGuestCrashed");
    assert_eq!((&labels["vm"], &labels["host"]), (&"a".into(), &"kvm-1".into()));
    assert_eq!((&labels["severity"], &labels["cause"]), (&"warning".into(), &"halted".into()));
    assert_eq!(batch[0]["startsAt"], "1970-01-01T00:00:10.000Z");
    let ends = |seconds| humantime::format_rfc3339_millis(at(seconds) + FIRES_FOR).to_string();
    assert_eq!(batch[0]["endsAt"], ends(10));
    assert_eq!(batch[0]["annotations"]["summary"], "a: crashed (halted): why");
    alerts.delivered(moment(10));
    let again = moment(10) + AGAIN_EVERY;
    assert_eq!(alerts.next(moment(11), at(11)), Next::Wait(again));
    let batch = sent(&mut alerts, again.as_secs());
    assert_eq!(batch[0]["endsAt"], ends(again.as_secs()));
    alerts.delivered(again);
    alerts.take(&event(EventKind::Recovered, "a", 75), true);
    let batch = sent(&mut alerts, 75);
    assert_eq!(batch[0]["endsAt"], "1970-01-01T00:01:15.000Z");
    assert_eq!(batch[0]["startsAt"], "1970-01-01T00:00:10.000Z");
    alerts.delivered(moment(75));
    assert_eq!(alerts.next(moment(76), at(76)), Next::Nothing);
}

#[test]
fn a_guest_that_is_not_brought_back_fires_as_down_until_it_lives() {
    let mut alerts = alerts(9);
    alerts.take(&event(EventKind::Crashed, "a", 1), true);
    alerts.take(&event(EventKind::Failed, "a", 2), true);
    let names = |batch: &[Value]| {
        let name = |alert: &Value| alert["labels"]["alertname"].as_str().map(str::to_owned);
        batch.iter().filter_map(name).collect::<Vec<_>>()
    };
    let batch = sent(&mut alerts, 3);
    assert_eq!(names(&batch), ["FlatlineGuestCrashed", "FlatlineGuestDown"]);
    assert_eq!(batch[1]["labels"]["severity"], "critical");
    alerts.delivered(moment(3));
    alerts.take(&event(EventKind::AliveAgain, "b", 4), true);
    alerts.take(&event(EventKind::AliveAgain, "a", 5), true);
    let batch = sent(&mut alerts, 5);
    assert!(batch.iter().all(|alert| alert["endsAt"] == "1970-01-01T00:00:05.000Z"), "{batch:?}");
    alerts.delivered(moment(5));
    assert_eq!(alerts.next(moment(6), at(6)), Next::Nothing);
}

#[test]
fn what_ends_an_alert_is_taken_though_it_was_not_asked_for() {
    let mut alerts = alerts(9);
    alerts.take(&event(EventKind::Crashed, "a", 1), false);
    assert_eq!(alerts.next(moment(1), at(1)), Next::Nothing);
    alerts.take(&event(EventKind::Failed, "a", 1), true);
    alerts.take(&event(EventKind::Recovered, "a", 9), false);
    let batch = sent(&mut alerts, 9);
    assert_eq!((batch.len(), &batch[0]["endsAt"]), (1, &"1970-01-01T00:00:09.000Z".into()));
}

#[test]
fn an_alert_keeps_its_labels_and_its_beginning_as_long_as_it_fires() {
    let mut alerts = alerts(9);
    alerts.take(&event(EventKind::Crashed, "a", 1), true);
    let other = Event { cause: Some("silent".to_owned()), ..event(EventKind::Crashed, "a", 50) };
    alerts.take(&other, true);
    let batch = sent(&mut alerts, 50);
    assert_eq!((batch.len(), &batch[0]["labels"]["cause"]), (1, &"halted".into()));
    assert_eq!(batch[0]["startsAt"], "1970-01-01T00:00:01.000Z");
}

#[test]
fn what_changes_during_a_delivery_is_sent_once_more_and_what_failed_again() {
    let mut alerts = alerts(9);
    alerts.take(&event(EventKind::Crashed, "a", 1), true);
    sent(&mut alerts, 1);
    assert_eq!(alerts.next(moment(1), at(1)), Next::Nothing, "one at a time");
    alerts.take(&event(EventKind::Recovered, "a", 2), true);
    alerts.delivered(moment(2));
    assert_eq!(sent(&mut alerts, 2)[0]["endsAt"], "1970-01-01T00:00:02.000Z");
    assert_eq!(alerts.failed(None, moment(2)), moment(1));
    assert_eq!((alerts.pacing.failures(), alerts.news()), (1, 1));
    assert_eq!(alerts.next(moment(2), at(2)), Next::Wait(moment(3)));
    assert_eq!(sent(&mut alerts, 3).len(), 1);
    alerts.delivered(moment(3));
    assert_eq!((alerts.pacing.failures(), alerts.news()), (0, 0));
}

#[test]
fn news_is_sent_at_once_though_nothing_else_is_due() {
    let mut alerts = alerts(9);
    alerts.take(&event(EventKind::Crashed, "a", 1), true);
    sent(&mut alerts, 1);
    alerts.delivered(moment(1));
    alerts.take(&event(EventKind::Crashed, "b", 2), true);
    assert_eq!(sent(&mut alerts, 2).len(), 2);
}

#[test]
fn without_room_who_is_over_goes_first_and_it_is_told() {
    let mut alerts = alerts(2);
    assert_eq!(alerts.take(&event(EventKind::Crashed, "a", 1), true), 0);
    assert_eq!(alerts.take(&event(EventKind::Crashed, "b", 2), true), 0);
    alerts.take(&event(EventKind::Recovered, "b", 3), true);
    assert_eq!(alerts.take(&event(EventKind::Crashed, "c", 4), true), 1);
    assert_eq!(alerts.lost(), 1);
    let batch = sent(&mut alerts, 4);
    let vms: Vec<_> = batch.iter().map(|alert| alert["labels"]["vm"].clone()).collect();
    assert_eq!(vms, ["a", "c"]);
    assert_eq!(batch[0]["annotations"]["dropped"], "1");
    alerts.delivered(moment(4));
    assert_eq!((alerts.lost(), alerts.set_bound(1)), (0, 1));
}

#[test]
fn an_alert_that_nothing_ends_ends_after_a_day() {
    let mut alerts = alerts(9);
    alerts.take(&event(EventKind::Refused, "a", 0), true);
    sent(&mut alerts, 0);
    alerts.delivered(moment(0));
    let day = LONGEST.as_secs();
    assert_eq!(sent(&mut alerts, day)[0]["endsAt"], "1970-01-02T00:00:00.000Z");
    alerts.delivered(LONGEST);
    assert_eq!(alerts.next(moment(day + 1), at(day + 1)), Next::Nothing);
}

#[test]
fn sensors_are_told_apart() {
    let mut alerts = alerts(9);
    let of = |kind, sensor: &str| {
        let event = Event::of_host(kind, at(1), "why".to_owned());
        Event { sensor: sensor.to_owned(), ..event }
    };
    alerts.take(&of(EventKind::SensorLost, "a"), true);
    alerts.take(&of(EventKind::SensorLost, "b"), true);
    alerts.take(&of(EventKind::SensorBack, "b"), true);
    let batch = sent(&mut alerts, 2);
    let is_over = |alert: &Value| alert["endsAt"] == "1970-01-01T00:00:01.000Z";
    let over: Vec<_> =
        batch.iter().map(|alert| (&alert["labels"]["sensor"], is_over(alert))).collect();
    assert_eq!(over, [(&"a".into(), false), (&"b".into(), true)]);
}

#[test]
fn what_one_users_vm_does_ends_no_alert_of_anothers_that_is_called_alike() {
    let mut alerts = alerts(9);
    alerts.take(&event(EventKind::Crashed, "a", 10), true);
    let mut of_another = event(EventKind::Recovered, "a", 11);
    if let Some(subject) = &mut of_another.subject {
        subject.uid = Some(2000);
    }
    alerts.take(&of_another, true);
    let batch = sent(&mut alerts, 12);
    assert_eq!(batch[0]["labels"]["uid"], "1000");
    let fires = humantime::format_rfc3339_millis(at(12) + FIRES_FOR).to_string();
    assert_eq!((batch.len(), &batch[0]["endsAt"]), (1, &fires.into()));
}

#[test]
fn an_alert_ends_with_its_incident_though_the_vm_is_known_by_its_process_since() {
    let mut alerts = alerts(9);
    let text = |text: &str| text.to_owned();
    let incident = Incident::new(text("id"), text("a"), text("halted"), text("why"), at(10));
    let of_it = |kind, counted_for| {
        let mut event = event(kind, "a", 10);
        event.incident = Some(Box::new(incident.clone()));
        event.subject = event.subject.map(|subject| Subject { counted_for, ..subject });
        event
    };
    alerts.take(&of_it(EventKind::Crashed, None), true);
    let process = Some(ProcessId { pid: 7, start_ticks: 1 });
    alerts.take(&of_it(EventKind::Recovered, process), true);
    let batch = sent(&mut alerts, 12);
    assert_eq!((batch.len(), &batch[0]["endsAt"]), (1, &"1970-01-01T00:00:10.000Z".into()));
}
