//! Index of the restarts that count towards limits: by VM, and of the whole host by their time, so that what is asked of one
//! VM, or of the last minute, takes no look at all that ever were.

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    time::SystemTime,
};

use super::incident::Incident;

/// Restarts of incidents.
#[derive(Debug, Default)]
pub(super) struct RestartIndex {
    /// By the VM's key, and by incident.
    by_vm: HashMap<String, HashMap<String, Vec<SystemTime>>>,
    /// How many there were at each moment.
    by_time: BTreeMap<SystemTime, usize>,
}

/// The VM's UUID, or the name of one without.
fn key(incident: &Incident) -> &str {
    incident.uuid.as_deref().unwrap_or(&incident.vm)
}

impl RestartIndex {
    /// Takes the restarts that `incident` tells of in place of those that it told of before.
    pub(super) fn note(&mut self, incident: &Incident) {
        let at: Vec<SystemTime> = incident.restarts().collect();
        let key = key(incident);
        self.forget(key, &incident.id);
        if at.is_empty() {
            return;
        }
        for time in &at {
            *self.by_time.entry(*time).or_default() += 1;
        }
        self.by_vm.entry(key.to_owned()).or_default().insert(incident.id.clone(), at);
    }

    fn forget(&mut self, key: &str, id: &str) {
        let Some(its) = self.by_vm.get_mut(key) else { return };
        for time in its.remove(id).into_iter().flatten() {
            if let Entry::Occupied(mut count) = self.by_time.entry(time) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        }
        if its.is_empty() {
            self.by_vm.remove(key);
        }
    }

    /// Those of the VM with this key at `since` or later, the earliest first.
    pub(super) fn of(&self, key: &str, since: SystemTime) -> Vec<SystemTime> {
        let its = self.by_vm.get(key).into_iter().flat_map(HashMap::values).flatten();
        let mut times: Vec<_> = its.filter(|at| **at >= since).copied().collect();
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
    use crate::storage::incident::Attempt;

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
        assert_eq!(index.of("a", time(0)), [time(10), time(15), time(20)]);
        assert_eq!(index.of_all(time(15)), [time(15), time(20), time(20)]);
        index.note(&incident("1", "a", &[10]));
        assert_eq!(index.of("a", time(11)), [time(15)]);
        assert_eq!(index.of_all(time(0)), [time(10), time(15), time(20)]);
        for (id, vm) in [("1", "a"), ("2", "a"), ("3", "b")] {
            index.note(&incident(id, vm, &[]));
        }
        assert!(index.by_vm.is_empty() && index.by_time.is_empty());
    }
}
