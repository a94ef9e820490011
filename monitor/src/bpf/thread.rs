//! Probe thread: attaches and detaches programs, apart from all that watches.
//!
//! Attaching through tcx waits for an RCU grace period under the RTNL lock, 24 ms a tap; nothing that
//! watches may wait for that. So requests queue up here, and their reports come back through a channel.

use std::{
    collections::HashSet,
    os::fd::OwnedFd,
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use monitor_ebpf::FileKey;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::{mpsc as reports, oneshot, watch};
use tracing::{error, info, warn};

use super::{
    ProbeError, ProcessEvents, ProgramHealth, TapProbe, Tend, Tended,
    executables::Executables,
    host::{Loader, attach_all, process_events},
    kvm::{KvmHooks, KvmPrograms},
    pins::{Left, Pins, layout},
    slots::Slots,
    taps::TapPrograms,
    worker::Worker,
};
use crate::config::Config;
use flatline_qemu::discover::{Tap, VmId};

/// What is to be counted for a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Counted {
    /// Its name, for people: another VM that has one of its taps is told of it.
    pub name: String,
    /// The user of its QEMU.
    pub uid: u32,
    /// Its taps.
    pub taps: Vec<Tap>,
    /// The files and devices of its disks, whose pages the host may write back.
    pub files: Vec<FileKey>,
}

/// Outcome of attaching a VM.
#[derive(Clone, Debug)]
pub struct AttachReport {
    /// The VM.
    pub vm: VmId,
    /// The slot that it is counted in, or why it isn't.
    pub slot: Result<u32, String>,
    /// Its taps.
    pub taps: Vec<TapProbe>,
    /// Why what passed up to now is not known, if so: the programs had been detached, say.
    pub lost: Option<String>,
    /// Some of its taps have other names now.
    pub renamed: bool,
    /// News of all of its taps is heard: what happens to them needs not be looked for.
    pub is_heard: bool,
    /// When to look again, if that is worth while: nothing can be told yet.
    pub look_in: Option<Duration>,
    /// It is as an earlier daemon left it, and was not looked at.
    pub is_assumed: bool,
}

impl AttachReport {
    /// Of a VM in this slot, of whose taps nothing is known yet.
    pub(super) fn new(vm: VmId, slot: Result<u32, String>) -> Self {
        let (taps, lost, renamed, is_heard, look_in) = (Vec::new(), None, false, true, None);
        Self { vm, slot, taps, lost, renamed, is_heard, look_in, is_assumed: false }
    }
}

/// What the thread reports.
#[derive(Clone, Debug)]
pub enum ProbeReport {
    /// A VM is counted, or can't be.
    Attached(AttachReport),
    /// All taps that are attached were looked after.
    Tended(Tended),
}

pub(super) enum Request {
    Attach(VmId, Counted),
    /// The same of those that an earlier daemon knew; where they are counted is assumed.
    TakeUp(Vec<(VmId, Counted)>),
    Tend(Tend),
    Forget(VmId),
    /// All VMs that there are were found.
    Found(HashSet<VmId>),
    /// Suspects may have to be counted under KVM.
    LoadKvm,
    /// These suspects are to be counted under KVM, and no others.
    Kvm(HashSet<VmId>),
    Stop {
        keep: bool,
        done: oneshot::Sender<Result<(), ProbeError>>,
    },
}

/// Hands requests to the thread. Dropped without [`ProbeThread::stop`], it leaves everything attached.
#[derive(Debug)]
pub struct ProbeThread {
    requests: mpsc::Sender<Request>,
    kvm: watch::Receiver<KvmHooks>,
    executables: Arc<Executables>,
    /// Can be read from while there is news of interfaces.
    bell: OwnedFd,
    thread: JoinHandle<()>,
    /// An earlier daemon's programs go on, which are the same as ours.
    takes_over: bool,
}

