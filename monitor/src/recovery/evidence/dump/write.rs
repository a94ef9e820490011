//! Writer of a dump: what comes out of the pipe goes to a file, within the quota.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{PipeReader, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::fstatvfs,
    pipe::fcntl_setpipe_size,
};
use tracing::info;

use super::{
    Turn,
    room::{FileSystem, Next, Old, Room},
};
use crate::storage::incident_user::user_of;

/// Read and written at a time, and what the pipe holds: fewer turns for QEMU and us.
const CHUNK_BYTES: usize = 1 << 20;
/// Time between two looks whether to go on, where nothing comes.
const WAITS: Duration = Duration::from_millis(100);
/// Others have no business with a guest's memory.
const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
const EXTENSIONS: [&str; 2] = ["kdump", "elf"];

pub(super) struct Job {
    pub(super) directory: PathBuf,
    /// A plain file name.
    pub(super) name: String,
    pub(super) quota_bytes: u64,
    /// Where the incidents are that tell whose the other dumps are.
    pub(super) incidents: PathBuf,
    pub(super) turn: Turn,
}

/// A file that was written in whole, and is removed again unless it is kept.
#[derive(Debug)]
pub(super) struct Written {
    temporary: PathBuf,
    path: PathBuf,
    bytes: u64,
}

impl Written {
    /// Gives it its name.
    pub(super) fn keep(self) -> Result<(PathBuf, u64), String> {
        std::fs::rename(&self.temporary, &self.path)
            .map_err(|error| format!("can't name it {}: {error}", self.path.display()))?;
        Ok((self.path.clone(), self.bytes))
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        // Not there any more once it was kept.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

/// Writes until QEMU closes the pipe. Blocks for as long as disks do, and looks at [`Progress::give_up`](super::turn::Progress::give_up) else.
pub(super) fn write(pipe: PipeReader, job: &Job) -> Result<Written, String> {
    let Job { directory, name, quota_bytes, incidents, turn } = job;
    let progress = turn.progress();
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        format!("can't {what} {}: {error}", directory.display())
    };
    DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(directory)
        .map_err(|error| failed("make", &error))?;
    let old = dumps(directory, incidents).map_err(|error| failed("list", &error))?;
    let mut room = Room::new(*quota_bytes, Some(turn.user()), old);
    let temporary = directory.join(format!(".{name}.part"));
    let mut written = Written { temporary, path: directory.join(name), bytes: 0 };
    let mut file = create(&written.temporary).map_err(|error| failed("write to", &error))?;
    // A smaller pipe only makes it slower.
    let _ = fcntl_setpipe_size(&pipe, CHUNK_BYTES);
    let mut pipe = pipe;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        if progress.give_up.load(Relaxed) {
            return Err("given up".to_owned());
        }
        if !waits(&pipe).map_err(|error| format!("can't wait for QEMU: {error}"))? {
            continue;
        }
        let read = pipe.read(&mut chunk).map_err(|error| format!("can't read it: {error}"))?;
        let Some(part) = chunk.get(..read).filter(|part| !part.is_empty()) else { break };
        let grows = (written.bytes, read as u64, turn.written_by_others());
        make_room(directory, &mut room, &file, grows)?;
        file.write_all(part).map_err(|error| failed("write to", &error))?;
        written.bytes += read as u64;
        progress.written.store(written.bytes, Relaxed);
    }
    if written.bytes == 0 {
        return Err("QEMU wrote nothing".to_owned());
    }
    Ok(written)
}

fn create(path: &Path) -> std::io::Result<File> {
    // Left by a daemon that was killed; a symbolic link would be removed as such, too.
    let _ = std::fs::remove_file(path);
    OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path)
}

