//! Rows of the page's list: of each VM what changes seldom, kept as JSON text with the tick in which it last changed.
//!
//! A viewer asks for what changed since the tick that it has, so that a tick in which a thousand VMs live is an answer without a
//! row. The loop compares each VM with what is kept of it, which allocates nothing, and has text made of those that changed.

use std::{
    borrow::Cow,
    collections::{BTreeMap, VecDeque, btree_map::Entry},
    fmt,
    hash::{BuildHasher as _, Hash, RandomState},
    str::FromStr,
    sync::{Arc, Mutex},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::lock;
use flatline_qemu::discover::VmId;

/// VMs that went away are remembered, so many; who asks for earlier changes is told all.
const GONE_MAX: usize = 1024;

/// What changes seldom of a VM, by the names that `status` has for it.
#[derive(Debug, Hash, Serialize)]
pub(crate) struct Row<'a> {
    pub(crate) pid: u32,
    pub(crate) name: &'a str,
    pub(crate) uuid: Option<&'a str>,
    pub(crate) uid: u32,
    pub(crate) state: &'static str,
    pub(crate) cause: Option<&'static str>,
    pub(crate) reason: Cow<'a, str>,
    pub(crate) hold: Option<String>,
    pub(crate) restarts_in_window: usize,
    /// How many it has.
    pub(crate) vcpus: usize,
}

/// Up to which tick of which list a viewer knows all rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) struct Since {
    /// When the list was begun: ticks of another one say nothing.
    list: u64,
    tick: u64,
}

impl fmt::Display for Since {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{}", self.list, self.tick)
    }
}

impl From<Since> for String {
    fn from(since: Since) -> Self {
        since.to_string()
    }
}

impl TryFrom<String> for Since {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl FromStr for Since {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text.split_once('-').and_then(|(list, tick)| {
            Some(Self { list: u64::from_str_radix(list, 16).ok()?, tick: tick.parse().ok()? })
        });
        parsed.ok_or("it is not one of this daemon's")
    }
}

/// What a viewer is told.
#[derive(Debug)]
pub(crate) struct Changes {
    /// What it knows then.
    pub(crate) since: Since,
    /// These are all rows: what it knew before counts no more.
    pub(crate) is_whole: bool,
    /// The VMs that went away, by pid.
    pub(crate) gone: Vec<u32>,
    /// The rows as JSON, with a comma between two.
    pub(crate) rows: String,
}

/// The rows of all VMs; a clone is of the same ones.
#[derive(Clone, Debug, Default)]
pub(crate) struct PageRows(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    hasher: RandomState,
    /// `None` while there is none, for want of viewers.
    list: Option<List>,
}

#[derive(Debug)]
struct List {
    begun: u64,
    tick: u64,
    rows: BTreeMap<VmId, Kept>,
    /// By the tick in which it was gone, the oldest first.
    gone: VecDeque<(u64, u32)>,
    /// Changes up to this tick are no longer known.
    forgotten: u64,
}

#[derive(Debug)]
struct Kept {
    digest: u64,
    changed: u64,
    /// When it was there last.
    there: u64,
    text: String,
}

impl PageRows {
    /// Notes how all VMs are in this tick, as their `row` has it. Of those whose row is not due, the one that is kept stays, if
    /// one is.
    pub(crate) fn update<'a>(
        &self,
        tick: u64,
        vms: impl Iterator<Item = (VmId, bool)>,
        row: impl Fn(VmId) -> Option<Row<'a>>,
    ) {
        let mut state = lock(&self.0);
        let State { hasher, list } = &mut *state;
        let list = list.get_or_insert_with(|| List::begun_at(tick));
        list.tick = tick;
        for (id, is_due) in vms {
            if (is_due || !list.has(id))
                && let Some(row) = row(id)
            {
                list.keep(id, hasher.hash_one(&row), &row);
            }
        }
        list.forget_gone();
    }

    /// Gives all up: nothing is looked at.
    pub(crate) fn clear(&self) {
        lock(&self.0).list = None;
    }

    /// What changed since then, or all; `None` where nothing is kept.
    pub(crate) fn since(&self, since: Option<Since>) -> Option<Changes> {
        lock(&self.0).list.as_ref().map(|list| list.since(since))
    }
}

