//! What is kept of each user, in bytes or in number: where all together is too much, the user that has most gives up its oldest.

use std::collections::{BTreeMap, VecDeque};

/// See the module. `None` is the user of what does not tell: it was written by a flatline of before.
#[derive(Debug)]
pub(crate) struct ByUser<T> {
    users: BTreeMap<Option<u32>, Kept<T>>,
    all: u64,
}

#[derive(Debug)]
struct Kept<T> {
    amount: u64,
    /// The oldest first, each with its amount.
    items: VecDeque<(u64, T)>,
}

impl<T> Default for ByUser<T> {
    fn default() -> Self {
        Self { users: BTreeMap::new(), all: 0 }
    }
}

impl<T> ByUser<T> {
    /// Adds what came after all that was added of this user before.
    pub(crate) fn push(&mut self, user: Option<u32>, amount: u64, item: T) {
        self.add(user, amount);
        self.of(user).items.push_back((amount, item));
    }

    /// Adds to what a user has, of which nothing can be given up.
    pub(crate) fn add(&mut self, user: Option<u32>, amount: u64) {
        self.all = self.all.saturating_add(amount);
        let kept = self.of(user);
        kept.amount = kept.amount.saturating_add(amount);
    }

    fn of(&mut self, user: Option<u32>) -> &mut Kept<T> {
        self.users.entry(user).or_insert_with(|| Kept { amount: 0, items: VecDeque::new() })
    }

    /// All together.
    pub(crate) fn all(&self) -> u64 {
        self.all
    }

    /// Takes out the oldest of the user that has most; `None` if that has nothing to be given up.
    pub(crate) fn pop(&mut self) -> Option<T> {
        // Of two that have as much, none gives way to the other.
        let users = self.users.values_mut();
        let most = users.max_by_key(|kept| (kept.amount, kept.items.is_empty()))?;
        most.pop(&mut self.all)
    }

    /// Takes out the oldest of what does not tell its user.
    pub(crate) fn pop_unknown(&mut self) -> Option<T> {
        self.users.get_mut(&None)?.pop(&mut self.all)
    }
}

impl<T> Kept<T> {
    fn pop(&mut self, all: &mut u64) -> Option<T> {
        let (amount, item) = self.items.pop_front()?;
        self.amount = self.amount.saturating_sub(amount);
        *all = all.saturating_sub(amount);
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use super::ByUser;

    #[test]
    fn the_user_that_has_most_gives_up_its_oldest_until_another_one_has_more() {
        let mut kept = ByUser::default();
        for (user, amount, item) in
            [(Some(1), 3, "a"), (Some(2), 4, "b"), (Some(1), 3, "c"), (None, 1, "d")]
        {
            kept.push(user, amount, item);
        }
        assert_eq!(kept.all(), 11);
        let gone: Vec<_> = std::iter::from_fn(|| kept.pop()).collect();
        assert_eq!(gone, ["a", "b", "c", "d"]);
        assert_eq!(kept.all(), 0);
    }

    #[test]
    fn one_that_has_most_and_nothing_to_give_up_costs_no_other_anything() {
        let mut kept = ByUser::default();
        kept.push(Some(1), 5, "a");
        kept.add(Some(2), 4);
        assert_eq!(kept.pop(), Some("a"));
        kept.push(Some(1), 5, "b");
        kept.add(Some(2), 2);
        assert_eq!((kept.pop(), kept.all()), (None, 11));
    }

    #[test]
    fn absurd_amounts_do_not_overflow() {
        let mut kept = ByUser::default();
        kept.push(Some(1), u64::MAX, "a");
        kept.push(Some(2), 5, "b");
        assert_eq!((kept.all(), kept.pop()), (u64::MAX, Some("a")));
    }
}
