//! Turns of users at a dump: one of each user at the same time, and few on the host. There is a turn at once, or none.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use super::State;
use flatline_qemu::discover::VmId;

/// Dumps that are taken at the same time.
const AT_ONCE: usize = 4;

/// What the thread that writes and the task that looks on share.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) written: AtomicU64,
    /// The time is up: the pipe is to be closed.
    pub(super) give_up: AtomicBool,
}

/// The dumps that are under way.
#[derive(Clone, Debug, Default)]
pub(crate) struct UnderWay {
    /// By user.
    turns: Arc<Mutex<BTreeMap<u32, Arc<Progress>>>>,
    states: Arc<Mutex<BTreeMap<VmId, State>>>,
}

impl UnderWay {
    /// How far that of a VM is; `None` where none is taken.
    pub(crate) fn of(&self, vm: VmId) -> Option<State> {
        self.states().get(&vm).copied()
    }

    pub(super) fn states(&self) -> MutexGuard<'_, BTreeMap<VmId, State>> {
        lock(&self.states)
    }

    /// A turn of this user, if it can have one now.
    ///
    /// # Errors
    /// Why not: to wait would delay a restart.
    pub(super) fn begin(&self, user: u32) -> Result<Turn, String> {
        let mut turns = lock(&self.turns);
        if turns.contains_key(&user) {
            return Err("skipped, since that of another VM of its user is being taken".to_owned());
        }
        if turns.len() >= AT_ONCE {
            return Err(format!("skipped, since those of {AT_ONCE} other users are being taken"));
        }
        let progress = Arc::<Progress>::default();
        turns.insert(user, progress.clone());
        Ok(Turn { under_way: self.clone(), user, progress })
    }
}

/// A user's turn, until this is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    under_way: UnderWay,
    user: u32,
    progress: Arc<Progress>,
}

impl Turn {
    pub(super) fn user(&self) -> u32 {
        self.user
    }

    pub(super) fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// Bytes of the dumps of other users that are being taken.
    pub(super) fn written_by_others(&self) -> u64 {
        let turns = lock(&self.under_way.turns);
        let others = turns.iter().filter(|(user, _)| **user != self.user);
        others.map(|(_, progress)| progress.written.load(Relaxed)).fold(0, u64::saturating_add)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.under_way.turns).remove(&self.user);
    }
}

/// What the lock guards is valid after every statement.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_one_turn_at_a_time_and_none_waits_for_another() {
        let under_way = UnderWay::default();
        let first = under_way.begin(1).unwrap();
        assert!(under_way.begin(1).unwrap_err().contains("of its user"));
        let second = under_way.begin(2).unwrap();
        first.progress().written.store(7, Relaxed);
        assert_eq!((first.written_by_others(), second.written_by_others()), (0, 7));
        drop(first);
        let more: Vec<_> = [1, 3, 4].map(|user| under_way.begin(user).unwrap()).into();
        assert!(under_way.begin(5).unwrap_err().contains("4 other users"));
        drop(more);
        assert_eq!(second.written_by_others(), 0);
        assert!(under_way.begin(5).is_ok());
    }
}
