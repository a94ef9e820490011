//! The record of one crash: what was detected, what was done, what came of it.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::{
    identity::{Key, ProcessId},
    rfc3339,
    words::words,
};

/// Bytes of a VM's name that an id keeps: enough to tell VMs apart, and far below the 255 that a
/// file name may have, together with the time and a number.
const NAME_MAX_BYTES: usize = 64;

words! {
    /// What came of an incident.
    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    pub(crate) enum Outcome {
        /// The guest showed a sign of life after the restart.
        Recovered = "recovered",
        /// It did not.
        NotRecovered = "not-recovered",
        /// Nothing was done: observe mode, or hold.
        Observed = "observed",
        /// Nothing was done: the restart limit is reached.
        LimitReached = "limit-reached",
        /// Nothing was done, and the incident's reason says why.
        Refused = "refused",
    }
}

/// One restart, which is written down before QEMU hears of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attempt {
    /// When it began; it counts towards the limits from then on.
    #[serde(with = "rfc3339")]
    pub begun_at: SystemTime,
    /// The run state that it was planned for, and the steps in order.
    pub run_state: String,
    /// As above.
    pub steps: Vec<String>,
    /// Which restart within its window this is, and how many there may be.
    pub limit: String,
    /// When QEMU was told to reset the guest, once it has.
    #[serde(with = "rfc3339::option", default)]
    pub reset_at: Option<SystemTime>,
}

/// One crash of one VM. Fields that are `None` are not known, or did not happen, yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Incident {
    /// The name of its directory; see [`incident_id`].
    pub id: String,
    /// The VM's name.
    pub vm: String,
    /// The VM's UUID.
    pub uuid: Option<String>,
    /// The real user id of its QEMU; earlier versions did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The only process for which its restarts count, where several of its user claim to be this VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted_for: Option<ProcessId>,
    /// The QEMU's process id.
    pub pid: u32,
    /// When that process began, in clock ticks since the host's start; with the pid, it is no other.
    #[serde(default)]
    pub start_ticks: u64,
    /// The verdict's cause, such as `panicked`.
    pub cause: String,
    /// What the verdict was made from, and why an action was refused.
    pub reason: String,
    /// When the guest last showed a sign of life.
    #[serde(with = "rfc3339::option", default)]
    pub last_sign_of_life: Option<SystemTime>,
    /// When the verdict was given.
    #[serde(with = "rfc3339")]
    pub detected_at: SystemTime,
    /// What was done last, such as `system_reset`.
    pub action: Option<String>,
    /// When QEMU was told to.
    #[serde(with = "rfc3339::option", default)]
    pub action_at: Option<SystemTime>,
    /// What came of it; `None` while it is under way.
    pub outcome: Option<Outcome>,
    /// When the guest showed a sign of life again.
    #[serde(with = "rfc3339::option", default)]
    pub recovered_at: Option<SystemTime>,
    /// Seconds from the last sign of life to the verdict.
    pub detect_seconds: Option<f64>,
    /// Seconds of those in which no verdict could be given: it was paused, the host was at fault, or a figure was missing.
    #[serde(default)]
    pub held_seconds: Option<f64>,
    /// Seconds from the action to the next sign of life.
    pub recover_seconds: Option<f64>,
    /// Names of the evidence files beside the record.
    pub evidence: Vec<String>,
    /// Each restart for this crash, the first one first.
    #[serde(default)]
    pub attempts: Vec<Attempt>,
    /// The guest had come further than its firmware when it crashed, and has to do so again.
    #[serde(default)]
    pub was_up: bool,
    /// It is not written down, since its user had too many: another incident counts it.
    #[serde(skip)]
    pub is_only_counted: bool,
}

impl Incident {
    /// One that was detected just now, of which nothing more is known yet.
    pub(crate) fn new(
        id: String,
        vm: String,
        cause: String,
        reason: String,
        detected_at: SystemTime,
    ) -> Self {
        Self {
            id,
            vm,
            uuid: None,
            uid: None,
            counted_for: None,
            pid: 0,
            start_ticks: 0,
            cause,
            reason,
            last_sign_of_life: None,
            detected_at,
            action: None,
            action_at: None,
            outcome: None,
            recovered_at: None,
            detect_seconds: None,
            held_seconds: None,
            recover_seconds: None,
            evidence: Vec::new(),
            attempts: Vec::new(),
            was_up: false,
            is_only_counted: false,
        }
    }

    /// For which VM it counts.
    pub(crate) fn key(&self) -> Key {
        Key::new(self.uid, self.uuid.as_deref(), &self.vm).of_process(self.counted_for)
    }

    /// When each restart began that counts towards limits. Records of before have no attempts, but an action.
    pub(crate) fn restarts(&self) -> impl Iterator<Item = SystemTime> {
        let only = self.action_at.filter(|_| self.attempts.is_empty());
        self.attempts.iter().map(|attempt| attempt.begun_at).chain(only)
    }

