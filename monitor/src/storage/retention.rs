//! How long the evidence of incidents is kept: until it is too old, or all together is too much. The records stay.
//!
//! Where it is too much, the user of whose VMs there is most gives up its oldest: no user's crashes cost another its evidence.
//!
//! What is to go is found by a pure function; what is there, and that it goes, by the file system, through descriptors
//! of the directories: no link is ever followed, and none is removed either.

use std::{
    collections::HashMap,
    ffi::CString,
    io,
    path::{Path, PathBuf},
    sync::mpsc::{self, RecvTimeoutError},
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, statat, unlinkat},
    io::Errno,
};
use tracing::{error, info, warn};

use super::{
    by_user::ByUser,
    incident_user,
    incidents::RECORD,
    record_quota::{MOST_RECORDS, surplus},
};
use crate::config::RetentionConfig;

/// Time between two looks. An incident's evidence is bounded, and so are the restarts: no disk fills in between.
const LOOK_EVERY: Duration = Duration::from_secs(600);

/// How long, and how much.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RetentionPolicy {
    /// What is older goes.
    pub keep: Duration,
    /// What all together is above that goes, of the user that has most its oldest first; in bytes.
    pub most_bytes: u64,
}

impl From<&RetentionConfig> for RetentionPolicy {
    fn from(retention: &RetentionConfig) -> Self {
        Self {
            keep: retention.evidence_keep,
            most_bytes: u64::from(retention.evidence_max_mib) << 20,
        }
    }
}

/// A file of evidence.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kept {
    written: SystemTime,
    incident: CString,
    name: CString,
    bytes: u64,
}

/// What is to go of `files` at `now`: what is too old, and then of each user its oldest first. `user_of` tells an incident's.
fn expired(
    mut files: Vec<Kept>,
    policy: RetentionPolicy,
    now: SystemTime,
    user_of: impl Fn(&CString) -> Option<u32>,
) -> Vec<Kept> {
    files.sort();
    // A file of the future, since the clock was set back, is young.
    let is_old = |file: &Kept| now.duration_since(file.written).unwrap_or_default() > policy.keep;
    let (mut gone, rest): (Vec<Kept>, Vec<Kept>) = files.into_iter().partition(is_old);
    let all = rest.iter().map(|file| file.bytes).fold(0, u64::saturating_add);
    if all <= policy.most_bytes {
        return gone;
    }
    let (mut users, mut kept) = (HashMap::new(), ByUser::default());
    for file in rest {
        let user = *users.entry(file.incident.clone()).or_insert_with_key(&user_of);
        kept.push(user, file.bytes, file);
    }
    while kept.all() > policy.most_bytes
        && let Some(oldest) = kept.pop()
    {
        gone.push(oldest);
    }
    gone
}

