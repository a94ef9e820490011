//! One daemon a host: a directory that is locked for as long as the daemon lives, however it ends. Two would answer one
//! crash twice.

use std::{fs::File, io, path::Path};

use rustix::fs::{FlockOperation, flock};

use super::ProbeError;

/// Holds the lock until it is dropped, or the process ends.
#[derive(Debug)]
pub(crate) struct DirectoryLock {
    _directory: File,
}

impl DirectoryLock {
    /// Makes the directory if it isn't there, and locks it.
    ///
    /// # Errors
    /// [`ProbeError::AlreadyRunning`] where another process has it locked.
    pub(crate) fn take(directory: &Path) -> Result<Self, ProbeError> {
        let failed = |what| {
            move |source: io::Error| ProbeError::Path { what, path: directory.to_owned(), source }
        };
        std::fs::create_dir_all(directory).map_err(failed("cannot make the directory"))?;
        let file = File::open(directory).map_err(failed("cannot open the directory"))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _directory: file }),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                Err(ProbeError::AlreadyRunning { path: directory.to_owned() })
            }
            Err(error) => Err(failed("cannot lock the directory")(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_refused_until_the_first_has_ended() {
        let directory = tempfile::tempdir().unwrap();
        let first = DirectoryLock::take(directory.path()).unwrap();
        let second = DirectoryLock::take(directory.path());
        assert!(matches!(second, Err(ProbeError::AlreadyRunning { .. })));
        drop(first);
        DirectoryLock::take(directory.path()).unwrap();
    }
}
