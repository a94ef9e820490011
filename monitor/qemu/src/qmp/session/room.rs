//! Room for what sessions have read of messages that are not complete: together they take no more than so much.
//!
//! Each may hold a message of some MiB until its end comes. Where all together hold too much, the user whose QEMUs hold most loses
//! the session that holds most of it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// The most that all sessions hold, in bytes: a few of the longest messages that are taken.
const MOST_BYTES: usize = 16 << 20;

/// See the module. A clone is the same room.
#[derive(Debug, Clone)]
pub struct Room {
    most_bytes: usize,
    held: Arc<Mutex<Held>>,
}

#[derive(Debug, Default)]
struct Held {
    /// By a number that each place has; those that hold nothing have no entry.
    places: BTreeMap<u64, (u32, usize, Arc<Notify>)>,
    numbers: u64,
}

impl Default for Room {
    fn default() -> Self {
        Self::of(MOST_BYTES)
    }
}

impl Room {
    fn of(most_bytes: usize) -> Self {
        Self { most_bytes, held: Arc::default() }
    }

    /// A place of a session with a QEMU of the user `uid`.
    pub(super) fn place(&self, uid: u32) -> Place {
        let mut held = self.held();
        held.numbers += 1;
        let (number, is_lost) = (held.numbers, Arc::default());
        Place { room: self.clone(), number, uid, bytes: 0, is_lost }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Valid after every statement.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one session holds, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    room: Room,
    number: u64,
    uid: u32,
    bytes: usize,
    is_lost: Arc<Notify>,
}

impl Place {
    /// It holds so much now.
    pub(super) fn hold(&mut self, bytes: usize) {
        // Most messages come whole.
        if std::mem::replace(&mut self.bytes, bytes) == bytes {
            return;
        }
        let mut held = self.room.held();
        if bytes == 0 {
            held.places.remove(&self.number);
            return;
        }
        held.places.insert(self.number, (self.uid, bytes, self.is_lost.clone()));
        while held.all() > self.room.most_bytes
            && let Some(loser) = held.loser()
            && let Some((_, _, is_lost)) = held.places.remove(&loser)
        {
            is_lost.notify_one();
        }
    }

    /// Waits until it is to be given up.
    pub(super) async fn is_lost(&self) {
        self.is_lost.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.hold(0);
    }
}

impl Held {
    fn all(&self) -> usize {
        self.places.values().map(|(_, bytes, _)| bytes).sum()
    }

    /// The place that holds most, of the user that holds most.
    fn loser(&self) -> Option<u64> {
        let mut users: BTreeMap<u32, usize> = BTreeMap::new();
        for (uid, bytes, _) in self.places.values() {
            *users.entry(*uid).or_default() += bytes;
        }
        let (most, _) = users.into_iter().max_by_key(|(_, bytes)| *bytes)?;
        let its = self.places.iter().filter(|(_, (uid, _, _))| *uid == most);
        its.max_by_key(|(_, (_, bytes, _))| *bytes).map(|(number, _)| *number)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::{Place, Room};

    async fn is_lost(place: &Place) -> bool {
        timeout(Duration::from_millis(1), place.is_lost()).await.is_ok()
    }

    #[tokio::test]
    async fn the_user_that_holds_most_loses_its_largest_and_others_keep_theirs() {
        let room = Room::of(100);
        let mut victim = room.place(2);
        victim.hold(45);
        let mut hostile = [1, 2, 3].map(|_| room.place(1));
        for (place, bytes) in hostile.iter_mut().zip([20, 25, 30]) {
            place.hold(bytes);
        }
        assert_eq!(
            [is_lost(&hostile[0]).await, is_lost(&hostile[1]).await, is_lost(&hostile[2]).await],
            [false, false, true]
        );
        assert!(!is_lost(&victim).await);
    }

    #[tokio::test]
    async fn what_is_complete_or_gone_takes_no_room() {
        let room = Room::of(100);
        for _ in 0..10 {
            let mut place = room.place(1);
            place.hold(90);
            place.hold(0);
            place.hold(60);
            assert!(!is_lost(&place).await);
        }
        assert!(room.held().places.is_empty());
    }
}
