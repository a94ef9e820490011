//! Executables that the program on `exec` tells of: the map `executables`, kept in step with the files that may be QEMUs.
//!
//! The configuration names them by patterns of paths. What else a sweep found to be a QEMU, such as one from a container's
//! own file system, is told of from then on as well.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use aya::maps::{HashMap, Map, MapData, MapError};
use glob::Pattern;
use monitor_ebpf::ANY_EXECUTABLE;
use tracing::{debug, warn};

use super::{ProbeError, pins::Pins, slots::open};
use flatline_qemu::discover::{self, Scope};

/// Executables that are remembered which no pattern names in this mount namespace: those found last.
const FOUND: usize = 256;
/// The next look for files waits for this many times as long as the last one took: a store of packages has very many.
const LOOK_RARELY: u32 = 1_000;

/// See the module. Its calls may wait for a file system.
#[derive(Debug)]
pub(crate) struct Executables {
    told: Mutex<Told>,
    /// Held during a look for files, since one that hangs is enough.
    looked: Mutex<Option<Looked>>,
}

/// The last look for files.
#[derive(Debug)]
struct Looked {
    patterns: Vec<Pattern>,
    /// No look by the same patterns begins before.
    again_at: Instant,
}

#[derive(Debug)]
struct Told {
    map: HashMap<MapData, u64, u32>,
    /// The map's keys.
    keys: BTreeSet<u64>,
    wanted: Wanted,
}

/// Which inodes are to be told of.
#[derive(Debug, Default)]
struct Wanted {
    /// Those of the files that the configuration names; `None`: of any.
    named: Option<BTreeSet<u64>>,
    /// Those of QEMUs that a sweep found.
    found: VecDeque<u64>,
}

impl Wanted {
    fn keys(&self) -> BTreeSet<u64> {
        let any = if self.named.is_none() { Some(ANY_EXECUTABLE) } else { None };
        self.named.iter().flatten().chain(&self.found).copied().chain(any).collect()
    }

    /// Whether that is new.
    fn find(&mut self, inode: u64) -> bool {
        let is_known = self.named.as_ref().is_some_and(|named| named.contains(&inode));
        if is_known || self.found.contains(&inode) {
            return false;
        }
        if self.found.len() == FOUND {
            self.found.pop_front();
        }
        self.found.push_back(inode);
        true
    }
}

impl Executables {
    /// Opens the pinned map, with what an earlier daemon left in it.
    pub(super) fn open(pins: &Pins) -> Result<Self, ProbeError> {
        let map: HashMap<MapData, u64, u32> = open(pins, "executables", Map::HashMap)?;
        let keys = map.keys().collect::<Result<_, _>>();
        let keys = keys.map_err(|source| ProbeError::Map { map: "executables", source })?;
        let told = Told { map, keys, wanted: Wanted::default() };
        Ok(Self { told: Mutex::new(told), looked: Mutex::new(None) })
    }

    /// Looks for the files that `scope` names, unless that was done just now. Whether there are some that were not told of before: what
    /// executed them already, only a sweep finds.
    pub(crate) fn refresh(&self, scope: &Scope) -> bool {
        let Ok(mut looked) = self.looked.try_lock() else { return false };
        let begun = Instant::now();
        let is_new =
            |looked: &Looked| looked.patterns == scope.executables && begun < looked.again_at;
        if looked.as_ref().is_some_and(is_new) {
            return false;
        }
        let named = discover::executables(scope);
        let again_at = begun + begun.elapsed() * LOOK_RARELY;
        *looked = Some(Looked { patterns: scope.executables.clone(), again_at });
        let mut told = self.told();
        if named.is_none() && told.wanted.named.is_some() {
            debug!("discovery.executables names too many files: all that is executed is looked at");
        }
        told.wanted.named = named;
        let are_new = told.wanted.keys().iter().any(|inode| !told.keys.contains(inode));
        told.settle();
        are_new
    }

    /// Takes note of a QEMU that was found.
    pub(crate) fn found(&self, pid: u32) {
        let Some(inode) = discover::executable_inode(pid) else { return };
        let mut told = self.told();
        if told.wanted.find(inode) {
            told.settle();
        }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        // What it guards is whole after each step.
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Told {
    /// Makes the map's keys those that are wanted.
    fn settle(&mut self) {
        let wanted = self.wanted.keys();
        let failed = |error: MapError| warn!("QEMUs may be found by sweeps only: {error}");
        for inode in &wanted {
            if !self.keys.contains(inode) {
                match self.map.insert(inode, 1, 0) {
                    Ok(()) => drop(self.keys.insert(*inode)),
                    Err(error) => failed(error),
                }
            }
        }
        let map = &mut self.map;
        self.keys.retain(|inode| wanted.contains(inode) || map.remove(inode).is_err());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_and_what_was_found_is_told_of_and_all_where_that_is_not_known() {
        let mut wanted = Wanted::default();
        assert_eq!(wanted.keys(), BTreeSet::from([ANY_EXECUTABLE]));
        wanted.named = Some(BTreeSet::from([3, 5]));
        assert!(!wanted.find(5) && wanted.find(7) && !wanted.find(7));
        assert_eq!(wanted.keys(), BTreeSet::from([3, 5, 7]));
        (10..).take(FOUND).for_each(|inode| assert!(wanted.find(inode)));
        assert_eq!(wanted.found.len(), FOUND);
        assert!(!wanted.keys().contains(&7), "the one that was found first");
    }
}
