//! Notification events, made of what recovery says and of conditions that last. Pure: times come in.
//!
//! Recovery says each thing when it happens ([`recovery::Event`]); what VMs and sensors look like is compared from tick to
//! tick by [`lasting`](super::lasting). Here they get their words, and an id by which a receiver knows one that comes twice.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt::Write as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ring::digest;

use super::{
    event::{Event, EventKind, Subject},
    lasting::LastingConditions,
};
use crate::{
    identity::Key,
    recovery::{self, EventKind as Happened},
    storage::incident::{Incident, Outcome},
};
use flatline_detector::verdict::Cause;
use flatline_qemu::discover::VmId;

/// Outcomes that are remembered, so that the same one of the same incident is told once.
const OUTCOMES_MAX: usize = 1024;
/// VMs that are remembered to be down.
const DOWN_MAX: usize = 4096;
/// Bytes of an event's id, as hexadecimal digits: half of a digest tells all events apart.
const ID_BYTES: usize = 16;

/// A VM of which something bad was told, which is not over.
#[derive(Debug)]
struct Down {
    has_crashed: bool,
    incident: Incident,
}

/// Source of this host's notification events.
#[derive(Debug)]
pub(crate) struct Events {
    host: String,
    /// Ids of the outcomes that were told, the oldest first.
    outcomes: VecDeque<String>,
    /// By their subjects' keys.
    down: BTreeMap<Key, Down>,
    /// What several QEMUs claim to be, and that was told.
    duplicates: BTreeSet<Key>,
    vms: LastingConditions<VmId>,
    sensors: LastingConditions<String>,
    /// Events of no incident so far, which makes their ids unique.
    numbered: u64,
}

fn subject(incident: &Incident) -> Subject {
    let Incident { vm, uuid, uid, counted_for, pid, .. } = incident;
    let (vm, uuid) = (vm.clone(), uuid.clone());
    Subject { vm, uuid, uid: *uid, counted_for: *counted_for, pid: *pid }
}

fn outcome_kind(outcome: Outcome) -> EventKind {
    match outcome {
        Outcome::Recovered => EventKind::Recovered,
        Outcome::NotRecovered => EventKind::NotRecovered,
        Outcome::Observed => EventKind::Observed,
        Outcome::LimitReached => EventKind::Failed,
        Outcome::Refused => EventKind::Refused,
    }
}

/// A guest that resets itself again and again has not crashed once, but failed.
fn has_crashed_once(incident: &Incident) -> bool {
    incident.cause != Cause::BootLoop.as_str()
}

impl Events {
    /// None so far, on the host called so.
    pub(crate) fn new(host: String) -> Self {
        Self {
            host,
            outcomes: VecDeque::new(),
            down: BTreeMap::new(),
            duplicates: BTreeSet::new(),
            vms: LastingConditions::default(),
            sensors: LastingConditions::default(),
            numbered: 0,
        }
    }

    /// The event of what recovery said, where it is one to be told.
    pub(crate) fn of_recovery(
        &mut self,
        said: recovery::Event<'_>,
        now: SystemTime,
    ) -> Option<Event> {
        let incident = said.incident;
        let attempts = incident.attempts.len();
        let (kind, attempt) = match said.kind {
            Happened::TakenUp | Happened::RestartBegun | Happened::Recorded => return None,
            Happened::Detected if !has_crashed_once(incident) => return None,
            Happened::Detected => (EventKind::Crashed, 0),
            Happened::Restarted => (EventKind::Restarted, attempts),
            Happened::Closed(outcome) => {
                let kind = outcome_kind(outcome);
                if !self.is_new_outcome(incident, kind) {
                    return None;
                }
                (kind, attempts)
            }
            Happened::AliveAgain => (EventKind::AliveAgain, attempts),
            Happened::AgentLost if incident.cause == Cause::ServiceDead.as_str() => {
                (EventKind::ServiceDead, 0)
            }
            Happened::AgentLost => (EventKind::UserlandDead, 0),
            Happened::AgentBack => (EventKind::BeatsAgain, 0),
            Happened::Storm => return Some(self.storm(incident, now)),
        };
        self.note(kind, incident);
        Some(self.of_incident(incident, kind, attempt, now))
    }

    /// What is so still with an incident that an earlier daemon left open, and told.
    pub(crate) fn taken_up(&mut self, incident: &Incident, now: SystemTime) -> Vec<Event> {
        let crashed = has_crashed_once(incident).then_some((EventKind::Crashed, 0));
        let outcome = incident.outcome.map(outcome_kind);
        outcome.map(|kind| self.is_new_outcome(incident, kind));
        let outcome = outcome.map(|kind| (kind, incident.attempts.len()));
        let lasting = crashed.into_iter().chain(outcome);
        lasting
            .map(|(kind, attempt)| {
                self.note(kind, incident);
                self.of_incident(incident, kind, attempt, now)
            })
            .collect()
    }

