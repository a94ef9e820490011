//! What a tick leaves for people who look at the page, and only while somebody does.
//!
//! Nobody is told anything by the loop, and nobody can ask it: visitors leave a note of what they look at, and the next
//! tick leaves that, once for all of them. However many visitors there are, a tick so copies what `status` says at most,
//! and what `show` says of [`SHOWN_MAX`] VMs.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use tokio::{sync::watch, time::timeout};

use crate::report::view::{ShowView, StatusView};

/// VMs that are looked at in full at the same time; of more, the one that was asked for longest ago makes room.
pub const SHOWN_MAX: usize = 16;
/// Whoever didn't ask for so long, and for three ticks, no longer looks.
const LOOKS_FOR: Duration = Duration::from_secs(10);
/// A tick may come so much later than it should before what the last one left is old.
const LATE: Duration = Duration::from_secs(1);
/// The longest that a visitor waits for a tick, which is less than his connection has.
const WAIT: Duration = Duration::from_secs(8);

/// What one tick left.
#[derive(Debug)]
pub struct Left {
    /// The tick's number.
    pub tick: u64,
    /// When it was.
    pub at: SystemTime,
    /// The same by a clock that nobody sets.
    pub left: Instant,
    /// When the next one is due, after that.
    pub interval: Duration,
    /// What `status` says.
    pub status: StatusView,
    /// What `show` says of those that somebody looks at, by pid.
    pub shown: BTreeMap<u32, ShowView>,
}

/// What is looked at: when the list was asked for, and when each VM.
#[derive(Debug, Default)]
struct Looks {
    list: Option<Instant>,
    vms: Vec<(u32, Instant)>,
}

impl Looks {
    fn note(&mut self, pid: u32) {
        let now = Instant::now();
        self.list = Some(now);
        self.vms.retain(|(known, _)| *known != pid);
        if self.vms.len() == SHOWN_MAX {
            self.vms.remove(0);
        }
        self.vms.push((pid, now));
    }
}

/// The loop's end.
#[derive(Debug)]
pub struct Giver {
    looks: Arc<Mutex<Looks>>,
    latest: watch::Sender<Option<Arc<Left>>>,
}

/// The visitors' end.
#[derive(Clone, Debug)]
pub struct Taker {
    looks: Arc<Mutex<Looks>>,
    latest: watch::Receiver<Option<Arc<Left>>>,
}

/// Both ends.
pub fn pair() -> (Giver, Taker) {
    let looks = Arc::new(Mutex::new(Looks::default()));
    let (sender, latest) = watch::channel(None);
    let giver = Giver { looks: looks.clone(), latest: sender };
    (giver, Taker { looks, latest })
}

impl Giver {
    /// The VMs to be left in full, beside the list; `None`: nobody looks, and what was left is given up. Ticks are due
    /// each `interval`.
    pub fn wanted(&self, now: Instant, interval: Duration) -> Option<Vec<u32>> {
        let looks_for = LOOKS_FOR.max(3 * interval);
        let looks_still = |at: Instant| now.saturating_duration_since(at) < looks_for;
        let mut looks = lock(&self.looks);
        looks.vms.retain(|(_, at)| looks_still(*at));
        let wanted = looks.list.is_some_and(looks_still).then(|| looks.vms.clone());
        drop(looks);
        if wanted.is_none() {
            self.latest.send_if_modified(|latest| latest.take().is_some());
        }
        wanted.map(|vms| vms.into_iter().map(|(pid, _)| pid).collect())
    }

    /// Leaves it.
    pub fn leave(&self, left: Left) {
        self.latest.send_replace(Some(Arc::new(left)));
    }
}

impl Taker {
    /// What the last tick left, or the next one will; `None` where none comes.
    pub async fn list(&self) -> Option<Arc<Left>> {
        lock(&self.looks).list = Some(Instant::now());
        self.wait(|_| true).await
    }

    /// The same, with all that `show` says of the VM with this pid, if there is one.
    pub async fn vm(&self, pid: u32) -> Option<Arc<Left>> {
        lock(&self.looks).note(pid);
        let is_gone = |left: &Left| !left.status.vms.iter().any(|vm| vm.pid == pid);
        self.wait(|left| left.shown.contains_key(&pid) || is_gone(left)).await
    }

    async fn wait(&self, has_it: impl Fn(&Left) -> bool) -> Option<Arc<Left>> {
        let mut latest = self.latest.clone();
        let is_new = |left: &Left| left.left.elapsed() < 2 * left.interval + LATE;
        let is_it = |left: &Option<Arc<Left>>| {
            left.as_ref().is_some_and(|left| is_new(left) && has_it(left))
        };
        timeout(WAIT, latest.wait_for(is_it)).await.ok()?.ok()?.clone()
    }
}

/// What the lock guards is valid after every statement, so a panic elsewhere doesn't spoil it.
fn lock(looks: &Mutex<Looks>) -> MutexGuard<'_, Looks> {
    looks.lock().unwrap_or_else(PoisonError::into_inner)
}
