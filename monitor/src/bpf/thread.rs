//! Probe thread: attaches and detaches programs, apart from all that watches.
//!
//! Attaching through tcx waits for an RCU grace period under the RTNL lock, 24 ms a tap; nothing that
//! watches may wait for that. So requests queue up here, and their reports come back through a channel.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use monitor_ebpf::FileKey;
use tokio::sync::{mpsc as reports, oneshot, watch};
use tracing::{error, info, warn};

use super::{
    ProbeError, ProcessEvents, ProgramHealth, TapProbe,
    bypass::{Bypass, Counts, DOUBTED_FOR, Finding},
    executables::Executables,
    host::{Loader, attach_all, process_events},
    kvm::{KvmHooks, KvmPrograms},
    pins::{Left, Pins, layout},
    slots::Slots,
    taps::TapPrograms,
};
use crate::config::Config;
use flatline_qemu::{
    discover::{Tap, VmId, start_ticks},
    text::error_chain,
};

/// Time for packets that the kernel has counted to come out of its backlog to our program. Not measured: a softirq
/// of a busy host takes some milliseconds.
const BACKLOG: Duration = Duration::from_millis(20);
/// So often, before the first of them counts as passed by.
const BACKLOG_LOOKS: u32 = 20;

/// What is to be counted for a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Counted {
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
    /// When to look again, if that is worth while: nothing can be told yet.
    pub look_in: Option<Duration>,
}

enum Request {
    Attach(VmId, Counted),
    Forget(VmId),
    /// All VMs that there are were found.
    Found(HashSet<VmId>),
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
    thread: JoinHandle<()>,
}

impl ProbeThread {
    /// Takes over what an earlier daemon left, or loads the host's programs; starts the thread. Reports go
    /// to `reports`.
    pub fn start(
        config: &Config,
        reports: reports::UnboundedSender<AttachReport>,
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
        let bypass = HashMap::new();
        let mut worker = Worker {
            loader,
            slots,
            taps,
            kvm: kvm_programs,
            pins,
            bypass,
            began: Instant::now(),
            reports,
        };
        worker.forget_the_dead();
        let thread = std::thread::Builder::new()
            .name("probe".to_owned())
            .spawn(move || worker.serve(&requests))
            .map_err(|source| ProbeError::Path {
                what: "cannot start a thread for",
                path: config.paths.bpffs_dir.clone(),
                source,
            })?;
        Ok((Self { requests: sender, kvm, executables, thread }, events, health))
    }

