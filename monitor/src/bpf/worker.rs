//! Worker of the probe thread: carries out requests one after the other, as their queue has them in turn.

mod taken_up;

use std::{
    collections::HashMap,
    sync::mpsc,
    time::{Duration, Instant},
};

use tokio::sync::mpsc as reports;
use tracing::warn;

use super::{
    AttachReport, Counted, ProbeError, ProbeReport, TapProbe, Tend, Tended,
    attachments::key_of,
    bypass::{Bypass, Counts, DOUBTED_FOR, Finding},
    host::Loader,
    kvm::KvmPrograms,
    pins::Pins,
    queue::{Next, Queue, Waiting},
    sights::Sights,
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

/// Taps that are attached in one turn of a VM: 200 ms of the kernel's time.
const TAPS_IN_A_TURN: usize = 8;
/// VMs whose taps are looked at at once: a few milliseconds, for which another user's turn waits.
const LOOKED_AT_AT_ONCE: usize = 256;

/// See the module.
pub(super) struct Worker {
    loader: Loader,
    slots: Slots,
    taps: TapPrograms,
    kvm: KvmPrograms,
    pins: Pins,
    queue: Queue,
    known: HashMap<VmId, Known>,
    /// The moment from which a bypass counts the time.
    began: Instant,
    strangers_may_be_left: bool,
    reports: reports::UnboundedSender<ProbeReport>,
}

/// What is kept of a VM.
#[derive(Default)]
struct Known {
    /// Its taps, as they were reported.
    taps: Vec<TapProbe>,
    /// Whether its packets pass by.
    bypass: Bypass,
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
        let (queue, known, began) = (Queue::default(), HashMap::new(), Instant::now());
        let strangers_may_be_left = true;
        Self { loader, slots, taps, kvm, pins, queue, known, began, strangers_may_be_left, reports }
    }

    /// Carries out requests until it is told to end.
    pub(super) fn serve(mut self, requests: &mpsc::Receiver<Request>) {
        self.forget_the_dead();
        loop {
            requests.try_iter().for_each(|request| self.queue.push(request));
            self.attach_those_that_are();
            match self.queue.next() {
                Some(Next::Attach(waiting)) => self.take_turn(waiting, &Sights::default()),
                Some(Next::Other(Request::Stop { keep, done })) => {
                    let result = if keep { Ok(()) } else { self.take_down() };
                    drop(self);
                    let _ = done.send(result);
                    return;
                }
                Some(Next::Other(request)) => self.carry_out(request),
                None => match requests.recv() {
                    Ok(request) => self.queue.push(request),
                    Err(_) => return,
                },
            }
        }
    }

    fn carry_out(&mut self, request: Request) {
        match request {
            Request::Tend(tend) => {
                let tended = self.tend(&tend);
                self.report(ProbeReport::Tended(tended));
            }
            Request::Forget(vm) => self.forget(vm),
            Request::Found(vms) => {
                for vm in self.slots.vms().into_iter().filter(|vm| !vms.contains(vm)) {
                    self.forget(vm);
                }
                // Whatever the first sweep found is attached by now.
                if std::mem::take(&mut self.strangers_may_be_left) {
                    self.taps.forget_strangers(&self.loader);
                }
            }
            Request::TakeUp(vms) => self.take_up(vms),
            Request::LoadKvm => self.kvm.load(&mut self.loader),
            Request::Kvm(suspects) => self.kvm.count(&mut self.loader, &suspects),
            // These have turns, or end the thread.
            Request::Attach(..) | Request::Stop { .. } => {}
        }
    }

    fn take_down(&mut self) -> Result<(), ProbeError> {
        self.taps.forget_all(&self.loader);
        self.taps.forget_strangers(&self.loader);
        self.pins.remove_all()
    }

    /// Serves those at once, whichever turn it is, on whose taps the programs are already.
    fn attach_those_that_are(&mut self) {
        let new = self.queue.begin_look_at(LOOKED_AT_AT_ONCE);
        if new.is_empty() {
            return;
        }
        let sights = self.taps.look_at(&self.loader, &self.slots, &new);
        let are_on = new.iter().filter(|waiting| sights.are_of_all(&waiting.counted.taps));
        for vm in are_on.map(|waiting| waiting.vm).collect::<Vec<_>>() {
            if let Some(waiting) = self.queue.take(vm) {
                self.take_turn(waiting, &sights);
            }
        }
        self.taps.end_look(&sights);
    }

    fn take_turn(&mut self, mut waiting: Waiting, sights: &Sights) {
        if let Some(loser) = self.slots.loser_to(waiting.vm, waiting.counted.uid) {
            self.displace(loser);
        }
        match self.attach(&mut waiting, sights) {
            Some(report) => {
                if report.slot.is_ok() {
                    self.known.entry(report.vm).or_default().taps.clone_from(&report.taps);
                }
                self.report(ProbeReport::Attached(report));
            }
            None => self.queue.put_back(waiting),
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
        if let Some(ours) = &tend.counts {
            verify.extend(self.taps.compare(ours, &mut tended));
        }
        let slots = verify.iter().filter_map(|vm| self.slots.of(*vm));
        self.taps.verify(&self.loader, slots, &mut tended);
        tended
    }

    /// Attaches a VM, or goes on with it; `None`: it needs another turn.
    fn attach(&mut self, waiting: &mut Waiting, sights: &Sights) -> Option<AttachReport> {
        let Waiting { vm, ref counted, .. } = *waiting;
        let Counted { name, uid, taps, .. } = counted;
        let mut report = match waiting.begun.take() {
            // Another user's VM may have been given its slot meanwhile.
            Some(begun) if begun.slot.as_ref().ok() == self.slots.of(vm).as_ref() => begun,
            _ => self.begin(vm, counted, waiting.lost.take()),
        };
        let Ok(slot) = report.slot else {
            self.known.remove(&vm);
            return Some(report);
        };
        let holder = Holder { slot, vm, name, uid: *uid };
        if !self.put_on(holder, taps, sights, &mut report, TAPS_IN_A_TURN) {
            waiting.begun = Some(report);
            return None;
        }
        match self.passed_by(holder, taps, sights, &report) {
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
                    self.put_on(holder, taps, &Sights::default(), &mut report, usize::MAX);
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
        Some(report)
    }

    /// Gives a VM its slot, and what of it needs no attaching.
    fn begin(&mut self, vm: VmId, counted: &Counted, lost: Option<String>) -> AttachReport {
        let Counted { uid, taps, files, .. } = counted;
        let slot = self.slots.take(vm, *uid).map_err(|error| error_chain(&error));
        let mut report = AttachReport { lost, ..AttachReport::new(vm, slot) };
        match &report.slot {
            Ok(slot) => self.taps.keep_only(&self.loader, *slot, taps),
            Err(why) => {
                report.taps = taps.iter().map(|tap| TapProbe::not_on(tap, why.clone())).collect();
                return report;
            }
        }
        if let Err(error) = self.slots.own(vm, files) {
            warn!(
                "VM {vm}: not all that the host writes back for it is counted: {}",
                error_chain(&error)
            );
        }
        report
    }

    /// Whether packets have passed our programs by, and what stands before them.
    fn passed_by(
        &mut self,
        holder: Holder<'_>,
        taps: &[Tap],
        sights: &Sights,
        report: &AttachReport,
    ) -> (Finding, Option<String>) {
        let Holder { slot, vm, .. } = holder;
        let nothing = (Finding::Nothing, None);
        let Known { taps: before, bypass } = self.known.entry(vm).or_default();
        let is_whole = report.lost.is_none() && report.taps.iter().all(|probe| probe.hook.is_ok());
        if !is_whole || before.iter().map(|probe| &probe.tap).ne(taps) {
            bypass.begin_anew();
        }
        if taps.is_empty() || !is_whole {
            return nothing;
        }
        let read = || {
            let seen = sights.sent(vm, taps);
            let before = seen.map_or_else(|| self.slots.sent(slot), |(ours, _)| Ok(ours)).ok()?;
            let kernel =
                seen.map_or_else(|| self.taps.sent(slot), |(_, kernel)| Ok(kernel)).ok()?;
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

    /// Goes on with the taps that the report does not have yet. Whether it has them all now: `most` are attached, beside those
    /// that were seen to be.
    fn put_on(
        &mut self,
        holder: Holder<'_>,
        taps: &[Tap],
        sights: &Sights,
        report: &mut AttachReport,
        most: usize,
    ) -> bool {
        let begun = report.taps.len();
        for tap in &taps[begun.min(taps.len())..] {
            if report.taps.len() - begun >= most && !sights.are_of_all(taps) {
                return false;
            }
            self.make_room(holder, tap);
            let with = (&self.slots, sights);
            let attached = self.taps.attach(&mut self.loader, with, holder, tap);
            if attached.was_lost {
                let name = &tap.name;
                report.lost = Some(format!("somebody detached the programs on {name}"));
            }
            report.renamed |= attached.is_renamed;
            report.is_heard &= attached.is_heard;
            report.taps.push(attached.probe);
        }
        true
    }

    /// Takes another tap's row from it, since the user of this one has less than its share.
    fn make_room(&mut self, holder: Holder<'_>, tap: &Tap) {
        let Some(loser) = self.taps.rows.loser_to(&self.slots, key_of(tap), holder.uid) else {
            return;
        };
        let Some(vm) = self.taps.displace(&self.loader, loser) else { return };
        let Some(known) = self.known.get_mut(&vm) else { return };
        for probe in known.taps.iter_mut().filter(|probe| key_of(&probe.tap) == loser) {
            *probe = TapProbe::not_on(&probe.tap, more_than_its_share("probes.max_taps", "tap"));
        }
        let Some(slot) = self.slots.of(vm) else { return };
        let taps = known.taps.clone();
        let report = AttachReport { taps, is_heard: false, ..AttachReport::new(vm, Ok(slot)) };
        self.report(ProbeReport::Attached(report));
    }

    /// Takes a VM's slot from it, since another user has less than its share.
    fn displace(&mut self, vm: VmId) {
        let taps = self.known.get(&vm).map(|known| known.taps.clone()).unwrap_or_default();
        self.forget(vm);
        let why = more_than_its_share("probes.max_vms", "VM");
        let taps = taps.iter().map(|probe| TapProbe::not_on(&probe.tap, why.clone())).collect();
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
        self.known.remove(&vm);
    }

    /// Forgets VMs that ended while no daemon ran.
    fn forget_the_dead(&mut self) {
        for vm in self.slots.vms() {
            if start_ticks(vm.pid).ok() != Some(vm.start_ticks) {
                self.forget(vm);
            }
        }
    }
}

/// Why it is another user's turn to be counted.
fn more_than_its_share(key: &str, what: &str) -> String {
    format!(
        "its user has more than an equal share of what {key} allows, and another user's {what} is counted in its place"
    )
}

/// None of the taps tells how many packets the guest sends.
fn not_seen(report: &mut AttachReport, why: &str) {
    for probe in &mut report.taps {
        *probe = TapProbe::not_on(&probe.tap, why);
    }
}