impl ProbeThread {
    /// Takes over what an earlier daemon left, or loads the host's programs; starts the thread. Reports go
    /// to `reports`.
    pub fn start(
        config: &Config,
        reports: reports::UnboundedSender<ProbeReport>,
    ) -> Result<(Self, ProcessEvents, Vec<ProgramHealth>), ProbeError> {
        let pins = Pins::new(&config.paths.bpffs_dir);
        let ours = layout(&config.probes);
        let (left, given_up) = pins.examine(&ours)?;
        if let Some(why) = given_up {
            warn!("an earlier daemon left pins that can't be used: {why}");
        }
        pins.make()?;
        let runtime = tokio::runtime::Handle::current();
        let mut loader = Loader::new(pins.clone(), config.probes, runtime);
        let same_programs = matches!(left, Left::Maps { same_programs: true, .. });
        let made = attach_all(&mut loader, ours, left).and_then(|health| {
            let slots = Slots::open(&pins)?;
            let taps = TapPrograms::new(&loader, config.probes.tap_hook, same_programs)?;
            Ok((health, slots, taps))
        });
        if made.is_err() && left == Left::Nothing {
            // What was pinned on the way is of no use.
            let _ = pins.remove_all();
        }
        let (health, slots, taps) = made?;
        if left != Left::Nothing {
            info!("{} VMs are counted on since an earlier daemon", slots.vms().len());
        }
        let events = process_events(&pins)?;
        let executables = Arc::new(Executables::open(&pins)?);
        // SAFETY: a plain call, which only gives free memory back: the kernel's types took 30 MB.
        unsafe { libc::malloc_trim(0) };
        let (sender, requests) = mpsc::channel();
        let (kvm_programs, kvm) = KvmPrograms::open(&pins)?;
        let bell = taps.links.bell().map_err(ProbeError::News)?;
        let worker = Worker::new(loader, slots, taps, kvm_programs, pins, reports);
        let thread = std::thread::Builder::new()
            .name("probe".to_owned())
            .spawn(move || worker.serve(&requests))
            .map_err(|source| ProbeError::Path {
                what: "cannot start a thread for",
                path: config.paths.bpffs_dir.clone(),
                source,
            })?;
        let takes_over = same_programs;
        Ok((Self { requests: sender, kvm, executables, bell, thread, takes_over }, events, health))
    }

    /// Asks for a VM to be counted: for a slot, and for these taps and files of it, and no others. What is
    /// attached already is looked at, and attached again if it was detached.
    pub(crate) fn attach(&self, vm: VmId, counted: Counted) {
        self.send(Request::Attach(vm, counted));
    }

    /// Asks for it to be said at once where these are counted, as an earlier daemon left it. Each is to be attached after that,
    /// which looks whether it is so.
    pub(crate) fn take_up(&self, vms: Vec<(VmId, Counted)>) {
        self.send(Request::TakeUp(vms));
    }

    /// Whether an earlier daemon's programs go on, which are the same as ours.
    pub(crate) fn takes_over(&self) -> bool {
        self.takes_over
    }

    /// Asks for the taps that are attached to be looked after.
    pub(crate) fn tend(&self, tend: Tend) {
        self.send(Request::Tend(tend));
    }

    /// Whether there is news of interfaces that the taps are to be looked after for.
    pub(crate) fn has_news(&self) -> bool {
        let mut bell = [PollFd::new(&self.bell, PollFlags::IN)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Where that can't be told, there may be.
        poll(&mut bell, Some(&at_once)).map_or(true, |ready| ready > 0)
    }

    /// Asks for all that belongs to a VM to be detached and removed.
    pub(crate) fn forget(&self, vm: VmId) {
        self.send(Request::Forget(vm));
    }

    /// Tells all VMs that there are, so that what an earlier daemon left of others can go.
    pub(crate) fn found(&self, vms: HashSet<VmId>) {
        self.send(Request::Found(vms));
    }

    /// Which executables the kernel tells of.
    pub(crate) fn executables(&self) -> Arc<Executables> {
        self.executables.clone()
    }

    /// Asks for the programs on KVM's tracepoints to be loaded, which takes longer than to attach them; asking again changes nothing.
    pub(crate) fn load_kvm(&self) {
        if !self.kvm.borrow().loaded {
            self.send(Request::LoadKvm);
        }
    }

    /// Asks for these suspects' vCPUs to be counted by KVM's tracepoints, and those of no other VM; none: for the tracepoints to
    /// be left. Each VM on the host pays for them, and those in the set for an addition.
    pub fn count_kvm(&self, suspects: HashSet<VmId>) {
        self.send(Request::Kvm(suspects));
    }

    /// KVM's tracepoints that are attached, and for which VMs; of the last time that they were, those that could not be.
    pub fn kvm_hooks(&self) -> watch::Receiver<KvmHooks> {
        self.kvm.clone()
    }

    fn send(&self, request: Request) {
        if self.requests.send(request).is_err() {
            error!(
                "the probe thread is gone; VMs that start now are not counted: restart the daemon"
            );
        }
    }

    /// Ends the thread. Everything stays attached and pinned if it is to be kept, and goes otherwise.
    ///
    /// # Errors
    /// If a pin could not be removed.
    pub async fn stop(self, keep: bool) -> Result<(), ProbeError> {
        let (done, answer) = oneshot::channel();
        self.send(Request::Stop { keep, done });
        let result = answer.await.unwrap_or(Ok(()));
        let _ = self.thread.join();
        result
    }
}
