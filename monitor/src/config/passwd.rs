//! User names to user ids, from the text of `/etc/passwd`.
//!
//! Read as a file rather than through NSS: `getpwnam` loads whatever modules the host configured
//! into a privileged process, and may wait for a network. The price is that users of a directory
//! service are not found by name; their number can be given instead.

/// The file of local users.
pub(super) const PASSWD: &str = "/etc/passwd";

/// The user id of `name` in `passwd`, or `None` if no well-formed line has that name.
pub(super) fn uid_of(passwd: &str, name: &str) -> Option<u32> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next()? == name;
        let uid = fields.nth(1)?;
        if found { uid.parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::uid_of;

    const TEXT: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\n\nqemu:x:107:107::/:/bin/false\n";

    #[test]
    fn a_user_is_found_after_a_broken_line() {
        assert_eq!(uid_of(TEXT, "qemu"), Some(107));
        assert_eq!(uid_of(TEXT, "root"), Some(0));
    }

    #[test]
    fn a_part_of_a_name_or_an_empty_one_is_nobody() {
        assert_eq!(uid_of(TEXT, "qem"), None);
        assert_eq!(uid_of(TEXT, ""), None);
        assert_eq!(uid_of(TEXT, "broken"), None);
    }
}
