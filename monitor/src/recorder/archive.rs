//! The recordings on disk: `STATE_DIR/recordings/`, a file for each that was asked for, and one after the other
//! for each VM where everything is recorded.
//!
//! A thread of its own writes them, so that a disk that stalls or is full never delays the watching: what waits
//! to be written is bounded in bytes, and what doesn't fit any more is dropped. The next block of that VM then
//! says how many records are missing before it. All files together keep to a bound; the user of whose VMs there is most
//! gives up its oldest. Whose a file is stands in its name, `TIME-NAME-PID@UID.flr`.

use std::{
    collections::HashMap,
    fs::{DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use tokio::sync::oneshot;
use tracing::{error, warn};

use crate::{
    api::{RefusalKind, Reply, view::RecordView},
    storage::{by_user::ByUser, incident::incident_id},
};
use flatline_detector::recording::{
    Header, Malformed, Recording, Segment,
    file::{preamble, segment_block, to_bytes},
};

/// How a recording's name ends.
pub(crate) const EXTENSION: &str = "flr";

/// Bytes that may wait to be written.
const QUEUE_MAX_BYTES: usize = 16 << 20;
/// Requests for recordings that may wait: a client that has lost patience asks again, and the disk may stall.
const WAITING_MAX: usize = 4;
/// A VM's file is followed by another when it has so many bytes, or fewer where there are many VMs.
const FILE_MAX_BYTES: u64 = 8 << 20;
const FILE_LEAST_BYTES: u64 = 16 << 10;
/// Or when it is so old.
const FILE_MAX_AGE: Duration = Duration::from_secs(24 * 3600);

const DIRECTORY_MODE: u32 = 0o750;
const FILE_MODE: u32 = 0o640;

/// A VM, by its process' id and start.
type Key = (u32, u64);

/// What is to be written.
enum Job {
    /// A segment of a VM of this user, of which everything is recorded; so many records before it are lost.
    Append(u32, Arc<Header>, Arc<Segment>, u64),
    /// That VM is gone.
    End(Key),
    /// All files together may take so many bytes from now on.
    Bound(u64),
    /// Recordings that a client asked for, each with the VM's user.
    Save(Vec<(u32, Recording)>, oneshot::Sender<Reply>),
}

/// Hands recordings to the thread that writes them.
#[derive(Clone, Debug)]
pub(crate) struct Archive {
    jobs: mpsc::Sender<Job>,
    /// Bytes of segments that wait to be written.
    queued: Arc<AtomicUsize>,
    /// Requests that wait to be answered.
    waiting: Arc<AtomicUsize>,
}

/// The thread.
#[derive(Debug)]
pub(crate) struct Writing(Option<JoinHandle<()>>);

impl Archive {
    /// Starts the thread; nothing is written before there is something to write. The thread ends when every
    /// [`Archive`] is gone.
    pub(crate) fn start(state_dir: &Path, max_mib: u32) -> (Self, Writing) {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let queued = Arc::new(AtomicUsize::new(0));
        let mut directory = Directory::new(state_dir, u64::from(max_mib) << 20);
        let waiting = Arc::new(AtomicUsize::new(0));
        let (queue, requests) = (queued.clone(), waiting.clone());
        let write = move || {
            for job in inbox {
                match job {
                    Job::Append(user, header, segment, lost) => {
                        directory.append(user, &header, &segment, lost, SystemTime::now());
                        queue.fetch_sub(segment.size(), Ordering::Relaxed);
                    }
                    Job::End(vm) => directory.end(vm),
                    Job::Bound(most_bytes) => directory.most_bytes = most_bytes,
                    Job::Save(recordings, reply) => {
                        // The client may have gone, and then wants no file.
                        if !reply.is_closed() {
                            let _ = reply.send(directory.save(&recordings, SystemTime::now()));
                        }
                        requests.fetch_sub(1, Ordering::Relaxed);
                    }
                }
            }
        };
        let thread = std::thread::Builder::new().name("recordings".to_owned()).spawn(write);
        let thread =
            thread.inspect_err(|error| error!("nothing can be recorded: no thread: {error}")).ok();
        (Self { jobs, queued, waiting }, Writing(thread))
    }

    /// Has a segment written to the file of its VM, which is this `user`'s, and says whether there was room for it.
    pub(crate) fn append(
        &self,
        user: u32,
        header: &Arc<Header>,
        segment: &Arc<Segment>,
        lost: u64,
    ) -> bool {
        let size = segment.size();
        if self.queued.fetch_add(size, Ordering::Relaxed) + size <= QUEUE_MAX_BYTES
            && self.jobs.send(Job::Append(user, header.clone(), segment.clone(), lost)).is_ok()
        {
            return true;
        }
        self.queued.fetch_sub(size, Ordering::Relaxed);
        false
    }

    /// A VM is gone, and with it the file that it was written to.
    pub(crate) fn end(&self, header: &Header) {
        let _ = self.jobs.send(Job::End(key(header)));
    }

    /// All files together may take so much from now on.
    pub(crate) fn set_most_mib(&self, max_mib: u32) {
        let _ = self.jobs.send(Job::Bound(u64::from(max_mib) << 20));
    }

    /// Has recordings, each with its VM's user, written to files of their own, and answers with their names.
    pub(crate) fn save(&self, recordings: Vec<(u32, Recording)>, reply: oneshot::Sender<Reply>) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING_MAX {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            let why = "earlier recordings still wait to be written";
            return drop(reply.send(Reply::error(RefusalKind::Busy, why)));
        }
        if let Err(mpsc::SendError(Job::Save(_, reply))) =
            self.jobs.send(Job::Save(recordings, reply))
        {
            let _ = reply.send(Reply::error(RefusalKind::Internal, "recordings can't be written"));
        }
    }
}

impl Writing {
    /// Waits until all is written; every [`Archive`] has to be gone.
    pub(crate) fn finish(self) {
        if let Some(thread) = self.0 {
            let _ = thread.join();
        }
    }
}

fn key(header: &Header) -> Key {
    (header.pid, header.start_ticks)
}

/// The file that a VM's segments go to.
#[derive(Debug)]
struct Current {
    path: PathBuf,
    bytes: u64,
    began: SystemTime,
}

/// The directory, as the thread knows it.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    most_bytes: u64,
    /// Bytes of all files; `None` before they were counted.
    bytes: Option<u64>,
    current: HashMap<Key, Current>,
    /// Records of a VM that could not be written since its last block.
    lost: HashMap<Key, u64>,
    /// Writing failed, and that was said.
    failing: bool,
}

