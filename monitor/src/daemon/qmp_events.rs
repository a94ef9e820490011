//! QMP notices of one VM: its monitor's state, its events, its run state, and its vCPUs.

use std::time::Duration;

use tokio::task::spawn_blocking;
use tracing::{debug, warn};

use super::{
    host_sampler::HostSampler,
    message::{Inboxes, Message},
    watchers::logged,
};
use crate::vm::WatchedVm;
use flatline_detector::verdict::{Act, Input, Monitor};
use flatline_qemu::{
    discover::{ThreadIds, VmId},
    qmp::{QmpCpu, QmpState},
};
use flatline_samples::{QmpEvent, RunState};

/// The most vCPUs that a QEMU gives a guest (`KVM_MAX_VCPUS` of Linux 6.12): one that names more is none to be believed.
const MOST_VCPUS: usize = 4096;

/// Takes note of the session's state.
pub(super) fn monitor_is(watched: &mut WatchedVm, state: QmpState) {
    let is_news = watched.link.state != state;
    let can_be_used = match &state {
        QmpState::Ready
        | QmpState::Connecting
        | QmpState::NotStarted { .. }
        | QmpState::Closed { .. } => {
            debug!(vm = watched.vm.name, ?state, "QMP");
            true
        }
        QmpState::Busy | QmpState::Unresponsive { .. } | QmpState::Refused { .. } => false,
    };
    if state != QmpState::Ready {
        // What it was says nothing about what it is.
        watched.link.run_state = None;
    }
    watched.link.state = state;
    // A session tries again and again; only a change is news.
    if is_news
        && !can_be_used
        && let Monitor::Unknown(why) | Monitor::Unresponsive(why) = watched.link.monitor()
    {
        warn!(vm = watched.vm.name, "QMP can't be used: {why}");
    }
}

/// Events that come as something is plugged in or out of a QEMU, or exchanged: a device, a medium, an image under a block
/// job, a vCPU; or as a guest begins to use what was added.
const OF_DEVICES: [&str; 11] = [
    "ACPI_DEVICE_OST",
    "BLOCK_JOB_CANCELLED",
    "BLOCK_JOB_COMPLETED",
    "BLOCK_JOB_READY",
    "DEVICE_TRAY_MOVED",
    "FAILOVER_NEGOTIATED",
    "JOB_STATUS_CHANGE",
    "NETDEV_STREAM_CONNECTED",
    "NETDEV_STREAM_DISCONNECTED",
    "NIC_RX_FILTER_CHANGED",
    "VSERPORT_CHANGE",
];

/// Whether what a QEMU has open, or its vCPUs, may change as it says this.
pub(super) fn tells_of_devices(event: &QmpEvent) -> bool {
    match event {
        QmpEvent::DeviceDeleted => true,
        QmpEvent::Other(name) => OF_DEVICES.contains(&name.as_str()),
        _ => false,
    }
}

/// Has the detector take in an event, and asks for the run state where that may have changed. Says what is to be done.
pub(super) fn on_event(
    watched: &mut WatchedVm,
    event: QmpEvent,
    sampler: &HostSampler,
    inboxes: &Inboxes,
    now: Duration,
) -> Act {
    debug!(vm = watched.vm.name, ?event, "event");
    watched.link.note_shutdown(&event);
    if matches!(
        event,
        QmpEvent::Stop
            | QmpEvent::Resume
            | QmpEvent::Suspend
            | QmpEvent::Wakeup
            | QmpEvent::Watchdog { .. }
            | QmpEvent::Shutdown { .. }
            | QmpEvent::Reset { .. }
            | QmpEvent::GuestPanicked { .. }
    ) {
        ask_run_state(watched, inboxes);
    }
    let is_reset = matches!(event, QmpEvent::Reset { .. });
    if let QmpEvent::Reset { guest } = event {
        watched.recovery.overtaken.note(guest);
    }
    if watched.recovery.is_restarting() || watched.recovery.is_resuming() && is_reset {
        // What it says now belongs to the crash or to our own reset.
        return Act::Nothing;
    }
    let monitor = watched.link.monitor();
    let before = watched.detector.watch.boot.began;
    let act = watched.step(&Input::Event { monitor, event }, now);
    if watched.detector.watch.boot.began != before {
        sampler.forget_boot(watched);
    }
    act
}

/// Asks for the run state, which comes as a message.
pub(super) fn ask_run_state(watched: &mut WatchedVm, inboxes: &Inboxes) {
    let Some(qmp) = watched.link.qmp.clone() else { return };
    watched.link.run_state_asked += 1;
    let (id, number) = (watched.vm.id, watched.link.run_state_asked);
    inboxes
        .report(async move { Some(Message::RunState(id, number, qmp.query_status().await.ok()?)) });
}

/// Takes note of the run state, and has the detector take it in. Says what is to be done.
pub(super) fn learn_run_state(watched: &mut WatchedVm, run_state: RunState, now: Duration) -> Act {
    watched.link.run_state = Some(run_state);
    match watched.link.monitor() {
        Monitor::Answers(run_state) if !watched.recovery.is_restarting() => {
            watched.step(&Input::RunState(run_state), now)
        }
        _ => Act::Nothing,
    }
}

/// Asks which threads are the vCPUs, which comes as a message.
pub(super) fn ask_cpus(watched: &WatchedVm, inboxes: &Inboxes) {
    let Some(qmp) = watched.link.qmp.clone() else { return };
    let id = watched.vm.id;
    inboxes.report(async move {
        let cpus = qmp.query_cpus().await.ok()?;
        if cpus.len() > MOST_VCPUS {
            debug!("VM {id}: it says that it has {} vCPUs", cpus.len());
            return None;
        }
        // To read of hundreds of threads takes a while.
        let threads = spawn_blocking(move || as_called_here(id, &cpus)).await.ok()??;
        Some(Message::Cpus(id, threads))
    });
}

/// The threads of vCPUs, of which a QEMU in a PID namespace of its own has other names. `None` if it lacks one of them.
fn as_called_here(id: VmId, cpus: &[QmpCpu]) -> Option<Vec<(u32, u32)>> {
    let ids = logged(id, ThreadIds::of(id.pid))?;
    let here = |cpu: &QmpCpu| {
        let tid = ids.here(cpu.thread_id);
        if tid.is_none() {
            debug!("VM {id}: it has no thread {}, which it names", cpu.thread_id);
        }
        Some((cpu.index, tid?))
    };
    cpus.iter().map(here).collect()
}
