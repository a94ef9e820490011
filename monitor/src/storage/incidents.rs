//! Incidents and their evidence on disk: a directory each, `STATE_DIR/incidents/ID/`.
//!
//! A record is replaced as a whole (temporary file, fsync, rename, fsync of the directory), so a
//! host that loses power has the old one or the new one. Restarts that count towards the limit
//! are also kept in memory, and noted there before the disk is asked: a full disk must not make
//! the daemon forget that it restarted a guest a minute ago. A record that can't be read is
//! reported and left where it is, for a person to look at.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tracing::warn;

use super::{
    incident::{Incident, incident_id},
    restart_index::RestartIndex,
};
use crate::identity::Key;

/// The most that one evidence file may hold: an uncompressed 1920x1080 picture of four bytes a
/// pixel still fits.
pub(crate) const EVIDENCE_MAX_BYTES: usize = 8 << 20;

/// A record longer than this was not written by us.
pub(super) const RECORD_MAX_BYTES: u64 = 1 << 20;

/// Ids that were given out and are remembered.
const IDS: usize = 10_000;

/// The form of a record; a record of a higher one was written by a newer flatline.
const FORMAT: u32 = 1;

pub(super) const RECORD: &str = "incident.json";
const DIRECTORY_MODE: u32 = 0o750;
const FILE_MODE: u32 = 0o640;

/// Why something could not be stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The file system refused: full, read-only, or not ours.
    #[error("can't {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file or directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// An id or an evidence's name that is not a plain file name.
    #[error("{0:?} is not a plain file name")]
    BadName(String),
    /// Evidence above [`EVIDENCE_MAX_BYTES`].
    #[error("{name} has {size} bytes, more than the {EVIDENCE_MAX_BYTES} that evidence may have")]
    TooLarge {
        /// The evidence's name.
        name: String,
        /// Its size in bytes.
        size: usize,
    },
    /// The record can't be put as JSON.
    #[error("can't encode the incident {id}")]
    Encode {
        /// The incident.
        id: String,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
}

/// Where the incidents of a state directory are.
pub(crate) fn incidents_in(state_dir: &Path) -> PathBuf {
    state_dir.join("incidents")
}

/// A record as it stands in its file.
#[derive(Serialize, Deserialize)]
struct Record<I> {
    format: u32,
    #[serde(flatten)]
    incident: I,
}

/// The newest incidents of a store.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Newest {
    /// The newest first.
    pub incidents: Vec<Incident>,
    /// Records that can't be read, one sentence each.
    pub complaints: Vec<String>,
    /// How many older ones there are.
    pub older: usize,
}

/// The incidents of a state directory. One process writes it at a time.
#[derive(Debug)]
pub(crate) struct IncidentStore {
    directory: PathBuf,
    restarts: Mutex<RestartIndex>,
    /// Ids that are taken: found at the start, or given out since.
    ids: Mutex<Ids>,
}

/// See [`IncidentStore::new_id`].
#[derive(Debug, Default)]
struct Ids {
    taken: HashSet<String>,
    /// Those that were given out, the oldest first: an id begins with its time, so that one of long ago is in no new one's way.
    given: VecDeque<String>,
}

impl IncidentStore {
    /// Opens the store below `state_dir`, which is created with mode 0750 if it is missing, and
    /// reads the restarts that earlier daemons made.
    ///
    /// A directory without a record is one that an earlier daemon had no time to fill, and is removed.
    pub(crate) fn open(state_dir: &Path) -> Result<Self, StoreError> {
        let directory = incidents_in(state_dir);
        DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(&directory)
            .map_err(io_error("create", &directory))?;
        // The restart limit rests on this listing: better no daemon than one without a memory.
        let taken = std::fs::read_dir(&directory)
            .and_then(Iterator::collect::<io::Result<Vec<_>>>)
            .map_err(io_error("list", &directory))?;
        for entry in &taken {
            // Only what is empty, but for what was never renamed, can be removed so.
            let _ = std::fs::remove_file(entry.path().join(temporary(RECORD)));
            let _ = std::fs::remove_dir(entry.path());
        }
        let found =
            taken.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        let store = Self { directory, restarts: Mutex::default(), ids: Mutex::default() };
        lock(&store.ids).taken = found;
        let (incidents, complaints) = store.all();
        for incident in incidents {
            store.note_restarts(&incident);
        }
        for complaint in complaints {
            warn!("{complaint}; it is left as it is, and its restarts count for no VM");
        }
        Ok(store)
    }

