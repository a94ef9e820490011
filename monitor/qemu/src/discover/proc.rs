//! What `/proc/PID` says of a process: identity, state, owner, threads and descriptors.
//!
//! A process may end between any two reads; that is [`DiscoverError::Gone`], apart from every
//! other failure. What a process can choose itself (its name, its number of threads and
//! descriptors) is read with a bound.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirEntryExt;
use std::path::PathBuf;

use super::DiscoverError;

/// Longest command line that is read, in bytes: Linux's default limit for arguments and
/// environment together (a quarter of an 8 MiB stack).
const CMDLINE_BYTES: u64 = 2 << 20;
/// A `mountinfo` with some ten thousand mounts.
const MOUNTINFO_BYTES: u64 = 4 << 20;
/// A `status` with as many groups as Linux allows, and all the rest.
const STATUS_BYTES: u64 = 1 << 20;
/// Room that is made for a file's text before it is read.
const ROOM_BYTES: usize = 2 << 10;
/// `stat`, `comm` and `fdinfo` of a process are far shorter.
const SMALL_FILE_BYTES: u64 = 16 << 10;
/// Most supplementary groups that Linux gives a process (`NGROUPS_MAX`).
const GROUPS: usize = 65_536;
/// Lines of a `cgroup` that are looked at; a host has some fifteen hierarchies.
const CGROUP_LINES: usize = 64;
/// Most threads of a process that are looked at: twice the vCPUs that QEMU gives a guest.
pub(super) const THREADS: usize = 8192;
/// Most descriptors of a process that are looked at: two for each queue of a hundred disks that have one for each of 80 vCPUs.
pub(super) const DESCRIPTORS: usize = 16_384;

/// The fields of `/proc/PID/stat` that are used here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) comm: String,
    pub(super) state: char,
    pub(super) parent: u32,
    /// Pid of the session's leader; 0 if that is outside our pid namespace.
    pub(super) session: u32,
    /// Clock ticks after boot.
    pub(super) start_ticks: u64,
}

/// Parses `/proc/PID/stat`. The name is in parentheses and may itself contain parentheses and
/// spaces, so it ends at the *last* closing one. `None` if a field is missing or no number.
pub(super) fn parse_stat(text: &str) -> Option<Stat> {
    let (_, after_open) = text.split_once('(')?;
    let (comm, after_name) = after_open.rsplit_once(')')?;
    // proc(5) numbers the fields from 1; the name is the second.
    let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).copied();
    let mut state = field(3)?.chars();
    let stat = Stat {
        comm: comm.to_owned(),
        state: state.next()?,
        parent: field(4)?.parse().ok()?,
        session: field(6)?.parse().ok()?,
        start_ticks: field(22)?.parse().ok()?,
    };
    state.next().is_none().then_some(stat)
}

/// Threads that run a VM's vCPUs, as far as their names tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VcpuThreads {
    /// One thread a vCPU, by vCPU number.
    Each(Vec<VcpuThread>),
    /// One thread runs all vCPUs in turn (`-accel tcg,thread=single`); its thread id.
    OneForAll(u32),
    /// No thread is named so: QEMU runs without `debug-threads=on`, or has not yet named them.
    /// QMP's `query-cpus-fast` tells.
    Unnamed,
}

/// A vCPU and the thread that runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct VcpuThread {
    /// The vCPU's number, as in QMP's `cpu-index`.
    pub index: u32,
    /// The thread's id on the host.
    pub tid: u32,
}

/// When `pid` started, in clock ticks after boot; with the pid it names a process for good.
///
/// # Errors
/// [`DiscoverError::Gone`] if there is no such process.
pub fn start_ticks(pid: u32) -> Result<u64, DiscoverError> {
    stat(pid).map(|stat| stat.start_ticks)
}

/// The state letter of `pid`'s main thread: `R`, `S`, `D`, `T`, `t`, `Z`, .. as in proc(5).
///
/// # Errors
/// [`DiscoverError::Gone`] if there is no such process.
pub fn process_state(pid: u32) -> Result<char, DiscoverError> {
    stat(pid).map(|stat| stat.state)
}

/// The ids of a process' threads, here and where it lives: a process in a PID namespace of its own calls its threads
/// otherwise than its host does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThreadIds {
    pid: u32,
    /// By the id there, the id here; `None` where both are the same.
    inner: Option<BTreeMap<u32, u32>>,
}

/// Whether a process lives in another PID namespace than our `/proc` shows, by its `status`.
fn has_own_pids(status: &str) -> bool {
    innermost(status).is_some_and(|(depth, _)| depth > 1)
}

impl ThreadIds {
    /// Reads them.
    ///
    /// # Errors
    /// [`DiscoverError::Gone`] if there is no such process; otherwise if it cannot be read.
    pub fn of(pid: u32) -> Result<Self, DiscoverError> {
        if !has_own_pids(&status(pid)?) {
            return Ok(Self { pid, inner: None });
        }
        let mut inner = BTreeMap::new();
        for tid in numeric_entries(pid, "task", THREADS)? {
            // A thread that ended meanwhile is not one of those wanted.
            let Ok(text) = read_text(pid, &format!("task/{tid}/status"), STATUS_BYTES) else {
                continue;
            };
            if let Some((_, there)) = innermost(&text) {
                inner.insert(there, tid);
            }
        }
        Ok(Self { pid, inner: Some(inner) })
    }

