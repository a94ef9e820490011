//! Effects of recovery, carried out: tasks that wait for QEMU or its owner, and end with a message to the loop.

use tokio::time::sleep;
use tracing::{info, warn};

use super::{
    host_sampler::HostSampler,
    message::{Inboxes, Message},
    qmp_events,
};
use crate::{
    recovery::{
        Effect, PUT_BACK_AFTER,
        actuator::{restart, start},
        finish, put_back,
    },
    vm::{Vms, WatchedVm},
};
use flatline_qemu::{
    discover::{ResetAction, VmId},
    qmp::QmpHandle,
    text::error_chain,
};

/// Carries out what recovery wants done.
pub(super) fn carry_out(effect: Effect, vms: &mut Vms, sampler: &HostSampler, inboxes: &Inboxes) {
    match effect {
        Effect::Restart { vm, context, mut journal } => {
            let writes = writes_of(vm, vms.get(&vm), sampler);
            inboxes.report(async move {
                let result = restart(&context, writes, &mut journal).await;
                Message::Restarted(vm, journal.attempts(), result)
            });
        }
        Effect::Start { vm, context, mut journal } => inboxes.report(async move {
            let result = start(&context, &mut journal).await;
            Message::Restarted(vm, journal.attempts(), result)
        }),
        Effect::Finish { vm, qmp, steps, configured, mut journal } => {
            inboxes.report(async move {
                let result = finish(&qmp, &steps, configured, &mut journal).await;
                Message::Finished(vm, journal.attempts(), result)
            });
        }
        Effect::PutBackLater { vm, number, configured } => inboxes.report(async move {
            sleep(PUT_BACK_AFTER).await;
            Message::PutBack(vm, number, configured)
        }),
        Effect::PutBack { name, qmp, configured } => {
            tokio::spawn(put_back_and_log(name, qmp, configured));
        }
        Effect::AskRunState(vm) => {
            if let Some(watched) = vms.get_mut(&vm) {
                qmp_events::ask_run_state(watched, inboxes);
            }
        }
        Effect::ForgetBoot(vm) => {
            if let Some(watched) = vms.get_mut(&vm) {
                sampler.forget_boot(watched);
            }
        }
    }
}

async fn put_back_and_log(name: String, qmp: QmpHandle, configured: ResetAction) {
    match put_back(&qmp, configured).await {
        Ok(()) => info!(vm = name, "set-action reboot={}, as it was", configured.as_str()),
        Err(error) => {
            let why = error_chain(&error);
            warn!(vm = name, "what it does at a reset stays changed: {why}");
        }
    }
}

/// Tells how many writes a guest has submitted so far; `None` where that can't be read.
fn writes_of(
    id: VmId,
    watched: Option<&WatchedVm>,
    sampler: &HostSampler,
) -> impl Fn() -> Option<u64> + Send + Sync + use<> {
    let slot = watched.and_then(|watched| watched.sensors.slot.clone().ok());
    let counters = sampler.counters.clone();
    move || Some(counters.row(id, slot?).ok()?.storage().write_ops)
}
