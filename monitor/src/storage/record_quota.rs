//! How many records of incidents are kept: where there are more, the user of whose VMs there are most gives up its oldest.

use std::ffi::CString;

use super::by_user::ByUser;

/// Records that are kept on the whole host. Each takes a directory and a file, 8 KiB on most file systems.
pub(super) const MOST_RECORDS: u64 = 10_000;

/// Which of these incidents are to go where at most so many are kept. An id begins with its time; `user_of` tells its user.
pub(super) fn surplus(
    mut ids: Vec<CString>,
    most: u64,
    user_of: impl Fn(&CString) -> Option<u32>,
) -> Vec<CString> {
    if ids.len() as u64 <= most {
        return Vec::new();
    }
    ids.sort();
    let mut kept = ByUser::default();
    for id in ids {
        kept.push(user_of(&id), 1, id);
    }
    let mut gone = Vec::new();
    while kept.all() > most
        && let Some(oldest) = kept.pop()
    {
        gone.push(oldest);
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_of_the_user_with_most_go_and_no_other() {
        let id = |second: u32, uid: u32| CString::new(format!("{second:05}-{uid}")).unwrap();
        let mut ids: Vec<CString> = (0..90).map(|second| id(second + 10, 1)).collect();
        ids.extend((0..5).map(|second| id(second, 2)));
        let user_of =
            |id: &CString| -> Option<u32> { id.to_str().ok()?.rsplit_once('-')?.1.parse().ok() };
        assert!(surplus(ids.clone(), 95, user_of).is_empty());
        let gone = surplus(ids, 50, user_of);
        assert_eq!(gone, (0..45).map(|second| id(second + 10, 1)).collect::<Vec<_>>());
    }
}
