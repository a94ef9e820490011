//! Recordings on disk ([`archive`]), and the view of them for people ([`history`]).

pub(crate) mod archive;
pub(crate) mod history;
#[cfg(test)]
mod tests;

use std::{fs::File, io::BufReader, path::Path};

use flatline_detector::recording::file::{ReadError, Reader};

/// Opens a recording.
///
/// # Errors
/// If it isn't one that this version reads.
pub(crate) fn open(path: &Path) -> Result<Reader<BufReader<File>>, ReadError> {
    let file =
        File::open(path).map_err(|source| ReadError::Io { path: path.to_owned(), source })?;
    Reader::new(BufReader::new(file), path)
}
