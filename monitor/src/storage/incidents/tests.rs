use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

use super::{EVIDENCE_MAX_BYTES, IncidentStore, StoreError};
use crate::{
    identity::Key,
    storage::incident::{Attempt, Incident, Outcome},
};

fn time(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
}

fn store() -> (TempDir, IncidentStore) {
    let directory = TempDir::new().expect("a directory");
    let store = IncidentStore::open(&directory.path().join("state")).expect("a store");
    (directory, store)
}

fn key(claim: &str) -> Key {
    Key::new(Some(1), None, claim)
}

fn incident(store: &IncidentStore, vm: &str, seconds: u64) -> Incident {
    let id = store.new_id(time(seconds), vm);
    let (cause, reason) = ("silent".to_owned(), "r".to_owned());
    Incident {
        pid: 7,
        last_sign_of_life: Some(time(0)),
        detect_seconds: Some(1.5),
        ..Incident::new(id, vm.to_owned(), cause, reason, time(seconds))
    }
}

#[test]
fn incidents_come_back_oldest_first_and_updated() {
    let (_directory, store) = store();
    let late = incident(&store, "a", 20);
    let mut early = incident(&store, "b", 10);
    store.put(&late).expect("put");
    store.put(&early).expect("put");
    early.outcome = Some(Outcome::Recovered);
    store.put(&early).expect("put");
    assert_eq!(store.all(), (vec![early, late], vec![]));
}

#[test]
fn directories_are_closed_to_others() {
    let (directory, store) = store();
    let incident = incident(&store, "a", 1);
    store.put(&incident).expect("put");
    for below in ["state", "state/incidents", &format!("state/incidents/{}", incident.id)] {
        let metadata = std::fs::metadata(directory.path().join(below)).expect("there");
        assert_eq!(metadata.permissions().mode() & 0o7027, 0, "{below}");
    }
}

#[test]
fn two_incidents_of_one_second_get_two_ids_also_after_a_restart_of_the_daemon() {
    let (directory, store) = store();
    let first = incident(&store, "a", 1);
    let second = incident(&store, "a", 1);
    assert_eq!(second.id, format!("{}-2", first.id));
    for incident in [&first, &second] {
        store.put(incident).expect("put");
    }
    let again = IncidentStore::open(&directory.path().join("state")).expect("a store");
    assert_eq!(again.new_id(time(1), "a"), format!("{}-3", first.id));
}

#[test]
fn torn_newer_and_empty_records_are_reported_and_left_in_place() {
    let (directory, store) = store();
    let good = incident(&store, "good", 1);
    store.put(&good).expect("put");
    let incidents = directory.path().join("state/incidents");
    let text = std::fs::read_to_string(incidents.join(&good.id).join("incident.json"));
    let text = text.expect("written");
    let newer = text.replace("\"format\":1", "\"format\":2");
    for (id, content) in [("torn", &text[..text.len() / 2]), ("newer", &newer), ("zeros", "\0\0")] {
        std::fs::create_dir(incidents.join(id)).expect("directory");
        std::fs::write(incidents.join(id).join("incident.json"), content).expect("write");
    }
    std::fs::create_dir(incidents.join("void")).expect("directory");
    let (all, complaints) = store.all();
    assert_eq!(all, [good]);
    assert_eq!(complaints.len(), 4, "{complaints:?}");
    assert!(complaints[0].contains("newer/incident.json: of format 2"), "{complaints:?}");
    assert!(complaints[1].contains("torn/incident.json: not a whole record"), "{complaints:?}");
    assert!(incidents.join("torn/incident.json").exists());
    IncidentStore::open(&directory.path().join("state")).expect("opens nevertheless");
}

#[test]
fn restarts_are_counted_by_vm_within_the_window_once_an_incident_and_outlive_the_daemon() {
    let (directory, store) = store();
    for (vm, uuid, at) in
        [("a", None, 10), ("a", None, 20), ("b", None, 20), ("a", Some("u-1"), 20)]
    {
        let mut incident = incident(&store, vm, at);
        store.put(&incident).expect("put");
        incident.uuid = uuid.map(str::to_owned);
        incident.action_at = Some(time(at));
        store.put(&incident).expect("put");
        store.put(&incident).expect("put");
    }
    store.put(&incident(&store, "a", 20)).expect("an incident without action");
    let again = IncidentStore::open(&directory.path().join("state")).expect("a store");
    for store in [store, again] {
        assert_eq!(store.restarts_since(Some(&key("a")), time(0)).len(), 2);
        assert_eq!(store.restarts_since(Some(&key("a")), time(11)).len(), 1);
        assert_eq!(store.restarts_since(Some(&key("a")), time(21)).len(), 0);
        assert_eq!(store.restarts_since(Some(&key("u-1")), time(0)).len(), 1);
        assert_eq!(store.restarts_since(Some(&key("c")), time(0)).len(), 0);
        assert_eq!(store.restarts_since(None, time(11)).len(), 3);
    }
}

