//! Room for a dump: whether it may grow, and which older ones make way, of the user that has most: pure.

use std::time::SystemTime;

use crate::storage::by_user::ByUser;

/// So much of a file system stays free, as a share of all of it.
const STAYS_FREE: u64 = 20;

/// A dump that is there already.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Old {
    /// When it was last written to.
    pub(super) written: SystemTime,
    pub(super) name: String,
    pub(super) bytes: u64,
    /// The user of its VM; `None` where its incident does not tell.
    pub(super) user: Option<u32>,
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
    /// The user whose dump it is.
    user: Option<u32>,
    /// That of older ones, and what the dump is counted with already.
    kept: ByUser<Old>,
    counted: u64,
}

impl Room {
    pub(super) fn new(quota_bytes: u64, user: Option<u32>, mut old: Vec<Old>) -> Self {
        old.sort();
        let mut kept = ByUser::default();
        for one in old {
            kept.push(one.user, one.bytes, one);
        }
        Self { quota_bytes, user, kept, counted: 0 }
    }

    /// Whether a dump that has `written` bytes may grow by `more`, while those of other users that are being taken have `others`.
    /// What is to be removed is taken for removed.
    pub(super) fn next(&mut self, written: u64, more: u64, others: u64, disk: FileSystem) -> Next {
        let wants = written.saturating_add(more);
        if wants > self.quota_bytes {
            return Next::Full(format!(
                "it is larger than the quota of {} bytes",
                self.quota_bytes
            ));
        }
        self.kept.add(self.user, wants.saturating_sub(self.counted));
        self.counted = self.counted.max(wants);
        let stays_free = disk.all_bytes / STAYS_FREE;
        let fits = disk.free_bytes.saturating_sub(more) >= stays_free && disk.free_bytes >= more;
        let is_within = self.kept.all().saturating_add(others) <= self.quota_bytes;
        if is_within && fits {
            return Next::Grow;
        }
        // What a flatline of before wrote is in the way of none of today's.
        match self.kept.pop_unknown().or_else(|| self.kept.pop()) {
            Some(oldest) => Next::Remove(oldest),
            None if fits => Next::Full(format!(
                "no other user's dumps have as much of the quota of {} bytes",
                self.quota_bytes
            )),
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
        Old { written, name: format!("{age}.kdump"), bytes, user: Some(1) }
    }

    fn room(quota_bytes: u64, old: Vec<Old>) -> Room {
        Room::new(quota_bytes, Some(1), old)
    }

    impl Room {
        fn alone(&mut self, written: u64, more: u64, disk: FileSystem) -> Next {
            self.next(written, more, 0, disk)
        }
    }

    #[test]
    fn the_oldest_make_room_and_no_more_of_them_than_needed() {
        let mut room = room(100, vec![old(1, 30), old(3, 30), old(2, 30)]);
        assert_eq!(room.alone(0, 10, ROOMY), Next::Grow);
        assert_eq!(room.alone(10, 10, ROOMY), Next::Remove(old(3, 30)));
        assert_eq!(room.alone(10, 10, ROOMY), Next::Grow);
        assert_eq!(room.alone(30, 30, ROOMY), Next::Remove(old(2, 30)));
        assert_eq!(room.alone(60, 10, ROOMY), Next::Grow);
    }

    #[test]
    fn what_is_larger_than_the_quota_removes_no_other() {
        let mut room = room(100, vec![old(1, 90)]);
        assert!(matches!(room.alone(95, 10, ROOMY), Next::Full(why) if why.contains("quota")));
        assert_eq!(room.kept.all(), 90);
    }

    #[test]
    fn no_user_makes_room_for_one_that_has_more() {
        let of = |user, age, bytes| Old { user: Some(user), ..old(age, bytes) };
        // The oldest is the victim's.
        let mut room = Room::new(100, Some(1), vec![of(2, 9, 30), of(1, 3, 40), of(1, 2, 30)]);
        assert_eq!(room.alone(0, 10, ROOMY), Next::Remove(of(1, 3, 40)));
        assert_eq!(room.alone(0, 10, ROOMY), Next::Grow);
        assert_eq!(room.alone(10, 50, ROOMY), Next::Remove(of(1, 2, 30)));
        assert_eq!(room.alone(10, 50, ROOMY), Next::Grow);
        assert!(matches!(room.alone(60, 20, ROOMY), Next::Full(why) if why.contains("other user")));
        // One that has less is given room.
        let mut room = Room::new(100, Some(2), vec![of(2, 9, 10), of(1, 3, 60), of(1, 2, 30)]);
        assert_eq!(room.alone(0, 20, ROOMY), Next::Remove(of(1, 3, 60)));
    }

    #[test]
    fn what_others_are_writing_counts() {
        let mut room = room(100, Vec::new());
        assert_eq!(room.next(0, 50, 50, ROOMY), Next::Grow);
        assert!(matches!(room.next(50, 10, 50, ROOMY), Next::Full(_)));
    }

    #[test]
    fn a_twentieth_of_the_file_system_stays_free() {
        let disk = |free_bytes| FileSystem { free_bytes, all_bytes: 1000 };
        let mut room = room(900, vec![old(1, 5)]);
        assert_eq!(room.alone(0, 10, disk(60)), Next::Grow);
        assert_eq!(room.alone(0, 10, disk(59)), Next::Remove(old(1, 5)));
        assert!(
            matches!(room.alone(0, 10, disk(59)), Next::Full(why) if why.contains("twentieth"))
        );
        assert!(matches!(room.alone(0, u64::MAX, disk(5)), Next::Full(_)));
    }
}