    /// Remembers this outcome; whether it was not told before: another try may have come to the same.
    fn is_new_outcome(&mut self, incident: &Incident, kind: EventKind) -> bool {
        let id = self.id_of(incident, kind, incident.attempts.len());
        if self.outcomes.contains(&id) {
            return false;
        }
        if self.outcomes.len() == OUTCOMES_MAX {
            self.outcomes.pop_front();
        }
        self.outcomes.push_back(id);
        true
    }

    /// Notes whether its VM is down with this.
    fn note(&mut self, kind: EventKind, incident: &Incident) {
        let key = self.key_of(incident);
        let had_crashed = self.down.get(&key).map(|down| down.has_crashed);
        let has_crashed = match kind {
            EventKind::Recovered | EventKind::AliveAgain => return drop(self.down.remove(&key)),
            EventKind::BeatsAgain if had_crashed == Some(true) => return,
            EventKind::BeatsAgain => return drop(self.down.remove(&key)),
            EventKind::UserlandDead | EventKind::ServiceDead => had_crashed == Some(true),
            _ => true,
        };
        if self.down.len() == DOWN_MAX && had_crashed.is_none() {
            self.forget_one();
        }
        self.down.insert(key, Down { has_crashed, incident: incident.clone() });
    }

    /// Makes room: of the user with the most VMs that are down, so that no user has those of others forgotten.
    fn forget_one(&mut self) {
        let mut by_user: BTreeMap<Option<u32>, usize> = BTreeMap::new();
        for key in self.down.keys() {
            *by_user.entry(key.uid).or_default() += 1;
        }
        let most = by_user.into_iter().max_by_key(|(_, vms)| *vms).map(|(uid, _)| uid);
        let goes = self.down.keys().find(|key| Some(key.uid) == most).cloned();
        goes.map(|key| self.down.remove(&key));
    }

    /// Under what its VM is remembered to be down, or will be: it may have come to be known by its process since.
    fn key_of(&self, incident: &Incident) -> Key {
        let known = self.down.iter().find(|(_, down)| down.incident.id == incident.id);
        known.map_or_else(|| subject(incident).key(), |(key, _)| key.clone())
    }

    /// Under what a VM is remembered to be down: its key, or that from before it was known by its process.
    fn down_as(&self, key: &Key) -> Option<Key> {
        let was_its = |incident: &Incident| {
            key.process.is_some_and(|its| {
                (its.pid, its.start_ticks) == (incident.pid, incident.start_ticks)
            })
        };
        if self.down.contains_key(key) {
            return Some(key.clone());
        }
        let before = key.clone().of_process(None);
        self.down.get(&before).filter(|down| was_its(&down.incident)).map(|_| before)
    }

    /// Whether any VM is down: only then need its life be looked for with [`Events::alive`].
    pub(crate) fn any_is_down(&self) -> bool {
        !self.down.is_empty()
    }

    /// A VM without an open case is alive, and was heard last at `heard`: news if it was down.
    pub(crate) fn alive(&mut self, key: &Key, heard: SystemTime, now: SystemTime) -> Option<Event> {
        let is_so = |down: &Down| down.has_crashed && heard > down.incident.detected_at;
        let key = self.down_as(key)?;
        let incident = &self.down.get(&key).filter(|down| is_so(down))?.incident.clone();
        self.of_recovery(recovery::Event { kind: Happened::AliveAgain, incident }, now)
    }

    /// A VM's QEMU is gone, without an open case, and `words` say how it ended: news if it was down.
    pub(crate) fn ended(
        &mut self,
        subject: Subject,
        words: &str,
        now: SystemTime,
    ) -> Option<Event> {
        let key = self.down_as(&subject.key())?;
        let down = self.down.remove(&key)?;
        let event = Event::of_vm(EventKind::Ended, now, subject, words.to_owned());
        let incident = Some(Box::new(down.incident));
        Some(self.numbered(Event { incident, ..event }))
    }

    /// A VM is no longer watched: its condition, if one was told, is over.
    pub(crate) fn no_longer_watched(
        &mut self,
        id: VmId,
        subject: Subject,
        now: SystemTime,
    ) -> Option<Event> {
        let over = self.vms.forget(&id)?;
        let event = Event::of_vm(over, now, subject, "it is no longer watched".to_owned());
        Some(self.numbered(event))
    }

    /// Several QEMUs claim to be this VM, and `why` says which: news if that was not told before.
    pub(crate) fn duplicate(
        &mut self,
        subject: Subject,
        why: String,
        now: SystemTime,
    ) -> Option<Event> {
        // It is about all of them.
        let subject = Subject { counted_for: None, ..subject };
        let is_news = self.duplicates.len() < DOWN_MAX && self.duplicates.insert(subject.key());
        let event = Event::of_vm(EventKind::DuplicateIdentity, now, subject, why);
        is_news.then(|| self.numbered(event))
    }

