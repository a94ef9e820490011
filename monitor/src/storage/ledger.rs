//! Ledger: what outlives the daemon beside incidents. It has the holds on VMs, and when each guest reset itself. One file, `STATE_DIR/ledger.json`.
//!
//! A ledger that can't be read says nothing about which VMs were to be left alone, so that all are: detection goes
//! on, and no VM is touched until a person releases all, which begins a new ledger. The old file is kept beside it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::incidents::{StoreError, parse_versioned, read_bounded, write_whole};
use crate::{identity::Key, rfc3339};

const FILE: &str = "ledger.json";
/// Its form; a higher one was written by a newer flatline. A form has what the lower ones have, and 2 besides holds of VMs
/// by user: an earlier flatline that knew nothing of these would touch VMs that are to be left alone.
const FORMAT: u32 = 2;
/// That of a ledger without such holds.
const FORMAT_WITHOUT_USERS: u32 = 1;
/// A longer one was not written by us.
const MOST_BYTES: u64 = 16 << 20;
/// Resets that are remembered of one guest: more than any limit counts.
const MOST_RESETS: usize = 1024;
/// No window is longer.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30 * 24 * 3600);

/// A request that a VM be left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hold {
    /// Since when.
    #[serde(with = "rfc3339")]
    pub since: SystemTime,
    /// Until when; `None`: until it is released.
    #[serde(with = "rfc3339::option", default)]
    pub until: Option<SystemTime>,
}

/// The VMs that a hold or a release is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HoldScope<'a> {
    /// The VM with this key.
    Vm(&'a Key),
    /// Every VM of the host, those to come included.
    All,
}

/// What is known of one VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Entry {
    hold: Option<Hold>,
    /// Restarts before this count no more.
    #[serde(with = "rfc3339::option")]
    released_at: Option<SystemTime>,
    /// When the guest reset itself, to the second.
    #[serde(with = "rfc3339::list")]
    resets: Vec<SystemTime>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Book {
    format: u32,
    /// What `--all` was last said.
    #[serde(default)]
    host: Entry,
    /// What earlier versions wrote, by UUID or name: it is of any user's VM so called, until something is noted of that.
    #[serde(default)]
    vms: BTreeMap<String, Entry>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    by_user: BTreeMap<Key, Entry>,
}

impl Book {
    /// What is known of a VM: what was noted of its process, else of all that its user's processes claim to be it, else what an
    /// earlier version noted.
    fn of(&self, key: &Key) -> Option<&Entry> {
        self.by_user.get(key).or_else(|| self.before(key))
    }

    /// What was known of it before anything was noted under this very key.
    fn before(&self, key: &Key) -> Option<&Entry> {
        let by_any = || self.vms.get(&key.claim);
        match key.process {
            Some(_) => self.by_user.get(&key.clone().of_process(None)).or_else(by_any),
            None => by_any(),
        }
    }
}

/// The ledger.
#[derive(Debug)]
pub(crate) struct Ledger {
    path: PathBuf,
    book: Book,
    /// Why the one on disk can't be read.
    unreadable: Option<String>,
}