    /// The id here of the thread that the process itself calls `tid`; `None` if it has no such thread.
    pub fn here(&self, tid: u32) -> Option<u32> {
        match &self.inner {
            Some(inner) => inner.get(&tid).copied(),
            None => has_thread(self.pid, tid).then_some(tid),
        }
    }
}

/// Whether `pid` has a thread `tid`.
pub fn has_thread(pid: u32, tid: u32) -> bool {
    fs::exists(format!("/proc/{pid}/task/{tid}")).unwrap_or(false)
}

/// In how many PID namespaces, from that of our `/proc` on, a thread has an id, and which it has in the innermost, by
/// its `status`. A kernel without such namespaces has no line for it.
fn innermost(status: &str) -> Option<(usize, u32)> {
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    let ids: Vec<&str> = ids.split_ascii_whitespace().collect();
    Some((ids.len(), ids.last()?.parse().ok()?))
}

/// The vCPU threads of `pid`, told by their names alone, which a QEMU that a guest took over may
/// choose freely.
///
/// # Errors
/// [`DiscoverError::Gone`] if there is no such process.
pub fn vcpu_threads(pid: u32) -> Result<VcpuThreads, DiscoverError> {
    let mut named = thread_names(pid)?;
    if named.len() >= THREADS {
        // Which of the others are vCPUs isn't known, either.
        return Ok(VcpuThreads::Unnamed);
    }
    // The main thread bears the name that `-name process=` gave it and never runs a vCPU.
    named.retain(|(_, tid)| *tid != pid);
    Ok(vcpu_threads_from_names(&named))
}

/// The names of all threads of `pid`, with their ids.
pub(super) fn thread_names(pid: u32) -> Result<Vec<(String, u32)>, DiscoverError> {
    let mut named = Vec::new();
    for tid in numeric_entries(pid, "task", THREADS)? {
        // A thread that ended meanwhile is not one of those wanted.
        let Ok(comm) = read_text(pid, &format!("task/{tid}/comm"), SMALL_FILE_BYTES) else {
            continue;
        };
        named.push((comm.trim_end_matches('\n').to_owned(), tid));
    }
    Ok(named)
}

pub(super) fn vcpu_threads_from_names(named: &[(String, u32)]) -> VcpuThreads {
    let mut each: Vec<VcpuThread> = named
        .iter()
        .filter_map(|(name, tid)| Some(VcpuThread { index: vcpu_index(name)?, tid: *tid }))
        .collect();
    if !each.is_empty() {
        each.sort_unstable();
        each.dedup_by_key(|thread| thread.index);
        return VcpuThreads::Each(each);
    }
    match named.iter().find(|(name, _)| name == "ALL CPUs/TCG") {
        Some(&(_, tid)) => VcpuThreads::OneForAll(tid),
        None => VcpuThreads::Unnamed,
    }
}

/// The `n` of `CPU n/KVM`.
fn vcpu_index(name: &str) -> Option<u32> {
    let (index, accelerator) = name.strip_prefix("CPU ")?.split_once('/')?;
    matches!(accelerator, "KVM" | "TCG" | "HVF").then(|| index.parse().ok())?
}

pub(super) fn stat(pid: u32) -> Result<Stat, DiscoverError> {
    parse_stat(&read_text(pid, "stat", SMALL_FILE_BYTES)?)
        .ok_or(DiscoverError::Malformed { pid, file: "stat".to_owned() })
}

/// The text of `/proc/PID/status`.
///
/// # Errors
/// [`DiscoverError::Gone`] if there is no such process; otherwise if it cannot be read.
pub fn status(pid: u32) -> Result<String, DiscoverError> {
    // Of a process in very many groups, the line with them is the longest by far.
    read_text(pid, "status", STATUS_BYTES)
}

/// The text of `/proc/PID/statm`.
///
/// # Errors
/// [`DiscoverError::Gone`] if there is no such process; otherwise if it cannot be read.
pub fn statm(pid: u32) -> Result<String, DiscoverError> {
    read_text(pid, "statm", SMALL_FILE_BYTES)
}

/// The numbers of a field (`Uid:`, ..) of a `status`, whose newlines the kernel escapes: no name can pose as such a line.
/// `None` if there is no such field, or something else in it.
pub(super) fn ids(status: &str, field: &str) -> Option<Vec<u32>> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_ascii_whitespace().take(GROUPS).map(|id| id.parse().ok()).collect()
}

/// The executable, without the ` (deleted)` of one whose package was upgraded meanwhile; kernel
/// threads have none and are [`DiscoverError::Gone`].
pub(super) fn executable(pid: u32) -> Result<PathBuf, DiscoverError> {
    let path = fs::read_link(format!("/proc/{pid}/exe"))
        .map_err(|source| DiscoverError::read(pid, "exe", source))?;
    Ok(without_deleted(path))
}

