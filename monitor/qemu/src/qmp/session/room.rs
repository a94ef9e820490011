//! What sessions may take together: room for messages that are not complete, and work for what was not asked for.
//!
//! Each may hold a message of some MiB until its end comes. Where all together hold too much, the user whose QEMUs hold most loses
//! the session that holds most of it. Each may also say much that nothing asked for, and reading costs: of what a user's QEMUs
//! say so within a second too much together, the session that said most is lost.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

/// The most that all sessions hold, in bytes: a few of the longest messages that are taken.
const MOST_BYTES: usize = 16 << 20;
/// The most that the QEMUs of one user say within a second without having been asked, in bytes: some 2,500 events of two
/// hundred bytes.
const MOST_UNASKED_BYTES: usize = 512 << 10;
/// What that counts within.
const SECOND: Duration = Duration::from_secs(1);

/// See the module. A clone is the same room.
#[derive(Debug, Clone)]
pub struct Room {
    most_bytes: usize,
    held: Arc<Mutex<Held>>,
}

#[derive(Debug, Default)]
struct Held {
    /// By a number that each place has; those that hold nothing have no entry.
    places: BTreeMap<u64, (u32, usize, Arc<Loss>)>,
    numbers: u64,
    /// By user.
    unasked: BTreeMap<u32, Unasked>,
}

/// What one user's QEMUs said without having been asked within the second that began at `since`.
#[derive(Debug)]
struct Unasked {
    since: Instant,
    bytes: usize,
    /// By the place's number.
    of: BTreeMap<u64, (usize, Arc<Loss>)>,
}

/// Word that a place is to be given up.
#[derive(Debug, Default)]
pub(super) struct Loss {
    why: OnceLock<String>,
    told: Notify,
}

impl Loss {
    fn tell(&self, why: String) {
        let _ = self.why.set(why);
        self.told.notify_one();
    }

    /// Waits until the place is to be given up, and says why.
    pub(super) async fn why(&self) -> String {
        self.told.notified().await;
        self.why.get().cloned().unwrap_or_default()
    }
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
        let (number, loss) = (held.numbers, Arc::default());
        Place { room: self.clone(), number, uid, bytes: 0, loss }
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
    loss: Arc<Loss>,
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
        held.places.insert(self.number, (self.uid, bytes, self.loss.clone()));
        while held.all() > self.room.most_bytes
            && let Some(loser) = held.loser()
            && let Some((_, _, loss)) = held.places.remove(&loser)
        {
            loss.tell(
                "its unfinished message takes more than its user's share of the room for all"
                    .to_owned(),
            );
        }
    }

    /// It said so much that was not asked for.
    pub(super) fn unasked(&self, bytes: usize) {
        let mut held = self.room.held();
        let now = Instant::now();
        held.unasked.retain(|_, its| now.duration_since(its.since) < SECOND);
        let fresh = || Unasked { since: now, bytes: 0, of: BTreeMap::new() };
        let its = held.unasked.entry(self.uid).or_insert_with(fresh);
        its.bytes = its.bytes.saturating_add(bytes);
        its.of.entry(self.number).or_insert_with(|| (0, self.loss.clone())).0 += bytes;
        while its.bytes > MOST_UNASKED_BYTES
            && let Some(most) = its.of.iter().max_by_key(|(_, (bytes, _))| *bytes)
            && let number = *most.0
            && let Some((bytes, loss)) = its.of.remove(&number)
        {
            its.bytes -= bytes;
            loss.tell(format!(
                "flood: {bytes} bytes within a second that were not asked for, the most of more than {MOST_UNASKED_BYTES} of all \
                 QEMUs of its user"
            ));
        }
    }

    /// Word of its being lost.
    pub(super) fn loss(&self) -> Arc<Loss> {
        self.loss.clone()
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

    use super::{MOST_UNASKED_BYTES, Place, Room};

    async fn is_lost(place: &Place) -> bool {
        timeout(Duration::from_millis(1), place.loss().why()).await.is_ok()
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

    #[tokio::test]
    async fn the_session_that_says_most_unasked_is_lost_and_no_other_of_its_user_nor_of_another() {
        let room = Room::of(100);
        let (quiet, loud, other) = (room.place(1), room.place(1), room.place(2));
        quiet.unasked(1000);
        other.unasked(MOST_UNASKED_BYTES);
        for _ in 0..3 {
            loud.unasked(MOST_UNASKED_BYTES / 2);
        }
        assert_eq!(
            [is_lost(&quiet).await, is_lost(&loud).await, is_lost(&other).await],
            [false, true, false]
        );
        // Another second, another count.
        tokio::time::sleep(super::SECOND).await;
        quiet.unasked(MOST_UNASKED_BYTES);
        assert!(!is_lost(&quiet).await);
    }
}
