//! Effects of recovery, carried out: tasks that wait for QEMU or its owner, and end with a message to the loop.

use tracing::{info, warn};

use super::{Message, event_loop::EventLoop};
use crate::recovery::{
    Effect, PUT_BACK_AFTER,
    actuator::{restart, start},
    finish, put_back,
};
use flatline_qemu::{discover::VmId, text::error_chain};

impl EventLoop {
    /// Carries out what recovery wants done.
    pub(super) fn carry_out(&mut self) {
        for effect in self.recovery.take_effects() {
            let messages = self.inboxes.messages.clone();
            match effect {
                Effect::Restart { vm, mut context, mut journal } => {
                    context.evidence.figures = self.figures(vm);
                    let writes = self.writes_of(vm);
                    tokio::spawn(async move {
                        let result = restart(&context, writes, &mut journal).await;
                        let _ = messages.send(Message::Restarted(vm, journal.attempts(), result));
                    });
                }
                Effect::Start { vm, context, mut journal } => {
                    tokio::spawn(async move {
                        let result = start(&context, &mut journal).await;
                        let _ = messages.send(Message::Restarted(vm, journal.attempts(), result));
                    });
                }
                Effect::Finish { vm, qmp, steps, configured, mut journal } => {
                    tokio::spawn(async move {
                        let result = finish(&qmp, &steps, configured, &mut journal).await;
                        let _ = messages.send(Message::Finished(vm, journal.attempts(), result));
                    });
                }
                Effect::PutBackLater { vm, number, configured } => {
                    tokio::spawn(async move {
                        tokio::time::sleep(PUT_BACK_AFTER).await;
                        let _ = messages.send(Message::PutBack(vm, number, configured));
                    });
                }
                Effect::PutBack { name, qmp, configured } => {
                    tokio::spawn(async move {
                        match put_back(&qmp, configured).await {
                            Ok(()) => {
                                info!(
                                    vm = name,
                                    "set-action reboot={}, as it was",
                                    configured.as_str()
                                );
                            }
                            Err(error) => {
                                let why = error_chain(&error);
                                warn!(vm = name, "what it does at a reset stays changed: {why}");
                            }
                        }
                    });
                }
                Effect::AskRunState(vm) => self.ask_run_state(vm),
                Effect::ForgetBoot(vm) => self.forget_boot(vm),
            }
        }
    }

    /// Tells how many writes a guest has submitted so far; `None` where that can't be read.
    fn writes_of(&self, id: VmId) -> impl Fn() -> Option<u64> + Send + Sync + use<> {
        let slot = self.registry.vms.get(&id).and_then(|watched| watched.sensors.slot.clone().ok());
        let counters = self.sampler.counters.clone();
        move || Some(counters.row(id, slot?).ok()?.storage.write_ops)
    }
}