#[test]
fn a_restart_counts_even_if_the_disk_refuses_its_record() {
    let (directory, store) = store();
    let mut incident = incident(&store, "a", 1);
    incident.action_at = Some(time(1));
    // A file where the directory was: refused for root too, unlike a read-only directory.
    let incidents = directory.path().join("state/incidents");
    std::fs::remove_dir_all(&incidents).expect("removed");
    std::fs::write(&incidents, "").expect("a file");
    let error = store.put(&incident).expect_err("refused");
    assert!(error.to_string().contains("state/incidents"), "{error}");
    assert_eq!(store.restarts_since(Some(&key("a")), time(0)).len(), 1);
    let first = store.new_id(time(9), "a");
    assert_ne!(store.new_id(time(9), "a"), first);
}

#[test]
fn evidence_is_kept_beside_the_record_and_bounded() {
    let (directory, store) = store();
    let id = store.new_id(time(1), "a");
    store.add_evidence(&id, "screen.png", b"png").expect("stored");
    let file = directory.path().join("state/incidents").join(&id).join("screen.png");
    assert_eq!(std::fs::read(file).expect("there"), b"png");
    store.add_evidence(&id, "full", &vec![0; EVIDENCE_MAX_BYTES]).expect("just fits");
    let error = store.add_evidence(&id, "over", &vec![0; EVIDENCE_MAX_BYTES + 1]);
    assert!(matches!(error, Err(StoreError::TooLarge { .. })));
}

#[test]
fn names_that_leave_the_directory_or_replace_the_record_are_refused() {
    let (_directory, store) = store();
    let id = store.new_id(time(1), "a");
    for name in ["../x", "a/b", "", ".hidden", "incident.json"] {
        let error = store.add_evidence(&id, name, b"");
        assert!(matches!(error, Err(StoreError::BadName(_))), "{name:?}");
    }
    assert!(matches!(store.add_evidence("..", "x", b""), Err(StoreError::BadName(_))));
}

#[test]
fn each_attempt_counts_once_and_the_last_incident_of_a_process_is_found() {
    let (directory, store) = store();
    let attempt = |at| Attempt {
        begun_at: time(at),
        run_state: "running".to_owned(),
        steps: Vec::new(),
        limit: String::new(),
        reset_at: None,
    };
    let mut early = incident(&store, "a", 1);
    early.attempts = vec![attempt(1), attempt(2)];
    early.action_at = Some(time(2));
    let mut late = incident(&store, "a", 9);
    late.attempts = vec![attempt(10)];
    let other = Incident { start_ticks: 5, ..incident(&store, "b", 3) };
    for incident in [&early, &late, &other] {
        store.put(incident).expect("put");
    }
    let again = IncidentStore::open(&directory.path().join("state")).expect("a store");
    assert_eq!(again.restarts_since(Some(&key("a")), time(0)), [time(1), time(2), time(10)]);
    let last = again.last_of_each();
    assert_eq!(last[&(7, 0)], late);
    assert_eq!(last[&(7, 5)], other);
}

#[test]
fn a_directory_that_nobody_had_time_to_fill_is_removed_at_the_start() {
    let (directory, store) = store();
    let incidents = directory.path().join("state/incidents");
    let good = incident(&store, "a", 1);
    store.put(&good).expect("put");
    std::fs::create_dir(incidents.join("void")).expect("directory");
    std::fs::create_dir(incidents.join("begun")).expect("directory");
    std::fs::write(incidents.join("begun/.incident.json.new"), "{").expect("write");
    std::fs::create_dir(incidents.join("evidence")).expect("directory");
    std::fs::write(incidents.join("evidence/registers.txt"), "r").expect("write");
    let again = IncidentStore::open(&directory.path().join("state")).expect("a store");
    let (all, complaints) = again.all();
    assert_eq!((all, complaints.len()), (vec![good], 1));
    assert!(incidents.join("evidence/registers.txt").exists());
    assert!(!incidents.join("void").exists() && !incidents.join("begun").exists());
}
