//! A balloon's statistics, which the guest's kernel hands over whenever QEMU asks for them.
//!
//! QEMU asks as soon as `guest-stats-polling-interval` leaves 0, and every so many seconds from then on; when it
//! got the last answer stands in `guest-stats`, in whole seconds. Measured with QEMU 7.2 and Linux 6.1: an
//! answer takes 1 to 25 ms, and after a panic there is none.
//!
//! So where no client polls, the polling is turned on, an answer is awaited, and it is turned off again at once:
//! afterwards QEMU is as it was, and nothing has to be remembered to be put back. That is a task of its own, which
//! goes on where its caller gives up. Only a daemon that is killed within this second, or a QEMU that answers nothing
//! for a minute from then on, leaves it on, which costs the guest an interrupt a second; the latter is logged. An
//! interval that another client set is left alone, and its answers are looked at.
//!
//! A task that puts back what it found must be alone with it: [`Turns`]. Each command waits for nothing, so that no other
//! one waits for these.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::{
    sync::{Mutex, OwnedMutexGuard},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use flatline_qemu::qmp::{QmpError, QmpHandle};

/// How often the polling is tried to be turned off, where QEMU doesn't answer.
const PUT_BACK_TRIES: u32 = 12;
/// Time between two tries.
const PUT_BACK_EVERY: Duration = Duration::from_secs(5);
/// Where QEMU keeps devices, with ids of the operator's and without.
const CONTAINERS: [&str; 2] = ["/machine/peripheral", "/machine/peripheral-anon"];
/// The most devices that are looked through: a q35 machine with all its bridges has some hundreds.
const MOST_DEVICES: usize = 4096;
const INTERVAL: &str = "guest-stats-polling-interval";
const STATISTICS: &str = "guest-stats";

/// A balloon, by its path in QEMU's object model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Balloon {
    path: String,
}

/// How an answer is waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wait {
    /// So long at most.
    pub(crate) within: Duration,
    /// Time to the first look for it, and between two.
    pub(crate) look_every: Duration,
}

/// Turns with one VM's balloon: one task at a time turns the polling on and off.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turns(Arc<Mutex<()>>);

/// A turn, which ends when it is dropped.
pub(crate) type Turn = OwnedMutexGuard<()>;

impl Turns {
    /// Takes a turn, unless another task has it.
    pub(crate) fn try_take(&self) -> Option<Turn> {
        self.0.clone().try_lock_owned().ok()
    }

    /// Takes a turn, and waits `limit` for it at most: its holder may be unable to end it.
    pub(crate) async fn take_within(&self, limit: Duration) -> Option<Turn> {
        timeout(limit, self.0.clone().lock_owned()).await.ok()
    }
}

impl Balloon {
    /// The VM's first balloon, where it has one.
    ///
    /// # Errors
    /// As [`QmpHandle::execute`], here and below.
    pub(crate) async fn find(qmp: &QmpHandle) -> Result<Option<Self>, QmpError> {
        for container in CONTAINERS {
            let listed = qmp.reply("qom-list", Some(json!({ "path": container }))).await?;
            if let Some(name) = balloon(&listed) {
                return Ok(Some(Self { path: format!("{container}/{name}") }));
            }
        }
        Ok(None)
    }

    /// What its guest told last, in QEMU's form.
    ///
    /// # Errors
    /// And [`QmpError::Malformed`], here and below.
    pub(crate) async fn statistics(&self, qmp: &QmpHandle) -> Result<Value, QmpError> {
        self.get(qmp, STATISTICS).await
    }

    /// How often a client has its guest asked; 0: none does.
    ///
    /// # Errors
    /// See above.
    pub(crate) async fn interval_seconds(&self, qmp: &QmpHandle) -> Result<u64, QmpError> {
        let interval = self.get(qmp, INTERVAL).await?.as_u64();
        interval.ok_or_else(|| QmpError::Malformed { command: format!("qom-get {INTERVAL}") })
    }

    /// Has the guest asked, where no client polls: turns the polling on, waits for an answer other than the one of
    /// `last`, and turns it off again, whatever comes. Returns the last that was told, be it `last` still. At `stop`, no
    /// more is waited.
    ///
    /// # Errors
    /// See above; [`QmpError::SessionClosed`] also after `stop`.
    pub(crate) async fn renew(
        &self,
        qmp: &QmpHandle,
        last: u64,
        wait: Wait,
        turn: Option<Turn>,
        stop: CancellationToken,
    ) -> Result<Value, QmpError> {
        let (balloon, qmp) = (self.clone(), qmp.clone());
        let asked = tokio::spawn(async move {
            let asked = balloon.ask_now(&qmp, last, wait, &stop).await;
            balloon.put_back(&qmp).await;
            drop(turn);
            asked
        });
        asked.await.map_err(|_| QmpError::SessionClosed)?
    }

    async fn ask_now(
        &self,
        qmp: &QmpHandle,
        last: u64,
        wait: Wait,
        stop: &CancellationToken,
    ) -> Result<Value, QmpError> {
        // Never given up halfway: it might be carried out after it was put back.
        self.set_interval(qmp, 1).await?;
        let began = Instant::now();
        loop {
            if stop.run_until_cancelled(sleep(wait.look_every)).await.is_none() {
                return Err(QmpError::SessionClosed);
            }
            let statistics = self.statistics(qmp).await?;
            if last_update(&statistics)? != last || began.elapsed() >= wait.within {
                return Ok(statistics);
            }
        }
    }

    /// Turns the polling off, unless another client changed it meanwhile: what that set stays.
    async fn put_back(&self, qmp: &QmpHandle) {
        for _ in 0..PUT_BACK_TRIES {
            let put_back = async {
                match self.interval_seconds(qmp).await? {
                    1 => self.set_interval(qmp, 0).await,
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
        let path = &self.path;
        warn!(
            "the polling of the statistics of {path} could not be turned off: it is on, every second"
        );
    }

    async fn get(&self, qmp: &QmpHandle, property: &str) -> Result<Value, QmpError> {
        let arguments = json!({ "path": self.path, "property": property });
        qmp.reply("qom-get", Some(arguments)).await
    }

    async fn set_interval(&self, qmp: &QmpHandle, seconds: u64) -> Result<(), QmpError> {
        let arguments = json!({ "path": self.path, "property": INTERVAL, "value": seconds });
        qmp.reply("qom-set", Some(arguments)).await.map(|_| ())
    }
}

/// When the guest told these statistics, in seconds since 1970; 0 if it never did.
///
/// # Errors
/// [`QmpError::Malformed`].
pub(crate) fn last_update(statistics: &Value) -> Result<u64, QmpError> {
    let last = statistics.get("last-update").and_then(Value::as_u64);
    last.ok_or_else(|| QmpError::Malformed { command: format!("qom-get {STATISTICS}") })
}

/// The name of the balloon in a reply of `qom-list`.
fn balloon(listed: &Value) -> Option<&str> {
    let is_balloon = |device: &&Value| {
        let kind = device.get("type").and_then(Value::as_str);
        kind.is_some_and(|kind| kind.starts_with("child<virtio-balloon-"))
    };
    listed.as_array()?.iter().take(MOST_DEVICES).find(is_balloon)?.get("name")?.as_str()
}

#[cfg(test)]
pub(crate) mod tests;
