//! Watchers: tasks beside the loop that report processes that start and end, and what looks into `/proc` show.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::{
    param::clock_ticks_per_second,
    process::{Resource, Rlimit, getrlimit, setrlimit},
    time::{ClockId, clock_gettime},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc::UnboundedSender,
    task::{JoinHandle, spawn_blocking},
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::{
    message::Message,
    starts::{Leave, Outlets, SweepAgain},
};
use crate::{
    bpf::{Executables, ProcessEvents, parse_process_event},
    vm::QemuReading,
};
use flatline_qemu::discover::{
    self, Extent, OpenDevices, Origin, Passed, Scope, VcpuThreads, Vm, VmId,
};

/// Time for the exit status of a process that is gone to arrive.
const STATUS_DELAY: Duration = Duration::from_millis(20);
/// A sweep waits so long for the look for executables, which may hang where files are a network's.
const EXECUTABLES_WITHIN: Duration = Duration::from_secs(1);

/// After so long a sweep follows one that found a process which runs a QEMU and is no VM, each time that it finds it so: one that
/// goes into the background is one soon.
const AGAIN_AFTER: [Duration; 4] =
    [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(10)];

/// Raises the limit of open files: a VM takes a file descriptor for its process, one for its monitor, and one for each vCPU.
pub(super) fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        warn!("the limit of open files could not be raised: {error}");
    }
}

/// Passes on the kernel's events. `None` where they can't be waited for; sweeps find QEMUs then.
pub(super) fn watch_processes(events: ProcessEvents, outlets: Outlets) -> Option<JoinHandle<()>> {
    // SAFETY: the ring buffer owns its descriptor and keeps it for as long as it lives.
    let mut events = match unsafe { AsyncFd::register_with_interest(events, Interest::READABLE) } {
        Ok(events) => events,
        Err(error) => {
            warn!("process events can't be waited for: {error}");
            return None;
        }
    };
    Some(tokio::spawn(async move {
        while let Ok(mut ready) = events.readable_mut().await {
            let ring = ready.get_inner_mut();
            while let Some(record) = ring.next() {
                if parse_process_event(&record).is_some_and(|event| outlets.pass(event).is_err()) {
                    return;
                }
            }
            ready.clear_ready();
        }
    }))
}

/// Looks through all of `/proc`, on a thread that may wait: reading about a hung process can. The `known`
/// are there still, as their pidfds tell, and not read again. The executables of those that were `recalled` are told of as well.
///
/// What is executed from then on is told of by the kernel: so the files that may be QEMUs are looked for first.
pub(super) fn sweep(
    scope: Scope,
    (known, recalled): (HashSet<VmId>, Vec<u32>),
    executables: Arc<Executables>,
    passed: Arc<Mutex<Passed>>,
    messages: UnboundedSender<Message>,
) {
    tokio::spawn(async move {
        let (files, named) = (executables.clone(), scope.clone());
        let refreshed = spawn_blocking(move || files.refresh(&named));
        let _ = timeout(EXECUTABLES_WITHIN, refreshed).await;
        spawn_blocking(move || {
            recalled.into_iter().for_each(|pid| executables.found(pid));
            let pids = known.iter().map(|vm| vm.pid).collect();
            let mut found = known;
            // It is whole after each step that may fail.
            let mut passed = passed.lock().unwrap_or_else(PoisonError::into_inner);
            discover::sweep(&scope, &pids, &mut passed, &mut |vm| match vm {
                Ok(vm) => {
                    found.insert(vm.id);
                    executables.found(vm.id.pid);
                    let _ = messages.send(Message::Found(Box::new(vm)));
                }
                Err(error) => debug!("{error}"),
            });
            let again = passed.fewest_in_vain().and_then(|sweeps| {
                AGAIN_AFTER.get(usize::try_from(sweeps).ok()?.checked_sub(1)?).copied()
            });
            let _ = messages.send(Message::Swept { all: found, again });
        });
    });
}

