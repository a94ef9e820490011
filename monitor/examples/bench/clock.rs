//! Time that this thread computes: what others on the machine do meanwhile is not in it.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// CPU time of this thread so far.
pub(crate) fn thread_time() -> Duration {
    // It began with the thread, and never was negative.
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

/// Nanoseconds that one of `times` calls takes.
pub(crate) fn per_call<E>(times: u32, mut call: impl FnMut() -> Result<(), E>) -> Result<f64, E> {
    let before = thread_time();
    for _ in 0..times {
        call()?;
    }
    Ok((thread_time() - before).as_secs_f64() * 1e9 / f64::from(times))
}
