//! A report's file, which has what a console showed: for its owner alone, and wherever its path leads, no other file is
//! written.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

/// Readable by its owner alone: a picture of a console may have secrets.
const FILE_MODE: u32 = 0o600;
/// Names that are tried beside the report's, of which others may be taken.
const ATTEMPTS: u32 = 100;

/// Writes `bytes` to a new file, and puts that at `path`, in place of a file that is there. The directory is the
/// operator's choice; a link there is neither followed nor replaced.
///
/// # Errors
/// If something else than a file is there, or the file system refuses.
pub(super) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(there) if there.is_file() => {}
        Ok(there) if there.is_symlink() => {
            return Err(io::Error::other("it is a link, which is not followed"));
        }
        Ok(_) => return Err(io::Error::other("it is no file; `-` is standard output")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let (mut file, temporary) = beside(path)?;
    let written = file.write_all(bytes).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // What is half written is of no use; if it can't be removed, the error says enough.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// A new file in the same directory.
fn beside(path: &Path) -> io::Result<(File, PathBuf)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut taken = io::Error::from(io::ErrorKind::AlreadyExists);
    for attempt in 0..ATTEMPTS {
        let mut new = name.to_owned();
        new.push(format!(".{}-{attempt}.new", std::process::id()));
        let new = path.with_file_name(new);
        // `O_CREAT | O_EXCL` follows no link.
        match OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&new) {
            Ok(file) => return Ok((file, new)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => taken = error,
            Err(error) => return Err(error),
        }
    }
    Err(taken)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn a_report_is_its_owners_alone_and_takes_the_place_of_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("page.html"), dir.path().join("other"));
        fs::write(&other, "other").unwrap();
        fs::hard_link(&other, &path).unwrap();
        for text in ["one", "two"] {
            write(&path, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(fs::read_to_string(&other).unwrap(), "other", "a second name of another file");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left behind");
    }

    #[test]
    fn links_and_what_is_no_file_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (path, target) = (dir.path().join("page.html"), dir.path().join("target"));
        fs::write(&target, "kept").unwrap();
        symlink(&target, &path).unwrap();
        let refused = write(&path, b"page").unwrap_err().to_string();
        assert!(refused.contains("a link"), "{refused}");
        assert!(path.is_symlink() && fs::read_to_string(&target).unwrap() == "kept");
        for other in [dir.path(), Path::new("/dev/null")] {
            assert!(write(other, b"page").is_err() && !other.is_file(), "{}", other.display());
        }
        // A name beside it that is a link is not written through.
        fs::remove_file(&path).unwrap();
        let beside = format!("page.html.{}-0.new", std::process::id());
        symlink(&target, dir.path().join(beside)).unwrap();
        write(&path, b"page").unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "kept");
    }
}
