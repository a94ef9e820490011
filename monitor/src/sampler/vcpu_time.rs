//! CPU time of a VM's vCPU threads, from `schedstat` files that are kept open.
//!
//! Reading is all that is done: a hook on the scheduler would tax every switch of the whole host.
//! `schedstat` also has the time that a thread waited for a CPU, by which a starved guest is told from
//! a silent one.

use std::{collections::HashSet, fs::File, io, os::unix::fs::FileExt as _};

use super::{Missing, Reading, VcpuTime};

/// The open files of one VM's vCPU threads.
#[derive(Debug, Default)]
pub struct VcpuClocks {
    threads: Vec<(u32, u32, File)>,
}

impl VcpuClocks {
    /// Opens the clock of each (vCPU index, thread id) of process `pid`. Threads that serve several
    /// vCPUs are read once.
    ///
    /// # Errors
    /// What the kernel said of the first thread that could not be opened.
    pub fn open(pid: u32, vcpus: &[(u32, u32)]) -> io::Result<Self> {
        let mut threads: Vec<(u32, u32, File)> = Vec::with_capacity(vcpus.len());
        let mut seen = HashSet::with_capacity(vcpus.len());
        for &(index, tid) in vcpus {
            if seen.insert(tid) {
                let file = File::open(format!("/proc/{pid}/task/{tid}/schedstat"))?;
                threads.push((index, tid, file));
            }
        }
        threads.sort_by_key(|(index, _, _)| *index);
        Ok(Self { threads })
    }

    /// Whether no thread is known so far.
    pub(crate) fn is_empty(&self) -> bool {
        self.threads.is_empty()
    }

    /// Reads all clocks. One that fails makes the whole reading missing: a sum without it would be low,
    /// and a low sum is what a halted guest looks like.
    pub fn read(&self) -> Reading<Vec<VcpuTime>> {
        if self.is_empty() {
            return Err(Missing::new("vCPU time", "its vCPU threads are not known yet"));
        }
        self.threads
            .iter()
            .map(|(index, tid, file)| {
                let mut buffer = [0; 128];
                let failed =
                    |why: String| Missing::new("vCPU time", format!("thread {tid}: {why}"));
                let length =
                    file.read_at(&mut buffer, 0).map_err(|error| failed(error.to_string()))?;
                let (run_ns, wait_ns) = parse_schedstat(&buffer[..length])
                    .ok_or_else(|| failed("its schedstat is malformed".to_owned()))?;
                Ok(VcpuTime { index: *index, tid: *tid, run_ns, wait_ns })
            })
            .collect()
    }
}

/// CPU time of the thread `tid` of process `pid` so far, in ns; `None` if it can't be read.
pub(crate) fn thread_run_ns(pid: u32, tid: u32) -> Option<u64> {
    let text = std::fs::read(format!("/proc/{pid}/task/{tid}/schedstat")).ok()?;
    parse_schedstat(&text).map(|(run_ns, _)| run_ns)
}

/// Time for which a thread has run or wanted to, in ns; `None`: unknown.
pub(crate) fn thread_wanted_ns(pid: u32, tid: u32) -> Option<u64> {
    let text = std::fs::read(format!("/proc/{pid}/task/{tid}/schedstat")).ok()?;
    parse_schedstat(&text).map(|(run_ns, wait_ns)| run_ns.saturating_add(wait_ns))
}

/// `run_ns wait_ns timeslices` (Documentation/scheduler/sched-stats.rst).
fn parse_schedstat(text: &[u8]) -> Option<(u64, u64)> {
    let mut fields = std::str::from_utf8(text).ok()?.split_ascii_whitespace();
    let run_ns = fields.next()?.parse().ok()?;
    let wait_ns = fields.next()?.parse().ok()?;
    Some((run_ns, wait_ns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_of_this_very_thread_runs() {
        let pid = std::process::id();
        let tid = u32::try_from(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
        let clocks = VcpuClocks::open(pid, &[(0, tid), (1, tid)]).unwrap();
        let before = clocks.read().unwrap();
        let mut sum = 0_u64;
        while clocks.read().unwrap()[0].run_ns < before[0].run_ns + 5_000_000 {
            sum = std::hint::black_box(sum + 1);
        }
        assert_eq!(before.len(), 1, "one thread for two vCPUs is read once");
    }

    #[test]
    fn a_thread_that_ended_is_missing_and_not_zero() {
        let (tid_sender, tid_receiver) = std::sync::mpsc::channel();
        let (end_sender, end_receiver) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let tid = rustix::thread::gettid().as_raw_nonzero().get();
            tid_sender.send(u32::try_from(tid).unwrap()).unwrap();
            let _ = end_receiver.recv();
        });
        let tid = tid_receiver.recv().unwrap();
        let clocks = VcpuClocks::open(std::process::id(), &[(0, tid)]).unwrap();
        assert!(clocks.read().is_ok());
        drop(end_sender);
        thread.join().unwrap();
        // It is joined a moment before the kernel has taken it off its lists.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while flatline_qemu::discover::has_thread(std::process::id(), tid) {
            assert!(std::time::Instant::now() < deadline, "it does not end");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert_eq!(clocks.read().unwrap_err().what, "vCPU time");
    }

    #[test]
    fn a_torn_schedstat_is_none() {
        assert_eq!(parse_schedstat(b"12 34 5\n"), Some((12, 34)));
        assert_eq!(parse_schedstat(b"12"), None);
        assert_eq!(parse_schedstat(b""), None);
        assert_eq!(parse_schedstat(b"-1 2 3"), None);
    }
}
