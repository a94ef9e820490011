//! Why a process could not be read: one that is gone apart from one that cannot be read, since the
//! first is nothing to worry about and the second must never pass for "no VM".

use std::io;

/// Why a process could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    /// It ended, or never was.
    #[error("process {pid} is gone")]
    Gone {
        /// The process.
        pid: u32,
    },
    /// A file of `/proc/PID` could not be read.
    #[error("cannot read /proc/{pid}/{file}")]
    Read {
        /// The process.
        pid: u32,
        /// The file, below `/proc/PID`.
        file: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of `/proc/PID` is not of the form that the kernel documents.
    #[error("/proc/{pid}/{file} is malformed")]
    Malformed {
        /// The process.
        pid: u32,
        /// The file, below `/proc/PID`.
        file: String,
    },
    /// The command line is not worth the memory.
    #[error("the command line of process {pid} is longer than {limit_bytes} bytes")]
    CommandLineTooLong {
        /// The process.
        pid: u32,
        /// The limit, in bytes.
        limit_bytes: u64,
    },
    /// No pidfd could be had.
    #[error("cannot open a pidfd of process {pid}")]
    Pidfd {
        /// The process.
        pid: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The taps' names could not be looked up.
    #[error("cannot look up the taps of process {pid} in its network namespace")]
    ResolveTaps {
        /// The process.
        pid: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The processes could not be listed.
    #[error("cannot list the processes in /proc")]
    ListProcesses {
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl DiscoverError {
    /// An error of reading `/proc/PID/FILE`: `ENOENT` and `ESRCH` mean that it is gone.
    pub(super) fn read(pid: u32, file: &str, source: io::Error) -> Self {
        let is_gone = source.kind() == io::ErrorKind::NotFound
            || source.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error());
        if is_gone { Self::Gone { pid } } else { Self::Read { pid, file: file.to_owned(), source } }
    }
}
