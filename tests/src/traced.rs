//! A process that a debugger has stopped.

use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, anyhow};

/// A process whose threads, or one of them, are seized and stopped, as `gdb -p` does it, until this is dropped.
#[derive(Debug)]
pub struct Traced {
    end: Option<Sender<()>>,
    tracer: Option<JoinHandle<()>>,
}

impl Traced {
    /// Stops it.
    ///
    /// # Errors
    ///
    /// If it is gone, or the kernel refuses.
    pub fn new(pid: u32) -> Result<Self> {
        Self::by(move || stop_all(pid))
    }

    /// Stops the thread that it began with, and no other.
    ///
    /// # Errors
    ///
    /// As above.
    pub fn main_thread(pid: u32) -> Result<Self> {
        Self::by(move || stop(pid.try_into()?))
    }

    fn by(stop: impl FnOnce() -> Result<()> + Send + 'static) -> Result<Self> {
        let (end, ended) = channel::<()>();
        let (sender, stopped) = channel();
        // The kernel takes one thread for the debugger, and lets its processes go on when that one ends.
        let tracer = std::thread::spawn(move || {
            // The caller waits for an answer.
            let _ = sender.send(stop());
            // An error says that the other end is gone: that is what is waited for.
            let _ = ended.recv();
        });
        stopped.recv().map_err(|_| anyhow!("the debugger's thread ended"))??;
        Ok(Self { end: Some(end), tracer: Some(tracer) })
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(tracer) = self.tracer.take() {
            // It panics nowhere, and there is nothing to tell if it did.
            let _ = tracer.join();
        }
    }
}

fn stop_all(pid: u32) -> Result<()> {
    for entry in std::fs::read_dir(format!("/proc/{pid}/task")).context("it is gone")? {
        stop(entry?.file_name().to_string_lossy().parse()?)?;
    }
    Ok(())
}

fn stop(thread: libc::pid_t) -> Result<()> {
    for request in [libc::PTRACE_SEIZE, libc::PTRACE_INTERRUPT] {
        // SAFETY: neither request reads or writes memory of this process.
        let answer = unsafe {
            libc::ptrace(
                request,
                thread,
                std::ptr::null_mut::<libc::c_void>(),
                std::ptr::null_mut::<libc::c_void>(),
            )
        };
        if answer != 0 {
            let error = std::io::Error::last_os_error();
            return Err(error).with_context(|| format!("cannot stop thread {thread}"));
        }
    }
    Ok(())
}
