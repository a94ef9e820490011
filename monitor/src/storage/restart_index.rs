//! Index of the restarts that count towards limits: by VM, and of the whole host by their time, so that what is asked of one
//! VM, or of the last minute, takes no look at all that ever were.

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    time::SystemTime,
};

use super::incident::Incident;
use crate::identity::Key;

/// Incidents whose restarts are kept: at the usual ten a minute, those of four days. Beyond, the user that has most gives up its
/// oldest, as it does of records.
const MOST_INCIDENTS: usize = 1 << 16;

/// Restarts of an incident, and whose they are.
#[derive(Debug)]
struct Restarts {
    of: Key,
    at: Vec<SystemTime>,
}

/// Restarts of incidents.
#[derive(Debug)]
pub(super) struct RestartIndex {
    /// Incidents that are kept at most, and that there are.
    most: usize,
    incidents: usize,
    /// By what the VM claims to be, and by incident.
    by_claim: HashMap<String, HashMap<String, Restarts>>,
    /// How many there were at each moment.
    by_time: BTreeMap<SystemTime, usize>,
}

impl Default for RestartIndex {
    fn default() -> Self {
        let (by_claim, by_time) = (HashMap::new(), BTreeMap::new());
        Self { most: MOST_INCIDENTS, incidents: 0, by_claim, by_time }
    }
}

impl RestartIndex {
    /// Takes the restarts that `incident` tells of in place of those that it told of before.
    pub(super) fn note(&mut self, incident: &Incident) {
        let at: Vec<SystemTime> = incident.restarts().collect();
        let of = incident.key();
        self.forget(&of.claim, &incident.id);
        if at.is_empty() {
            return;
        }
        for time in &at {
            *self.by_time.entry(*time).or_default() += 1;
        }
        let its = self.by_claim.entry(of.claim.clone()).or_default();
        its.insert(incident.id.clone(), Restarts { of, at });
        self.incidents += 1;
        if self.incidents > self.most {
            self.make_room();
        }
    }

    /// Gives up the oldest incident of the user that has most.
    fn make_room(&mut self) {
        let all = || self.by_claim.values().flat_map(HashMap::iter);
        let mut users: HashMap<_, usize> = HashMap::new();
        for (_, restarts) in all() {
            *users.entry(restarts.of.uid).or_default() += 1;
        }
        let most = users.into_iter().max_by_key(|(_, count)| *count).map(|(uid, _)| uid);
        let its = all().filter(|(_, restarts)| Some(restarts.of.uid) == most);
        let oldest = its.min_by_key(|(_, restarts)| restarts.at.iter().max().copied());
        if let Some((id, claim)) = oldest.map(|(id, one)| (id.clone(), one.of.claim.clone())) {
            self.forget(&claim, &id);
        }
    }

    fn forget(&mut self, claim: &str, id: &str) {
        let Some(its) = self.by_claim.get_mut(claim) else { return };
        let removed = its.remove(id);
        self.incidents -= usize::from(removed.is_some());
        for time in removed.into_iter().flat_map(|restarts| restarts.at) {
            if let Entry::Occupied(mut count) = self.by_time.entry(time) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        }
        if its.is_empty() {
            self.by_claim.remove(claim);
        }
    }

    /// Those that count for the VM with this key, at `since` or later, the earliest first.
    pub(super) fn of(&self, key: &Key, since: SystemTime) -> Vec<SystemTime> {
        let its = self.by_claim.get(&key.claim).into_iter().flat_map(HashMap::values);
        let its = its.filter(|restarts| restarts.of.counts_for(key));
        let times = its.flat_map(|restarts| &restarts.at).filter(|at| **at >= since);
        let mut times: Vec<_> = times.copied().collect();
        times.sort_unstable();
        times
    }

    /// Those of all VMs, likewise.
    pub(super) fn of_all(&self, since: SystemTime) -> Vec<SystemTime> {
        let times = self.by_time.range(since..);
        times.flat_map(|(at, count)| std::iter::repeat_n(*at, *count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::{identity::ProcessId, storage::incident::Attempt};

    fn time(second: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(second)
    }

    fn incident(id: &str, vm: &str, at: &[u64]) -> Incident {
        let attempt = |second: &u64| Attempt {
            begun_at: time(*second),
            run_state: String::new(),
            steps: Vec::new(),
            limit: String::new(),
            reset_at: None,
        };
        let (cause, reason) = (String::new(), String::new());
        Incident {
            attempts: at.iter().map(attempt).collect(),
            ..Incident::new(id.to_owned(), vm.to_owned(), cause, reason, time(0))
        }
    }

    #[test]
    fn what_an_incident_tells_last_takes_the_place_of_what_it_told_before() {
        let mut index = RestartIndex::default();
        index.note(&incident("1", "a", &[10, 20]));
        index.note(&incident("2", "a", &[15]));
        index.note(&incident("3", "b", &[20]));
        let a = Key::new(Some(1), None, "a");
        assert_eq!(index.of(&a, time(0)), [time(10), time(15), time(20)]);
        assert_eq!(index.of_all(time(15)), [time(15), time(20), time(20)]);
        index.note(&incident("1", "a", &[10]));
        assert_eq!(index.of(&a, time(11)), [time(15)]);
        assert_eq!(index.of_all(time(0)), [time(10), time(15), time(20)]);
        for (id, vm) in [("1", "a"), ("2", "a"), ("3", "b")] {
            index.note(&incident(id, vm, &[]));
        }
        assert!(index.by_claim.is_empty() && index.by_time.is_empty());
    }

    #[test]
    fn restarts_of_what_another_user_or_process_claims_do_not_count() {
        let mut index = RestartIndex::default();
        let process = |pid| Some(ProcessId { pid, start_ticks: 1 });
        let of = |id, at: u64, uid, counted_for| Incident {
            uid,
            counted_for,
            ..incident(id, "a", &[at])
        };
        for noted in [
            of("of-before", 10, None, None),
            of("its", 20, Some(1), None),
            of("of-another-user", 30, Some(2), None),
            of("of-one", 40, Some(1), process(7)),
            of("of-the-other", 50, Some(1), process(8)),
        ] {
            index.note(&noted);
        }
        let key = || Key::new(Some(1), None, "a");
        assert_eq!(index.of(&key(), time(0)), [time(10), time(20)]);
        let one = key().of_process(process(7));
        assert_eq!(index.of(&one, time(0)), [time(10), time(20), time(40)]);
        assert_eq!(index.of(&Key::new(Some(3), None, "a"), time(0)), [time(10)]);
        // What is told of one that is counted by itself from now on takes the place of what was told before.
        index.note(&of("its", 20, Some(1), process(7)));
        assert_eq!(index.of(&key(), time(0)), [time(10)]);
    }

    #[test]
    fn where_there_are_too_many_the_user_that_has_most_gives_up_its_oldest() {
        let mut index = RestartIndex { most: 4, ..RestartIndex::default() };
        let of = |id: u64, vm: &str, uid| Incident {
            uid: Some(uid),
            ..incident(&id.to_string(), vm, &[id])
        };
        index.note(&of(1, "victim", 1));
        for id in 2..10 {
            index.note(&of(id, &format!("crashes-{id}"), 2));
        }
        assert_eq!(index.of_all(time(0)), [1, 7, 8, 9].map(time));
        assert_eq!(index.of(&Key::new(Some(1), None, "victim"), time(0)), [time(1)]);
        assert_eq!((index.incidents, index.by_claim.len()), (4, 4));
    }
}
