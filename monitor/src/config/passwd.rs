//! Names of users and their ids, from the text of `/etc/passwd`.
//!
//! Read as a file rather than through NSS: `getpwnam` loads whatever modules the host configured
//! into a privileged process, and may wait for a network. The price is that users of a directory
//! service are not found by name; their number can be given instead.

use std::cell::OnceCell;

/// The file of local users.
pub(super) const PASSWD: &str = "/etc/passwd";

/// The user id of `name` in `passwd`, or `None` if no well-formed line has that name.
pub(super) fn uid_of(passwd: &str, name: &str) -> Option<u32> {
    users(passwd).find_map(|(found, uid)| if found == name { uid.parse().ok() } else { None })
}

/// The name of the user with this id, likewise.
fn name_of(passwd: &str, wanted: u32) -> Option<&str> {
    users(passwd).find_map(|(name, uid)| (uid.parse() == Ok(wanted)).then_some(name))
}

/// Name and id of each line that has both.
fn users(passwd: &str) -> impl Iterator<Item = (&str, &str)> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        Some((fields.next()?, fields.nth(1)?))
    })
}

/// The local users, read when the first one is asked for; none where the file can't be read.
#[derive(Debug, Default)]
pub(crate) struct Passwd(OnceCell<String>);

impl Passwd {
    /// The user id of `name`.
    pub(crate) fn uid_of(&self, name: &str) -> Option<u32> {
        uid_of(self.text(), name)
    }

    /// A user for people: its name, where it has one, and its id.
    pub(crate) fn show(&self, uid: u32) -> String {
        match name_of(self.text(), uid) {
            Some(name) => format!("{name} ({uid})"),
            None => uid.to_string(),
        }
    }

    fn text(&self) -> &str {
        self.0.get_or_init(|| std::fs::read_to_string(PASSWD).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::{name_of, uid_of};

    const TEXT: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\n\nqemu:x:107:107::/:/bin/false\n";

    #[test]
    fn a_user_is_found_after_a_broken_line() {
        assert_eq!(uid_of(TEXT, "qemu"), Some(107));
        assert_eq!(uid_of(TEXT, "root"), Some(0));
        assert_eq!((name_of(TEXT, 107), name_of(TEXT, 1)), (Some("qemu"), None));
    }

    #[test]
    fn a_part_of_a_name_or_an_empty_one_is_nobody() {
        assert_eq!(uid_of(TEXT, "qem"), None);
        assert_eq!(uid_of(TEXT, ""), None);
        assert_eq!(uid_of(TEXT, "broken"), None);
    }
}
