//! The balloon's statistics: the guest's kernel hands them over whenever QEMU asks for them.
//!
//! QEMU asks as soon as `guest-stats-polling-interval` leaves 0, and every so many seconds from then on; when it
//! got the last answer stands in `guest-stats`, in whole seconds. Measured with QEMU 7.2 and Linux 6.1: an
//! answer takes 1 to 25 ms, and after a panic there is none.
//!
//! So where nobody polls, a round turns the polling on, waits for the answer, and turns it off again within the
//! same round: between rounds QEMU is as it was, and nothing has to be remembered to be put back. That is a task
//! of its own, which goes on where a round is given up. Only a daemon that is killed within these 300 ms, or a
//! QEMU that answers nothing for a minute from then on, leaves it on, which costs the guest an interrupt a
//! second; the latter is logged. An interval that somebody else set is left alone, and his answers are looked at.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::{Asked, Note, Scene, Witness, note, noted, of_calibrated};
use crate::{
    qmp::{QmpError, QmpHandle},
    verdict::Answer,
};

/// The row in the table.
pub const WITNESS: Witness = Witness {
    name: "balloon statistics",
    looks_for: "that they are renewed when QEMU asks for them",
    asked_in: of_calibrated,
    ask: |scene, note| -> Asked { Box::pin(ask(scene, note)) },
};

/// How long a round waits for an answer: ten times what was measured. A later one counts in the next round.
const ANSWER_WITHIN: Duration = Duration::from_millis(300);
/// Time between two looks for it.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A guest is silent that answered nothing for so long, and for one more interval where others poll. Not
/// measured: a hundred times what an answer took.
const SILENT_AFTER: Duration = Duration::from_millis(2500);
/// An older look belongs to another suspicion.
const RECENT: Duration = Duration::from_secs(10);
/// How often the polling is tried to be turned off, where QEMU doesn't answer.
const PUT_BACK_TRIES: u32 = 12;
/// Time between two tries.
const PUT_BACK_EVERY: Duration = Duration::from_secs(5);
/// Where QEMU keeps devices, with ids of the operator's and without.
const CONTAINERS: [&str; 2] = ["/machine/peripheral", "/machine/peripheral-anon"];
/// The most devices that are looked through: a q35 machine with all its bridges has some hundreds.
const MOST_DEVICES: usize = 4096;
const INTERVAL: &str = "guest-stats-polling-interval";

/// What is kept from round to round.
struct Record {
    /// The balloon's path in QEMU's object model.
    path: String,
    look: Option<Look>,
}

/// What was seen of the statistics.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Look {
    /// Since when the guest has been asked, and there was no answer.
    since: Instant,
    /// When this was seen.
    at: Instant,
    /// The time of the last answer, in seconds; 0 if there was none.
    last_update: u64,
}

async fn ask(scene: Arc<Scene>, before: Note) -> (Answer, Note) {
    if !scene.vm.has_balloon {
        return (Answer::NotAsked("it has no balloon".to_owned()), None);
    }
    let qmp = match &scene.qmp {
        Ok(qmp) => qmp,
        Err(why) => return (Answer::NotAsked(why.clone()), before),
    };
    let mut record = noted::<Record>(before);
    let answer = question(qmp, scene.boot_age, &mut record).await;
    (answer.unwrap_or_else(|error| Answer::NotAsked(error.to_string())), record.and_then(note))
}

async fn question(
    qmp: &QmpHandle,
    boot_age: Duration,
    record: &mut Option<Record>,
) -> Result<Answer, QmpError> {
    let known = record.take();
    let Record { path, look } = match known {
        Some(known) => known,
        None => match find(qmp).await? {
            Some(path) => Record { path, look: None },
            None => return Ok(Answer::NotAsked("QEMU names no balloon".to_owned())),
        },
    };
    let now = Instant::now();
    let interval = interval_seconds(qmp, &path).await?;
    let last_update = last_update(qmp, &path).await?;
    // An answer of another boot says nothing of this one.
    let within = RECENT.min(boot_age);
    let before = look.filter(|look| now.saturating_duration_since(look.at) <= within);
    let before = before.unwrap_or(Look { since: now, at: now, last_update });
    let mut seen = Look { at: now, last_update, ..before };
    if interval == 0 && seen.last_update == before.last_update {
        let (qmp, balloon) = (qmp.clone(), path.clone());
        let asked = tokio::spawn(async move {
            let asked = ask_now(&qmp, &balloon, last_update).await;
            put_back(&qmp, &balloon).await;
            asked
        });
        seen.last_update = asked.await.map_err(|_| QmpError::SessionClosed)??;
        seen.at = Instant::now();
    }
    let answer = compare(before, seen, Duration::from_secs(interval));
    if matches!(answer, Answer::Lives(_)) {
        seen.since = seen.at;
    }
    *record = Some(Record { path, look: Some(seen) });
    Ok(answer)
}

/// What the guest says of its memory now, QEMU's `guest-stats`, for people to see: no witness. A guest that doesn't answer
/// has said so before, or never.
///
/// # Errors
/// If QEMU doesn't answer.
pub(crate) async fn statistics(qmp: &QmpHandle) -> Result<Option<Value>, QmpError> {
    let Some(path) = find(qmp).await? else { return Ok(None) };
    if interval_seconds(qmp, &path).await? == 0 {
        let last = last_update(qmp, &path).await?;
        let asked = ask_now(qmp, &path, last).await;
        put_back(qmp, &path).await;
        asked?;
    }
    get(qmp, &path, "guest-stats").await.map(Some)
}

