//! Clocks of one VM's threads, while no iterator reads all threads of the host at once: an iterator over its own, or, where the
//! kernel has none over one process, a file for each.

use crate::sampler::{ProcessReader, ProcessThreads, ThreadTimes, VcpuClocks};
use flatline_samples::{Missing, Reading, VcpuTime};

/// What is kept open between two readings.
#[derive(Debug, Default)]
pub(super) struct Clocks {
    iterator: Option<ProcessThreads>,
    files: VcpuClocks,
}

impl Clocks {
    /// Whether something is open.
    pub(super) fn are_open(&self) -> bool {
        self.iterator.is_some() || !self.files.is_empty()
    }

    /// All threads of the process `pid` by an iterator over it; `None` where there can be none.
    pub(super) fn iterate(
        &mut self,
        pid: u32,
        processes: Option<&ProcessReader>,
    ) -> Option<ThreadTimes> {
        if self.iterator.is_none() {
            self.iterator = processes?.of(pid).ok();
        }
        let times = self.iterator.as_ref()?.read();
        if times.is_err() {
            self.iterator = None;
        }
        times.ok()
    }

    /// The times of vCPU threads, given as (vCPU index, thread id), from their files.
    pub(super) fn read_files(
        &mut self,
        pid: u32,
        threads: &[(u32, u32)],
    ) -> Reading<Vec<VcpuTime>> {
        if self.files.is_empty() && !threads.is_empty() {
            self.files = VcpuClocks::open(pid, threads).map_err(|error| {
                Missing::new("vCPU time", format!("its vCPU threads can't be opened: {error}"))
            })?;
        }
        self.files.read().inspect_err(|_| self.files = VcpuClocks::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_an_iterator_files_are_opened_once_and_closed_where_one_fails() {
        let pid = std::process::id();
        let mut clocks = Clocks::default();
        assert!(clocks.iterate(pid, None).is_none() && !clocks.are_open());
        assert!(clocks.read_files(pid, &[]).is_err() && !clocks.are_open());
        assert!(clocks.read_files(pid, &[(0, pid)]).is_ok() && clocks.are_open());
        clocks = Clocks::default();
        assert!(clocks.read_files(pid, &[(0, u32::MAX)]).is_err() && !clocks.are_open());
    }
}
