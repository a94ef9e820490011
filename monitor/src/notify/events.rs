//! From what the daemon knows to what is to be told: each thing once, and what is over, too. Pure: times come in.
//!
//! Incidents are told as they are written down, each time with a little more in them; what was told of each is
//! remembered, so that only news becomes an event. How VMs stand, and what flatline sees by, is compared from tick to
//! tick, and told when it has lasted: a figure that is missing in one tick is no news.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ring::digest;

use super::event::{Event, EventKind, Subject};
use crate::storage::incident::{Incident, Outcome};
use flatline_detector::verdict::Cause;
use flatline_qemu::discover::VmId;

/// Incidents that are remembered.
const REMEMBERED: usize = 1024;
/// VMs that are remembered to be down.
const DOWN_MAX: usize = 4096;
/// How long a VM must be unobservable, or its host at fault, or a sensor lost, before that is told.
pub const LASTING: Duration = Duration::from_secs(10);
/// The cause of a storm's incident.
const STORM: &str = "storm";
/// Bytes of an event's id, as hexadecimal digits: half of a digest tells all events apart.
const ID_BYTES: usize = 16;

/// How a VM stands, as far as that is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing to be told.
    Fine,
    /// A figure can't be read, and which.
    Unobservable(String),
    /// It is left alone for its host's fault, and which.
    HostFault(String),
}

#[derive(Debug)]
struct Told {
    incident: String,
    events: Vec<(EventKind, usize)>,
    is_over: bool,
}

/// A VM that something bad was told of.
#[derive(Debug)]
struct Down {
    at: SystemTime,
    has_crashed: bool,
    incident: Incident,
}