/// The thread that looks now and then.
pub(crate) struct Keeper {
    policy: mpsc::Sender<RetentionPolicy>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Looks at once, and then every few minutes, at the incidents below `state_dir`.
    pub(crate) fn start(state_dir: &Path, policy: RetentionPolicy) -> Self {
        let directory = state_dir.join("incidents");
        let (other, new_policies) = mpsc::channel();
        let mut policy = policy;
        let look = move || {
            loop {
                sweep(&directory, policy, SystemTime::now());
                match new_policies.recv_timeout(LOOK_EVERY) {
                    Ok(other) => policy = other,
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        };
        let thread = std::thread::Builder::new().name("retention".to_owned()).spawn(look);
        let thread = thread
            .inspect_err(|error| error!("evidence is kept for good: no thread: {error}"))
            .ok();
        Self { policy: other, thread }
    }

    /// Keeps on other terms from now on.
    pub(crate) fn set_policy(&self, policy: RetentionPolicy) {
        // Without a thread, all is kept.
        let _ = self.policy.send(policy);
    }

    /// Waits until a look that is under way has ended.
    pub(crate) fn finish(self) {
        drop(self.policy);
        if let Some(thread) = self.thread {
            let _ = thread.join();
        }
    }
}

/// Removes what is no longer to be kept.
fn sweep(directory: &Path, policy: RetentionPolicy, now: SystemTime) {
    let found = match find(directory) {
        Ok(found) => found,
        Err(error) => return warn!("can't look through {}: {error}", directory.display()),
    };
    let user_of = |incident: &CString| incident_user::user_of(directory, incident.to_str().ok()?);
    remove_surplus(directory, user_of);
    let gone = expired(found, policy, now, user_of);
    let mut removed = 0_u64;
    for Kept { incident, name, bytes, .. } in &gone {
        match remove(directory, incident, name) {
            Ok(()) => removed += bytes,
            Err(error) => {
                let path = path(directory, incident).join(name.to_string_lossy().as_ref());
                warn!("can't remove {}: {error}", path.display());
            }
        }
    }
    if removed > 0 {
        info!(files = gone.len(), bytes = removed, "evidence was kept for long enough");
    }
}

/// Removes records where there are too many, and what is left of their evidence.
fn remove_surplus(directory: &Path, user_of: impl Fn(&CString) -> Option<u32>) {
    let Ok(ids) = open(CWD, directory).map_err(io::Error::from).and_then(|all| names(&all)) else {
        return;
    };
    let gone = surplus(ids, MOST_RECORDS, user_of);
    for id in &gone {
        if let Err(error) = remove_all(directory, id) {
            warn!("can't remove {}: {error}", path(directory, id).display());
        }
    }
    if !gone.is_empty() {
        info!(records = gone.len(), "more than {MOST_RECORDS} records: the oldest went");
    }
}

/// Removes an incident's directory and the files in it; a link in it stays, and the directory with it.
fn remove_all(directory: &Path, id: &CString) -> io::Result<()> {
    let incidents = open(CWD, directory)?;
    let opened = open(&incidents, &**id)?;
    for name in names(&opened)? {
        let stat = statat(&opened, &*name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
            unlinkat(&opened, &*name, AtFlags::empty())?;
        }
    }
    Ok(unlinkat(incidents, &**id, AtFlags::REMOVEDIR)?)
}

fn path(directory: &Path, incident: &CString) -> PathBuf {
    directory.join(incident.to_string_lossy().as_ref())
}

/// All evidence of all incidents.
fn find(directory: &Path) -> io::Result<Vec<Kept>> {
    let incidents = match open(CWD, directory) {
        Ok(incidents) => incidents,
        Err(Errno::NOENT) => return Ok(Vec::new()),
        Err(errno) => return Err(errno.into()),
    };
    let mut found = Vec::new();
    for incident in names(&incidents)? {
        // No directory, or gone meanwhile: nothing of ours.
        let Ok(opened) = open(&incidents, &*incident) else { continue };
        for name in names(&opened)? {
            if name.to_bytes() == RECORD.as_bytes() {
                continue;
            }
            let Ok(stat) = statat(&opened, &*name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                continue;
            }
            let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
            let written = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
            let bytes = u64::try_from(stat.st_size).unwrap_or(0);
            let written = written.unwrap_or(SystemTime::UNIX_EPOCH);
            found.push(Kept { written, incident: incident.clone(), name, bytes });
        }
    }
    Ok(found)
}

fn remove(directory: &Path, incident: &CString, name: &CString) -> io::Result<()> {
    let incidents = open(CWD, directory)?;
    let incident = open(incidents, &**incident)?;
    Ok(unlinkat(incident, &**name, AtFlags::empty())?)
}

fn open(base: impl AsFd, path: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(base, path, flags, Mode::empty())
}

fn names(directory: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn at(days: u32) -> SystemTime {
        SystemTime::UNIX_EPOCH + DAY * days
    }

    fn file(days: u32, name: &str, bytes: u64) -> Kept {
        let name = CString::new(name).unwrap();
        Kept { written: at(days), incident: CString::new("i").unwrap(), name, bytes }
    }

    fn gone(files: &[Kept], policy: RetentionPolicy) -> Vec<String> {
        let gone = expired(files.to_vec(), policy, at(100), |_| None);
        gone.iter().map(|file| file.name.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn what_is_too_old_goes_and_what_is_just_old_enough_stays() {
        let files = [file(100, "new", 1), file(9, "older", 1), file(10, "old", 1)];
        let policy = RetentionPolicy { keep: DAY * 90, most_bytes: 100 };
        assert_eq!(gone(&files, policy), ["older"]);
        assert_eq!(gone(&files, RetentionPolicy { keep: DAY * 89, ..policy }), ["older", "old"]);
    }

    #[test]
    fn the_oldest_go_until_the_rest_fits() {
        let files = [file(99, "c", 40), file(97, "a", 40), file(98, "b", 40)];
        let policy = |most_bytes| RetentionPolicy { keep: DAY * 90, most_bytes };
        assert_eq!(gone(&files, policy(120)), [""; 0]);
        assert_eq!(gone(&files, policy(119)), ["a"]);
        assert_eq!(gone(&files, policy(79)), ["a", "b"]);
        assert_eq!(gone(&files, policy(0)), ["a", "b", "c"]);
    }

    #[test]
    fn the_user_that_has_most_gives_up_its_oldest_and_others_keep_what_is_older() {
        let of = |incident: &str, days, name| Kept {
            incident: CString::new(incident).unwrap(),
            ..file(days, name, 40)
        };
        let files = [of("1", 90, "old"), of("2", 97, "a"), of("2", 98, "b"), of("2", 99, "c")];
        let policy = RetentionPolicy { keep: DAY * 90, most_bytes: 80 };
        let user_of = |incident: &CString| incident.to_str().ok()?.parse().ok();
        let gone = expired(files.to_vec(), policy, at(100), user_of);
        let names: Vec<_> = gone.iter().map(|file| file.name.to_str().unwrap()).collect();
        assert_eq!(names, ["a", "b"]);
    }

    #[test]
    fn a_clock_that_was_set_back_makes_nothing_old_and_huge_sizes_do_not_overflow() {
        let policy = RetentionPolicy { keep: DAY, most_bytes: u64::MAX };
        assert_eq!(gone(&[file(4000, "future", u64::MAX), file(100, "now", 5)], policy), [""; 0]);
        let policy = RetentionPolicy { keep: DAY * 2, most_bytes: 10 };
        assert_eq!(gone(&[file(99, "huge", u64::MAX), file(100, "now", 5)], policy), ["huge"]);
    }

    fn names_in(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn records_links_and_whatever_they_point_to_stay() {
        let base = tempfile::tempdir().unwrap();
        let incidents = base.path().join("incidents");
        let (outside, one) = (base.path().join("outside"), incidents.join("one"));
        fs::create_dir_all(&one).unwrap();
        fs::create_dir_all(outside.join("x")).unwrap();
        for path in [one.join("screen.png"), one.join(RECORD), outside.join("mine")] {
            fs::write(path, "content").unwrap();
        }
        symlink(outside.join("mine"), one.join("link.png")).unwrap();
        symlink(&outside, incidents.join("linked")).unwrap();
        fs::write(incidents.join("stray"), "content").unwrap();
        let later = SystemTime::now() + DAY * 2;
        sweep(&incidents, RetentionPolicy { keep: DAY, most_bytes: 1 << 20 }, later);
        assert_eq!(names_in(&one), [RECORD, "link.png"]);
        assert_eq!(names_in(&outside), ["mine", "x"]);
        assert_eq!(names_in(&incidents), ["linked", "one", "stray"]);
    }

    #[test]
    fn a_directory_of_incidents_that_is_a_link_is_not_looked_into() {
        let base = tempfile::tempdir().unwrap();
        let real = base.path().join("real/i");
        fs::create_dir_all(&real).unwrap();
        fs::write(real.join("a.txt"), "a").unwrap();
        symlink(base.path().join("real"), base.path().join("incidents")).unwrap();
        let policy = RetentionPolicy { keep: DAY, most_bytes: 0 };
        sweep(&base.path().join("incidents"), policy, SystemTime::now());
        assert_eq!(names_in(&real), ["a.txt"]);
        assert!(find(&base.path().join("none")).unwrap().is_empty());
    }

    #[test]
    fn the_thread_looks_at_once_and_ends_when_it_is_told_to() {
        let base = tempfile::tempdir().unwrap();
        let one = base.path().join("incidents/one");
        fs::create_dir_all(&one).unwrap();
        fs::write(one.join("a.txt"), "a").unwrap();
        let keeper = Keeper::start(base.path(), RetentionPolicy { keep: DAY, most_bytes: 0 });
        while !names_in(&one).is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
        keeper.finish();
    }
}