/// Turns the polling on, which asks the guest at once, and waits for an answer other than `last`.
async fn ask_now(qmp: &QmpHandle, path: &str, last: u64) -> Result<u64, QmpError> {
    set_interval(qmp, path, 1).await?;
    let began = Instant::now();
    loop {
        let now = last_update(qmp, path).await?;
        if now != last || began.elapsed() >= ANSWER_WITHIN {
            return Ok(now);
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Turns the polling off, unless somebody changed it meanwhile: what he set stays.
async fn put_back(qmp: &QmpHandle, path: &str) {
    for _ in 0..PUT_BACK_TRIES {
        let put_back = async {
            match interval_seconds(qmp, path).await? {
                1 => set_interval(qmp, path, 0).await,
                _ => Ok(()),
            }
        };
        match put_back.await {
            Ok(()) => return,
            // QEMU is gone, or its VM is no longer watched.
            Err(QmpError::SessionClosed) => break,
            Err(_) => sleep(PUT_BACK_EVERY).await,
        }
    }
    warn!(
        "the polling of the statistics of {path} could not be turned off: it is on, every second"
    );
}

/// What two looks say. `interval` is that of somebody who polls as well, or zero.
fn compare(before: Look, now: Look, interval: Duration) -> Answer {
    if now.last_update != before.last_update {
        return Answer::Lives("its balloon's statistics were renewed".to_owned());
    }
    let unanswered = now.at.saturating_duration_since(now.since);
    if unanswered >= SILENT_AFTER.saturating_add(interval) {
        let seconds = unanswered.as_secs_f64();
        return Answer::Silent(format!("its balloon's statistics are {seconds:.1} s overdue"));
    }
    Answer::Nothing("its balloon's statistics are not renewed so far".to_owned())
}

/// The path of the first balloon.
async fn find(qmp: &QmpHandle) -> Result<Option<String>, QmpError> {
    for container in CONTAINERS {
        let listed = qmp.reply("qom-list", Some(json!({ "path": container }))).await?;
        if let Some(name) = balloon(&listed) {
            return Ok(Some(format!("{container}/{name}")));
        }
    }
    Ok(None)
}

/// The name of the balloon in a reply of `qom-list`.
fn balloon(listed: &Value) -> Option<&str> {
    let is_balloon = |device: &&Value| {
        let kind = device.get("type").and_then(Value::as_str);
        kind.is_some_and(|kind| kind.starts_with("child<virtio-balloon-"))
    };
    listed.as_array()?.iter().take(MOST_DEVICES).find(is_balloon)?.get("name")?.as_str()
}

async fn get(qmp: &QmpHandle, path: &str, property: &str) -> Result<Value, QmpError> {
    qmp.reply("qom-get", Some(json!({ "path": path, "property": property }))).await
}

async fn last_update(qmp: &QmpHandle, path: &str) -> Result<u64, QmpError> {
    let stats = get(qmp, path, "guest-stats").await?;
    let last = stats.get("last-update").and_then(Value::as_u64);
    last.ok_or_else(|| QmpError::Malformed { command: "qom-get guest-stats".to_owned() })
}

async fn interval_seconds(qmp: &QmpHandle, path: &str) -> Result<u64, QmpError> {
    let interval = get(qmp, path, INTERVAL).await?.as_u64();
    interval.ok_or_else(|| QmpError::Malformed { command: format!("qom-get {INTERVAL}") })
}

async fn set_interval(qmp: &QmpHandle, path: &str, seconds: u64) -> Result<(), QmpError> {
    let arguments = json!({ "path": path, "property": INTERVAL, "value": seconds });
    qmp.reply("qom-set", Some(arguments)).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_balloon_is_found_among_a_machines_devices() {
        // As QEMU 7.2 lists /machine/peripheral-anon.
        let listed = json!([
            {"name": "type", "type": "string"},
            {"name": "device[0]", "type": "child<virtio-serial-pci>"},
            {"name": "device[2]", "type": "child<virtio-balloon-pci>"}
        ]);
        assert_eq!(balloon(&listed), Some("device[2]"));
        assert_eq!(balloon(&json!([{"name": "balloon", "type": "string"}, {"type": 7}, 7])), None);
        assert_eq!(balloon(&json!({})), None);
    }

    #[test]
    fn only_statistics_that_move_acquit_and_only_a_long_wait_is_silence() {
        let began = Instant::now();
        let look = |ms, last_update| Look {
            since: began,
            at: began + Duration::from_millis(ms),
            last_update,
        };
        let none = Duration::ZERO;
        let before = look(0, 1_795_564_036);
        assert!(matches!(compare(before, look(300, 1_795_564_037), none), Answer::Lives(_)));
        assert!(matches!(compare(look(0, 0), look(300, 9), none), Answer::Lives(_)));
        assert!(matches!(compare(before, before, none), Answer::Nothing(_)));
        let at = |ms| look(ms, before.last_update);
        assert!(matches!(compare(before, at(2499), none), Answer::Nothing(_)));
        assert!(matches!(compare(before, at(2500), none), Answer::Silent(_)));
    }

    #[test]
    fn who_is_polled_by_others_is_given_their_interval_as_well_however_long() {
        let began = Instant::now();
        let look = |seconds| Look {
            since: began,
            at: began + Duration::from_secs(seconds),
            last_update: 5,
        };
        let wait = Duration::from_secs(10);
        assert!(matches!(compare(look(0), look(12), wait), Answer::Nothing(_)));
        assert!(matches!(compare(look(0), look(13), wait), Answer::Silent(_)));
        assert!(matches!(compare(look(0), look(13), Duration::MAX), Answer::Nothing(_)));
    }
}
