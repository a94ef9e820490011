//! Shares of users in what there is a fixed number of: pure.
//!
//! As long as there is enough, each gets what it asks for, first come first served. Once all is taken, a user that holds less than
//! an equal share is given room by the one that holds most, which loses its newest.

use std::collections::BTreeMap;

/// Which of the `held` is to go for one more of the user `uid`; `None` where it has its share already. Each is told by its user
/// and by what orders it among that user's, the oldest first.
pub(super) fn loser<T: Copy + Ord>(held: &[(u32, T)], uid: u32) -> Option<T> {
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    for (holder, _) in held {
        *counts.entry(*holder).or_default() += 1;
    }
    // It is one of those that share, also as long as it holds none.
    let own = *counts.entry(uid).or_default();
    let share = (held.len() / counts.len()).max(1);
    let (most_uid, most) = counts.into_iter().max_by_key(|(_, count)| *count)?;
    if own >= share || most <= share {
        return None;
    }
    held.iter().filter(|(holder, _)| *holder == most_uid).map(|(_, one)| *one).max()
}

#[cfg(test)]
mod tests {
    use super::loser;

    /// Those of each user, numbered in the order in which they came.
    fn held(counts: &[(u32, u32)]) -> Vec<(u32, u32)> {
        counts
            .iter()
            .flat_map(|(uid, count)| (0..*count).map(|n| (*uid, *uid * 1000 + n)))
            .collect()
    }

    #[test]
    fn the_newest_of_the_user_with_most_goes_until_the_other_has_its_share() {
        let mut all = held(&[(1, 1000), (2, 24)]);
        let mut gone = Vec::new();
        for n in 0..1000 {
            let Some(loser) = loser(&all, 3) else { break };
            gone.push(loser);
            all.retain(|(_, one)| *one != loser);
            all.push((3, 3000 + n));
        }
        assert_eq!(gone.first(), Some(&1999), "the newest first");
        assert_eq!(gone.len(), 1024 / 3, "an equal share of all");
        assert!(gone.iter().all(|one| (1000..2000).contains(one)), "of no other user");
    }

    #[test]
    fn a_user_that_has_its_share_or_is_alone_takes_nothing_of_any() {
        assert_eq!(loser(&held(&[(1, 16)]), 1), None);
        assert_eq!(loser(&held(&[(1, 8), (2, 8)]), 1), None);
        assert_eq!(loser(&held(&[(1, 9), (2, 7)]), 1), None);
        assert_eq!(loser(&held(&[(1, 9), (2, 7)]), 2), Some(1008));
    }

    #[test]
    fn more_users_than_there_is_room_for_leave_each_of_them_one() {
        assert_eq!(loser(&held(&[(1, 1), (2, 1), (3, 1)]), 4), None);
        assert_eq!(loser(&held(&[(1, 2), (2, 1)]), 4), Some(1001));
        assert_eq!(loser::<u32>(&[], 4), None);
    }
}
