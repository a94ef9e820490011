//! CPU time and memory of other processes.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

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
    let path = format!("/proc/{pid}/task/{pid}/schedstat");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let nanos = text.split_ascii_whitespace().next().with_context(|| format!("{path} is empty"))?;
    Ok(Duration::from_nanos(nanos.parse().context(path)?))
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
        assert!(resident_bytes(own).expect("our own memory") > 1 << 16);
    }
}