/// Looks for files that may be QEMUs; where there are new ones, after an upgrade say, all of `/proc` is looked through for what
/// executed them before they were told of.
pub(super) fn look_for_executables(scope: Scope, executables: Arc<Executables>, again: SweepAgain) {
    spawn_blocking(move || {
        if executables.refresh(&scope) {
            again.soon();
        }
    });
}

/// Looks at one process that started.
pub(super) fn inspect(pid: u32, scope: Scope, leave: Leave, messages: UnboundedSender<Message>) {
    spawn_blocking(move || {
        match discover::inspect(pid, &scope) {
            Ok(Some(vm)) => drop(messages.send(Message::Found(Box::new(vm)))),
            Ok(None) if discover::runs_qemu(pid, &scope) => leave.leave_to_sweep(),
            Ok(None) => {}
            Err(error) => debug!("process {pid}: {error}"),
        }
        drop(leave);
    });
}

/// VMs that are looked at by one thread, one after the other: waking a thread for each would cost more than
/// the looks. One that hangs delays the others.
const LOOKED_AT_TOGETHER: usize = 32;
/// Threads that look at many at once.
const LOOKED_AT_BY: usize = 8;

/// What is to be looked at again of a VM, since it may have changed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) vm: VmId,
    /// What it has open and runs is looked at only if it has no longer as much of it as this: then something was plugged in
    /// or out. `None`: in any case.
    pub(super) unless: Option<Extent>,
    /// The names of its threads, though it has as many.
    pub(super) names: bool,
    /// It is to be counted anew after that, though nothing changed.
    pub(super) attach: bool,
}

impl Look {
    /// At all of it, and to be counted anew after that.
    pub(super) fn in_full(vm: VmId) -> Self {
        Self { vm, unless: None, names: true, attach: true }
    }

    /// Whether what it has open is to be read, and its threads' names, where it has so much of either.
    fn is_due(&self, seen: Extent) -> (bool, bool) {
        let differs = |of: fn(Extent) -> Option<u64>| {
            self.unless.is_none_or(|before| may_differ(of(before), of(seen)))
        };
        (differs(|extent| extent.descriptors), self.names || differs(|extent| extent.threads))
    }

    /// Looks at one that has so much.
    fn look(self, mut seen: Extent) -> Looked {
        let (has_plugged, are_told) = self.is_due(seen);
        let Self { vm, attach, .. } = self;
        let (mut plugged, mut origin) = (None, None);
        if has_plugged {
            plugged = logged(vm, discover::plugged(vm.pid));
            origin = logged(vm, Origin::of(vm.pid));
            seen.descriptors = seen.descriptors.filter(|_| plugged.is_some());
        }
        Looked { plugged, origin, seen, threads: are_told.then(|| named_vcpus(vm)), attach }
    }
}

/// What can't be told may have changed.
fn may_differ(before: Option<u64>, now: Option<u64>) -> bool {
    now.is_none() || before != now
}

/// What such a look brought.
#[derive(Debug)]
pub(super) struct Looked {
    /// What it has open, where that was looked at and could be read.
    pub(super) plugged: Option<OpenDevices>,
    /// Whose it is, likewise.
    pub(super) origin: Option<Origin>,
    /// How much it had just before.
    pub(super) seen: Extent,
    /// Its vCPU threads by their names, where those were looked at.
    pub(super) threads: Option<Vec<(u32, u32)>>,
    /// It is to be counted anew.
    pub(super) attach: bool,
}

/// Looks again at what may have changed since QEMUs were found, once these `readings` are carried out.
pub(super) fn refresh(
    looks: &[Look],
    readings: Vec<QemuReading>,
    messages: &UnboundedSender<Message>,
) {
    let together = looks.len().div_ceil(LOOKED_AT_BY).max(LOOKED_AT_TOGETHER);
    let mut chunks = looks.chunks(together);
    let first = chunks.next().unwrap_or_default();
    if !first.is_empty() || !readings.is_empty() {
        carry_out(first.to_vec(), readings, messages.clone());
    }
    chunks.for_each(|some| carry_out(some.to_vec(), Vec::new(), messages.clone()));
}

