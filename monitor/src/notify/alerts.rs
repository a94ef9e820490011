//! What is wrong now, as Alertmanager has it: alerts that fire until they are over. Pure: times come in.
//!
//! Alertmanager forgets an alert whose end has passed, and is told of each again and again with an end that moves on; one
//! of a daemon that is gone ends by itself. What is over is sent with its end until Alertmanager has taken it once.

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use serde_json::{Map, Value, json};

use super::{
    event::{Event, EventKind},
    payload::fit,
    queue::{Next, Pacing},
};

/// How often an alert that fires is sent again.
pub(crate) const AGAIN_EVERY: Duration = Duration::from_secs(60);
/// For how long it fires without that.
pub(crate) const FIRES_FOR: Duration = Duration::from_secs(240);
/// An alert that nothing ends, as of a VM that never comes back, ends after so long.
pub(crate) const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// The names of the alerts that events begin.
fn begins(kind: EventKind) -> Option<&'static str> {
    match kind {
        EventKind::Crashed | EventKind::Observed => Some("FlatlineGuestCrashed"),
        EventKind::NotRecovered | EventKind::Refused | EventKind::Failed => {
            Some("FlatlineGuestDown")
        }
        EventKind::UserlandDead | EventKind::ServiceDead => Some("FlatlineGuestUnhealthy"),
        EventKind::Unobservable => Some("FlatlineGuestUnobservable"),
        EventKind::HostFault => Some("FlatlineHostFault"),
        EventKind::HostIncident => Some("FlatlineHostIncident"),
        EventKind::SensorLost => Some("FlatlineSensorLost"),
        EventKind::DuplicateIdentity => Some("FlatlineDuplicateIdentity"),
        _ => None,
    }
}

/// The names of those that they end.
fn ends(kind: EventKind) -> &'static [&'static str] {
    match kind {
        EventKind::Recovered | EventKind::AliveAgain | EventKind::Ended => {
            &["FlatlineGuestCrashed", "FlatlineGuestDown", "FlatlineGuestUnhealthy"]
        }
        EventKind::BeatsAgain => &["FlatlineGuestUnhealthy"],
        EventKind::ObservableAgain => &["FlatlineGuestUnobservable"],
        EventKind::HostFaultOver => &["FlatlineHostFault"],
        EventKind::HostIncidentOver => &["FlatlineHostIncident"],
        EventKind::SensorBack => &["FlatlineSensorLost"],
        EventKind::DuplicateIdentityOver => &["FlatlineDuplicateIdentity"],
        _ => &[],
    }
}

