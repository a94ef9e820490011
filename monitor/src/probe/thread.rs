//! A thread of its own for whatever attaches and detaches.
//!
//! Attaching through tcx waits for an RCU grace period under the RTNL lock, 24 ms a tap; nothing that
//! watches may wait for that. So requests queue up here, and their reports come back through a channel.

use std::{fs::File, io, path::PathBuf, sync::mpsc, thread::JoinHandle};

use tokio::sync::{mpsc as reports, oneshot};
use tracing::error;

use super::{
    ProbeError, ProcessEvents, ProgramHealth, TapProbe,
    host::{HostPrograms, Loader, remove_pins},
    taps::TapPrograms,
};
use crate::{
    config::Config,
    discover::{Tap, VmId},
};

/// What came of attaching a VM.
#[derive(Clone, Debug)]
pub struct AttachReport {
    /// The VM.
    pub vm: VmId,
    /// Whether its row was made, so that its storage counts; else why not.
    pub row: Result<(), String>,
    /// Its taps.
    pub taps: Vec<TapProbe>,
}

enum Request {
    Attach { vm: VmId, taps: Vec<Tap> },
    Forget(VmId),
    Stop(oneshot::Sender<Result<(), ProbeError>>),
}

/// Hands requests to the thread. Dropped without [`ProbeThread::stop`], it leaves pins behind.
#[derive(Debug)]
pub struct ProbeThread {
    requests: mpsc::Sender<Request>,
    thread: JoinHandle<()>,
}

impl ProbeThread {
    /// Loads the host's programs and starts the thread; reports go to `reports`.
    pub fn start(
        config: &Config,
        reports: reports::UnboundedSender<AttachReport>,
    ) -> Result<(Self, ProcessEvents, Vec<ProgramHealth>), ProbeError> {
        let bpffs_dir = config.paths.bpffs_dir.clone();
        remove_pins(&bpffs_dir)?;
        let runtime = tokio::runtime::Handle::current();
        let loader = Loader::new(&bpffs_dir, config.probes.log, runtime)?;
        let (host, events, health) = HostPrograms::start(&loader)?;
        let taps = TapPrograms::new(&bpffs_dir, config.probes.tap_hook)?;
        // SAFETY: a plain call, which only gives free memory back: the kernel's types took 30 MB.
        unsafe { libc::malloc_trim(0) };
        let (sender, requests) = mpsc::channel();
        let worker = Worker { loader, host, taps, bpffs_dir: bpffs_dir.clone(), reports };
        let thread = std::thread::Builder::new()
            .name("probe".to_owned())
            .spawn(move || worker.serve(&requests))
            .map_err(|source| ProbeError::Path {
                what: "cannot start a thread for",
                path: bpffs_dir,
                source,
            })?;
        Ok((Self { requests: sender, thread }, events, health))
    }

    /// Asks for a VM's row to be made, and for these taps of it, and no others, to be attached.
    pub fn attach(&self, vm: VmId, taps: Vec<Tap>) {
        self.send(Request::Attach { vm, taps });
    }

    /// Asks for all that belongs to a VM to be detached and removed.
    pub fn forget(&self, vm: VmId) {
        self.send(Request::Forget(vm));
    }

    fn send(&self, request: Request) {
        if self.requests.send(request).is_err() {
            error!("the probe thread is gone; VMs that start now are not counted");
        }
    }

    /// Detaches everything, removes the pins, and ends the thread.
    ///
    /// # Errors
    /// If a pin could not be removed.
    pub async fn stop(self) -> Result<(), ProbeError> {
        let (done, answer) = oneshot::channel();
        self.send(Request::Stop(done));
        let result = answer.await.unwrap_or(Ok(()));
        let _ = self.thread.join();
        result
    }
}

struct Worker {
    loader: Loader,
    host: HostPrograms,
    taps: TapPrograms,
    bpffs_dir: PathBuf,
    reports: reports::UnboundedSender<AttachReport>,
}

impl Worker {
    fn serve(mut self, requests: &mpsc::Receiver<Request>) {
        while let Ok(request) = requests.recv() {
            match request {
                Request::Attach { vm, taps } => {
                    let report = self.attach(vm, &taps);
                    // Nobody listens any more only while the daemon stops.
                    let _ = self.reports.send(report);
                }
                Request::Forget(vm) => {
                    self.taps.keep_only(vm.pid, &[]);
                    self.host.forget(vm.pid);
                }
                Request::Stop(done) => {
                    self.taps.forget_all();
                    let result = remove_pins(&self.bpffs_dir);
                    // Others may keep something in it; then it stays.
                    let _ = std::fs::remove_dir(&self.bpffs_dir);
                    drop(self);
                    let _ = done.send(result);
                    return;
                }
            }
        }
    }

    fn attach(&mut self, vm: VmId, taps: &[Tap]) -> AttachReport {
        self.taps.keep_only(vm.pid, taps);
        let row = self.host.count(vm.pid).map_err(|error| error.to_string());
        let taps = taps
            .iter()
            .map(|tap| match namespace_of(vm.pid, tap) {
                Ok(netns) => self.taps.attach(&self.loader, vm.pid, tap, netns),
                Err(error) => TapProbe { tap: tap.clone(), hook: Err(error.to_string()) },
            })
            .collect();
        AttachReport { vm, row, taps }
    }
}

/// The namespace that a tap lives in: QEMU's, or else our own.
///
/// # Errors
/// What the kernel said, or that it is in neither.
pub fn namespace_of(pid: u32, tap: &Tap) -> io::Result<File> {
    use std::os::unix::fs::MetadataExt as _;
    for path in [format!("/proc/{pid}/ns/net"), "/proc/self/ns/net".to_owned()] {
        let file = File::open(path)?;
        if file.metadata()?.ino() == u64::from(tap.netns) {
            return Ok(file);
        }
    }
    Err(io::Error::other(format!(
        "{} is in a network namespace of neither QEMU nor flatline",
        tap.name
    )))
}