impl List {
    fn begun_at(tick: u64) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let begun = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let (rows, gone) = (BTreeMap::new(), VecDeque::new());
        Self { begun, tick, rows, gone, forgotten: 0 }
    }

    /// Whether a VM's row is kept, which is there in this tick, too.
    fn has(&mut self, id: VmId) -> bool {
        let tick = self.tick;
        self.rows.get_mut(&id).map(|kept| kept.there = tick).is_some()
    }

    fn keep(&mut self, id: VmId, digest: u64, row: &Row<'_>) {
        let tick = self.tick;
        // Numbers, texts and words always have a JSON form.
        let text = || serde_json::to_string(row).unwrap_or_default();
        match self.rows.entry(id) {
            Entry::Occupied(kept) => {
                let kept = kept.into_mut();
                kept.there = tick;
                if kept.digest != digest {
                    (kept.digest, kept.changed, kept.text) = (digest, tick, text());
                }
            }
            Entry::Vacant(place) => {
                place.insert(Kept { digest, changed: tick, there: tick, text: text() });
            }
        }
    }

    /// Forgets the rows that are not of the last tick.
    fn forget_gone(&mut self) {
        let (tick, gone) = (self.tick, &mut self.gone);
        self.rows.retain(|id, kept| {
            let is_there = kept.there == tick;
            if !is_there {
                gone.push_back((tick, id.pid));
            }
            is_there
        });
        while gone.len() > GONE_MAX {
            if let Some((tick, _)) = gone.pop_front() {
                self.forgotten = tick;
            }
        }
    }

    fn since(&self, since: Option<Since>) -> Changes {
        let knows = |since: &Since| {
            since.list == self.begun && since.tick <= self.tick && since.tick >= self.forgotten
        };
        let known = since.filter(knows).map(|since| since.tick);
        let is_new = |tick: u64| known.is_none_or(|known| tick > known);
        let is_there = |pid: u32| self.rows.range(VmId::of_pid(pid)).next().is_some();
        let gone = self.gone.iter().filter(|(tick, pid)| is_new(*tick) && !is_there(*pid));
        let mut rows = String::new();
        for kept in self.rows.values().filter(|kept| is_new(kept.changed)) {
            if !rows.is_empty() {
                rows.push(',');
            }
            rows.push_str(&kept.text);
        }
        Changes {
            since: Since { list: self.begun, tick: self.tick },
            is_whole: known.is_none(),
            gone: gone.map(|(_, pid)| *pid).filter(|_| known.is_some()).collect(),
            rows,
        }
    }
}

