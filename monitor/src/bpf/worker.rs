//! Worker of the probe thread: carries out one request after the other.

use std::{
    collections::HashMap,
    sync::mpsc,
    time::{Duration, Instant},
};

use tokio::sync::mpsc as reports;
use tracing::warn;

use super::{
    AttachReport, Counted, ProbeReport, TapProbe, Tend, Tended,
    bypass::{Bypass, Counts, DOUBTED_FOR, Finding},
    host::Loader,
    kvm::KvmPrograms,
    pins::Pins,
    slots::Slots,
    taps::{Holder, TapPrograms},
    thread::Request,
};
use flatline_qemu::{
    discover::{Tap, VmId, start_ticks},
    text::error_chain,
};

/// Time for packets that the kernel has counted to come out of its backlog to our program. Not measured: a softirq
/// of a busy host takes some milliseconds.
const BACKLOG: Duration = Duration::from_millis(20);
/// So often, before the first of them counts as passed by.
const BACKLOG_LOOKS: u32 = 20;

/// See the module.
pub(super) struct Worker {
    loader: Loader,
    slots: Slots,
    taps: TapPrograms,
    kvm: KvmPrograms,
    pins: Pins,
    /// By VM: its taps, and whether its packets pass by.
    bypass: HashMap<VmId, (Vec<Tap>, Bypass)>,
    /// The moment from which those count the time.
    began: Instant,
    reports: reports::UnboundedSender<ProbeReport>,
}

impl Worker {
    pub(super) fn new(
        loader: Loader,
        slots: Slots,
        taps: TapPrograms,
        kvm: KvmPrograms,
        pins: Pins,
        reports: reports::UnboundedSender<ProbeReport>,
    ) -> Self {
        let (bypass, began) = (HashMap::new(), Instant::now());
        Self { loader, slots, taps, kvm, pins, bypass, began, reports }
    }

    /// Carries out requests until it is told to end.
    pub(super) fn serve(mut self, requests: &mpsc::Receiver<Request>) {
        let mut strangers_may_be_left = true;
        while let Ok(request) = requests.recv() {
            match request {
                Request::Attach(vm, counted) => {
                    if let Some(loser) = self.slots.loser_to(vm, counted.uid) {
                        self.displace(loser);
                    }
                    let report = self.attach(vm, &counted);
                    self.report(ProbeReport::Attached(report));
                }
                Request::Tend(tend) => {
                    let tended = self.tend(&tend);
                    self.report(ProbeReport::Tended(tended));
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
                Request::LoadKvm => self.kvm.load(&mut self.loader),
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

    fn report(&self, report: ProbeReport) {
        // The receiver is gone only while the daemon stops.
        let _ = self.reports.send(report);
    }

    fn tend(&mut self, tend: &Tend) -> Tended {
        let mut tended = Tended::default();
        self.taps.hear(&mut tended);
        let mut verify = tend.verify.clone();
        if tend.counts {
            let ours = |slot| self.slots.network(slot).ok();
            verify.extend(self.taps.compare(ours, &mut tended));
        }
        let slots = verify.iter().filter_map(|vm| self.slots.of(*vm));
        self.taps.verify(&self.loader, slots, &mut tended);
        tended
    }

    fn attach(&mut self, vm: VmId, counted: &Counted) -> AttachReport {
        let Counted { name, uid, taps, files } = counted;
        let slot = self.slots.take(vm, *uid).map_err(|error| error_chain(&error));
        let mut report = AttachReport::new(vm, slot);
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
        let holder = Holder { slot, vm, name };
        self.put_on(holder, taps, &mut report);
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
                    self.put_on(holder, taps, &mut report);
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

    fn put_on(&mut self, holder: Holder<'_>, taps: &[Tap], report: &mut AttachReport) {
        for tap in taps {
            let attached = self.taps.attach(&mut self.loader, &self.slots, holder, tap);
            if attached.was_lost {
                let name = &tap.name;
                report.lost = Some(format!("somebody detached the programs on {name}"));
            }
            report.renamed |= attached.is_renamed;
            report.is_heard &= attached.is_heard;
            report.taps.push(attached.probe);
        }
    }

    /// Takes a VM's slot from it, since another user has less than its share.
    fn displace(&mut self, vm: VmId) {
        let (taps, _) = self.bypass.get(&vm).cloned().unwrap_or_default();
        self.forget(vm);
        let why = "its user has more than an equal share of what probes.max_vms allows, and another user's VM \
                   is counted in its place"
            .to_owned();
        let taps = taps.iter().map(|tap| TapProbe::not_on(tap, why.clone())).collect();
        self.report(ProbeReport::Attached(AttachReport {
            taps,
            ..AttachReport::new(vm, Err(why))
        }));
    }

    fn forget(&mut self, vm: VmId) {
        if let Some(slot) = self.slots.of(vm) {
            self.taps.keep_only(&self.loader, slot, &[]);
        }
        self.slots.forget(vm);
        self.bypass.remove(&vm);
    }

    /// Forgets VMs that ended while no daemon ran.
    pub(super) fn forget_the_dead(&mut self) {
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
