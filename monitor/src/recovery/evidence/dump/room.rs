//! Room for a dump: whether it may grow, and which older ones make way: pure.

use std::time::SystemTime;

/// So much of a file system stays free, as a share of all of it.
const STAYS_FREE: u64 = 20;

/// A dump that is there already.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Old {
    /// When it was last written to.
    pub(super) written: SystemTime,
    pub(super) name: String,
    pub(super) bytes: u64,
}

/// What a file system has.
#[derive(Clone, Copy, Debug)]
pub(super) struct FileSystem {
    pub(super) free_bytes: u64,
    pub(super) all_bytes: u64,
}

/// What is to be done before a dump of `written` bytes grows by some more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Grow,
    /// This one is to be removed first.
    Remove(Old),
    /// It can't grow, for a reason that no removal mends.
    Full(String),
}

/// The quota, and what takes of it.
#[derive(Debug)]
pub(super) struct Room {
    quota_bytes: u64,
    /// The oldest last.
    old: Vec<Old>,
}

impl Room {
    pub(super) fn new(quota_bytes: u64, mut old: Vec<Old>) -> Self {
        old.sort_by(|a, b| b.cmp(a));
        Self { quota_bytes, old }
    }

    /// Whether a dump that has `written` bytes may grow by `more`. What is to be removed is taken for removed.
    pub(super) fn next(&mut self, written: u64, more: u64, disk: FileSystem) -> Next {
        let wants = written.saturating_add(more);
        if wants > self.quota_bytes {
            return Next::Full(format!(
                "it is larger than the quota of {} bytes",
                self.quota_bytes
            ));
        }
        let kept = self.old.iter().map(|old| old.bytes).fold(0, u64::saturating_add);
        let stays_free = disk.all_bytes / STAYS_FREE;
        let fits = disk.free_bytes.saturating_sub(more) >= stays_free && disk.free_bytes >= more;
        if kept.saturating_add(wants) <= self.quota_bytes && fits {
            return Next::Grow;
        }
        match self.old.pop() {
            Some(oldest) => Next::Remove(oldest),
            None => Next::Full(format!(
                "the file system has {} bytes left of {}, of which a twentieth stays free",
                disk.free_bytes, disk.all_bytes
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const ROOMY: FileSystem = FileSystem { free_bytes: 1000, all_bytes: 1000 };

    fn old(age: u64, bytes: u64) -> Old {
        let written = SystemTime::UNIX_EPOCH + Duration::from_secs(1000 - age);
        Old { written, name: format!("{age}.kdump"), bytes }
    }

    #[test]
    fn the_oldest_make_room_and_no_more_of_them_than_needed() {
        let mut room = Room::new(100, vec![old(1, 30), old(3, 30), old(2, 30)]);
        assert_eq!(room.next(0, 10, ROOMY), Next::Grow);
        assert_eq!(room.next(10, 10, ROOMY), Next::Remove(old(3, 30)));
        assert_eq!(room.next(10, 10, ROOMY), Next::Grow);
        assert_eq!(room.next(30, 30, ROOMY), Next::Remove(old(2, 30)));
        assert_eq!(room.next(60, 10, ROOMY), Next::Grow);
    }

    #[test]
    fn what_is_larger_than_the_quota_removes_no_other() {
        let mut room = Room::new(100, vec![old(1, 90)]);
        assert!(matches!(room.next(95, 10, ROOMY), Next::Full(why) if why.contains("quota")));
        assert_eq!(room.old.len(), 1);
    }

    #[test]
    fn a_twentieth_of_the_file_system_stays_free() {
        let disk = |free_bytes| FileSystem { free_bytes, all_bytes: 1000 };
        let mut room = Room::new(900, vec![old(1, 5)]);
        assert_eq!(room.next(0, 10, disk(60)), Next::Grow);
        assert_eq!(room.next(0, 10, disk(59)), Next::Remove(old(1, 5)));
        assert!(matches!(room.next(0, 10, disk(59)), Next::Full(why) if why.contains("twentieth")));
        assert!(matches!(room.next(0, u64::MAX, disk(5)), Next::Full(_)));
    }
}
