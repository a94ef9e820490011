//! Places for restarts: at most so many on a host within a minute, reserved when they are granted, and shared out by users.
//!
//! A place is taken from when a restart is granted until it is written down as begun; from then on that record counts
//! ([`Store`](crate::storage::incidents::IncidentStore)). So what is granted at the same moment is counted, too.
//!
//! Guests that crash on purpose must not use up what others need. Where VMs are of several users, one user's restarts take no
//! more than half of the places that others leave: there is always one for another user, as long as few crash at once. Those
//! that wait do so in queues by user, and the user with the fewest restarts of late is next: a crowd delays another's single VM by
//! one place at most. Within a queue, the first that came is the first that goes.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use super::HOST_WINDOW;
use flatline_qemu::discover::VmId;

/// A place that is taken, and given back when this is dropped before the restart has begun.
#[derive(Debug)]
pub(super) struct Place(Arc<OnceLock<SystemTime>>);

impl Place {
    /// The restart is written down as begun at this moment, and counts by that.
    pub(super) fn begun(self, at: SystemTime) {
        // It is told once: the place ends by it.
        let _ = self.0.set(at);
    }
}

/// How much room there is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Restarts of all VMs that are written down as begun within [`HOST_WINDOW`].
    pub(super) begun: usize,
    /// The most that may be.
    pub(super) most: usize,
    /// This moment.
    pub(super) now: SystemTime,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Of how many users the host's VMs are.
    pub(super) owners: usize,
    taken: Vec<Taken>,
    /// Those that wait, by user; the number says in which order they came.
    queues: BTreeMap<u32, VecDeque<(u64, VmId)>>,
    arrivals: u64,
    /// How many had been handed out when a VM of each user had its turn last, as long as any
    /// waits or has a place.
    turns: BTreeMap<u32, u64>,
    handed_out: u64,
}

#[derive(Debug)]
struct Taken {
    uid: u32,
    /// When its restart began.
    begun: Arc<OnceLock<SystemTime>>,
}

impl Places {
    /// Asks for a place for a VM of a user.
    ///
    /// # Errors
    /// Why it waits, in words: [`Self::next`] hands it out when it has its turn.
    pub(super) fn ask(&mut self, vm: VmId, uid: u32, room: Room) -> Result<Place, String> {
        self.look(room.now);
        let queue = self.queues.entry(uid).or_default();
        if queue.iter().all(|(_, waiting)| *waiting != vm) {
            queue.push_back((self.arrivals, vm));
            self.arrivals += 1;
        }
        let is_next = |queue: &VecDeque<(u64, VmId)>| queue.front().is_some_and(|(_, n)| *n == vm);
        match self.next_user(room) {
            Some(next) if next == uid && self.queues.get(&uid).is_some_and(is_next) => {
                self.leave(uid);
                Ok(self.take(uid))
            }
            _ => Err(self.why_not(uid, room)),
        }
    }

    /// The VM that is next, with its place; `None` while none may go.
    pub(super) fn next(&mut self, room: Room) -> Option<(VmId, Place)> {
        self.look(room.now);
        let uid = self.next_user(room)?;
        let vm = self.leave(uid)?;
        Some((vm, self.take(uid)))
    }

    /// A place for a restart that is gone on with, before those that wait; `None` where its user has its share. It may be `begun`
    /// already, and does not count twice then.
    pub(super) fn ask_again(&mut self, uid: u32, begun: bool, room: Room) -> Option<Place> {
        self.look(room.now);
        let room = Room { begun: room.begun.saturating_sub(usize::from(begun)), ..room };
        self.may_go(uid, room).then(|| self.take(uid))
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.queues.values().map(VecDeque::len).sum()
    }

    /// Takes note of what became of the places.
    fn look(&mut self, now: SystemTime) {
        self.taken.retain(|taken| match taken.begun.get() {
            // One in the future, because the clock was set back, has just been.
            Some(begun) => now.duration_since(*begun).map_or(true, |ago| ago < HOST_WINDOW),
            None => Arc::strong_count(&taken.begun) > 1,
        });
        if self.taken.is_empty() && self.queues.is_empty() {
            self.turns.clear();
        }
    }

    fn take(&mut self, uid: u32) -> Place {
        let begun = Arc::default();
        self.taken.push(Taken { uid, begun: Arc::clone(&begun) });
        Place(begun)
    }

    fn leave(&mut self, uid: u32) -> Option<VmId> {
        let queue = self.queues.get_mut(&uid)?;
        let (_, vm) = queue.pop_front()?;
        if queue.is_empty() {
            self.queues.remove(&uid);
        }
        self.handed_out += 1;
        self.turns.insert(uid, self.handed_out);
        Some(vm)
    }

    /// The user whose turn it is.
    fn next_user(&self, room: Room) -> Option<u32> {
        let heads = self.queues.iter().filter_map(|(uid, queue)| Some((*uid, queue.front()?.0)));
        let may_go = heads.filter(|(uid, _)| self.may_go(*uid, room));
        let turn = |uid: u32| (self.of(uid), self.turns.get(&uid).copied());
        may_go.min_by_key(|(uid, arrival)| (turn(*uid), *arrival)).map(|(uid, _)| uid)
    }

    fn may_go(&self, uid: u32, room: Room) -> bool {
        let used = self.used(room);
        used < room.most && (self.owners < 2 || self.of(uid) < self.share(uid, room))
    }

    /// Places that are used up on the host.
    fn used(&self, room: Room) -> usize {
        room.begun + self.taken.iter().filter(|taken| taken.begun.get().is_none()).count()
    }

    /// Places that one user's VMs have.
    fn of(&self, uid: u32) -> usize {
        self.taken.iter().filter(|taken| taken.uid == uid).count()
    }

    /// The most that one user's VMs may have now.
    fn share(&self, uid: u32, room: Room) -> usize {
        let others = self.used(room).saturating_sub(self.of(uid));
        room.most.saturating_sub(others).div_ceil(2)
    }

    fn why_not(&self, uid: u32, room: Room) -> String {
        let Room { most, .. } = room;
        if self.owners < 2 || self.used(room) >= most {
            format!("{most} VMs of this host were restarted within a minute, or are just being")
        } else if self.of(uid) >= self.share(uid, room) {
            let own = self.of(uid);
            format!(
                "{own} VMs of its user were restarted within a minute, and what is left of {most} is for others'"
            )
        } else {
            "another user's VM is before it".to_owned()
        }
    }
}

#[cfg(test)]
mod tests;