impl Directory {
    pub(super) fn new(state_dir: &Path, most_bytes: u64) -> Self {
        let path = state_dir.join("recordings");
        let (current, lost) = (HashMap::new(), HashMap::new());
        Self { path, most_bytes, bytes: None, current, lost, failing: false }
    }

    /// Writes a block to the VM's file; what can't be written is counted, and told by its next block.
    pub(super) fn append(
        &mut self,
        user: u32,
        header: &Header,
        segment: &Segment,
        lost: u64,
        now: SystemTime,
    ) {
        let vm = key(header);
        let lost = self.lost.get(&vm).copied().unwrap_or(0).saturating_add(lost);
        match self.try_append(user, header, segment, lost, now) {
            Ok(()) => {
                self.lost.remove(&vm);
                if std::mem::take(&mut self.failing) {
                    warn!("recordings can be written again");
                }
            }
            Err(error) => {
                self.lost.insert(vm, lost.saturating_add(segment.records));
                // Once, and not with every block.
                if !std::mem::replace(&mut self.failing, true) {
                    error!(
                        "can't record to {}: {error}; free space there, it is tried again",
                        self.path.display()
                    );
                }
            }
        }
        self.keep_to_the_bound();
    }

    fn try_append(
        &mut self,
        user: u32,
        header: &Header,
        segment: &Segment,
        lost: u64,
        now: SystemTime,
    ) -> io::Result<()> {
        let vm = key(header);
        let block = segment_block(segment, lost).map_err(invalid)?;
        let files = u64::try_from(self.current.len().max(1)).unwrap_or(u64::MAX);
        let most = (self.most_bytes / files / 4).clamp(FILE_LEAST_BYTES, FILE_MAX_BYTES);
        self.current.retain(|key, current| {
            let old = now.duration_since(current.began).is_ok_and(|age| age >= FILE_MAX_AGE);
            *key != vm || !(current.bytes >= most || old || !current.path.exists())
        });
        if !self.current.contains_key(&vm) {
            let start = preamble(header).map_err(invalid)?;
            let path = self.write_new(user, header, now, &start)?;
            let bytes = start.len() as u64;
            self.current.insert(vm, Current { path, bytes, began: now });
        }
        let Some(current) = self.current.get_mut(&vm) else { return Ok(()) };
        let mut file = OpenOptions::new().append(true).open(&current.path)?;
        if let Err(error) = file.write_all(&block) {
            // A torn block would hide whatever comes after it.
            if file.set_len(current.bytes).is_err() {
                self.current.remove(&vm);
            }
            return Err(error);
        }
        current.bytes += block.len() as u64;
        self.wrote(block.len());
        Ok(())
    }

