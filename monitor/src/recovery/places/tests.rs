use std::time::Duration;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const A: u32 = 1001;
const B: u32 = 1002;

fn vm(pid: u32) -> VmId {
    VmId { pid, start_ticks: 1 }
}

/// A host with VMs of several users, and when its restarts began.
struct Host {
    places: Places,
    begun: Vec<SystemTime>,
    most: usize,
    now: SystemTime,
}

impl Host {
    fn new(owners: usize, most: usize) -> Self {
        let places = Places { owners, ..Places::default() };
        Self { places, begun: Vec::new(), most, now: SystemTime::UNIX_EPOCH + SECOND * 1000 }
    }

    fn room(&self) -> Room {
        let lately = self.begun.iter().filter(|at| self.now < **at + HOST_WINDOW);
        Room { begun: lately.count(), most: self.most, now: self.now }
    }

    fn ask(&mut self, pid: u32, uid: u32) -> Result<Place, String> {
        let room = self.room();
        self.places.ask(vm(pid), uid, room)
    }

    /// The restarts that are granted now, each of which begins at once.
    fn turns(&mut self) -> Vec<u32> {
        let mut went = Vec::new();
        while let Some((vm, place)) = self.places.next(self.room()) {
            self.begin(place);
            went.push(vm.pid);
        }
        went
    }

    fn begin(&mut self, place: Place) {
        self.begun.push(self.now);
        place.begun(self.now);
    }
}

#[test]
fn what_is_granted_at_the_same_moment_is_counted() {
    let mut host = Host::new(1, 10);
    let granted: Vec<Place> = (0..60).filter_map(|pid| host.ask(pid, A).ok()).collect();
    assert_eq!((granted.len(), host.places.waiting()), (10, 50));
    // None of them has begun, however long that takes.
    host.now += HOST_WINDOW * 3;
    assert!(host.turns().is_empty());
    granted.into_iter().for_each(|place| host.begin(place));
    assert!(host.turns().is_empty());
    host.now += HOST_WINDOW;
    assert_eq!(host.turns(), (10..20).collect::<Vec<_>>());
}

#[test]
fn no_minute_has_more_restarts_than_may_be() {
    let mut host = Host::new(3, 4);
    for second in 0..600_u32 {
        host.now += SECOND;
        for uid in [A, B, 1003] {
            if let Ok(place) = host.ask(second * 10 + uid, uid) {
                host.begin(place);
            }
        }
        host.turns();
        assert!(host.room().begun <= 4, "at {second} s");
    }
    // One is left for a fourth user.
    assert_eq!(host.begun.len(), 30);
}

#[test]
fn a_place_is_given_back_by_a_restart_that_never_begins() {
    let mut host = Host::new(1, 1);
    let place = host.ask(1, A).expect("it is free");
    let why = host.ask(2, A).expect_err("it is taken");
    assert!(why.starts_with("1 VMs of this host"), "{why}");
    drop(place);
    assert_eq!(host.turns(), [2]);
    host.now += HOST_WINDOW - SECOND;
    assert!(host.ask(3, A).is_err());
}

#[test]
fn a_crowd_leaves_room_for_another_user() {
    let mut host = Host::new(2, 10);
    let crowd: Vec<Place> = (0..60).filter_map(|pid| host.ask(pid, A).ok()).collect();
    assert_eq!(crowd.len(), 5);
    let why = host.ask(1, A).expect_err("it has its share");
    assert!(why.contains("what is left of 10 is for others'"), "{why}");
    for pid in [100, 101, 102] {
        let place = host.ask(pid, B).expect("there is room for it");
        host.begin(place);
    }
    assert!(host.ask(103, B).is_err());
    let third = host.ask(200, 1003).expect("there is room for it, too");
    host.begin(third);
}

#[test]
fn the_whole_host_is_one_users_where_all_vms_are() {
    let mut host = Host::new(1, 10);
    assert_eq!((0..60).filter_map(|pid| host.ask(pid, A).ok()).count(), 60, "given back at once");
    let taken: Vec<Place> = (0..60).filter_map(|pid| host.ask(pid, A).ok()).collect();
    assert_eq!(taken.len(), 10);
}

#[test]
fn a_crowd_delays_another_users_vm_by_one_place_at_most() {
    let mut host = Host::new(2, 1);
    let crowd: Vec<Place> = (0..60).filter_map(|pid| host.ask(pid, A).ok()).collect();
    crowd.into_iter().for_each(|place| host.begin(place));
    host.now += SECOND * 30;
    assert!(host.ask(100, B).is_err());
    assert!(host.turns().is_empty());
    host.now += SECOND * 30;
    assert_eq!(host.turns(), [100]);
    // They take turns, and each queue keeps its order.
    assert!(host.ask(101, B).is_err() && host.ask(102, B).is_err());
    for next in [1, 101, 2, 102, 3] {
        host.now += HOST_WINDOW;
        assert_eq!(host.turns(), [next]);
    }
}

#[test]
fn a_vm_that_asks_again_keeps_its_place_in_the_queue() {
    let mut host = Host::new(2, 1);
    let first = host.ask(0, A).expect("it is free");
    host.begin(first);
    for pid in [1, 2, 1, 2, 1] {
        assert!(host.ask(pid, A).is_err());
    }
    assert_eq!(host.places.waiting(), 2);
    host.now += HOST_WINDOW;
    assert_eq!(host.turns(), [1]);
}

#[test]
fn a_restart_that_is_gone_on_with_counts_once_and_for_its_user() {
    let mut host = Host::new(2, 2);
    host.begun.push(host.now);
    let room = host.room();
    let again = host.places.ask_again(A, true, room).expect("it is its own that counts");
    assert!(host.places.ask_again(A, false, room).is_none(), "its share is one");
    host.begin(again);
    assert!(host.ask(1, B).is_err(), "both are used up");
}
