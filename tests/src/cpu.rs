//! CPU time and memory of other processes.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

/// CPU time of a whole process since its start, threads that ended included.
///
/// # Errors
///
/// If it is gone.
pub fn process_time(pid: u32) -> Result<Duration> {
    let mut clock: libc::clockid_t = 0;
    // SAFETY: the call writes no more than the id.
    let answer = unsafe { libc::clock_getcpuclockid(pid.cast_signed(), &raw mut clock) };
    ensure!(answer == 0, "process {pid} has no clock: it is gone");
    // SAFETY: zeroes are a valid timespec.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: the call writes no more than the timespec.
    let answer = unsafe { libc::clock_gettime(clock, &raw mut time) };
    ensure!(answer == 0, "process {pid}: {}", std::io::Error::last_os_error());
    Ok(Duration::new(u64::try_from(time.tv_sec)?, u32::try_from(time.tv_nsec)?))
}

/// CPU time of a process' main thread alone.
///
/// # Errors
///
/// If it is gone.
pub fn main_thread_time(pid: u32) -> Result<Duration> {
    Ok(schedstat(pid, pid)?.ran)
}

/// How long the thread of a process that waited longest for a CPU has done so, since its start: what the host withheld
/// from it.
///
/// # Errors
///
/// If it is gone.
pub fn withheld(pid: u32) -> Result<Duration> {
    Ok(waits(pid)?.into_values().max().unwrap_or_default())
}

/// How long each thread of a process has waited for a CPU since its start, by the threads' ids.
///
/// # Errors
///
/// If it is gone.
pub fn waits(pid: u32) -> Result<BTreeMap<u32, Duration>> {
    let path = format!("/proc/{pid}/task");
    let mut waits = BTreeMap::new();
    for thread in std::fs::read_dir(&path).context(path)? {
        let Ok(thread) = thread?.file_name().to_string_lossy().parse() else { continue };
        // A thread may have ended meanwhile.
        let time = schedstat(pid, thread).ok();
        waits.extend(time.map(|time| (thread, time.waited)));
    }
    Ok(waits)
}

/// What the kernel's scheduler counts of a thread.
struct Schedstat {
    ran: Duration,
    /// Ready to run, on no CPU.
    waited: Duration,
}

fn schedstat(pid: u32, thread: u32) -> Result<Schedstat> {
    let path = format!("/proc/{pid}/task/{thread}/schedstat");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let nanos = text.split_ascii_whitespace().map(str::parse).collect::<Result<Vec<u64>, _>>();
    let [ran, waited, _] = nanos.with_context(|| path.clone())?[..] else {
        bail!("{path}: {text}")
    };
    Ok(Schedstat { ran: Duration::from_nanos(ran), waited: Duration::from_nanos(waited) })
}

/// Memory of a process that is resident now, in bytes.
///
/// # Errors
///
/// If it is gone.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_ascii_whitespace().next());
    Ok(kib.with_context(|| format!("{path} has no VmRSS"))?.parse::<u64>()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clocks_of_this_very_process_run_and_it_has_memory() {
        let own = std::process::id();
        let before = process_time(own).expect("our own clock");
        while process_time(own).expect("our own clock") < before + Duration::from_millis(5) {}
        assert!(main_thread_time(own).is_ok());
        assert!(withheld(own).is_ok());
        assert!(resident_bytes(own).expect("our own memory") > 1 << 16);
    }
}