    /// An id for a new incident: that of [`incident_id`], or with `-2`, `-3` and so on after it
    /// if that is taken. Touches no disk, so that a stalled one can't hold up a verdict.
    pub(crate) fn new_id(&self, detected_at: SystemTime, vm: &str) -> String {
        let base = incident_id(detected_at, vm);
        let mut id = base.clone();
        let mut number = 1_u32;
        let mut ids = lock(&self.ids);
        while !ids.taken.insert(id.clone()) {
            number += 1;
            id = format!("{base}-{number}");
        }
        ids.given.push_back(id.clone());
        if ids.given.len() > IDS
            && let Some(old) = ids.given.pop_front()
        {
            ids.taken.remove(&old);
        }
        id
    }

    /// Writes `incident`, in place of an earlier record of the same id. On an error the restart
    /// it tells of counts nevertheless, for as long as this process runs.
    pub(crate) fn put(&self, incident: &Incident) -> Result<(), StoreError> {
        self.note_restarts(incident);
        let directory = self.incident_directory(&incident.id)?;
        let record = Record { format: FORMAT, incident };
        let mut text = serde_json::to_vec(&record)
            .map_err(|source| StoreError::Encode { id: incident.id.clone(), source })?;
        text.push(b'\n');
        write_whole(&directory, RECORD, &text)
    }

    /// Writes an evidence file beside the record of the incident `id`. Naming it in the record's
    /// `evidence` is the caller's.
    pub(crate) fn add_evidence(
        &self,
        id: &str,
        file_name: &str,
        bytes: &[u8],
    ) -> Result<(), StoreError> {
        if file_name == RECORD || !is_plain(file_name) {
            return Err(StoreError::BadName(file_name.to_owned()));
        }
        if bytes.len() > EVIDENCE_MAX_BYTES {
            let name = file_name.to_owned();
            return Err(StoreError::TooLarge { name, size: bytes.len() });
        }
        write_whole(&self.incident_directory(id)?, file_name, bytes)
    }

    /// Every record, the oldest first, and a sentence for each that can't be read: torn, written
    /// by a newer flatline, or of another owner.
    pub(crate) fn all(&self) -> (Vec<Incident>, Vec<String>) {
        let Newest { mut incidents, mut complaints, .. } = self.newest(usize::MAX);
        incidents.sort_by(|a, b| (a.detected_at, &a.id).cmp(&(b.detected_at, &b.id)));
        complaints.sort();
        (incidents, complaints)
    }

    /// The newest records, at most so many, the newest first, and how many older ones there are: an id begins with its
    /// time. Otherwise as [`Self::all`].
    pub(crate) fn newest(&self, most: usize) -> Newest {
        let mut newest = Newest::default();
        let mut paths: Vec<PathBuf> = Vec::new();
        let unlisted =
            |error: io::Error| format!("can't list {}: {error}", self.directory.display());
        match std::fs::read_dir(&self.directory) {
            Ok(entries) => {
                for entry in entries {
                    match entry {
                        Ok(entry) => paths.push(entry.path()),
                        Err(error) => newest.complaints.push(unlisted(error)),
                    }
                }
            }
            Err(error) => newest.complaints.push(unlisted(error)),
        }
        paths.sort_unstable_by(|one, other| other.cmp(one));
        newest.older = paths.len().saturating_sub(most);
        for path in paths.into_iter().take(most).map(|path| path.join(RECORD)) {
            match read_record(&path) {
                Ok(incident) => newest.incidents.push(incident),
                Err(why) => newest.complaints.push(format!("{}: {why}", path.display())),
            }
        }
        newest
    }

    /// When the VM with this key was restarted at `since` or later, the earliest first; `None`: any VM. A restart that lies in the future, because the clock was set back, counts: too few
    /// restarts are mended by a person, too many by none.
    pub(crate) fn restarts_since(&self, vm: Option<&Key>, since: SystemTime) -> Vec<SystemTime> {
        let restarts = lock(&self.restarts);
        match vm {
            Some(key) => restarts.of(key, since),
            None => restarts.of_all(since),
        }
    }

