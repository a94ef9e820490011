//! Snapshot for the web page, built only while it has viewers, and of no more than they look at.
//!
//! Viewers never ask the loop: they note what they look at, and the next tick publishes that, once for all of them.
//! For the list that is which rows changed, and the figures of the VMs that are in sight; what `show` says, of
//! [`SHOWN_MAX`] VMs at most; and what `status` says of all, for clients that ask for that.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use serde::Serialize;
use tokio::{sync::watch, time::timeout};

use super::{lock, page_rows::PageRows};
use crate::api::view::{HostView, ShowView, VmView};

/// VMs that are looked at in full at the same time; of more, the one that was asked for longest ago makes room.
pub(crate) const SHOWN_MAX: usize = 16;
/// VMs whose figures are looked at: as many as a dozen screens have. More are looked at when others are no longer.
pub(crate) const IN_SIGHT_MAX: usize = 512;
/// A viewer that didn't ask for so long, and for three ticks, no longer looks.
const LOOKS_FOR: Duration = Duration::from_secs(10);
/// The same for one VM's figures: a list that is scrolled through leaves most of them behind.
const IN_SIGHT_FOR: Duration = Duration::from_secs(3);
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
    /// The host, as `status` has it.
    pub host: HostView,
    /// All VMs, as `status` has them; `None` where no viewer asked for that.
    pub vms: Option<Vec<VmView>>,
    /// Whether rows were compared in it.
    pub has_rows: bool,
    /// The figures of those that are in sight, by pid.
    pub figures: BTreeMap<u32, FiguresView>,
    /// What `show` says of those that are looked at, by pid; `None`: there is no such VM.
    pub shown: BTreeMap<u32, Option<ShowView>>,
}

/// What changes from tick to tick of a VM, and its lines don't have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct FiguresView {
    /// CPUs that its vCPUs use together; `None` if that can't be read, or it has none.
    pub vcpu: Option<f64>,
    /// Requests in flight; `None` if they can't be read.
    pub in_flight: Option<u64>,
    /// Seconds since the last sign of life; `None` if that isn't known.
    pub flat_seconds: Option<f64>,
}

/// What is looked at now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Looks {
    /// All VMs, as `status` has them.
    pub all: bool,
    /// The list's rows.
    pub rows: bool,
    /// Figures of these, or of all.
    pub in_sight: InSight,
    /// These in full, by pid.
    pub shown: Vec<u32>,
}

/// VMs whose figures are looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum InSight {
    /// Those with these pids.
    Of(BTreeSet<u32>),
    /// All of them: a list is ordered by a figure.
    All,
}

impl Default for InSight {
    fn default() -> Self {
        Self::Of(BTreeSet::new())
    }
}

impl Looks {
    /// Whether the lines of all VMs are drawn.
    pub(crate) fn draws_all(&self) -> bool {
        self.all || self.in_sight == InSight::All
    }

    /// The pids of those whose lines are drawn, unless all are.
    pub(crate) fn drawn(&self) -> impl Iterator<Item = u32> {
        let in_sight = match &self.in_sight {
            InSight::Of(pids) => Some(pids),
            InSight::All => None,
        };
        in_sight.into_iter().flatten().chain(&self.shown).copied()
    }
}

/// When what was asked for.
#[derive(Debug, Default)]
struct Notes {
    all: Option<Instant>,
    rows: Option<Instant>,
    in_sight: HashMap<u32, Instant>,
    all_in_sight: Option<Instant>,
    shown: Vec<(u32, Instant)>,
}

impl Notes {
    fn show(&mut self, pid: u32, now: Instant) {
        self.shown.retain(|(known, _)| *known != pid);
        if self.shown.len() == SHOWN_MAX {
            self.shown.remove(0);
        }
        self.shown.push((pid, now));
    }

