//! The connection that makes room for a new one where there are as many as may be: pure.
//!
//! It is one of the party that has most of them: so one user can't displace the readers of others, however many connections
//! it opens. Of that party's, one goes that has asked for nothing yet, the oldest first.

use std::{cmp::Reverse, net::IpAddr};

/// A user of this host, or another host: what shares its connections out among its programs by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Party {
    /// A user id of this host.
    User(u32),
    /// What connects from this address, of which no user is known.
    Address(IpAddr),
}

/// What is known of one connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    /// Whose it is.
    pub(super) party: Party,
    /// Whether it has sent the whole head of a request.
    pub(super) has_asked: bool,
}

/// The place in `held`, the oldest first, of the connection that makes room for one of `next`.
pub(super) fn displaced(held: &[Held], next: Party) -> Option<usize> {
    let of = |party: Party| {
        let others = held.iter().filter(|other| other.party == party).count();
        others + usize::from(party == next)
    };
    let rank = |(place, one): &(usize, &Held)| (of(one.party), !one.has_asked, Reverse(*place));
    held.iter().enumerate().max_by_key(rank).map(|(place, _)| place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(list: &[(u32, bool)]) -> Vec<Held> {
        let one = |&(uid, has_asked): &(u32, bool)| Held { party: Party::User(uid), has_asked };
        list.iter().map(one).collect()
    }

    #[test]
    fn one_users_connections_make_room_for_one_another() {
        let list = held(&[(0, false), (7, true), (7, true), (7, true)]);
        assert_eq!(displaced(&list, Party::User(7)), Some(1), "its oldest, and not root's");
        let list = held(&[(0, false), (7, true), (7, false), (7, false)]);
        assert_eq!(displaced(&list, Party::User(0)), Some(2), "the silent one first");
        let list = held(&[(0, false), (0, true), (7, true), (7, true)]);
        assert_eq!(displaced(&list, Party::User(7)), Some(2), "what comes counts as well");
    }

    #[test]
    fn where_all_have_as_many_the_silent_one_goes_then_the_oldest() {
        let list = held(&[(1, true), (2, true), (3, false), (4, false)]);
        assert_eq!(displaced(&list, Party::User(5)), Some(2));
        let list = held(&[(1, true), (2, true)]);
        assert_eq!(displaced(&list, Party::User(5)), Some(0));
        assert_eq!(displaced(&[], Party::User(5)), None);
    }
}