    /// One QEMU at most claims to be it: news if several were told of.
    pub(crate) fn duplicate_over(&mut self, subject: Subject, now: SystemTime) -> Option<Event> {
        let subject = Subject { counted_for: None, ..subject };
        let is_news = self.duplicates.remove(&subject.key());
        let event = Event::of_vm(EventKind::DuplicateIdentityOver, now, subject, String::new());
        is_news.then(|| self.numbered(event))
    }

    /// The condition of a VM at `moment`, which is `now`; `None`: a good one.
    pub(crate) fn of_vm(
        &mut self,
        id: VmId,
        subject: impl Fn() -> Subject,
        condition: Option<(EventKind, String)>,
        (moment, now): (Duration, SystemTime),
    ) -> Vec<Event> {
        let news = self.vms.step(id, condition, moment);
        let event = |(kind, reason)| Event::of_vm(kind, now, subject(), reason);
        news.into_iter().map(|news| self.numbered(event(news))).collect()
    }

    /// All sensors that are out of order at `moment`, which is `now`, with why.
    pub(crate) fn of_sensors(
        &mut self,
        mut lost: BTreeMap<String, String>,
        moment: Duration,
        now: SystemTime,
    ) -> Vec<Event> {
        let mut names = self.sensors.keys();
        names.extend(lost.keys().cloned());
        let mut events = Vec::new();
        for sensor in names {
            let why = lost.remove(&sensor).map(|why| (EventKind::SensorLost, why));
            for (kind, why) in self.sensors.step(sensor.clone(), why, moment) {
                let reason =
                    if why.is_empty() { sensor.clone() } else { format!("{sensor}: {why}") };
                let event = Event::of_host(kind, now, reason);
                events.push(self.numbered(Event { sensor: sensor.clone(), ..event }));
            }
        }
        events
    }

    /// An event of the whole host.
    pub(crate) fn of_host(&mut self, kind: EventKind, reason: String, now: SystemTime) -> Event {
        self.numbered(Event::of_host(kind, now, reason))
    }

    fn storm(&mut self, incident: &Incident, now: SystemTime) -> Event {
        let event = Event::of_host(EventKind::HostIncident, now, incident.reason.clone());
        let cause = Some(incident.cause.clone());
        self.numbered(Event { cause, incident: Some(Box::new(incident.clone())), ..event })
    }

    fn of_incident(
        &self,
        incident: &Incident,
        kind: EventKind,
        attempt: usize,
        at: SystemTime,
    ) -> Event {
        let id = self.id_of(incident, kind, attempt);
        let event = Event::of_vm(kind, at, subject(incident), reason(incident, kind, attempt));
        let cause = Some(incident.cause.clone());
        Event { id, cause, attempt, incident: Some(Box::new(incident.clone())), ..event }
    }

    /// The same event of the same incident has the same id, whichever daemon tells it.
    fn id_of(&self, incident: &Incident, kind: EventKind, attempt: usize) -> String {
        self.id(&[kind.as_str(), &incident.id, &attempt.to_string()])
    }

    fn numbered(&mut self, event: Event) -> Event {
        self.numbered += 1;
        let at = event.at.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let id = self.id(&[event.kind.as_str(), &at.to_string(), &self.numbered.to_string()]);
        Event { id, ..event }
    }

    fn id(&self, parts: &[&str]) -> String {
        let mut context = digest::Context::new(&digest::SHA256);
        for part in [self.host.as_str()].iter().chain(parts) {
            context.update(part.as_bytes());
            context.update(b"\0");
        }
        context.finish().as_ref().iter().take(ID_BYTES).fold(String::new(), |mut id, byte| {
            // Writing to a string can't fail.
            let _ = write!(id, "{byte:02x}");
            id
        })
    }
}

/// What is said of an incident, in words that are about this event of it.
fn reason(incident: &Incident, kind: EventKind, attempt: usize) -> String {
    let Incident { reason, recover_seconds, .. } = incident;
    match kind {
        EventKind::Restarted => {
            let attempt = attempt.checked_sub(1).and_then(|index| incident.attempts.get(index));
            let what = attempt
                .map(|attempt| format!("{}, by {}; ", attempt.limit, attempt.steps.join(", ")));
            format!("{}it had crashed: {reason}", what.unwrap_or_default())
        }
        EventKind::Recovered => {
            let took = recover_seconds.map(|took| format!(" {took:.1} s after its restart"));
            format!("it shows life{}; it had crashed: {reason}", took.unwrap_or_default())
        }
        EventKind::AliveAgain => format!("it shows life; it had crashed: {reason}"),
        _ => reason.clone(),
    }
}
