//! CPU time and state of all QEMUs' threads, in one reading of the pinned iterator.
//!
//! Reading is all that is done: a hook on the scheduler would tax every switch of the whole host. Where
//! the iterator can't be had, [`VcpuClocks`](super::VcpuClocks) read one file for each thread.

use std::{
    fs::File,
    io::{self, Read as _},
    mem::size_of,
    path::PathBuf,
};

use monitor_ebpf::ThreadTime;

use super::{Missing, ProcessState, Reading, VcpuTime};

/// The kernel hands out so much at a time (`bpf_seq_read` in kernel/bpf/bpf_iter.c).
const BUFFER_BYTES: usize = 8 * 4096;
const RECORD_BYTES: usize = size_of::<ThreadTime>();

/// Reads the iterator anew each time.
#[derive(Clone, Debug)]
pub struct ThreadReader {
    path: PathBuf,
}

/// All threads of all watched QEMUs at one moment.
#[derive(Clone, Debug, Default)]
pub struct ThreadTimes {
    /// By pid, each one's by thread id.
    threads: Vec<ThreadTime>,
    /// The kernel's ticks when the reading began.
    jiffies: u64,
}

impl ThreadReader {
    /// `path` is where the iterator is pinned.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Reads all threads.
    pub fn read(&self) -> Reading<ThreadTimes> {
        self.try_read().map_err(|error| {
            Missing::new("vCPU time", format!("the iterator {}: {error}", self.path.display()))
        })
    }

    fn try_read(&self) -> io::Result<ThreadTimes> {
        // Each opening is a new iteration.
        read_all(File::open(&self.path)?, &mut vec![0; BUFFER_BYTES])
    }
}

/// Reads all that an iterator gives, through a buffer that a record fits into.
pub(super) fn read_all(mut file: File, buffer: &mut [u8]) -> io::Result<ThreadTimes> {
    let mut times = ThreadTimes::default();
    let mut kept = 0;
    loop {
        let read = file.read(&mut buffer[kept..])?;
        if read == 0 {
            break;
        }
        let filled = kept + read;
        let whole = filled - filled % RECORD_BYTES;
        times.threads.reserve(whole / RECORD_BYTES);
        for record in buffer[..whole].chunks_exact(RECORD_BYTES) {
            let thread = parse(record).ok_or_else(|| io::Error::other("a torn record"))?;
            if thread.tid == 0 {
                times.jiffies = thread.wait_ns;
            } else {
                times.threads.push(thread);
            }
        }
        buffer.copy_within(whole..filled, 0);
        kept = filled - whole;
    }
    if kept != 0 {
        return Err(io::Error::other("it ends within a record"));
    }
    // The kernel goes by thread ids, which is nearly in order.
    times.threads.sort_unstable_by_key(|thread| (thread.pid, thread.tid));
    Ok(times)
}

/// As [`ThreadTime`] lies in memory.
fn parse(record: &[u8]) -> Option<ThreadTime> {
    let word = |at: usize| record.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let long = |at: usize| record.get(at..at + 8)?.try_into().ok().map(u64::from_ne_bytes);
    Some(ThreadTime {
        pid: word(0)?,
        tid: word(4)?,
        state: word(8)?,
        reserved: word(12)?,
        run_ns: long(16)?,
        wait_ns: long(24)?,
    })
}

impl ThreadTimes {
    /// All threads of a QEMU, by thread id; none where it is gone.
    pub(crate) fn of(&self, pid: u32) -> &[ThreadTime] {
        let begin = self.threads.partition_point(|thread| thread.pid < pid);
        let its = &self.threads[begin..];
        let count = its.iter().take_while(|thread| thread.pid == pid).count();
        &its[..count]
    }

    /// The times of a VM's vCPU threads, given as (vCPU index, thread id).
    pub(crate) fn vcpus(&self, pid: u32, threads: &[(u32, u32)]) -> Reading<Vec<VcpuTime>> {
        vcpus_among(self.of(pid), threads)
    }

