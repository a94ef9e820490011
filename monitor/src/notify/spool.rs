//! What waits for its targets, on disk: so that a daemon that comes after this one tells it.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::event::Event;

/// The file in the state directory.
const NAME: &str = "telling.json";
/// More than this is never read back: a full queue of each target takes less.
const MOST_BYTES: u64 = 256 << 20;

/// What waits for one target.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(super) struct Left<E> {
    pub(super) lost: u64,
    pub(super) events: Vec<E>,
}

/// What waits for all, by their names.
pub(super) type All<E> = BTreeMap<String, Left<E>>;

/// Where it is kept.
#[derive(Clone, Debug)]
pub(super) struct Spool(PathBuf);

impl Spool {
    pub(super) fn new(state_dir: &Path) -> Self {
        Self(state_dir.join(NAME))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// What an earlier daemon left.
    ///
    /// # Errors
    /// If there is something that can't be read.
    pub(super) fn read(&self) -> io::Result<All<Event>> {
        let file = match File::open(&self.0) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(All::new()),
            Err(error) => return Err(error),
        };
        let mut text = Vec::new();
        file.take(MOST_BYTES).read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// Replaces it as a whole, or removes it where nothing waits.
    ///
    /// # Errors
    /// Of the disk.
    pub(super) fn write<E: Serialize>(&self, all: &All<E>) -> io::Result<()> {
        if all.is_empty() {
            return match fs::remove_file(&self.0) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        let temporary = self.0.with_extension("json.new");
        let mut options = OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&serde_json::to_vec(all)?)?;
        file.sync_all()?;
        fs::rename(&temporary, &self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, os::unix::fs::PermissionsExt as _, time::UNIX_EPOCH};

    use super::{Left, Spool};
    use crate::notify::event::{Event, EventKind};

    #[test]
    fn what_waits_is_read_back_as_it_was_and_gone_once_nothing_waits() {
        let dir = tempfile::tempdir().expect("a directory");
        let spool = Spool::new(dir.path());
        assert!(spool.read().expect("none").is_empty());
        let event = Event::of_host(EventKind::SensorLost, UNIX_EPOCH, "why".to_owned());
        let left = Left { lost: 3, events: vec![event.clone()] };
        spool.write(&BTreeMap::from([("pager".to_owned(), left)])).expect("written");
        let mode = spool.path().metadata().expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let read = spool.read().expect("well-formed");
        assert_eq!((read["pager"].lost, &read["pager"].events), (3, &vec![event]));
        let none: super::All<Event> = BTreeMap::new();
        spool.write(&none).expect("removed");
        assert!(!spool.path().exists());
        spool.write(&none).expect("removed already");
    }

    #[test]
    fn what_is_torn_is_an_error() {
        let dir = tempfile::tempdir().expect("a directory");
        let spool = Spool::new(dir.path());
        std::fs::write(spool.path(), "{\"pager\": {\"lost\": 1").expect("written");
        assert!(spool.read().is_err());
    }
}