    /// Notes that these files are among its evidence.
    pub(crate) fn name_evidence(&mut self, files: &[(&'static str, Vec<u8>)]) {
        for (name, _) in files {
            if !self.evidence.iter().any(|known| known == name) {
                self.evidence.push((*name).to_owned());
            }
        }
    }
}

/// The answer to `incidents`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct IncidentsView {
    /// Oldest first.
    pub incidents: Vec<Incident>,
    /// Records that can't be read, one sentence each.
    pub complaints: Vec<String>,
}

/// The id of an incident of the VM `vm` at `detected_at`: `20261122T100001Z-web-1`.
///
/// Safe as a file name whatever the VM is called: characters other than `[A-Za-z0-9._-]` become
/// `_`, the name is cut to 64 bytes, and is never empty nor starts with a dot. Two incidents may
/// get the same id; [`super::incidents::IncidentStore::new_id`] tells them apart.
pub(crate) fn incident_id(detected_at: SystemTime, vm: &str) -> String {
    let time = rfc3339::format(detected_at).replace(['-', ':'], "");
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name = vm.chars().map(|c| if safe(c) { c } else { '_' }).take(NAME_MAX_BYTES);
    let mut name = name.collect::<String>();
    if name.is_empty() {
        name.push('_');
    } else if name.starts_with('.') {
        name.replace_range(..1, "_");
    }
    format!("{time}-{name}")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    use serde_json::json;

    use super::{Attempt, Incident, Outcome, incident_id};

    fn at(text: &str) -> SystemTime {
        humantime::parse_rfc3339(text).expect("a time")
    }

    #[test]
    fn an_id_is_time_and_name() {
        assert_eq!(incident_id(at("2026-11-22T10:00:01.9Z"), "web-1"), "20261122T100001Z-web-1");
    }

    #[test]
    fn a_hostile_name_makes_a_safe_id() {
        let id = |name: &str| incident_id(UNIX_EPOCH, name);
        assert_eq!(id("../../etc/x"), "19700101T000000Z-_._.._etc_x");
        assert_eq!(id(""), "19700101T000000Z-_");
        assert_eq!(id("."), "19700101T000000Z-_");
        assert_eq!(id("ä\n\0 b"), "19700101T000000Z-____b");
        assert_eq!(id(&"n".repeat(500)), format!("19700101T000000Z-{}", "n".repeat(64)));
        let before = incident_id(UNIX_EPOCH - Duration::from_secs(9), "a");
        assert_eq!(before, "19700101T000000Z-a");
    }

    #[test]
    fn an_incident_keeps_every_name_of_the_documented_json() {
        let text = json!({"id": "20261122T100001Z-web-1", "vm": "web-1", "uuid": null,
            "pid": 4711, "cause": "panicked", "reason": "r",
            "last_sign_of_life": "2026-11-22T09:59:51Z", "detected_at": "2026-11-22T10:00:01Z",
            "action": "system_reset", "action_at": "2026-11-22T10:00:02Z",
            "outcome": "not-recovered", "recovered_at": null, "detect_seconds": 10.2,
            "held_seconds": 0.0, "recover_seconds": null, "evidence": ["screen.png"]});
        let incident: Incident = serde_json::from_value(text.clone()).expect("documented");
        assert_eq!(incident.outcome, Some(Outcome::NotRecovered));
        let again = serde_json::to_value(incident).expect("serialisable");
        for (name, value) in text.as_object().expect("an object") {
            assert_eq!(again[name], *value, "{name}");
        }
    }

    #[test]
    fn a_record_of_before_counts_by_its_action_and_one_of_now_by_its_attempts() {
        let text = |text: &str| text.to_owned();
        let now = at("2026-11-22T10:00:00Z");
        let mut incident = Incident::new(text("id"), text("vm"), text("halted"), text("r"), now);
        assert_eq!(incident.restarts().count(), 0);
        incident.action_at = Some(now);
        assert_eq!(incident.restarts().collect::<Vec<_>>(), [now]);
        let begun_at = at("2026-11-22T10:00:09Z");
        incident.attempts = vec![Attempt {
            begun_at,
            run_state: text("running"),
            steps: vec![text("system_reset")],
            limit: text("restart 1 of 3 within 1h"),
            reset_at: None,
        }];
        assert_eq!(incident.restarts().collect::<Vec<_>>(), [begun_at]);
    }

    #[test]
    fn outcomes_are_called_the_same_in_json_and_in_tables() {
        use Outcome::{LimitReached, NotRecovered, Observed, Recovered, Refused};
        for outcome in [Recovered, NotRecovered, Observed, LimitReached, Refused] {
            assert_eq!(serde_json::to_value(outcome).expect("a word"), outcome.as_str());
        }
    }
}
