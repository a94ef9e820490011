use std::time::UNIX_EPOCH;

use tempfile::TempDir;

use super::*;
use crate::identity::ProcessId;

fn time(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
}

fn hold(until: Option<u64>) -> Hold {
    Hold { since: time(0), until: until.map(time) }
}

/// That of a user's VM.
fn key(claim: &str) -> Key {
    Key::new(Some(1000), None, claim)
}

fn written(directory: &TempDir, ledger: &mut Ledger, now: SystemTime) -> Ledger {
    ledger.page(now).expect("may be written").write().expect("room");
    Ledger::open(directory.path())
}

#[test]
fn a_hold_ends_with_its_time_or_by_a_word_and_outlives_the_daemon() {
    let directory = TempDir::new().unwrap();
    let mut ledger = Ledger::open(directory.path());
    assert_eq!(ledger.held(&key("a"), time(1)), None);
    ledger.hold(HoldScope::Vm(&key("a")), hold(Some(60)));
    ledger.hold(HoldScope::Vm(&key("b")), hold(None));
    let mut ledger = written(&directory, &mut ledger, time(1));
    let said = ledger.held(&key("a"), time(59)).expect("held");
    assert!(said.starts_with("it is held since 2023-11-14T"), "{said}");
    assert_eq!(ledger.held(&key("a"), time(60)), None);
    assert!(ledger.held(&key("b"), time(1_000_000)).is_some_and(|why| why.ends_with("released")));
    ledger.release(HoldScope::Vm(&key("b")), time(70));
    let ledger = written(&directory, &mut ledger, time(70));
    assert_eq!(ledger.held(&key("b"), time(71)), None);
    assert_eq!(ledger.counts_from(&key("b")), time(70));
    assert_eq!(ledger.counts_from(&key("a")), UNIX_EPOCH);
}

#[test]
fn to_hold_all_holds_also_who_comes_later_and_to_release_all_releases_everybody() {
    let directory = TempDir::new().unwrap();
    let mut ledger = Ledger::open(directory.path());
    ledger.hold(HoldScope::All, hold(None));
    ledger.hold(HoldScope::Vm(&key("a")), hold(None));
    assert!(ledger.held(&key("new"), time(1)).is_some_and(|why| why.starts_with("all VMs are")));
    ledger.release(HoldScope::All, time(5));
    for claim in ["a", "new"] {
        assert_eq!(ledger.held(&key(claim), time(6)), None);
        assert_eq!(ledger.counts_from(&key(claim)), time(5));
    }
}

#[test]
fn resets_are_counted_from_a_moment_on_and_forgotten_by_a_release() {
    let directory = TempDir::new().unwrap();
    let mut ledger = Ledger::open(directory.path());
    for seconds in [10, 20, 30] {
        ledger.note_reset(&key("a"), time(seconds));
    }
    let mut ledger = written(&directory, &mut ledger, time(30));
    assert_eq!(ledger.resets_since(&key("a"), time(20)), [time(20), time(30)]);
    assert_eq!(ledger.resets_since(&key("b"), time(0)), []);
    ledger.release(HoldScope::Vm(&key("a")), time(40));
    assert_eq!(ledger.resets_since(&key("a"), time(0)), []);
    for _ in 0..2 * MOST_RESETS {
        ledger.note_reset(&key("a"), time(50));
    }
    assert_eq!(ledger.resets_since(&key("a"), time(0)).len(), MOST_RESETS);
}

#[test]
fn what_is_long_over_is_left_out() {
    let directory = TempDir::new().unwrap();
    let mut ledger = Ledger::open(directory.path());
    ledger.note_reset(&key("a"), time(0));
    ledger.hold(HoldScope::Vm(&key("b")), hold(Some(10)));
    ledger.release(HoldScope::Vm(&key("c")), time(0));
    let now = time(0) + FORGOTTEN_AFTER + Duration::from_secs(1);
    ledger.page(now).unwrap().write().unwrap();
    let text = std::fs::read_to_string(directory.path().join(FILE)).unwrap();
    assert!(text.contains("\"vms\":{}"), "{text}");
}