    /// Takes note of the restarts that `incident` tells of, as if it were written.
    pub(crate) fn note_restarts(&self, incident: &Incident) {
        lock(&self.restarts).note(incident);
    }

    /// The last incident of each QEMU process that has one: what an earlier daemon may not have brought to its end.
    pub(crate) fn last_of_each(&self) -> HashMap<(u32, u64), Incident> {
        let (incidents, _) = self.all();
        // Oldest first, so that the last one stays.
        incidents.into_iter().map(|one| ((one.pid, one.start_ticks), one)).collect()
    }

    fn incident_directory(&self, id: &str) -> Result<PathBuf, StoreError> {
        if !is_plain(id) {
            return Err(StoreError::BadName(id.to_owned()));
        }
        let path = self.directory.join(id);
        match DirBuilder::new().mode(DIRECTORY_MODE).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(io_error("create", &path)(error))
            }
            _ => Ok(path),
        }
    }
}

/// What the lock guards is valid after every statement, so a panic elsewhere doesn't spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn is_plain(name: &str) -> bool {
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=255).contains(&name.len()) && !name.starts_with('.') && name.chars().all(safe)
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { action, path, source }
}

/// Under which name a file is written before it replaces the one before.
fn temporary(name: &str) -> String {
    format!(".{name}.new")
}

pub(super) fn write_whole(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
    let temporary = directory.join(temporary(name));
    let path = directory.join(name);
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(FILE_MODE)
        .open(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&temporary, &path));
    if let Err(error) = written {
        // Gives the space back; if even that fails, the next write truncates the file.
        let _ = std::fs::remove_file(&temporary);
        return Err(io_error("write", &path)(error));
    }
    File::open(directory).and_then(|it| it.sync_all()).map_err(io_error("sync", directory))
}

/// A file of at most so many bytes.
pub(super) fn read_bounded(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let length = File::open(path)?.take(most + 1).read_to_end(&mut text)? as u64;
    if length > most {
        return Err(io::Error::other(format!("longer than {most} bytes")));
    }
    Ok(text)
}

fn read_record(path: &Path) -> Result<Incident, String> {
    parse_record(&read_bounded(path, RECORD_MAX_BYTES).map_err(|error| error.to_string())?)
}

fn parse_record(text: &[u8]) -> Result<Incident, String> {
    parse_versioned::<Record<Incident>>(text, "record", FORMAT).map(|record| record.incident)
}

/// Reads the `what` of a file, of a format that is at most `newest`.
///
/// # Errors
/// What is wrong with it, in words.
pub(super) fn parse_versioned<T: DeserializeOwned>(
    text: &[u8],
    what: &str,
    newest: u32,
) -> Result<T, String> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let torn = |error: serde_json::Error| format!("not a whole {what}: {error}");
    let Format { format } = serde_json::from_slice(text).map_err(torn)?;
    if format > newest {
        return Err(format!("of format {format}, written by a newer flatline"));
    }
    serde_json::from_slice(text).map_err(torn)
}

#[cfg(any(fuzzing, test))]
pub(crate) mod fuzzing {
    //! What fuzzers may call of this store: see [`crate::fuzzing`].

    use super::{FORMAT, Record, parse_record};

    /// A record that is read can be written and read again. Its texts are the same then; its times have
    /// whole seconds, and the last digit of a span may differ, as serde_json reads it.
    pub(crate) fn record(bytes: &[u8]) {
        let Ok(incident) = parse_record(bytes) else { return };
        let again = serde_json::to_vec(&Record { format: FORMAT, incident: &incident });
        let again = parse_record(&again.expect("what was read can be written"));
        let again = again.expect("what was written can be read");
        let texts = |of: &super::Incident| {
            let texts = [&of.id, &of.vm, &of.cause, &of.reason].map(Clone::clone);
            (texts, of.uuid.clone(), of.pid, of.action.clone(), of.outcome, of.evidence.clone())
        };
        assert_eq!(texts(&again), texts(&incident));
    }
}

#[cfg(test)]
mod tests;