#[cfg(test)]
impl PageRows {
    /// Notes these, all of which are due.
    pub(super) fn update_all<'a>(&self, tick: u64, vms: impl Iterator<Item = (VmId, Row<'a>)>) {
        let rows: BTreeMap<VmId, Row<'_>> = vms.collect();
        let ids: Vec<VmId> = rows.keys().copied().collect();
        let rows = std::cell::RefCell::new(rows);
        self.update(tick, ids.into_iter().map(|id| (id, true)), |id| rows.borrow_mut().remove(&id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(pid: u32, reason: &str) -> (VmId, Row<'_>) {
        let row = Row {
            pid,
            name: "web",
            uuid: None,
            uid: 0,
            state: "alive",
            cause: None,
            reason: reason.into(),
            hold: None,
            restarts_in_window: 0,
            vcpus: 2,
        };
        (VmId { pid, start_ticks: 1 }, row)
    }

    /// The changes since then, and the pids and reasons of the rows in them.
    fn ask(rows: &PageRows, since: Option<Since>) -> (Changes, Vec<(u64, String)>) {
        let changes = rows.since(since).expect("there are rows");
        let json = serde_json::from_str(&format!("[{}]", changes.rows)).expect("JSON");
        let serde_json::Value::Array(all) = json else { panic!("not rows: {json}") };
        let told = |row: &serde_json::Value| {
            (row["pid"].as_u64().expect("a pid"), row["reason"].as_str().expect("one").to_owned())
        };
        let told = all.iter().map(told).collect();
        (changes, told)
    }

    #[test]
    fn only_what_changed_is_told_to_one_that_knows_the_rest() {
        let rows = PageRows::default();
        assert!(rows.since(None).is_none());
        rows.update_all(5, [row(7, "a"), row(8, "b")].into_iter());
        let (first, told) = ask(&rows, None);
        assert_eq!((first.is_whole, told.len()), (true, 2));
        rows.update_all(6, [row(7, "a"), row(8, "b")].into_iter());
        let (second, told) = ask(&rows, Some(first.since));
        assert_eq!((second.is_whole, told.len(), second.gone.len()), (false, 0, 0));
        rows.update_all(7, [row(7, "a"), row(8, "c")].into_iter());
        let changed = vec![(8, "c".to_owned())];
        assert_eq!(ask(&rows, Some(second.since)).1, changed);
        assert_eq!(ask(&rows, Some(first.since)).1, changed, "by one that missed a tick, too");
        assert_eq!(ask(&rows, Some(ask(&rows, None).0.since)).1, []);
    }

    #[test]
    fn a_row_that_is_not_due_stays_as_it_was_and_one_that_is_not_known_is_taken() {
        let rows = PageRows::default();
        let next = |tick, is_due, reason: &'static str| {
            let (id, _) = row(7, "");
            rows.update(tick, [(id, is_due)].into_iter(), |_| Some(row(7, reason).1));
            ask(&rows, None).1
        };
        assert_eq!(next(1, false, "a"), [(7, "a".to_owned())]);
        assert_eq!(next(2, false, "b"), [(7, "a".to_owned())]);
        assert_eq!(next(3, true, "b"), [(7, "b".to_owned())]);
    }

    #[test]
    fn what_went_away_is_told_unless_its_pid_came_round_again() {
        let rows = PageRows::default();
        rows.update_all(1, [row(7, "a"), row(8, "b")].into_iter());
        let known = ask(&rows, None).0.since;
        rows.update_all(2, [row(7, "a")].into_iter());
        let (changes, told) = ask(&rows, Some(known));
        assert_eq!((changes.gone, told), (vec![8], vec![]));
        let (_, again) = row(8, "again");
        rows.update_all(3, [row(7, "a"), (VmId { pid: 8, start_ticks: 9 }, again)].into_iter());
        let (changes, told) = ask(&rows, Some(known));
        assert_eq!((changes.gone, told), (vec![], vec![(8, "again".to_owned())]));
        let (changes, _) = ask(&rows, None);
        assert_eq!((changes.is_whole, changes.gone), (true, vec![]));
    }

    #[test]
    fn one_that_knows_another_list_or_too_little_is_told_all() {
        let rows = PageRows::default();
        rows.update_all(9, [row(7, "a")].into_iter());
        let known = ask(&rows, None).0.since;
        for other in [Since { list: 1, ..known }, Since { tick: 10, ..known }] {
            assert!(ask(&rows, Some(other)).0.is_whole, "{other}");
        }
        for pid in (0..).take(GONE_MAX + 2) {
            let tick = 10 + u64::from(pid);
            rows.update_all(tick, [row(7, "a"), row(100 + pid, "b")].into_iter());
        }
        assert!(ask(&rows, Some(known)).0.is_whole);
        rows.clear();
        assert!(rows.since(Some(known)).is_none());
        rows.update_all(9, [row(7, "a")].into_iter());
        assert!(ask(&rows, Some(known)).0.is_whole, "another list has the same ticks");
    }

    #[test]
    fn what_a_viewer_sends_back_is_read_again() {
        let since = Since { list: 0xab12, tick: 77 };
        assert_eq!(since.to_string().parse(), Ok(since));
        for text in ["", "-", "ab", "xy-1", "1-", "1--1"] {
            assert!(text.parse::<Since>().is_err(), "{text}");
        }
    }
}
