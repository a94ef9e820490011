//! Secrets in files of their own, which sign what is sent.

use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use crate::notify::signature::Secret;

/// A secret's file.
const SECRET_MAX_BYTES: u64 = 4096;

/// Whether files with secrets are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Secrets {
    /// They are, and checked.
    Read,
    /// They are left alone, and nothing is to be signed.
    Leave,
}

/// The secret in the file at `path`, which no other user may read.
///
/// # Errors
/// In words, what is wrong with the file.
pub(super) fn read(path: &Path) -> Result<Secret, String> {
    if !path.is_absolute() {
        return Err("must be an absolute path".to_owned());
    }
    let unread = |error: std::io::Error| format!("can't read {}: {error}", path.display());
    // A pipe without a writer must not hold up the reader of the configuration.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = file.map_err(unread)?;
    let metadata = file.metadata().map_err(unread)?;
    if !metadata.is_file() {
        return Err(format!("{} is no file", path.display()));
    }
    let owner = metadata.uid();
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Err(format!("{0} belongs to another user: chown root {0}", path.display()));
    }
    if metadata.mode() & 0o077 != 0 {
        let mode = metadata.mode() & 0o777;
        return Err(format!("others may read {0} (mode {mode:o}): chmod 600 {0}", path.display()));
    }
    let mut text = String::new();
    file.take(SECRET_MAX_BYTES + 1).read_to_string(&mut text).map_err(unread)?;
    if text.len() as u64 > SECRET_MAX_BYTES {
        return Err(format!("{} has more than {SECRET_MAX_BYTES} bytes", path.display()));
    }
    Secret::parse(&text).map_err(|why| format!("{}: {why}", path.display()))
}