    /// A VM is gone.
    pub(super) fn end(&mut self, vm: Key) {
        self.current.remove(&vm);
        self.lost.remove(&vm);
    }

    /// Writes recordings to files of their own.
    pub(super) fn save(&mut self, recordings: &[(u32, Recording)], now: SystemTime) -> Reply {
        let mut paths = Vec::new();
        let mut complaints = Vec::new();
        for (user, recording) in recordings {
            let bytes = to_bytes(recording).map_err(invalid);
            match bytes.and_then(|bytes| self.write_new(*user, &recording.header, now, &bytes)) {
                Ok(path) => paths.push(path.display().to_string()),
                Err(error) => complaints.push(format!("{}: {error}", recording.header.vm)),
            }
        }
        self.keep_to_the_bound();
        if paths.is_empty() && !complaints.is_empty() {
            let why = format!("can't write to {}: {}", self.path.display(), complaints.join("; "));
            return Reply::error(RefusalKind::Internal, why);
        }
        Reply::ok(&RecordView { paths, complaints })
    }

    /// Writes a file that was not there before.
    fn write_new(
        &mut self,
        user: u32,
        header: &Header,
        now: SystemTime,
        bytes: &[u8],
    ) -> io::Result<PathBuf> {
        DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(&self.path)?;
        let base = format!("{}-{}", incident_id(now, &header.vm), header.pid);
        let mut number = 1_u32;
        loop {
            let more = if number == 1 { String::new() } else { format!("-{number}") };
            let path = self.path.join(format!("{base}{more}@{user}.{EXTENSION}"));
            let opened =
                OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&path);
            match opened.and_then(|mut file| {
                file.write_all(bytes).inspect_err(|_| {
                    // Half a recording is none that was asked for.
                    let _ = std::fs::remove_file(&path);
                })
            }) {
                Ok(()) => {
                    self.wrote(bytes.len());
                    return Ok(path);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                Err(error) => return Err(error),
            }
        }
    }

    fn wrote(&mut self, bytes: usize) {
        if let Some(all) = &mut self.bytes {
            *all = all.saturating_add(bytes as u64);
        }
    }

    /// Removes files where all together are too large, of the user that has most the oldest first.
    fn keep_to_the_bound(&mut self) {
        if self.bytes.is_some_and(|bytes| bytes <= self.most_bytes) {
            return;
        }
        // A person may have removed some: they are counted anew.
        let mut files = match recordings(&self.path) {
            Ok(files) => files,
            Err(error) => {
                return warn!("can't list {}: {error}", self.path.display());
            }
        };
        files.sort();
        let (mut kept, mut stays) = (ByUser::default(), 0);
        for (_, path, bytes) in files {
            kept.push(user_of(&path), bytes, (path, bytes));
        }
        while kept.all().saturating_add(stays) > self.most_bytes
            && let Some((path, bytes)) = kept.pop()
        {
            match std::fs::remove_file(&path) {
                Ok(()) => self.current.retain(|_, current| current.path != path),
                Err(error) => {
                    stays += bytes;
                    warn!("can't remove {}: {error}", path.display());
                }
            }
        }
        self.bytes = Some(kept.all().saturating_add(stays));
    }
}

/// The user that a recording's name ends with; `None` of one of before. A VM's name has no `@` there.
fn user_of(path: &Path) -> Option<u32> {
    path.file_stem()?.to_str()?.rsplit_once('@')?.1.parse().ok()
}

/// When each recording was last written to, where it is, and how many bytes it has.
fn recordings(directory: &Path) -> io::Result<Vec<(SystemTime, PathBuf, u64)>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        let metadata = entry.metadata()?;
        if metadata.is_file() && path.extension().is_some_and(|extension| extension == EXTENSION) {
            files.push((metadata.modified()?, path, metadata.len()));
        }
    }
    Ok(files)
}

fn invalid(error: Malformed) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
