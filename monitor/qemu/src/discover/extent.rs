//! How many descriptors and threads a process has: what was plugged into a QEMU is mostly one of either more.

use std::{fs, os::unix::fs::MetadataExt as _};

/// What can be counted of a process without reading any of it. `None`: it can't be told, or there is no such process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extent {
    /// Descriptors that are open.
    pub descriptors: Option<u64>,
    /// Threads.
    pub threads: Option<u64>,
}

impl Extent {
    /// That of `pid`, by a look at two directories, which waits for no file system and costs a tenth of going through them.
    #[must_use]
    pub fn of(pid: u32) -> Self {
        let threads = fs::metadata(format!("/proc/{pid}/task")).ok();
        Self {
            descriptors: descriptors(pid),
            // A link for each thread, beside those that each directory has (`proc_task_getattr` in fs/proc/base.c).
            threads: threads.and_then(|metadata| metadata.nlink().checked_sub(2)),
        }
    }
}

fn descriptors(pid: u32) -> Option<u64> {
    let path = format!("/proc/{pid}/fd");
    match fs::metadata(&path).ok()?.len() {
        // Before 6.2 the kernel doesn't tell.
        0 => fs::read_dir(path).ok().map(|entries| entries.count() as u64),
        count => Some(count),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, sync::mpsc, thread};

    use super::Extent;

    #[test]
    fn one_more_of_either_is_one_more() {
        let own = std::process::id();
        // Other tests open files and start threads meanwhile.
        let grows = (0..100).any(|_| {
            let before = Extent::of(own);
            let (end, wait) = mpsc::channel::<()>();
            let thread = thread::spawn(move || wait.recv().is_err());
            let file = File::open("/dev/null").expect("it is everywhere");
            let after = Extent::of(own);
            drop((end, file));
            thread.join().expect("it ends");
            let one_more = |before: Option<u64>| before.map(|count| count + 1);
            after.descriptors == one_more(before.descriptors)
                && after.threads == one_more(before.threads)
        });
        assert!(grows);
        assert_eq!(Extent::of(u32::MAX), Extent::default());
    }
}