    /// Asks for a VM to be counted: for a slot, and for these taps and files of it, and no others. What is
    /// attached already is looked at, and attached again if it was detached.
    pub(crate) fn attach(&self, vm: VmId, counted: Counted) {
        self.send(Request::Attach(vm, counted));
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

struct Worker {
    loader: Loader,
    slots: Slots,
    taps: TapPrograms,
    kvm: KvmPrograms,
    pins: Pins,
    /// By VM: its taps, and whether its packets pass by.
    bypass: HashMap<VmId, (Vec<Tap>, Bypass)>,
    /// The moment from which those count the time.
    began: Instant,
    reports: reports::UnboundedSender<AttachReport>,
}

impl Worker {
    fn serve(mut self, requests: &mpsc::Receiver<Request>) {
        let mut strangers_may_be_left = true;
        while let Ok(request) = requests.recv() {
            match request {
                Request::Attach(vm, counted) => {
                    let report = self.attach(vm, &counted);
                    // The receiver is gone only while the daemon stops.
                    let _ = self.reports.send(report);
                }
                Request::Forget(vm) => self.forget(vm),
                Request::Found(vms) => {
                    for vm in self.slots.vms().into_iter().filter(|vm| !vms.contains(vm)) {
                        self.forget(vm);
                    }
                    // Requests are served in order: whatever the first sweep found is attached by now.
                    if std::mem::take(&mut strangers_may_be_left) {
                        self.taps.forget_strangers(&self.loader);
                    }
                }
                Request::Kvm(suspects) => self.kvm.count(&mut self.loader, &suspects),
                Request::Stop { keep, done } => {
                    let result = if keep {
                        Ok(())
                    } else {
                        self.taps.forget_all(&self.loader);
                        self.taps.forget_strangers(&self.loader);
                        self.pins.remove_all()
                    };
                    drop(self);
                    let _ = done.send(result);
                    return;
                }
            }
        }
    }

    fn attach(&mut self, vm: VmId, counted: &Counted) -> AttachReport {
        let Counted { taps, files } = counted;
        let mut report = AttachReport {
            vm,
            slot: self.slots.take(vm).map_err(|error| error_chain(&error)),
            taps: Vec::new(),
            lost: None,
            renamed: false,
            look_in: None,
        };
        let slot = match &report.slot {
            Ok(slot) => *slot,
            Err(why) => {
                report.taps = taps.iter().map(|tap| TapProbe::not_on(tap, why.clone())).collect();
                return report;
            }
        };
        if let Err(error) = self.slots.own(vm, files) {
            warn!(
                "VM {vm}: not all that the host writes back for it is counted: {}",
                error_chain(&error)
            );
        }
        self.taps.keep_only(&self.loader, slot, taps);
        self.put_on(vm, slot, taps, &mut report);
        match self.passed_by(vm, slot, taps, &report) {
            (Finding::Nothing, _) => {}
            (Finding::Doubtful, _) => report.look_in = Some(DOUBTED_FOR),
            (Finding::Taken(times), taker) => {
                let why = format!(
                    "another program takes its packets and does not hand them on: {}",
                    taker.unwrap_or_default()
                );
                if times == 1 {
                    // Ours come to stand before it.
                    self.taps.keep_only(&self.loader, slot, &[]);
                    report.taps.clear();
                    self.put_on(vm, slot, taps, &mut report);
                    report.lost = Some(why);
                } else {
                    // It keeps coming to stand before ours.
                    not_seen(&mut report, &why);
                }
            }
            (Finding::Unexplained, _) => {
                let why = "the kernel counts packets of its guest that flatline's programs are not handed, though \
                    nothing is seen to stand before them";
                not_seen(&mut report, why);
            }
        }
        report
    }

    /// Whether packets have passed our programs by, and what stands before them.
    fn passed_by(
        &mut self,
        vm: VmId,
        slot: u32,
        taps: &[Tap],
        report: &AttachReport,
    ) -> (Finding, Option<String>) {
        let nothing = (Finding::Nothing, None);
        let (seen, bypass) = self.bypass.entry(vm).or_default();
        let is_whole = report.lost.is_none() && report.taps.iter().all(|probe| probe.hook.is_ok());
        if !is_whole || seen.as_slice() != taps {
            taps.clone_into(seen);
            bypass.begin_anew();
        }
        if taps.is_empty() || !is_whole {
            return nothing;
        }
        let read = || {
            let before = self.slots.sent(slot).ok()?;
            let kernel = self.taps.sent(slot).ok()?;
            Some(Counts { ours: [before, self.slots.sent(slot).ok()?], kernel })
        };
        let Some(mut counts) = read() else { return nothing };
        let mut taker = None;
        if bypass.is_behind(counts) {
            taker = self.taps.before_ours(&self.loader, slot);
            // Where packets were taken before, they are still; else they may wait long on a host that is busy.
            let looks = if taker.is_none() || bypass.has_begun() { 0 } else { BACKLOG_LOOKS };
            for _ in 0..looks {
                if !bypass.is_behind(counts) {
                    break;
                }
                std::thread::sleep(BACKLOG);
                let Ok(ours) = self.slots.sent(slot) else { return nothing };
                counts.ours[1] = ours;
            }
        }
        (bypass.look(counts, taker.is_some(), self.began.elapsed()), taker)
    }

    fn put_on(&mut self, vm: VmId, slot: u32, taps: &[Tap], report: &mut AttachReport) {
        for tap in taps {
            let attached = self.taps.attach(&mut self.loader, slot, vm.pid, tap);
            if attached.was_lost {
                let name = &tap.name;
                report.lost = Some(format!("somebody detached the programs on {name}"));
            }
            report.renamed |= attached.is_renamed;
            report.taps.push(attached.probe);
        }
    }

    fn forget(&mut self, vm: VmId) {
        if let Some(slot) = self.slots.of(vm) {
            self.taps.keep_only(&self.loader, slot, &[]);
        }
        self.slots.forget(vm);
        self.bypass.remove(&vm);
    }

    /// VMs that ended while no daemon ran.
    fn forget_the_dead(&mut self) {
        for vm in self.slots.vms() {
            if start_ticks(vm.pid).ok() != Some(vm.start_ticks) {
                self.forget(vm);
            }
        }
    }
}

/// None of the taps tells how many packets the guest sends.
fn not_seen(report: &mut AttachReport, why: &str) {
    for probe in &mut report.taps {
        *probe = TapProbe::not_on(&probe.tap, why);
    }
}
