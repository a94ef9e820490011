//! From conviction to outcome: what is done about a crash, and what is written down of it.

use std::{
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::SystemTime,
};

use tracing::{error, info, warn};

use super::{
    Message,
    engine::Engine,
    recordings::RECORDING,
    vm::{Case, Stage, WatchedVm},
};
use crate::{
    discover::VmId,
    error_text::in_full,
    recover::{Clearance, Restart, RestartError, clearance, restart},
    report::{
        incident::{Incident, Outcome},
        recording::{Recording, file},
        store::IncidentStore,
    },
    verdict::{Cause, Input, State},
};

/// Evidence for an incident: file names and contents.
type Files = Vec<(&'static str, Vec<u8>)>;

/// Writes incidents on a thread of its own, in order: a stalled disk must not stall the watching.
pub(super) struct Scribe {
    records: mpsc::Sender<(Incident, Files, Option<Recording>)>,
    thread: Option<JoinHandle<()>>,
}

impl Scribe {
    pub(super) fn start(store: Arc<IncidentStore>) -> Self {
        let (records, inbox) = mpsc::channel::<(Incident, Files, Option<Recording>)>();
        let write = move || {
            for (incident, mut evidence, recording) in inbox {
                match recording.as_ref().map(file::to_bytes) {
                    Some(Ok(bytes)) => evidence.push((RECORDING, bytes)),
                    Some(Err(error)) => error!(incident = incident.id, "{RECORDING}: {error}"),
                    None => {}
                }
                for (name, content) in evidence {
                    if let Err(error) = store.add_evidence(&incident.id, name, &content) {
                        error!(incident = incident.id, "{}", in_full(&error));
                    }
                }
                if let Err(error) = store.put(&incident) {
                    error!(incident = incident.id, "{}", in_full(&error));
                }
            }
        };
        let thread = std::thread::Builder::new().name("incidents".to_owned()).spawn(write);
        let thread = thread
            .inspect_err(|error| error!("incidents can't be written: no thread: {error}"))
            .ok();
        Self { records, thread }
    }

    pub(super) fn write(&self, incident: &Incident, evidence: Files, recording: Option<Recording>) {
        if self.records.send((incident.clone(), evidence, recording)).is_err() {
            error!(incident = incident.id, "not written: the writing thread has ended");
        }
    }

    /// Waits until all is written.
    pub(super) fn finish(self) {
        drop(self.records);
        if let Some(thread) = self.thread {
            let _ = thread.join();
        }
    }
}

impl Engine {
    /// A VM was convicted just now.
    pub(super) fn convicted(&mut self, id: VmId, cause: Cause) {
        let case = self.vms.get(&id).and_then(|watched| watched.case.as_ref());
        if case.is_some_and(|case| matches!(case.stage, Stage::AwaitingLife { .. })) {
            // It crashed again before it had shown any life.
            self.close(id, Outcome::NotRecovered, None);
        }
        let now = self.now();
        let Some(watched) = self.vms.get(&id) else { return };
        warn!(vm = watched.vm.name, %cause, "crashed: {}", watched.watch.reason);
        let incident = Incident {
            detect_seconds: Some(watched.watch.line.silence(now).as_secs_f64()),
            ..self.new_incident(watched, cause, watched.watch.reason.clone())
        };
        let clearance = clearance(&watched.terms.policy, self.restarts_in_window(watched));
        let Some(watched) = self.vms.get_mut(&id) else { return };
        // Convicted again after its monitor came back, or its dump was written: the same crash, and the same
        // incident.
        let incident = match watched.case.take() {
            Some(Case {
                incident: earlier,
                stage: Stage::WaitingForMonitor | Stage::WaitingForDump,
            }) => Incident {
                id: earlier.id,
                detected_at: earlier.detected_at,
                detect_seconds: earlier.detect_seconds,
                ..incident
            },
            _ => incident,
        };
        watched.case = Some(Case { incident, stage: Stage::WaitingForMonitor });
        match clearance {
            Clearance::Granted => self.begin_restart(id),
            Clearance::ObserveOnly => {
                self.close(id, Outcome::Observed, Some("only observing, nothing is touched"));
            }
            Clearance::LimitReached(why) => {
                watched.feed(&Input::LimitReached { cause, reason: why.clone() }, now);
                self.close(id, Outcome::LimitReached, Some(&why));
            }
        }
    }

    /// The record of a crash that was found just now.
    fn new_incident(&self, watched: &WatchedVm, cause: Cause, reason: String) -> Incident {
        let (detected_at, name) = (SystemTime::now(), &watched.vm.name);
        let id = self.store.new_id(detected_at, name);
        Incident {
            uuid: watched.vm.uuid.clone(),
            pid: watched.vm.id.pid,
            last_sign_of_life: Some(self.wall_clock(watched.watch.line.last_life)),
            ..Incident::new(id, name.clone(), cause.to_string(), reason, detected_at)
        }
    }

    /// A guest that resets itself again and again is not helped by one more reset.
    pub(super) fn given_up(&mut self, id: VmId, cause: Cause) {
        self.close(id, Outcome::NotRecovered, None);
        let Some(watched) = self.vms.get(&id) else { return };
        warn!(vm = watched.vm.name, %cause, "{}", watched.watch.reason);
        let mut incident = Incident {
            outcome: Some(Outcome::LimitReached),
            ..self.new_incident(watched, cause, watched.watch.reason.clone())
        };
        let recording = watched.recorder.evidence(&mut incident);
        self.scribe.write(&incident, Vec::new(), recording);
        if let Some(watched) = self.vms.get_mut(&id) {
            watched.case = Some(Case { incident, stage: Stage::Closed });
        }
    }

    /// Restarts that count towards the VM's limit.
    pub(super) fn restarts_in_window(&self, watched: &WatchedVm) -> u32 {
        let since = SystemTime::now()
            .checked_sub(watched.terms.policy.window)
            .unwrap_or(SystemTime::UNIX_EPOCH);
        self.store.restarts_since(watched.key(), since)
    }

    /// Tells QEMU to restart the guest, or notes why it can't be told.
    fn begin_restart(&mut self, id: VmId) {
        let qmp = match self.monitor_of(id) {
            Ok(qmp) => qmp,
            Err(why) => return self.refuse(id, &why, Stage::WaitingForMonitor),
        };
        let Some(watched) = self.vms.get_mut(&id) else { return };
        let Some(case) = &mut watched.case else { return };
        case.stage = Stage::Restarting;
        case.incident.outcome = None;
        self.scribe.write(&case.incident, Vec::new(), None);
        let (configured, messages) = (watched.vm.reboot_action, self.messages.clone());
        let announced = watched.watch.state.cause() == Some(Cause::Panicked);
        let (counters, slot) = (self.counters.clone(), watched.slot.clone());
        let writes = move || {
            let row = counters.row(id, slot.clone().ok()?).ok()?;
            announced.then_some(row.storage.write_ops)
        };
        tokio::spawn(async move {
            let result = restart(&qmp, configured, writes).await;
            let _ = messages.send(Message::Restarted(id, result));
        });
    }

    /// A VM whose QEMU could not be told of its restart, and now can be.
    pub(super) fn retry_restart(&mut self, id: VmId) {
        let waiting = self
            .vms
            .get(&id)
            .and_then(|watched| watched.case.as_ref())
            .is_some_and(|case| case.stage == Stage::WaitingForMonitor);
        if !(waiting && self.is_crashed(id) && self.monitor_of(id).is_ok()) {
            return;
        }
        let now = self.now();
        let Some(watched) = self.vms.get_mut(&id) else { return };
        match watched.watch.state.cause() {
            // Said by the guest or KVM, and still to be read in the run state.
            Some(Cause::Panicked | Cause::InternalError | Cause::Watchdog) => {
                self.begin_restart(id)
            }
            // Convicted without a look at its registers, which can be had now.
            _ => drop(watched.feed(&Input::Reexamine, now)),
        }
    }

    /// A restart ended, one way or the other.
    pub(super) fn restarted(&mut self, id: VmId, result: Result<Restart, RestartError>) {
        let now = self.now();
        let Some(watched) = self.vms.get_mut(&id) else { return };
        let cause = watched.watch.state.cause();
        let (Some(case), Some(cause)) = (&mut watched.case, cause) else { return };
        match result {
            Ok(done) => {
                info!(
                    vm = watched.vm.name,
                    "{}: {} -> {}", done.action, done.run_states.0, done.run_states.1
                );
                case.stage = Stage::AwaitingLife { since: done.at };
                case.incident.action = Some(done.action);
                case.incident.action_at = Some(done.at);
                case.incident.evidence =
                    done.evidence.iter().map(|(name, _)| (*name).to_owned()).collect();
                let recording = watched.recorder.evidence(&mut case.incident);
                self.scribe.write(&case.incident, done.evidence, recording);
                watched.run_state = Some(done.run_states.1);
                // Whatever was asked before belongs to the time before.
                watched.run_state_answered = watched.run_state_asked;
                watched.feed(&Input::Restarted { cause, was_up: done.was_up }, now);
                self.forget_addresses(id);
            }
            Err(RestartError::StillWriting) => {
                case.stage = Stage::WaitingForDump;
                watched.feed(&Input::StillWriting, now);
            }
            Err(RestartError::Refused(why)) => {
                watched.feed(&Input::SetAside(format!("not restarted: {why}")), now);
                self.refuse(id, &why.to_string(), Stage::Closed);
            }
            Err(error @ (RestartError::Unknown(_) | RestartError::NotAsked(_))) => {
                self.refuse(id, &in_full(&error), Stage::WaitingForMonitor);
            }
            Err(error) => {
                // It may have been reset all the same: it gets its time to show life.
                let why = in_full(&error);
                warn!(vm = watched.vm.name, "restart: {why}");
                let at = match error {
                    RestartError::Step { reset_at, .. } | RestartError::Owner { reset_at, .. } => {
                        reset_at
                    }
                    _ => Some(SystemTime::now()),
                };
                case.stage = Stage::AwaitingLife { since: at.unwrap_or_else(SystemTime::now) };
                case.incident.action = at.map(|_| "system_reset".to_owned());
                case.incident.action_at = at;
                case.incident.reason = format!("{}; {why}", case.incident.reason);
                let recording = watched.recorder.evidence(&mut case.incident);
                self.scribe.write(&case.incident, Vec::new(), recording);
                watched.feed(&Input::Restarted { cause, was_up: false }, now);
                self.forget_addresses(id);
            }
        }
    }

    /// A restarted guest showed life.
    pub(super) fn recovered(&mut self, id: VmId) {
        let Some(watched) = self.vms.get_mut(&id) else { return };
        if let Some(Case { incident, stage: Stage::AwaitingLife { since } }) = &mut watched.case {
            let now = SystemTime::now();
            incident.recovered_at = Some(now);
            incident.recover_seconds =
                now.duration_since(*since).ok().map(|took| took.as_secs_f64());
        }
        info!(vm = watched.vm.name, "recovered: {}", watched.watch.reason);
        self.close(id, Outcome::Recovered, None);
    }

    /// A restarted guest showed no life in time: it is as convicted as before.
    pub(super) fn not_recovered(&mut self, id: VmId, cause: Cause) {
        self.close(id, Outcome::NotRecovered, None);
        self.convicted(id, cause);
    }

    /// QEMU itself is gone. Only its owner may start it again.
    pub(super) fn qemu_ended(&mut self, watched: &mut WatchedVm, status: Option<i32>) {
        let how = match status {
            None => "it ended, with a status that is not known".to_owned(),
            Some(status) if status & 0x7f != 0 => format!("signal {} ended it", status & 0x7f),
            Some(status) => format!("it exited with code {}", status >> 8 & 0xff),
        };
        const NEXT: &str = "only its owner can start it again";
        if let Some(mut case) = watched.case.take().filter(|case| case.stage != Stage::Closed) {
            let incident = &mut case.incident;
            let outcome = match case.stage {
                Stage::AwaitingLife { .. } => Outcome::NotRecovered,
                Stage::Restarting
                | Stage::WaitingForMonitor
                | Stage::WaitingForDump
                | Stage::Closed => Outcome::Refused,
            };
            incident.outcome = Some(outcome);
            incident.reason = format!("{}; then QEMU ended: {how}; {NEXT}", incident.reason);
            let recording = watched.recorder.evidence(incident);
            self.scribe.write(incident, Vec::new(), recording);
        } else if status.is_some_and(|status| status != 0) {
            warn!(vm = watched.vm.name, "its QEMU ended without being asked to: {how}");
            let reason = format!("QEMU is gone: {how}; {NEXT}");
            let mut incident = Incident {
                outcome: Some(Outcome::Refused),
                ..self.new_incident(watched, Cause::QemuExited, reason)
            };
            let recording = watched.recorder.evidence(&mut incident);
            self.scribe.write(&incident, Vec::new(), recording);
        }
    }

    fn refuse(&mut self, id: VmId, why: &str, stage: Stage) {
        self.close(id, Outcome::Refused, Some(why));
        if let Some(case) = self.vms.get_mut(&id).and_then(|watched| watched.case.as_mut()) {
            case.stage = stage;
        }
    }

    /// Writes down the outcome, and why where that isn't plain.
    fn close(&mut self, id: VmId, outcome: Outcome, why: Option<&str>) {
        let Some(watched) = self.vms.get_mut(&id) else { return };
        let Some(case) = &mut watched.case else { return };
        if case.stage == Stage::Closed {
            return;
        }
        case.stage = Stage::Closed;
        case.incident.outcome = Some(outcome);
        if let Some(why) = why {
            warn!(vm = watched.vm.name, "{}: {why}", outcome.as_str());
            case.incident.reason = format!("{}; {why}", watched.watch.reason);
            // What the operator sees says both what it died of and why nothing was done.
            if matches!(watched.watch.state, State::Crashed { .. }) {
                case.incident.reason.clone_into(&mut watched.watch.reason);
            }
        }
        let recording = watched.recorder.evidence(&mut case.incident);
        self.scribe.write(&case.incident, Vec::new(), recording);
    }
}
