//! The process that a machine is, and its end.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ExitStatus};

use anyhow::Result;
use rustix::process::Signal;

/// Kills a child that turns out useless before it became a [`Guest`](super::Guest).
pub(super) struct Reaper(pub(super) Option<Child>);

impl Reaper {
    pub(super) fn ended(&mut self) -> Result<bool> {
        Ok(match &mut self.0 {
            Some(child) => child.try_wait()?.is_some(),
            None => true,
        })
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // The error that led here is the one worth telling.
            let _ = reap(child);
        }
    }
}

pub(super) fn reap(child: &mut Child) -> Result<ExitStatus> {
    if let Some(status) = child.try_wait()? {
        return Ok(status);
    }
    child.kill()?;
    Ok(child.wait()?)
}

/// Whether a process was ended by SIGKILL, as [`Guest::kill`] does it.
///
/// [`Guest::kill`]: super::Guest::kill
pub fn was_killed(status: ExitStatus) -> bool {
    status.signal() == Some(Signal::KILL.as_raw())
}