/// An alert's name, and the key of its subject.
type Key = (&'static str, String);

#[derive(Clone, Debug)]
struct Alert {
    labels: Map<String, Value>,
    annotations: Map<String, Value>,
    /// What it is of, where it is of one.
    incident: Option<String>,
    begun: SystemTime,
    ended: Option<SystemTime>,
    /// It changed since it was sent last.
    is_news: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Alerts {
    host: String,
    known: BTreeMap<Key, Alert>,
    most: usize,
    /// Those that had to go for want of room, and were not told of since.
    lost: u64,
    sent: Option<Duration>,
    /// When to try again.
    pub(super) pacing: Pacing,
    is_under_way: bool,
}

fn subject_key(event: &Event) -> String {
    match &event.subject {
        Some(subject) => subject.key().to_string(),
        None => event.sensor.clone(),
    }
}

fn incident_of(event: &Event) -> Option<&str> {
    event.incident.as_ref().map(|incident| incident.id.as_str())
}

impl Alerts {
    /// None, and room for `most`.
    pub(crate) fn new(host: String, most: usize) -> Self {
        Self {
            host,
            known: BTreeMap::new(),
            most,
            lost: 0,
            sent: None,
            pacing: Pacing::default(),
            is_under_way: false,
        }
    }

    /// Has room for `most` from now on; returns how many alerts had to go for it.
    pub(crate) fn set_bound(&mut self, most: usize) -> u64 {
        self.most = most;
        let mut gone = 0;
        while self.known.len() > self.most && self.drop_oldest() {
            gone += 1;
        }
        self.lost += gone;
        gone
    }

    /// Whether the event begins an alert, or ends any that there may be.
    pub(crate) fn concerns(kind: EventKind) -> bool {
        begins(kind).is_some() || !ends(kind).is_empty()
    }

    /// Takes an event in, and whether those that begin an alert are wanted; what ends one always is.
    /// Returns how many alerts had to go for it.
    pub(crate) fn take(&mut self, event: &Event, is_wanted: bool) -> u64 {
        let subject = subject_key(event);
        self.end(event, &subject);
        let Some(name) = begins(event.kind).filter(|_| is_wanted) else { return 0 };
        let key = (name, subject);
        let known = self.known.get(&key).filter(|alert| alert.ended.is_none());
        // Its subject stays as it was told first: Alertmanager knows an alert by its labels.
        let (labels, begun) = match known {
            Some(alert) => (alert.labels.clone(), alert.begun),
            None => (
                self.labels(name, event),
                event.incident.as_ref().map_or(event.at, |i| i.detected_at),
            ),
        };
        let mut gone = 0;
        while self.known.len() >= self.most && !self.known.contains_key(&key) && self.drop_oldest()
        {
            gone += 1;
        }
        self.lost += gone;
        let annotations = annotations(event);
        let incident = incident_of(event).map(str::to_owned);
        let alert = Alert { labels, annotations, incident, begun, ended: None, is_news: true };
        self.known.insert(key, alert);
        gone
    }

    /// Ends what the event says is over: of its subject, or of its incident, whose VM may have come to be known by its process
    /// since.
    fn end(&mut self, event: &Event, subject: &str) {
        let incident = incident_of(event);
        let is_over = |(name, of): &Key, alert: &Alert| {
            let is_its =
                of == subject || incident.is_some() && alert.incident.as_deref() == incident;
            is_its && alert.ended.is_none() && ends(event.kind).contains(name)
        };
        for (_, alert) in self.known.iter_mut().filter(|(key, alert)| is_over(key, alert)) {
            (alert.ended, alert.is_news) = (Some(event.at), true);
        }
    }

    fn labels(&self, name: &str, event: &Event) -> Map<String, Value> {
        let mut labels = Map::new();
        let mut put = |name: &str, value: &str| {
            labels.insert(name.to_owned(), fit(value).into());
        };
        put("alertname", name);
        put("host", &self.host);
        put("severity", event.kind.severity().as_str());
        if let Some(subject) = &event.subject {
            put("vm", &subject.vm);
            subject.uuid.iter().for_each(|uuid| put("uuid", uuid));
            subject.uid.iter().for_each(|uid| put("uid", &uid.to_string()));
            subject.counted_for.iter().for_each(|process| put("pid", &process.pid.to_string()));
        }
        event.cause.iter().for_each(|cause| put("cause", cause));
        if !event.sensor.is_empty() {
            put("sensor", &event.sensor);
        }
        labels
    }

    /// One that is over goes first, then the one that began first.
    fn drop_oldest(&mut self) -> bool {
        let oldest =
            self.known.iter().min_by_key(|(_, alert)| (alert.ended.is_none(), alert.begun));
        let oldest = oldest.map(|(key, _)| key.clone());
        oldest.is_some_and(|key| self.known.remove(&key).is_some())
    }

    /// What is to be done at `moment`, which is `now`.
    pub(crate) fn next(&mut self, moment: Duration, now: SystemTime) -> Next<Vec<Value>> {
        for alert in self.known.values_mut() {
            let is_old = now.duration_since(alert.begun).is_ok_and(|age| age >= LONGEST);
            if is_old && alert.ended.is_none() {
                (alert.ended, alert.is_news) = (Some(now), true);
            }
        }
        if self.is_under_way || self.known.is_empty() {
            return Next::Nothing;
        }
        let is_news = self.known.values().any(|alert| alert.is_news);
        let due = self.sent.filter(|_| !is_news).map(|sent| sent + AGAIN_EVERY);
        // Failures ask for a pause; what is no news is not due before its time either.
        match due.max(self.pacing.not_before()).filter(|due| *due > moment) {
            Some(due) => Next::Wait(due),
            None => {
                self.is_under_way = true;
                Next::Deliver(self.batch(now))
            }
        }
    }

    fn batch(&mut self, now: SystemTime) -> Vec<Value> {
        let lost = self.lost;
        let send = |alert: &mut Alert| {
            alert.is_news = false;
            let mut annotations = alert.annotations.clone();
            if lost > 0 {
                annotations.insert("dropped".to_owned(), lost.to_string().into());
            }
            json!({
                "labels": alert.labels,
                "annotations": annotations,
                "startsAt": time(alert.begun),
                "endsAt": time(alert.ended.unwrap_or(now + FIRES_FOR).max(alert.begun)),
            })
        };
        self.known.values_mut().map(send).collect()
    }

    /// Alertmanager has them.
    pub(crate) fn delivered(&mut self, moment: Duration) {
        (self.is_under_way, self.sent, self.lost) = (false, Some(moment), 0);
        self.pacing.succeeded();
        // One that changed meanwhile is sent once more.
        self.known.retain(|_, alert| alert.ended.is_none() || alert.is_news);
    }

    /// It doesn't, and may have asked for a pause. Returns the pause.
    pub(crate) fn failed(&mut self, asked: Option<Duration>, moment: Duration) -> Duration {
        self.is_under_way = false;
        self.known.values_mut().for_each(|alert| alert.is_news = true);
        self.pacing.failed(asked, moment)
    }

    /// Whether nothing can be done now: all news is taken, or has to wait.
    pub(crate) fn is_drained(&self, moment: Duration) -> bool {
        let waits = self.pacing.not_before().is_some_and(|until| until > moment);
        !self.is_under_way && (waits || self.known.values().all(|alert| !alert.is_news))
    }

    /// How many changed, and were not taken so far.
    pub(crate) fn news(&self) -> usize {
        let under_way = self.known.values().filter(|_| self.is_under_way).count();
        under_way.max(self.known.values().filter(|alert| alert.is_news).count())
    }

    /// How many had to go for want of room, of which nothing was told so far.
    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }
}

fn time(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

fn annotations(event: &Event) -> Map<String, Value> {
    let mut annotations = Map::new();
    let mut put = |name: &str, value: &str| {
        annotations.insert(name.to_owned(), fit(value).into());
    };
    put("summary", &event.line());
    put("event", event.kind.as_str());
    put("reason", &event.reason);
    if let Some(subject) = &event.subject {
        put("pid", &subject.pid.to_string());
    }
    if let Some(incident) = &event.incident {
        put("incident", &incident.id);
        put("restarts", &event.attempt.to_string());
    }
    annotations
}
