//! Snapshot for the web page, built only while it has viewers.
//!
//! Viewers never ask the loop: they note what they look at, and the next tick publishes that, once for all of them.
//! However many viewers there are, a tick so copies what `status` says at most, and what `show` says of [`SHOWN_MAX`] VMs.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use tokio::{sync::watch, time::timeout};

use super::lock;
use crate::api::view::{ShowView, StatusView};

/// VMs that are looked at in full at the same time; of more, the one that was asked for longest ago makes room.
pub(crate) const SHOWN_MAX: usize = 16;
/// A viewer that didn't ask for so long, and for three ticks, no longer looks.
const LOOKS_FOR: Duration = Duration::from_secs(10);
/// A tick may come so much later than it should before the last one's snapshot is old.
const LATE: Duration = Duration::from_secs(1);
/// The longest that a viewer waits for a tick, which is less than its connection has.
const WAIT: Duration = Duration::from_secs(8);

/// What one tick published.
#[derive(Debug)]
pub(crate) struct PageSnapshot {
    /// The tick's number.
    pub tick: u64,
    /// When it was.
    pub at: SystemTime,
    /// The same by the monotonic clock.
    pub published: Instant,
    /// When the next one is due, after that.
    pub interval: Duration,
    /// What `status` says.
    pub status: StatusView,
    /// What `show` says of those that are looked at, by pid.
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
#[derive(Clone, Debug)]
pub(crate) struct Publisher {
    looks: Arc<Mutex<Looks>>,
    latest: watch::Sender<Option<Arc<PageSnapshot>>>,
}

/// The viewers' end.
#[derive(Clone, Debug)]
pub(crate) struct Subscriber {
    looks: Arc<Mutex<Looks>>,
    latest: watch::Receiver<Option<Arc<PageSnapshot>>>,
}

/// Both ends.
pub(crate) fn pair() -> (Publisher, Subscriber) {
    let looks = Arc::new(Mutex::new(Looks::default()));
    let (sender, latest) = watch::channel(None);
    let publisher = Publisher { looks: looks.clone(), latest: sender };
    (publisher, Subscriber { looks, latest })
}

impl Publisher {
    /// The VMs to be published in full, beside the list; `None`: there is no viewer, and the last snapshot is given up.
    /// Ticks are due each `interval`.
    pub(crate) fn wanted(&self, now: Instant, interval: Duration) -> Option<Vec<u32>> {
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

    /// Hands it to all viewers.
    pub(crate) fn publish(&self, snapshot: PageSnapshot) {
        self.latest.send_replace(Some(Arc::new(snapshot)));
    }
}

impl Subscriber {
    /// The last tick's snapshot, or the next one's; `None` where none comes.
    pub(crate) async fn list(&self) -> Option<Arc<PageSnapshot>> {
        lock(&self.looks).list = Some(Instant::now());
        self.wait(|_| true).await
    }

    /// The same, with all that `show` says of the VM with this pid, if there is one.
    pub(crate) async fn vm(&self, pid: u32) -> Option<Arc<PageSnapshot>> {
        lock(&self.looks).note(pid);
        let is_gone = |snapshot: &PageSnapshot| !snapshot.status.vms.iter().any(|vm| vm.pid == pid);
        self.wait(|snapshot| snapshot.shown.contains_key(&pid) || is_gone(snapshot)).await
    }

    async fn wait(&self, has_it: impl Fn(&PageSnapshot) -> bool) -> Option<Arc<PageSnapshot>> {
        let mut latest = self.latest.clone();
        let is_new =
            |snapshot: &PageSnapshot| snapshot.published.elapsed() < 2 * snapshot.interval + LATE;
        let is_it = |snapshot: &Option<Arc<PageSnapshot>>| {
            snapshot.as_ref().is_some_and(|snapshot| is_new(snapshot) && has_it(snapshot))
        };
        timeout(WAIT, latest.wait_for(is_it)).await.ok()?.ok()?.clone()
    }
}