pub(super) fn without_deleted(path: PathBuf) -> PathBuf {
    match path.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
        Some(kept) => PathBuf::from(OsStr::from_bytes(kept)),
        None => path,
    }
}

/// The raw command line; empty for kernel threads and zombies.
pub(super) fn command_line(pid: u32) -> Result<Vec<u8>, DiscoverError> {
    let text = read_bounded(pid, "cmdline", CMDLINE_BYTES + 1)?;
    if u64::try_from(text.len()).is_ok_and(|length| length > CMDLINE_BYTES) {
        return Err(DiscoverError::CommandLineTooLong { pid, limit_bytes: CMDLINE_BYTES });
    }
    Ok(text)
}

/// Descriptors of a process.
#[derive(Debug, Default)]
pub(super) struct Descriptors {
    /// Each with what it links to, the lowest first.
    pub(super) each: Vec<(u32, PathBuf)>,
    /// Whether there are more than are looked at.
    pub(super) is_cut: bool,
}

/// Descriptors of `pid` with what each links to. By their links only: to `stat` through a
/// descriptor could hang on the very storage whose stalling is to be noticed.
pub(super) fn descriptors(pid: u32) -> Result<Descriptors, DiscoverError> {
    descriptors_up_to(pid, DESCRIPTORS)
}

fn descriptors_up_to(pid: u32, most: usize) -> Result<Descriptors, DiscoverError> {
    let mut numbers = numeric_entries(pid, "fd", most + 1)?;
    let is_cut = numbers.len() > most;
    numbers.truncate(most);
    // A descriptor that was closed meanwhile is simply not there.
    let links = numbers
        .into_iter()
        .filter_map(|fd| Some((fd, fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok()?)));
    Ok(Descriptors { each: links.collect(), is_cut })
}

/// The text of `/proc/PID/fdinfo/FD`; `None` if that was closed meanwhile, or the process is gone.
pub(super) fn descriptor_info(pid: u32, fd: u32) -> Result<Option<String>, DiscoverError> {
    match read_text(pid, &format!("fdinfo/{fd}"), SMALL_FILE_BYTES) {
        Err(DiscoverError::Gone { .. }) => Ok(None),
        text => text.map(Some),
    }
}

/// The text of `/proc/PID/mountinfo`.
pub(super) fn mountinfo(pid: u32) -> Result<String, DiscoverError> {
    read_text(pid, "mountinfo", MOUNTINFO_BYTES)
}

/// The text of `/proc/PID/cgroup`.
pub(super) fn cgroups(pid: u32) -> Result<String, DiscoverError> {
    read_text(pid, "cgroup", SMALL_FILE_BYTES)
}

/// The lines of a `/proc/PID/cgroup`, `ID:CONTROLLERS:PATH` (cgroups(7)): the controllers, which the hierarchy of
/// version 2 has none of and one with a name instead has as `name=NAME`, and the path. Garbage is left out.
pub fn cgroup_lines(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().take(CGROUP_LINES).filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        Some((fields.next()?, fields.next()?))
    })
}

/// All pids there are now.
/// Pids of all processes.
pub(super) fn pids() -> Result<Vec<u32>, DiscoverError> {
    Ok(processes()?.into_iter().map(|(pid, _)| pid).collect())
}

/// All processes: pid, and the inode of its directory here, which no other process has after it.
pub(super) fn processes() -> Result<Vec<(u32, u64)>, DiscoverError> {
    let entries =
        fs::read_dir("/proc").map_err(|source| DiscoverError::ListProcesses { source })?;
    let process =
        |entry: fs::DirEntry| Some((entry.file_name().to_str()?.parse().ok()?, entry.ino()));
    Ok(entries.filter_map(|entry| process(entry.ok()?)).collect())
}

/// The numbers in a folder of a process, so many at most.
fn numeric_entries(pid: u32, folder: &str, most: usize) -> Result<Vec<u32>, DiscoverError> {
    let entries = fs::read_dir(format!("/proc/{pid}/{folder}"))
        .map_err(|source| DiscoverError::read(pid, folder, source))?;
    Ok(entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .take(most)
        .collect())
}

/// Bytes that are no UTF-8 become U+FFFD.
fn read_text(pid: u32, file: &str, limit_bytes: u64) -> Result<String, DiscoverError> {
    let bytes = read_bounded(pid, file, limit_bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn read_bounded(pid: u32, file: &str, limit_bytes: u64) -> Result<Vec<u8>, DiscoverError> {
    let read = || -> io::Result<Vec<u8>> {
        // Room for most files, each of which is then read by one call, and its end by another.
        let mut content = Vec::with_capacity(ROOM_BYTES);
        File::open(format!("/proc/{pid}/{file}"))?.take(limit_bytes).read_to_end(&mut content)?;
        Ok(content)
    };
    read().map_err(|source| DiscoverError::read(pid, file, source))
}

#[cfg(test)]
mod tests;