    fn list(&mut self, in_sight: &InSight, now: Instant) {
        self.rows = Some(now);
        match in_sight {
            InSight::All => self.all_in_sight = Some(now),
            InSight::Of(pids) => {
                for pid in pids {
                    if self.in_sight.len() < IN_SIGHT_MAX || self.in_sight.contains_key(pid) {
                        self.in_sight.insert(*pid, now);
                    }
                }
            }
        }
    }

    /// What is looked at still; `None`: nothing.
    fn looks(&mut self, now: Instant, interval: Duration) -> Option<Looks> {
        let for_so_long = |at: Instant, long: Duration| {
            now.saturating_duration_since(at) < long.max(3 * interval)
        };
        let still = |at: Instant| for_so_long(at, LOOKS_FOR);
        let in_sight_still = |at: Instant| for_so_long(at, IN_SIGHT_FOR);
        self.shown.retain(|(_, at)| still(*at));
        self.in_sight.retain(|_, at| in_sight_still(*at));
        let in_sight = if self.all_in_sight.is_some_and(in_sight_still) {
            InSight::All
        } else {
            InSight::Of(self.in_sight.keys().copied().collect())
        };
        let looks = Looks {
            all: self.all.is_some_and(still),
            rows: self.rows.is_some_and(still),
            in_sight,
            shown: self.shown.iter().map(|(pid, _)| *pid).collect(),
        };
        (looks.all || looks.rows || !looks.shown.is_empty()).then_some(looks)
    }
}

/// The loop's end.
#[derive(Clone, Debug)]
pub(crate) struct Publisher {
    notes: Arc<Mutex<Notes>>,
    /// The rows, for the loop to compare.
    pub(crate) rows: PageRows,
    latest: watch::Sender<Option<Arc<PageSnapshot>>>,
}

/// The viewers' end.
#[derive(Clone, Debug)]
pub(crate) struct Subscriber {
    notes: Arc<Mutex<Notes>>,
    /// The rows, for viewers to read.
    pub(super) rows: PageRows,
    latest: watch::Receiver<Option<Arc<PageSnapshot>>>,
}

/// Both ends.
pub(crate) fn pair() -> (Publisher, Subscriber) {
    let notes = Arc::new(Mutex::new(Notes::default()));
    let rows = PageRows::default();
    let (sender, latest) = watch::channel(None);
    let publisher = Publisher { notes: notes.clone(), rows: rows.clone(), latest: sender };
    (publisher, Subscriber { notes, rows, latest })
}

impl Publisher {
    /// What is to be published; `None`: there is no viewer, and the last snapshot is given up. Ticks are due each `interval`.
    pub(crate) fn wanted(&self, now: Instant, interval: Duration) -> Option<Looks> {
        let wanted = lock(&self.notes).looks(now, interval);
        if wanted.as_ref().is_none_or(|looks| !looks.rows) {
            self.rows.clear();
        }
        if wanted.is_none() {
            self.latest.send_if_modified(|latest| latest.take().is_some());
        }
        wanted
    }

    /// Hands it to all viewers.
    pub(crate) fn publish(&self, snapshot: PageSnapshot) {
        self.latest.send_replace(Some(Arc::new(snapshot)));
    }
}

impl Subscriber {
    /// The last tick's snapshot with all VMs, or the next one's; `None` where none comes.
    pub(crate) async fn all(&self) -> Option<Arc<PageSnapshot>> {
        lock(&self.notes).all = Some(Instant::now());
        self.wait(|snapshot| snapshot.vms.is_some()).await
    }

    /// The same with rows; figures of what is in sight are in it from the next tick on.
    pub(crate) async fn list(&self, in_sight: &InSight) -> Option<Arc<PageSnapshot>> {
        lock(&self.notes).list(in_sight, Instant::now());
        self.wait(|snapshot| snapshot.has_rows).await
    }

    /// The same with all that `show` says of the VM with this pid, if there is one.
    pub(crate) async fn vm(&self, pid: u32) -> Option<Arc<PageSnapshot>> {
        lock(&self.notes).show(pid, Instant::now());
        self.wait(|snapshot| snapshot.shown.contains_key(&pid)).await
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