impl Ledger {
    /// Reads the ledger of `state_dir`; one that is missing is empty.
    pub(crate) fn open(state_dir: &Path) -> Self {
        let path = state_dir.join(FILE);
        let empty = Book::default();
        let (book, unreadable) = match read_bounded(&path, MOST_BYTES) {
            Ok(text) => match parse(&text) {
                Ok(book) => (book, None),
                Err(why) => (empty, Some(why)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => (empty, None),
            Err(error) => (empty, Some(error.to_string())),
        };
        let unreadable = unreadable.map(|why| {
            let path = path.display();
            format!(
                "{path}: {why}; no VM is touched until `flatline release --all` begins a new one"
            )
        });
        Self { path, book, unreadable }
    }

    /// Why the ledger on disk can't be read, and what to do, if so.
    pub(crate) fn complaint(&self) -> Option<&str> {
        self.unreadable.as_deref()
    }

    /// Why the VM is to be left alone, if it is.
    pub(crate) fn held(&self, vm: &Key, now: SystemTime) -> Option<String> {
        if let Some(why) = &self.unreadable {
            return Some(why.clone());
        }
        let holds = |entry: Option<&Entry>| entry.and_then(|entry| entry.hold);
        let of = |subject: &str, hold: Hold| {
            let until = match hold.until {
                Some(until) => format!("until {}", rfc3339::format(until)),
                None => "until it is released".to_owned(),
            };
            format!("{subject} held since {}, {until}", rfc3339::format(hold.since))
        };
        let lasts = |hold: &Hold| hold.until.is_none_or(|until| now < until);
        let own = holds(self.book.of(vm)).filter(lasts).map(|hold| of("it is", hold));
        let host = || Some(self.book.host.hold.filter(lasts)?).map(|hold| of("all VMs are", hold));
        own.or_else(host)
    }

    /// Restarts of the VM before this moment count no more; the epoch where it was never released.
    pub(crate) fn counts_from(&self, vm: &Key) -> SystemTime {
        let own = self.book.of(vm).and_then(|entry| entry.released_at);
        own.max(self.book.host.released_at).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// When the guest reset itself, at `since` or later.
    pub(crate) fn resets_since(&self, vm: &Key, since: SystemTime) -> Vec<SystemTime> {
        let all = self.book.of(vm).map(|entry| entry.resets.as_slice());
        all.unwrap_or_default().iter().filter(|at| **at >= since).copied().collect()
    }

    /// Leaves a VM alone, or all.
    pub(crate) fn hold(&mut self, scope: HoldScope<'_>, hold: Hold) {
        self.entry(scope).hold = Some(hold);
    }

    /// Takes a hold back, and gives a new start: no restart of before counts any more. Of all, every VM's own hold is
    /// taken back as well, and where the ledger could not be read, a new one begins.
    pub(crate) fn release(&mut self, scope: HoldScope<'_>, now: SystemTime) {
        if scope == HoldScope::All {
            if self.unreadable.take().is_some() {
                // Should that fail, it is written over.
                let _ = std::fs::rename(&self.path, self.path.with_extension("json.unreadable"));
            }
            for entry in self.book.vms.values_mut().chain(self.book.by_user.values_mut()) {
                entry.hold = None;
            }
        }
        let entry = self.entry(scope);
        *entry = Entry { released_at: Some(now), ..Entry::default() };
    }

    /// Takes note that the guest reset itself.
    pub(crate) fn note_reset(&mut self, vm: &Key, now: SystemTime) {
        let entry = self.entry(HoldScope::Vm(vm));
        if entry.resets.len() == MOST_RESETS {
            entry.resets.remove(0);
        }
        entry.resets.push(now);
    }

    /// What is to be written, and where; `None` where the one on disk must not be replaced. What is long over is left
    /// out.
    pub(crate) fn page(&mut self, now: SystemTime) -> Option<Page> {
        if self.unreadable.is_some() {
            return None;
        }
        let since = now.checked_sub(FORGOTTEN_AFTER).unwrap_or(SystemTime::UNIX_EPOCH);
        let Book { vms, by_user, .. } = &mut self.book;
        for entry in vms.values_mut().chain(by_user.values_mut()) {
            entry.resets.retain(|at| *at >= since);
            entry.released_at = entry.released_at.filter(|at| *at >= since);
            entry.hold = entry.hold.filter(|hold| hold.until.is_none_or(|until| now < until));
        }
        vms.retain(|_, entry| *entry != Entry::default());
        self.forget_what_says_nothing();
        let has_holds = self.book.by_user.values().any(|entry| entry.hold.is_some());
        self.book.format = if has_holds { FORMAT } else { FORMAT_WITHOUT_USERS };
        // Plain data with string keys: nothing of it can't be put as JSON.
        let text = serde_json::to_vec(&self.book).ok()?;
        Some(Page { path: self.path.clone(), text })
    }

    /// Forgets what is long over, but where that keeps something older from being in force once more.
    fn forget_what_says_nothing(&mut self) {
        let says_nothing = |(_, entry): &(&Key, &Entry)| **entry == Entry::default();
        let silent = self.book.by_user.iter().filter(says_nothing).map(|(key, _)| key.clone());
        // Those of all processes stand before those of one, and are looked at last.
        for key in silent.collect::<Vec<_>>().into_iter().rev() {
            if self.book.before(&key).is_none() {
                self.book.by_user.remove(&key);
            }
        }
    }

    /// What is to be changed: of a VM it begins with what was known of it before.
    fn entry(&mut self, scope: HoldScope<'_>) -> &mut Entry {
        match scope {
            HoldScope::Vm(key) => {
                let before = self.book.before(key).cloned();
                let entry = self.book.by_user.entry(key.clone());
                entry.or_insert_with(|| before.unwrap_or_default())
            }
            HoldScope::All => &mut self.book.host,
        }
    }
}

/// A whole ledger, to be written.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    path: PathBuf,
    text: Vec<u8>,
}

impl Page {
    /// Replaces the ledger on disk, as a whole or not at all.
    ///
    /// # Errors
    /// If the disk refuses.
    pub(crate) fn write(&self) -> Result<(), StoreError> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        write_whole(directory, FILE, &self.text)
    }
}

fn parse(text: &[u8]) -> Result<Book, String> {
    parse_versioned(text, "ledger", FORMAT)
}

#[cfg(any(fuzzing, test))]
pub(crate) mod fuzzing {
    //! What fuzzers may call of this ledger: see [`crate::fuzzing`].

    /// A ledger that is read can be written and read again.
    pub(crate) fn ledger(bytes: &[u8]) {
        let Ok(book) = super::parse(bytes) else { return };
        let again = serde_json::to_vec(&book).expect("what was read can be written");
        super::parse(&again).expect("what was written can be read");
    }
}

#[cfg(test)]
mod tests;
