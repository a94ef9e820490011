//! How far a QEMU's start has come, told from outside: by its threads and descriptors.
//!
//! A QEMU may wait in its init for the first client of a socket (`wait=on`), and goes on, and boots its guest, as
//! soon as there is one. A client that connects before that starts a guest that another one was to start. Before its
//! init is over, QEMU accepts no other client either.
//!
//! The end of the init is seen by its vCPUs, which are among the last that it makes: threads that are named so
//! (`debug-threads=on`), or KVM's descriptors of them. Where neither tells, threads are counted. A QEMU has its main
//! thread, RCU's from before its `main`, and those of objects that are made first; all of these bear the program's
//! name. A vCPU is one more. (Threads of libraries have names of their own, and helpers of the block layer
//! come after the character devices.) Seen with QEMU 7.2, which names RCU's thread or not, as it happens.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _, path::Path};

use serde::{Deserialize, Serialize};

use super::{DiscoverError, proc};

/// The kernel keeps so much of a thread's name.
const COMM_BYTES: usize = 15;
/// The main thread, and RCU's.
const FIRST_THREADS: usize = 2;

/// What a QEMU's command line says of its threads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadsTold {
    /// How many there are before its first vCPU's, beyond its main thread and RCU's.
    pub early: usize,
    /// Whether they are given names.
    pub named: bool,
}

/// How far a QEMU's start has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launch {
    /// It has vCPUs.
    Over,
    /// It has none yet.
    UnderWay,
    /// Nothing shows a vCPU, and nothing would have to.
    Untold,
}

/// How far the start of `pid` has come. `told` is what its command line says of its threads.
///
/// # Errors
/// [`DiscoverError::Gone`] if there is no such process; otherwise if it can't be read.
pub(crate) fn launch(pid: u32, told: ThreadsTold) -> Result<Launch, DiscoverError> {
    let descriptors = proc::descriptors(pid)?.each;
    let has = |prefix: &str| {
        descriptors
            .iter()
            .any(|(_, link)| link.as_os_str().as_bytes().starts_with(prefix.as_bytes()))
    };
    if has("anon_inode:kvm-vcpu") {
        return Ok(Launch::Over);
    }
    let makes_kvm = has("anon_inode:kvm-vm");
    let executable = proc::executable(pid)?;
    let names = proc::thread_names(pid)?;
    if names.len() >= proc::THREADS {
        return Ok(Launch::Over);
    }
    Ok(shown_by(&names, pid, &executable, told, makes_kvm))
}

fn shown_by(
    threads: &[(String, u32)],
    pid: u32,
    executable: &Path,
    told: ThreadsTold,
    makes_kvm: bool,
) -> Launch {
    let others: Vec<_> = threads.iter().filter(|(_, tid)| *tid != pid).cloned().collect();
    if proc::vcpu_threads_from_names(&others) != proc::VcpuThreads::Unnamed {
        return Launch::Over;
    }
    if makes_kvm {
        return Launch::UnderWay;
    }
    let file = executable.file_name().unwrap_or_else(|| OsStr::new("")).as_bytes();
    let file = file.get(..COMM_BYTES).unwrap_or(file);
    let main = threads.iter().find(|(_, tid)| *tid == pid).map(|(name, _)| name.as_bytes());
    let unnamed =
        |(name, _): &&(String, u32)| name.as_bytes() == file || Some(name.as_bytes()) == main;
    if threads.iter().filter(unnamed).count() > FIRST_THREADS.saturating_add(told.early) {
        Launch::Over
    } else if told.named {
        Launch::UnderWay
    } else {
        Launch::Untold
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(names: &[&str], early: usize, named: bool, makes_kvm: bool) -> Launch {
        let threads: Vec<(String, u32)> =
            names.iter().zip(7..).map(|(name, tid)| ((*name).to_owned(), tid)).collect();
        let executable = Path::new("/usr/bin/qemu-system-x86_64");
        shown_by(&threads, 7, executable, ThreadsTold { early, named }, makes_kvm)
    }

    const UNNAMED: &str = "qemu-system-x86";

    #[test]
    fn named_threads_tell_whether_there_is_a_vcpu() {
        for rcu in [UNNAMED, "call_rcu"] {
            assert_eq!(told(&[UNNAMED, rcu, "IO i0"], 1, true, false), Launch::UnderWay);
            let all = [UNNAMED, rcu, "IO mon_iothread", "CPU 0/TCG"];
            assert_eq!(told(&all, 0, true, false), Launch::Over);
            assert_eq!(told(&[UNNAMED, rcu, "ALL CPUs/TCG"], 0, false, false), Launch::Over);
            // The main thread bears what name its owner likes.
            assert_eq!(told(&["CPU 0/TCG", rcu], 0, true, false), Launch::UnderWay);
        }
    }

    #[test]
    fn threads_without_names_are_counted_and_those_of_libraries_are_not() {
        let counted = |names: &[&str], early| told(names, early, false, false);
        assert_eq!(counted(&[UNNAMED, UNNAMED], 0), Launch::Untold);
        assert_eq!(counted(&[UNNAMED, UNNAMED, "gmain", "gdbus"], 0), Launch::Untold);
        assert_eq!(counted(&[UNNAMED, UNNAMED, UNNAMED], 1), Launch::Untold);
        assert_eq!(counted(&[UNNAMED, UNNAMED, UNNAMED], 0), Launch::Over);
        // `-name process=`: RCU's thread is older than that.
        assert_eq!(counted(&["web", UNNAMED, "web"], 0), Launch::Over);
        // Where names can't be given, they are not waited for.
        assert_eq!(told(&[UNNAMED, UNNAMED, UNNAMED], 0, true, false), Launch::Over);
    }

    #[test]
    fn a_machine_of_kvms_without_a_vcpu_is_being_made() {
        assert_eq!(told(&[UNNAMED, UNNAMED, UNNAMED], 0, false, true), Launch::UnderWay);
    }

    #[test]
    fn what_is_no_qemu_shows_nothing() {
        let nothing = ThreadsTold::default();
        assert_eq!(launch(std::process::id(), nothing).unwrap(), Launch::Untold);
        assert!(matches!(launch(u32::MAX, nothing), Err(DiscoverError::Gone { .. })));
    }
}
