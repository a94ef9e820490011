//! A process that a debugger has stopped.

use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, anyhow};

/// A process all of whose threads are seized and stopped, as `gdb -p` does it, until this is dropped.
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
        let (end, ended) = channel::<()>();
        let (sender, stopped) = channel();
        // The kernel takes one thread for the debugger, and lets its processes go on when that one ends.
        let tracer = std::thread::spawn(move || {
            // Whoever asked waits for an answer.
            let _ = sender.send(stop_all(pid));
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
        let thread: libc::pid_t = entry?.file_name().to_string_lossy().parse()?;
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
    }
    Ok(())
}