#[derive(Debug)]
struct Lasting {
    kind: EventKind,
    reason: String,
    since: Duration,
    is_told: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Follower {
    host: String,
    /// When the daemon started: what happened before it, another one has told.
    began: SystemTime,
    told: VecDeque<Told>,
    down: BTreeMap<String, Down>,
    standings: BTreeMap<VmId, Lasting>,
    sensors: BTreeMap<String, Lasting>,
    numbered: u64,
}

fn subject(incident: &Incident) -> Subject {
    let Incident { vm, uuid, pid, .. } = incident;
    Subject { vm: vm.clone(), uuid: uuid.clone(), pid: *pid }
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

impl Follower {
    /// Of the daemon of `host` that started at `began`.
    pub fn new(host: String, began: SystemTime) -> Self {
        Self {
            host,
            // Times in records have whole seconds, rounded down.
            began: began - Duration::from_secs(1),
            told: VecDeque::new(),
            down: BTreeMap::new(),
            standings: BTreeMap::new(),
            sensors: BTreeMap::new(),
            numbered: 0,
        }
    }

    /// An incident, as it is written down at `now`.
    pub fn incident(&mut self, incident: &Incident, now: SystemTime) -> Vec<Event> {
        if incident.cause == STORM {
            let is_new = self.told_of(incident).1;
            let event = Event::of_host(EventKind::HostIncident, now, incident.reason.clone());
            let incident = Some(Box::new(incident.clone()));
            let event = Event { cause: Some(STORM.to_owned()), incident, ..event };
            return if is_new { vec![self.numbered(event)] } else { Vec::new() };
        }
        let cause = Cause::parse(&incident.cause);
        let of_user_space = match cause {
            Some(Cause::UserlandDead) => Some(EventKind::UserlandDead),
            Some(Cause::ServiceDead) => Some(EventKind::ServiceDead),
            _ => None,
        };
        let since = self.began;
        let (told, is_new) = self.told_of(incident);
        let attempts = incident.attempts.len();
        let mut kinds = Vec::new();
        let only_told = of_user_space.filter(|kind| {
            let was_told = told.events.iter().any(|(told, _)| told == kind);
            was_told || is_new && attempts == 0 && incident.outcome == Some(Outcome::Observed)
        });
        if let Some(kind) = only_told {
            kinds.push((kind, 0));
            if incident.recovered_at.is_some() {
                kinds.push((EventKind::BeatsAgain, 0));
            }
        } else {
            // One that resets itself has not crashed once, but failed.
            if is_new && incident.detected_at >= since && cause != Some(Cause::BootLoop) {
                kinds.push((EventKind::Crashed, 0));
            }
            let restarts = incident
                .attempts
                .iter()
                .enumerate()
                .filter(|(_, attempt)| attempt.reset_at.is_some_and(|at| at >= since));
            kinds.extend(restarts.map(|(index, _)| (EventKind::Restarted, index + 1)));
            let outcome = incident.outcome.map(outcome_kind);
            kinds.extend(outcome.filter(|_| !told.is_over).map(|kind| (kind, attempts)));
        }
        kinds.retain(|known| !told.events.contains(known));
        told.events.extend(&kinds);
        let events: Vec<Event> = kinds
            .into_iter()
            .map(|(kind, attempt)| self.of(incident, kind, attempt, now))
            .collect();
        events.iter().for_each(|event| self.keep_down(event.kind, incident));
        events
    }

    /// An incident that an earlier daemon left open: what is so still, which is no news.
    pub fn taken_up(&mut self, incident: &Incident, now: SystemTime) -> Vec<Event> {
        let attempts = incident.attempts.len();
        let restarts = (1..=attempts).map(|attempt| (EventKind::Restarted, attempt));
        let outcome = incident.outcome.map(|outcome| (outcome_kind(outcome), attempts));
        let is_loop = incident.cause == Cause::BootLoop.as_str();
        let crashed = (!is_loop).then_some((EventKind::Crashed, 0));
        let lasting: Vec<_> = crashed.into_iter().chain(outcome).collect();
        let (told, _) = self.told_of(incident);
        told.events = lasting.iter().copied().chain(restarts).collect();
        lasting.iter().for_each(|(kind, _)| self.keep_down(*kind, incident));
        lasting.into_iter().map(|(kind, attempt)| self.of(incident, kind, attempt, now)).collect()
    }

    /// What was told of this incident, and whether it is new.
    fn told_of(&mut self, incident: &Incident) -> (&mut Told, bool) {
        let known = self.told.iter().rposition(|told| told.incident == incident.id);
        let index = known.unwrap_or_else(|| {
            if self.told.len() == REMEMBERED {
                self.told.pop_front();
            }
            let incident = incident.id.clone();
            self.told.push_back(Told { incident, events: Vec::new(), is_over: false });
            self.told.len() - 1
        });
        (&mut self.told[index], known.is_none())
    }

    fn keep_down(&mut self, kind: EventKind, incident: &Incident) {
        let key = subject(incident).key().to_owned();
        let has_crashed = match kind {
            EventKind::Recovered => return drop(self.down.remove(&key)),
            EventKind::BeatsAgain => {
                if self.down.get(&key).is_some_and(|down| !down.has_crashed) {
                    self.down.remove(&key);
                }
                return;
            }
            EventKind::UserlandDead | EventKind::ServiceDead => {
                self.down.get(&key).is_some_and(|down| down.has_crashed)
            }
            _ => true,
        };
        if self.down.len() == DOWN_MAX && !self.down.contains_key(&key) {
            self.down.pop_first();
        }
        let down = Down { at: incident.detected_at, has_crashed, incident: incident.clone() };
        self.down.insert(key, down);
    }

    /// Whether any VM is down: only then need anybody ask which of them live.
    pub fn any_is_down(&self) -> bool {
        !self.down.is_empty()
    }

    /// A VM that nobody waits for any more is alive, and was heard last at `heard`.
    pub fn alive(&mut self, key: &str, heard: SystemTime, now: SystemTime) -> Option<Event> {
        let down = self.down.get(key).filter(|down| down.has_crashed && heard > down.at)?;
        let incident = down.incident.clone();
        Some(self.alive_again(&incident, now))
    }

    /// A guest lives that was convicted, and not brought back.
    pub fn alive_again(&mut self, incident: &Incident, now: SystemTime) -> Event {
        self.told_of(incident).0.is_over = true;
        self.down.remove(subject(incident).key());
        self.of(incident, EventKind::AliveAgain, incident.attempts.len(), now)
    }

    /// A VM's QEMU is gone; it had no open case, and `words` say how it ended.
    pub fn ended(&mut self, who: Subject, words: &str, now: SystemTime) -> Option<Event> {
        let down = self.down.remove(who.key())?;
        let event = Event::of_vm(EventKind::Ended, now, who, words.to_owned());
        let incident = Some(Box::new(down.incident));
        Some(self.numbered(Event { incident, ..event }))
    }

    /// A VM is no longer watched: what was told of how it stands is over.
    pub fn gone(&mut self, id: VmId, who: Subject, now: SystemTime) -> Option<Event> {
        let lasting = self.standings.remove(&id).filter(|lasting| lasting.is_told)?;
        let event =
            Event::of_vm(over(lasting.kind), now, who, "it is no longer watched".to_owned());
        Some(self.numbered(event))
    }

    /// How a VM stands at `moment`, which is `now`.
    pub fn standing(
        &mut self,
        id: VmId,
        who: impl Fn() -> Subject,
        standing: Standing,
        (moment, now): (Duration, SystemTime),
    ) -> Vec<Event> {
        let found = match standing {
            Standing::Fine => None,
            Standing::Unobservable(reason) => Some((EventKind::Unobservable, reason)),
            Standing::HostFault(reason) => Some((EventKind::HostFault, reason)),
        };
        let mut known = self.standings.remove(&id);
        let news = lasts(&mut known, found, moment);
        if let Some(known) = known {
            self.standings.insert(id, known);
        }
        let tell = |(kind, reason)| Event::of_vm(kind, now, who(), reason);
        news.into_iter().map(|news| self.numbered(tell(news))).collect()
    }

    /// All that flatline sees by and that is out of order at `moment`, which is `now`: names, and why.
    pub fn sensors(
        &mut self,
        lost: Vec<(String, String)>,
        moment: Duration,
        now: SystemTime,
    ) -> Vec<Event> {
        let mut found: BTreeMap<String, String> = lost.into_iter().collect();
        let mut events = Vec::new();
        for (name, known) in std::mem::take(&mut self.sensors) {
            let why = found.remove(&name).map(|why| (EventKind::SensorLost, why));
            let mut known = Some(known);
            let news = lasts(&mut known, why, moment);
            events.extend(news.into_iter().map(|news| (name.clone(), news)));
            if let Some(known) = known {
                self.sensors.insert(name, known);
            }
        }
        for (name, why) in found {
            let mut known = None;
            lasts(&mut known, Some((EventKind::SensorLost, why)), moment);
            self.sensors.extend(known.map(|known| (name, known)));
        }
        let tell = |(sensor, (kind, reason)): (String, (EventKind, String))| {
            let reason =
                if reason.is_empty() { sensor.clone() } else { format!("{sensor}: {reason}") };
            Event { sensor, ..Event::of_host(kind, now, reason) }
        };
        events.into_iter().map(|news| self.numbered(tell(news))).collect()
    }

    /// An event of the whole host, told as it is.
    pub fn of_host(&mut self, kind: EventKind, reason: String, now: SystemTime) -> Event {
        self.numbered(Event::of_host(kind, now, reason))
    }

    fn of(&self, incident: &Incident, kind: EventKind, attempt: usize, at: SystemTime) -> Event {
        // The same event of the same incident has the same id, whichever daemon tells it.
        let id = self.id(&[kind.as_str(), &incident.id, &attempt.to_string()]);
        let event = Event::of_vm(kind, at, subject(incident), reason(incident, kind, attempt));
        let cause = Some(incident.cause.clone());
        Event { id, cause, attempt, incident: Some(Box::new(incident.clone())), ..event }
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

fn over(kind: EventKind) -> EventKind {
    match kind {
        EventKind::HostFault => EventKind::HostFaultOver,
        EventKind::SensorLost => EventKind::SensorBack,
        _ => EventKind::ObservableAgain,
    }
}

/// Follows one thing that is out of order, or isn't: what of it is news.
fn lasts(
    known: &mut Option<Lasting>,
    found: Option<(EventKind, String)>,
    moment: Duration,
) -> Vec<(EventKind, String)> {
    let mut news = Vec::new();
    let same = |known: &Lasting| found.as_ref().is_some_and(|(kind, _)| *kind == known.kind);
    if let Some(ended) = known.take_if(|known| !same(known))
        && ended.is_told
    {
        news.push((over(ended.kind), String::new()));
    }
    if let Some((kind, reason)) = found {
        let lasting = known.get_or_insert(Lasting {
            kind,
            reason: String::new(),
            since: moment,
            is_told: false,
        });
        lasting.reason = reason;
        if !lasting.is_told && moment.saturating_sub(lasting.since) >= LASTING {
            lasting.is_told = true;
            news.push((kind, lasting.reason.clone()));
        }
    }
    news
}
