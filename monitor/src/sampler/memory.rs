//! Host memory of a QEMU, from `/proc/PID/statm`, or from `/proc/PID/status` where some of it may be swapped out or in huge
//! pages, which `statm` doesn't tell.
//!
//! Neither takes a walk through the process's page tables, under its lock, as `smaps_rollup` does: 4 µs for `status`, as
//! against 2 µs for `statm` and 1.5 ms for `smaps_rollup` of half a GiB (Linux 6.18), and 40 and 10 µs where nothing of it is in
//! the CPU's caches, as of one VM of a thousand. Their figures may be off by some pages a CPU that the kernel didn't add up yet
//! (proc(5), `VmRSS`).

use std::{
    fs,
    os::fd::{AsFd as _, OwnedFd},
    sync::OnceLock,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io,
};

use super::{Missing, QemuMemory, Reading};
use flatline_qemu::discover;
use flatline_samples::PlainHost;

const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Reads that of QEMUs, of which a few are read at about the same time.
#[derive(Debug, Default)]
pub(crate) struct MemoryReader {
    /// What the host is like, once that was looked at.
    host: OnceLock<Option<PlainHost>>,
}

impl MemoryReader {
    /// Reads that of `pid`; missing if the process of the pidfd is no longer there, and `pid` may be another one.
    pub(crate) fn read(&self, pid: u32, pidfd: &OwnedFd) -> Reading<QemuMemory> {
        let missing = |why: String| Missing::new("QEMU's memory", why);
        let unread = |error: discover::DiscoverError| missing(error.to_string());
        let look = || PlainHost::parse(&fs::read_to_string("/proc/meminfo").ok()?);
        let memory = match self.host.get_or_init(look) {
            Some(host) => {
                let statm = discover::statm(pid).map_err(unread)?;
                QemuMemory::parse_statm(&statm, rustix::param::page_size() as u64, *host)
            }
            None => QemuMemory::parse(&discover::status(pid).map_err(unread)?),
        };
        if !lives(pidfd).map_err(|error| missing(error.to_string()))? {
            return Err(missing("the process has ended".to_owned()));
        }
        memory.ok_or_else(|| missing("it has none, as one that ends".to_owned()))
    }
}

/// Whether the process is there, which its pidfd tells: it can be read from its end on (pidfd_open(2)).
fn lives(pidfd: &OwnedFd) -> io::Result<bool> {
    let mut polled = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
    Ok(poll(&mut polled, Some(&AT_ONCE))? == 0)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;

    #[test]
    fn another_process_of_its_pid_is_not_read_for_the_vm() {
        let pidfd = |pid: u32| {
            let pid = Pid::from_raw(pid.cast_signed()).expect("it is none");
            pidfd_open(pid, PidfdFlags::empty()).expect("it is there")
        };
        let own = std::process::id();
        let reader = MemoryReader::default();
        let memory = reader.read(own, &pidfd(own)).unwrap();
        assert!(memory.rss > 1 << 20, "{memory:?}");
        let mut ended = Command::new("true").spawn().expect("coreutils");
        let of_ended = pidfd(ended.id());
        ended.wait().unwrap();
        // As if its pid were ours now.
        assert!(reader.read(own, &of_ended).is_err());
        // Whatever the host is like, its status tells the same.
        let of_any = MemoryReader { host: OnceLock::from(None) };
        let by_status = of_any.read(own, &pidfd(own)).unwrap();
        assert!(by_status.rss.abs_diff(memory.rss) < 64 << 20, "{by_status:?} {memory:?}");
        assert!(of_any.read(own, &of_ended).is_err());
    }
}