#[test]
fn with_a_ledger_that_cant_be_read_everybody_is_held_and_it_stays_until_all_are_released() {
    for text in ["{\"format\":1,\"vms\":{", "{\"format\":3}", "\0\0", ""] {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join(FILE);
        std::fs::write(&path, text).unwrap();
        let mut ledger = Ledger::open(directory.path());
        let why = ledger.held(&key("a"), time(0)).expect("held");
        assert!(why.contains("ledger.json: ") && why.contains("release --all"), "{why}");
        ledger.hold(HoldScope::Vm(&key("a")), hold(None));
        assert!(ledger.page(time(0)).is_none());
        ledger.release(HoldScope::Vm(&key("a")), time(0));
        assert!(ledger.held(&key("a"), time(0)).is_some());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        ledger.release(HoldScope::All, time(1));
        let ledger = written(&directory, &mut ledger, time(1));
        assert_eq!(ledger.held(&key("a"), time(2)), None);
        let kept = std::fs::read_to_string(directory.path().join("ledger.json.unreadable"));
        assert_eq!(kept.unwrap(), text);
    }
}

#[test]
fn what_another_users_vm_so_called_does_and_is_spared_is_its_own() {
    let directory = TempDir::new().unwrap();
    let mut ledger = Ledger::open(directory.path());
    let anothers = Key::new(Some(2000), None, "a");
    ledger.note_reset(&anothers, time(10));
    ledger.hold(HoldScope::Vm(&key("a")), hold(None));
    let ledger = written(&directory, &mut ledger, time(20));
    assert!(ledger.resets_since(&key("a"), time(0)).is_empty());
    assert_eq!(ledger.resets_since(&anothers, time(0)), [time(10)]);
    assert!(ledger.held(&key("a"), time(20)).is_some());
    assert_eq!(ledger.held(&anothers, time(20)), None);
}

#[test]
fn what_an_earlier_version_wrote_is_of_any_user_until_something_is_noted_of_one() {
    let directory = TempDir::new().unwrap();
    let text = "{\"format\":1,\"vms\":{\"a\":{\"hold\":{\"since\":\"2023-11-14T00:00:00Z\"},\
                \"resets\":[\"2023-11-14T22:13:30Z\"]}}}";
    std::fs::write(directory.path().join(FILE), text).unwrap();
    let mut ledger = Ledger::open(directory.path());
    let other = Key::new(Some(2000), None, "a");
    for vm in [&key("a"), &other] {
        assert!(ledger.held(vm, time(0)).is_some());
        assert_eq!(ledger.resets_since(vm, time(0)), [time(10)]);
    }
    ledger.note_reset(&key("a"), time(20));
    assert_eq!(ledger.resets_since(&key("a"), time(0)), [time(10), time(20)]);
    assert!(ledger.held(&key("a"), time(20)).is_some(), "a reset ends no hold");
    ledger.release(HoldScope::Vm(&key("a")), time(30));
    let later = time(30) + FORGOTTEN_AFTER + Duration::from_secs(1);
    let mut ledger = written(&directory, &mut ledger, time(31));
    let ledger = written(&directory, &mut ledger, later);
    assert_eq!(ledger.held(&key("a"), later), None, "also once that is long over");
    assert!(ledger.held(&other, later).is_some());
}

#[test]
fn of_several_that_claim_the_same_each_goes_on_from_what_was_noted_before() {
    let directory = TempDir::new().unwrap();
    let mut ledger = Ledger::open(directory.path());
    let [one, other] =
        [7, 8].map(|pid| key("a").of_process(Some(ProcessId { pid, start_ticks: 1 })));
    ledger.note_reset(&key("a"), time(10));
    ledger.hold(HoldScope::Vm(&key("a")), hold(None));
    ledger.note_reset(&one, time(20));
    ledger.release(HoldScope::Vm(&other), time(30));
    let ledger = written(&directory, &mut ledger, time(40));
    assert_eq!(ledger.resets_since(&one, time(0)), [time(10), time(20)]);
    assert_eq!(ledger.resets_since(&other, time(0)), []);
    assert!(ledger.held(&one, time(40)).is_some() && ledger.held(&other, time(40)).is_none());
}

#[test]
fn an_earlier_version_refuses_a_ledger_whose_holds_it_would_not_know() {
    let directory = TempDir::new().unwrap();
    let mut ledger = Ledger::open(directory.path());
    let format = |ledger: &mut Ledger| {
        ledger.page(time(1)).unwrap().write().unwrap();
        let text = std::fs::read_to_string(directory.path().join(FILE)).unwrap();
        text.split_once("\"format\":").and_then(|(_, rest)| rest.chars().next())
    };
    ledger.note_reset(&key("a"), time(0));
    ledger.hold(HoldScope::All, hold(None));
    assert_eq!(format(&mut ledger), Some('1'));
    ledger.hold(HoldScope::Vm(&key("a")), hold(None));
    assert_eq!(format(&mut ledger), Some('2'));
}