/// On a thread of their own, which wakes the loop for many of them at once.
fn carry_out(looks: Vec<Look>, readings: Vec<QemuReading>, messages: UnboundedSender<Message>) {
    spawn_blocking(move || {
        // The loop may have ended.
        let report = |seen: &mut Vec<(VmId, Looked)>| {
            if !seen.is_empty() {
                let _ = messages.send(Message::Refreshed(std::mem::take(seen)));
            }
        };
        if !readings.is_empty() {
            let read = readings.into_iter().map(QemuReading::read).collect();
            let _ = messages.send(Message::Memory(read));
        }
        let mut seen = Vec::new();
        for look in looks {
            let extent = Extent::of(look.vm.pid);
            if look.is_due(extent) != (false, false) {
                // To read more of one may hang.
                report(&mut seen);
            }
            seen.push((look.vm, look.look(extent)));
        }
        report(&mut seen);
    });
}

/// Looks again at a VM once `delay` is over.
pub(super) fn refresh_after(delay: Duration, look: Look, messages: UnboundedSender<Message>) {
    tokio::spawn(async move {
        sleep(delay).await;
        refresh(&[look], Vec::new(), &messages);
    });
}

/// A QEMU's vCPU threads, as (vCPU index, thread id); none where their names don't tell.
fn named_vcpus(vm: VmId) -> Vec<(u32, u32)> {
    match logged(vm, discover::vcpu_threads(vm.pid)) {
        Some(VcpuThreads::Each(threads)) => {
            threads.into_iter().map(|thread| (thread.index, thread.tid)).collect()
        }
        Some(VcpuThreads::OneForAll(tid)) => vec![(0, tid)],
        Some(VcpuThreads::Unnamed) | None => Vec::new(),
    }
}

/// What was read of a VM, or nothing, where the log says why.
pub(super) fn logged<T>(vm: VmId, read: Result<T, impl std::fmt::Display>) -> Option<T> {
    read.inspect_err(|error| debug!("VM {vm}: {error}")).ok()
}

/// How long a QEMU has been running; `None` where its start lies in no past that makes sense.
pub(super) fn age(vm: VmId) -> Option<Duration> {
    let since_boot = clock_gettime(ClockId::Boottime);
    let now = Duration::try_from(since_boot).ok()?;
    let ticks_per_second = clock_ticks_per_second().max(1);
    // Whole seconds first: ticks in ns would overflow after 58 years, but not their remainder.
    let seconds = Duration::from_secs(vm.start_ticks / ticks_per_second);
    let rest = vm.start_ticks % ticks_per_second * 1_000_000_000 / ticks_per_second;
    now.checked_sub(seconds + Duration::from_nanos(rest))
}

/// Reports when the process is gone, which its pidfd tells.
pub(super) fn watch_end(vm: &Vm, messages: UnboundedSender<Message>) -> Option<JoinHandle<()>> {
    let id = vm.id;
    // SAFETY: the `Arc` owns the descriptor, which is closed only with it.
    let pidfd =
        match unsafe { AsyncFd::register_with_interest(vm.pidfd.clone(), Interest::READABLE) } {
            Ok(pidfd) => pidfd,
            Err(error) => {
                warn!("VM {id}: its end can't be waited for, a sweep will tell: {error}");
                return None;
            }
        };
    Some(tokio::spawn(async move {
        if pidfd.readable().await.is_ok() {
            // The kernel's event with the exit status is on its way through the ring buffer.
            sleep(STATUS_DELAY).await;
            let _ = messages.send(Message::Gone(id));
        }
    }))
}
