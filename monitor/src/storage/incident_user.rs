//! The user whose VM an incident is of, by its record.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use rustix::fs::{CWD, Mode, OFlags, openat};
use serde::Deserialize;

use super::incidents::{RECORD, RECORD_MAX_BYTES};

/// The user of the incident `id` below `incidents`; `None` where its record does not tell. No link is followed.
pub(crate) fn user_of(incidents: &Path, id: &str) -> Option<u32> {
    #[derive(Deserialize)]
    struct Record {
        uid: Option<u32>,
    }
    let text = read(incidents, id).ok()?;
    serde_json::from_slice::<Record>(&text).ok()?.uid
}

fn read(incidents: &Path, id: &str) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let directory = openat(CWD, incidents.join(id), flags | OFlags::DIRECTORY, Mode::empty())?;
    let record = File::from(openat(directory, RECORD, flags, Mode::empty())?);
    let mut text = Vec::new();
    record.take(RECORD_MAX_BYTES).read_to_end(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::user_of;

    #[test]
    fn a_record_tells_its_user_and_what_is_torn_older_or_a_link_tells_none() {
        let base = tempfile::tempdir().expect("a directory");
        let put = |id: &str, text: &str| {
            fs::create_dir(base.path().join(id)).expect("made");
            fs::write(base.path().join(id).join("incident.json"), text).expect("written");
        };
        put("new", r#"{"format":1,"id":"new","uid":1000}"#);
        put("old", r#"{"format":1,"id":"old"}"#);
        put("torn", r#"{"format":1,"uid":10"#);
        std::os::unix::fs::symlink(base.path().join("new"), base.path().join("link"))
            .expect("made");
        let users = ["new", "old", "torn", "link", "none"].map(|id| user_of(base.path(), id));
        assert_eq!(users, [Some(1000), None, None, None, None]);
    }
}
