//! Allowance of incidents: how many of one user's VMs are written down within an hour. Pure.
//!
//! Beyond it, a crash is dealt with as any other, and only counted, in one incident of that user and hour: a user that starts
//! QEMUs in a loop to have them crash fills neither the disk nor the list. A VM that has run for an hour has its incident besides,
//! so that a host whose VMs all crash at once has them all, however many of them are one user's.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use crate::storage::incident::{Incident, Outcome};

/// Incidents of one user's VMs within an hour.
const HOURLY: u32 = 120;
const HOUR: Duration = Duration::from_secs(3600);
/// From one writing of what was counted to the next.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// What stands for the VM and the cause in an incident that counts others.
const ANY: &str = "*";
const CAUSE: &str = "too-many-incidents";

/// See the module. Moments are times since the host's start.
#[derive(Debug, Default)]
pub(super) struct Allowances(BTreeMap<u32, Hour>);

/// What there was of one user in the hour that began then.
#[derive(Debug)]
struct Hour {
    began: Duration,
    of_old: u32,
    of_others: u32,
    beyond: u64,
    /// The one that counts those, and when it was written down last, with how many.
    summary: Option<Incident>,
    said: Option<(Duration, u64)>,
}

impl Allowances {
    /// Whether an incident of a VM of the user `uid` that has run for so long is to be written down; at most `most_old` of those
    /// that have run for an hour are besides the others.
    pub(super) fn take(&mut self, uid: u32, age: Duration, most_old: u32, now: Duration) -> bool {
        let hour = self.0.entry(uid).or_insert_with(|| Hour::begin(now));
        if now.saturating_sub(hour.began) >= HOUR && !hour.is_to_be_said() {
            *hour = Hour::begin(now);
        }
        if age >= HOUR && hour.of_old < most_old {
            hour.of_old += 1;
            return true;
        }
        if hour.of_others < HOURLY {
            hour.of_others += 1;
            return true;
        }
        hour.beyond += 1;
        false
    }

    /// The incidents that count others, as far as they are to be written down now. `new_id` makes the id of one that is new.
    pub(super) fn due(
        &mut self,
        now: Duration,
        wall: SystemTime,
        new_id: impl Fn(&str) -> String,
    ) -> Vec<Incident> {
        let mut due = Vec::new();
        for (uid, hour) in &mut self.0 {
            if !hour.is_to_be_said()
                || hour.said.is_some_and(|(at, _)| now.saturating_sub(at) < SAY_EVERY)
            {
                continue;
            }
            hour.said = Some((now, hour.beyond));
            let summary = hour.summary.get_or_insert_with(|| {
                let id = new_id(&format!("user-{uid}"));
                let of = Incident::new(id, ANY.to_owned(), CAUSE.to_owned(), String::new(), wall);
                Incident { uid: Some(*uid), outcome: Some(Outcome::Observed), ..of }
            });
            summary.reason = format!(
                "VMs of user {uid} had more than {HOURLY} incidents within an hour: {} more were dealt with as any other, and \
                 are only counted here",
                hour.beyond
            );
            due.push(summary.clone());
        }
        self.0.retain(|_, hour| now.saturating_sub(hour.began) < HOUR || hour.is_to_be_said());
        due
    }
}

impl Hour {
    fn begin(now: Duration) -> Self {
        Self { began: now, of_old: 0, of_others: 0, beyond: 0, summary: None, said: None }
    }

    /// Whether more was counted than was written down.
    fn is_to_be_said(&self) -> bool {
        self.beyond > self.said.map_or(0, |(_, beyond)| beyond)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn due(of: &mut Allowances, now: Duration) -> Vec<Incident> {
        of.due(now, SystemTime::UNIX_EPOCH, str::to_owned)
    }

    #[test]
    fn beyond_its_allowance_a_users_incidents_are_counted_and_others_have_theirs() {
        let mut of = Allowances::default();
        let now = SECOND * 9000;
        let written = (0..1214).filter(|_| of.take(1, SECOND, 1024, now)).count();
        assert_eq!(written, HOURLY as usize);
        assert!(of.take(2, SECOND, 1024, now), "another user's");
        let summaries = due(&mut of, now);
        assert_eq!((summaries.len(), summaries[0].uid), (1, Some(1)));
        assert!(summaries[0].reason.contains(": 1094 more"), "{}", summaries[0].reason);
        assert_eq!(due(&mut of, now + SECOND), []);
        assert!(!of.take(1, SECOND, 1024, now + SECOND));
        assert_eq!(due(&mut of, now + SECOND), [], "not with each");
        let again = due(&mut of, now + SAY_EVERY);
        assert_eq!(again[0].id, summaries[0].id);
        assert!(again[0].reason.contains(": 1095 more"));
    }

    #[test]
    fn an_hour_later_all_begins_anew_once_what_was_counted_is_written_down() {
        let mut of = Allowances::default();
        let taken = (0..200).filter(|_| of.take(1, SECOND, 0, SECOND)).count();
        assert_eq!(taken, HOURLY as usize);
        assert!(!of.take(1, SECOND, 0, SECOND + HOUR), "what was counted is not lost");
        assert_eq!(due(&mut of, SECOND + HOUR).len(), 1);
        assert!(of.0.is_empty());
        assert!(of.take(1, SECOND, 0, SECOND + HOUR));
    }

    #[test]
    fn a_vm_that_has_run_for_an_hour_has_its_incident_besides_up_to_a_bound() {
        let mut of = Allowances::default();
        let written = (0..2000).filter(|_| of.take(1, HOUR, 1000, SECOND)).count();
        assert_eq!(written, 1000 + HOURLY as usize);
    }
}
