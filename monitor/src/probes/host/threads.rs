//! Which of QEMU's threads hang in the kernel.

use std::{collections::BTreeMap, fmt, fs, path::PathBuf, thread::sleep, time::Duration};

use rustix::fs::{Mode, OFlags, open, openat};

use super::read;
use flatline_samples::{MAX_TEXT_CHARS, printable};

/// Time between two looks at the threads. Not measured: a disk that works answers in a fraction of it.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// More threads are not looked at: as many vCPUs as most kernels let a VM have (`KVM_MAX_NR_VCPUS`), and some beside.
const MOST_THREADS: usize = 1100;
/// What is read of `stat`: the thread's name, of any user's choice but short, and its state stand at the beginning.
const STAT_BYTES: usize = 256;

/// A thread in uninterruptible sleep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hanging {
    /// Its name, which QEMU may choose.
    pub(super) name: String,
    /// The kernel's function in which it sleeps, where that may be known.
    pub(super) wchan: Option<String>,
}

impl fmt::Display for Hanging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "thread \"{}\" hangs in the kernel (D", self.name)?;
        match &self.wchan {
            Some(wchan) => write!(f, ", in {wchan})"),
            None => f.write_str(")"),
        }
    }
}

/// The threads of `pid` that are in uninterruptible sleep in two looks, by their ids. Blocks that long.
pub(super) fn hanging(pid: u32) -> BTreeMap<u32, Hanging> {
    let tasks = PathBuf::from(format!("/proc/{pid}/task"));
    let Ok(entries) = fs::read_dir(&tasks) else {
        return BTreeMap::new();
    };
    // From within the directory: the way to it takes the kernel longer than what is read there.
    let Ok(within) =
        open(&tasks, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
    else {
        return BTreeMap::new();
    };
    let name = |tid: &u32| {
        let path = format!("{tid}/stat");
        let file = openat(&within, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let mut bytes = [0; STAT_BYTES];
        let length = rustix::io::read(&file, &mut bytes).ok()?;
        uninterruptible(&String::from_utf8_lossy(bytes.get(..length)?)).map(str::to_owned)
    };
    let first: Vec<u32> = entries
        .take(MOST_THREADS)
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|tid| name(tid).is_some())
        .collect();
    if first.is_empty() {
        return BTreeMap::new();
    }
    sleep(LOOK_EVERY);
    let still = first.into_iter().filter_map(|tid| {
        let name = printable(&name(&tid)?, MAX_TEXT_CHARS);
        let wchan = read(&tasks.join(tid.to_string()).join("wchan")).and_then(|text| known(&text));
        Some((tid, Hanging { name, wchan }))
    });
    still.collect()
}

/// The name of a thread that is in uninterruptible sleep, by its `stat`. The name is in parentheses, and may
/// have some itself.
pub(super) fn uninterruptible(stat: &str) -> Option<&str> {
    let (_, after_open) = stat.split_once('(')?;
    let (name, after) = after_open.rsplit_once(')')?;
    (after.split_ascii_whitespace().next() == Some("D")).then_some(name)
}

/// `wchan` is 0 where it may not be told.
fn known(wchan: &str) -> Option<String> {
    let wchan = printable(wchan.trim(), MAX_TEXT_CHARS);
    (!matches!(wchan.as_str(), "" | "0")).then_some(wchan)
}