    /// The same, and the state of the process by its main thread.
    pub(crate) fn vcpus_and_state(
        &self,
        pid: u32,
        threads: &[(u32, u32)],
    ) -> (Reading<Vec<VcpuTime>>, ProcessState) {
        // They are looked for once: of many VMs, this is most of what a look into the reading costs.
        let its = self.of(pid);
        let main = its.iter().find(|thread| thread.tid == pid);
        let state = main.map_or(ProcessState::Gone, |main| ProcessState::from_bits(main.state));
        (vcpus_among(its, threads), state)
    }

    /// The kernel's ticks when the reading began, by which requests in flight are dated.
    pub(crate) fn jiffies(&self) -> u64 {
        self.jiffies
    }
}

/// The times of those of a process' threads that are vCPUs'. One that isn't there makes the whole reading missing: a sum without
/// it would be low, and a low sum is what a halted guest looks like. A thread that serves several vCPUs is there once.
fn vcpus_among(its: &[ThreadTime], threads: &[(u32, u32)]) -> Reading<Vec<VcpuTime>> {
    if threads.is_empty() {
        return Err(Missing::new("vCPU time", "its vCPU threads are not known yet"));
    }
    let mut times: Vec<VcpuTime> = Vec::with_capacity(threads.len());
    let mut highest = 0;
    for (index, tid) in threads {
        // Mostly in order, so that none has to be looked for.
        if *tid <= highest && times.iter().any(|vcpu| vcpu.tid == *tid) {
            continue;
        }
        highest = highest.max(*tid);
        match its.binary_search_by_key(tid, |thread| thread.tid) {
            Ok(at) => {
                let ThreadTime { run_ns, wait_ns, .. } = its[at];
                times.push(VcpuTime { index: *index, tid: *tid, run_ns, wait_ns });
            }
            Err(_) => return Err(Missing::new("vCPU time", format!("thread {tid} is gone"))),
        }
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times() -> ThreadTimes {
        let thread = |tid, state| ThreadTime {
            pid: 7,
            tid,
            state,
            reserved: 0,
            run_ns: u64::from(tid),
            wait_ns: 1,
        };
        ThreadTimes { threads: vec![thread(7, 1), thread(8, 0)], jiffies: 5 }
    }

    #[test]
    fn a_thread_that_is_gone_or_anothers_is_missing_and_not_zero() {
        let times = times();
        assert_eq!(times.vcpus(7, &[(0, 8)]).unwrap()[0].run_ns, 8);
        assert!(times.vcpus(7, &[(0, 8), (1, 9)]).is_err());
        assert!(times.vcpus(6, &[(0, 8)]).is_err());
        assert!(times.vcpus(7, &[]).is_err());
    }

    #[test]
    fn one_thread_for_two_vcpus_is_read_once() {
        assert_eq!(times().vcpus(7, &[(0, 8), (1, 8)]).unwrap().len(), 1);
        let read = times().vcpus(7, &[(0, 8), (1, 7), (2, 8), (3, 7)]).unwrap();
        assert_eq!(read.iter().map(|vcpu| vcpu.tid).collect::<Vec<_>>(), [8, 7]);
    }

    #[test]
    fn a_main_thread_that_is_not_there_is_gone() {
        assert_eq!(times().vcpus_and_state(7, &[(0, 8)]).1, ProcessState::Running);
        assert_eq!(times().vcpus_and_state(9, &[(0, 8)]).1, ProcessState::Gone);
    }

    #[test]
    fn the_first_record_is_the_clock_and_no_thread() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut records = vec![0_u8; 2 * RECORD_BYTES];
        records[24] = 77;
        records[RECORD_BYTES + 4] = 9;
        std::fs::write(file.path(), records).unwrap();
        let times = ThreadReader::new(file.path().to_owned()).read().unwrap();
        assert_eq!(times.jiffies(), 77);
        assert_eq!(times.of(0).iter().map(|thread| thread.tid).collect::<Vec<_>>(), [9]);
    }

    #[test]
    fn a_file_that_ends_within_a_record_is_no_reading() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let reader = ThreadReader::new(file.path().to_owned());
        std::fs::write(file.path(), [0_u8; 3 * RECORD_BYTES]).unwrap();
        assert!(reader.read().is_ok());
        std::fs::write(file.path(), [0_u8; 3 * RECORD_BYTES - 1]).unwrap();
        assert!(reader.read().is_err());
        assert!(ThreadReader::new("/nonexistent".into()).read().is_err());
    }
}
