//! SIGHUP: another configuration while everything goes on. No count, no state and no hold is lost for it, and a file
//! with a mistake changes nothing.

use crate::config::Source;

/// How far the reading of a file has come.
#[derive(Debug)]
pub(super) struct Reloading {
    pub(super) source: Source,
    /// The file is being read: a disk that hangs holds up one thread only.
    pub(super) is_reading: bool,
    /// It may have changed since that began.
    pub(super) again: bool,
    /// Why the last file was not taken.
    pub(super) complaint: Option<String>,
}

impl Reloading {
    pub(super) fn new(source: Source) -> Self {
        Self { source, is_reading: false, again: false, complaint: None }
    }

    /// Whether the file is being read.
    pub(super) fn is_reading(&self) -> bool {
        self.is_reading
    }

    /// Why the configuration in force is not what was to be.
    pub(super) fn complaint(&self) -> Option<&str> {
        self.complaint.as_deref()
    }
}