/// Whether something is there to be read, the end included.
fn waits(pipe: &PipeReader) -> std::io::Result<bool> {
    let limit = Timespec::try_from(WAITS).map_err(std::io::Error::other)?;
    let mut polled = [PollFd::new(pipe, PollFlags::IN)];
    match poll(&mut polled, Some(&limit)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn make_room(
    directory: &Path,
    room: &mut Room,
    file: &File,
    (written, more, others): (u64, u64, u64),
) -> Result<(), String> {
    loop {
        let disk = fstatvfs(file).map_err(|errno| format!("can't tell what is free: {errno}"))?;
        let disk = FileSystem {
            free_bytes: disk.f_bavail.saturating_mul(disk.f_frsize),
            all_bytes: disk.f_blocks.saturating_mul(disk.f_frsize),
        };
        match room.next(written, more, others, disk) {
            Next::Grow => return Ok(()),
            Next::Full(why) => return Err(why),
            Next::Remove(Old { name, bytes, .. }) => {
                let path = directory.join(&name);
                std::fs::remove_file(&path)
                    .map_err(|error| format!("can't remove {}: {error}", path.display()))?;
                info!("{} ({bytes} bytes) made room for another dump", path.display());
            }
        }
    }
}

/// The dumps in a directory. Links are none.
fn dumps(directory: &Path, incidents: &Path) -> std::io::Result<Vec<Old>> {
    let mut old = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        let is_dump = path
            .extension()
            .is_some_and(|found| EXTENSIONS.iter().any(|extension| found == *extension));
        // Does not follow a link.
        let metadata = entry.metadata()?;
        if let (true, true, Ok(name)) =
            (is_dump, metadata.is_file(), entry.file_name().into_string())
        {
            let incident = path.file_stem().and_then(|stem| stem.to_str());
            let user = incident.and_then(|incident| user_of(incidents, incident));
            old.push(Old { written: metadata.modified()?, name, bytes: metadata.len(), user });
        }
    }
    Ok(old)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn job(directory: &Path, quota_bytes: u64) -> Job {
        let turn = super::super::UnderWay::default().begin(1000).unwrap();
        let (incidents, name) = (directory.join("incidents"), "new.kdump".to_owned());
        Job { directory: directory.to_owned(), name, quota_bytes, incidents, turn }
    }

    fn names(directory: &Path) -> Vec<String> {
        let names = std::fs::read_dir(directory).unwrap();
        let mut names: Vec<_> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// What comes of it when QEMU sends so many bytes.
    fn sent(job: &Job, bytes: usize) -> Result<(PathBuf, u64), String> {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let qemu = std::thread::spawn(move || {
            // A reader that gives up is an error here, as it is for a QEMU.
            let _ = writer.write_all(&vec![7; bytes]);
        });
        let written = write(reader, job).and_then(Written::keep);
        qemu.join().unwrap();
        written
    }

    #[test]
    fn a_dump_is_whole_and_readable_by_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("dumps");
        let (path, bytes) = sent(&job(&directory, 10 << 20), 3_000_000).unwrap();
        assert_eq!((bytes, names(&directory)), (3_000_000, vec!["new.kdump".to_owned()]));
        assert!(std::fs::read(&path).unwrap().iter().all(|byte| *byte == 7));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&directory), mode(&path)), (0o700, 0o600));
    }

    #[test]
    fn one_that_outgrows_the_quota_leaves_nothing_and_others_stay() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("notes.txt"), "mine").unwrap();
        let error = sent(&job(directory.path(), 2_000_000), 50_000_000).unwrap_err();
        assert!(error.contains("quota"), "{error}");
        assert_eq!(names(directory.path()), ["notes.txt"]);
    }

    #[test]
    fn older_dumps_make_room_and_a_link_is_neither_followed_nor_removed() {
        let directory = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::NamedTempFile::new().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), directory.path().join("link.kdump")).unwrap();
        std::fs::write(directory.path().join("old.kdump"), vec![0; 1_000_000]).unwrap();
        sent(&job(directory.path(), 1_500_000), 1_000_000).unwrap();
        assert_eq!(names(directory.path()), ["link.kdump", "new.kdump"]);
        assert!(elsewhere.path().exists());
    }

    #[test]
    fn one_that_is_given_up_ends_although_the_pipe_stays_open() {
        let directory = tempfile::tempdir().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let job = job(directory.path(), 1_000);
        job.turn.progress().give_up.store(true, Relaxed);
        assert_eq!(write(reader, &job).unwrap_err(), "given up");
        assert_eq!(names(directory.path()), [""; 0]);
        drop(writer);
    }

    #[test]
    fn a_dump_of_nothing_is_none() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(sent(&job(directory.path(), 1_000), 0).unwrap_err(), "QEMU wrote nothing");
        assert_eq!(names(directory.path()), [""; 0]);
    }
}
