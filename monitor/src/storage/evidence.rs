//! The files of an incident, for clients that may not read the state directory, and for no longer than they are kept.
//!
//! A client that may open the control socket may read what is in the directory of an incident, part by part: nothing
//! beside it, and no link in it is followed. Memory dumps lie elsewhere, and no client gets them.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, fstat, openat},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use super::incidents::is_plain;

/// The file that lists all evidence of an incident, and says what is missing.
pub(crate) const LIST: &str = "evidence.txt";

/// The most that one answer has of a file, in bytes.
pub(crate) const PART_MAX_BYTES: usize = 1 << 20;

/// A part of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EvidenceView {
    /// The whole file's length in bytes.
    pub bytes: u64,
    /// What is in it from the offset on that was asked for, in base64; empty at its end.
    pub data: String,
}

impl EvidenceView {
    /// The bytes of this part; `None` if they aren't what was sent.
    pub(crate) fn decode(&self) -> Option<Vec<u8>> {
        STANDARD.decode(&self.data).ok()
    }
}

/// Why a file can't be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// There is none, or none any more, or none that may be read.
    #[error("incident {id} has no file {file}, or no longer")]
    Nothing {
        /// The incident.
        id: String,
        /// The file.
        file: String,
    },
    /// The file system refused.
    #[error("can't read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// The part of a file of the incident `id` that begins at `offset`.
///
/// # Errors
/// [`ReadError`].
pub(crate) fn read(
    state_dir: &Path,
    id: &str,
    file: &str,
    offset: u64,
) -> Result<EvidenceView, ReadError> {
    let (bytes, part) = read_part(state_dir, id, file, offset, PART_MAX_BYTES)?;
    Ok(EvidenceView { bytes, data: STANDARD.encode(part) })
}

/// The length of a file of the incident `id` in bytes, and at most `most` of them from `offset` on.
///
/// # Errors
/// [`ReadError`].
pub(crate) fn read_part(
    state_dir: &Path,
    id: &str,
    file: &str,
    offset: u64,
    most: usize,
) -> Result<(u64, Vec<u8>), ReadError> {
    let nothing = || ReadError::Nothing { id: id.to_owned(), file: file.to_owned() };
    if !is_plain(id) || !is_plain(file) {
        return Err(nothing());
    }
    let path = state_dir.join("incidents").join(id).join(file);
    let found = open(&path).map_err(|errno| match errno {
        Errno::NOENT | Errno::LOOP | Errno::NOTDIR => nothing(),
        _ => ReadError::Io { path: path.clone(), source: errno.into() },
    })?;
    let mut opened = found.ok_or_else(nothing)?;
    let failed = |source| ReadError::Io { path: path.clone(), source };
    let bytes = opened.metadata().map_err(failed)?.len();
    opened.seek(SeekFrom::Start(offset.min(bytes))).map_err(failed)?;
    let mut part = Vec::new();
    opened.take(most as u64).read_to_end(&mut part).map_err(failed)?;
    Ok((bytes, part))
}

/// A regular file that is reached without following a link at its end, or in place of the incident's directory.
fn open(path: &Path) -> Result<Option<File>, Errno> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
    let flags = OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let directory =
        openat(CWD, directory, flags | OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
    // A FIFO would be waited for otherwise.
    let file = openat(directory, name, flags | OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?;
    let is_file = FileType::from_raw_mode(fstat(&file)?.st_mode) == FileType::RegularFile;
    Ok(is_file.then(|| File::from(file)))
}

/// `bytes` in base64, for what has to stand in text.
pub(crate) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_file_comes_part_by_part_and_its_end_is_empty() {
        let state = tempfile::tempdir().unwrap();
        let directory = state.path().join("incidents/i");
        std::fs::create_dir_all(&directory).unwrap();
        let content: Vec<u8> = (0..PART_MAX_BYTES + 10).map(|n| n.to_le_bytes()[0]).collect();
        std::fs::write(directory.join("a.bin"), &content).unwrap();
        let mut whole = Vec::new();
        loop {
            let view = read(state.path(), "i", "a.bin", whole.len() as u64).unwrap();
            assert_eq!(view.bytes, content.len() as u64);
            let part = view.decode().unwrap();
            assert!(part.len() <= PART_MAX_BYTES);
            if part.is_empty() {
                break;
            }
            whole.extend(part);
        }
        assert_eq!(whole, content);
        assert_eq!(read(state.path(), "i", "a.bin", u64::MAX).unwrap().data, "");
    }

    #[test]
    fn nothing_but_regular_files_of_an_incident_is_read() {
        let state = tempfile::tempdir().unwrap();
        let directory = state.path().join("incidents/i");
        std::fs::create_dir_all(directory.join("folder")).unwrap();
        std::fs::write(state.path().join("secret"), "s").unwrap();
        symlink(state.path().join("secret"), directory.join("link")).unwrap();
        symlink(&directory, state.path().join("incidents/other")).unwrap();
        let fifo = directory.join("fifo");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
        std::fs::write(directory.join("a"), "a").unwrap();
        for (id, file) in [
            ("i", "link"),
            ("i", "folder"),
            ("i", "fifo"),
            ("i", "none"),
            ("i", "../../secret"),
            ("i", ".."),
            ("..", "secret"),
            ("other", "a"),
            ("i", ""),
            ("", "a"),
            ("none", "a"),
        ] {
            let found = read(state.path(), id, file, 0);
            assert!(matches!(found, Err(ReadError::Nothing { .. })), "{id}/{file}: {found:?}");
        }
        assert_eq!(read(state.path(), "i", "a", 0).unwrap().decode().unwrap(), b"a");
    }
}
