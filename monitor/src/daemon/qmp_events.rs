//! What a QEMU says of itself: its state, its events, its vCPUs.

use tokio::task::spawn_blocking;
use tracing::{debug, warn};

use super::{Message, event_loop::EventLoop};
use flatline_detector::verdict::{Input, Monitor};
use flatline_qemu::{
    discover::{ThreadIds, VmId},
    qmp::{QmpCpu, QmpNotice, QmpState},
};
use flatline_samples::{QmpEvent, RunState};

impl EventLoop {
    pub(super) fn on_qmp(&mut self, id: VmId, notice: QmpNotice) {
        let Some(watched) = self.registry.vms.get_mut(&id) else { return };
        match notice {
            QmpNotice::State(state) => {
                let is_news = watched.link.state != state;
                let can_be_used = match &state {
                    QmpState::Ready => {
                        debug!(vm = watched.vm.name, "QMP is connected");
                        self.recovery.monitor_ready(watched);
                        self.carry_out();
                        self.ask_cpus(id);
                        true
                    }
                    QmpState::Connecting
                    | QmpState::NotStarted { .. }
                    | QmpState::Closed { .. } => {
                        debug!(vm = watched.vm.name, ?state, "QMP");
                        true
                    }
                    QmpState::Busy | QmpState::Unresponsive { .. } | QmpState::Refused { .. } => {
                        false
                    }
                };
                let Some(watched) = self.registry.vms.get_mut(&id) else { return };
                if state != QmpState::Ready {
                    // What it was says nothing about what it is.
                    watched.link.run_state = None;
                }
                watched.link.state = state;
                // A session tries again and again; only a change is news.
                if is_news
                    && !can_be_used
                    && let Monitor::Unknown(why) | Monitor::Unresponsive(why) =
                        watched.link.monitor()
                {
                    warn!(vm = watched.vm.name, "QMP can't be used: {why}");
                }
            }
            QmpNotice::RunState(run_state) => self.learn_run_state(id, run_state),
            QmpNotice::Event(event) => self.on_event(id, &event),
        }
    }

    fn on_event(&mut self, id: VmId, event: &QmpEvent) {
        let now = self.now();
        let Some(watched) = self.registry.vms.get_mut(&id) else { return };
        debug!(vm = watched.vm.name, ?event, "event");
        watched.link.note_shutdown(event);
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
            self.ask_run_state(id);
        }
        let Some(watched) = self.registry.vms.get_mut(&id) else { return };
        let is_reset = matches!(event, QmpEvent::Reset { .. });
        if watched.recovery.is_restarting() || watched.recovery.is_resuming() && is_reset {
            // What it says now belongs to the crash or to our own reset.
            return;
        }
        let monitor = watched.link.monitor();
        let before = watched.detector.watch.boot.began;
        let act = watched.step(&Input::Event { monitor, event: event.clone() }, now);
        if watched.detector.watch.boot.began != before {
            self.forget_boot(id);
        }
        self.act(id, act);
    }

    /// Asks for the run state, and hears of it with a later message.
    pub(super) fn ask_run_state(&mut self, id: VmId) {
        let Some(watched) = self.registry.vms.get_mut(&id) else { return };
        let Some(qmp) = watched.link.qmp.clone() else { return };
        watched.link.run_state_asked += 1;
        let (number, messages) = (watched.link.run_state_asked, self.inboxes.messages.clone());
        tokio::spawn(async move {
            if let Ok(run_state) = qmp.query_status().await {
                let _ = messages.send(Message::RunState(id, number, run_state));
            }
        });
    }

    pub(super) fn learn_run_state(&mut self, id: VmId, run_state: RunState) {
        let now = self.now();
        let Some(watched) = self.registry.vms.get_mut(&id) else { return };
        watched.link.run_state = Some(run_state);
        if watched.recovery.is_restarting() {
            return;
        }
        if let Monitor::Answers(run_state) = watched.link.monitor() {
            let act = watched.step(&Input::RunState(run_state), now);
            self.act(id, act);
        }
    }

    pub(super) fn ask_cpus(&self, id: VmId) {
        let Some(watched) = self.registry.vms.get(&id) else { return };
        let Some(qmp) = watched.link.qmp.clone() else { return };
        let (messages, has_own_pids) = (self.inboxes.messages.clone(), watched.vm.has_own_pids);
        tokio::spawn(async move {
            let Ok(cpus) = qmp.query_cpus().await else { return };
            if has_own_pids {
                // To read of hundreds of threads takes a while.
                let named = spawn_blocking(move || as_called_here(id, &cpus)).await;
                if let Ok(Some(threads)) = named {
                    let _ = messages.send(Message::Cpus(id, threads));
                }
            } else {
                let threads = cpus.iter().map(|cpu| (cpu.index, cpu.thread_id)).collect();
                let _ = messages.send(Message::Cpus(id, threads));
            }
        });
    }
}

/// The threads of vCPUs, named as a QEMU in a PID namespace of its own names them. `None` if it lacks one of them.
fn as_called_here(id: VmId, cpus: &[QmpCpu]) -> Option<Vec<(u32, u32)>> {
    let ids = match ThreadIds::of(id.pid) {
        Ok(ids) => ids,
        Err(error) => {
            debug!("VM {id}: {error}");
            return None;
        }
    };
    let here = |cpu: &QmpCpu| {
        let tid = ids.here(cpu.thread_id);
        if tid.is_none() {
            debug!("VM {id}: in its own PID namespace it has no thread {}", cpu.thread_id);
        }
        Some((cpu.index, tid?))
    };
    cpus.iter().map(here).collect()
}
