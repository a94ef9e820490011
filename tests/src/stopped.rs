//! Processes that are stopped by a signal for a while.

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};

/// A process that does nothing, until the value is dropped. It must not be reaped before.
#[derive(Debug)]
pub struct Stopped(Pid);

impl Stopped {
    /// Sends SIGSTOP.
    ///
    /// # Errors
    ///
    /// If there is no such process of ours.
    pub fn new(pid: Pid) -> Result<Self> {
        kill_process(pid, Signal::STOP).context("cannot stop a process")?;
        Ok(Self(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if let Err(error) = kill_process(self.0, Signal::CONT) {
            eprintln!("process {} cannot go on: {error:#}", self.0);
        }
    }
}
