//! VMs whose QEMU is gone, from there to the QEMU that takes its place.
//!
//! Until the new one is found, the incident is kept among the [`Awaited`]; the new QEMU takes it up, and is waited for
//! like any guest that was reset.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tracing::{info, warn};

use super::{Message, engine::Engine, incident_writer::RestartJournal, owners::scene_of};
use crate::{
    recovery::{
        Case, Clearance, EventKind, Restart, RestartError, Stage, actuator::start, evidence::Wanted,
    },
    storage::incident::{Attempt, Incident, Outcome},
};
use flatline_detector::verdict::{Cause, State, Tally, Terms};
use flatline_qemu::{
    discover::{self, Owner, Vm, VmId},
    text::error_chain,
};

/// After its owner's program ended well, the new QEMU has so long to be found: a sweep comes every 10 s.
pub(super) const FOUND_WITHIN: Duration = Duration::from_secs(30);

/// A VM without a QEMU, of which one is expected.
#[derive(Debug)]
pub(super) struct Awaited {
    pub(super) vm: Arc<Vm>,
    pub(super) terms: Terms,
    pub(super) incident: Incident,
    pub(super) progress: Progress,
}

/// How far its start has come. Moments are times since the host's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// It is not to be started before this moment.
    Pausing(Duration),
    /// Its owner is being told.
    Starting,
    /// Its owner was told, and a QEMU is to be found until this moment.
    Expected(Duration),
}

impl Awaited {
    fn key(&self) -> &str {
        self.vm.uuid.as_deref().unwrap_or(&self.vm.name)
    }
}

impl Engine {
    /// Starts those whose pause is over, and gives up those of whom no QEMU was found.
    pub(super) fn start_due(&mut self) {
        let now = self.now();
        for mut awaited in std::mem::take(&mut self.awaited) {
            match awaited.progress {
                Progress::Pausing(until) if until <= now => self.start_if_cleared(awaited),
                Progress::Expected(until) if until <= now => {
                    let incident = &mut awaited.incident;
                    incident.reason = format!("{}; no QEMU came back", incident.reason);
                    let was_told = !incident.attempts.is_empty();
                    let outcome = if was_told { Outcome::NotRecovered } else { Outcome::Refused };
                    self.conclude(awaited, outcome);
                }
                Progress::Pausing(_) | Progress::Starting | Progress::Expected(_) => {
                    self.awaited.push(awaited);
                }
            }
        }
    }

    fn start_if_cleared(&mut self, mut awaited: Awaited) {
        if self.vms.values().any(|other| other.key() == awaited.key()) {
            let reason = &awaited.incident.reason;
            awaited.incident.reason = format!("{reason}; another QEMU of its name runs already");
            return self.conclude(awaited, Outcome::Refused);
        }
        let clearance = self.clearance_for(awaited.key(), &awaited.terms.policy);
        let (outcome, why) = match clearance {
            Clearance::Granted(limit) => return self.begin_start(awaited, limit),
            Clearance::Wait(left, why) => {
                info!(vm = awaited.vm.name, "not started yet: {why}");
                awaited.progress = Progress::Pausing(self.now() + left);
                self.awaited.push(awaited);
                return;
            }
            Clearance::ObserveOnly => {
                (Outcome::Observed, "only observing, nothing is started".to_owned())
            }
            Clearance::Held(why) => (Outcome::Observed, why),
            Clearance::LimitReached(why) => (Outcome::LimitReached, why),
        };
        awaited.incident.reason = format!("{}; {why}", awaited.incident.reason);
        self.conclude(awaited, outcome);
    }

    fn begin_start(&mut self, mut awaited: Awaited, limit: String) {
        let actuation = self.config.actuation_for(&awaited.vm.name);
        let incident = awaited.incident.clone();
        let wanted = Wanted::nothing(awaited.vm.clone(), incident.id.clone());
        let scene = scene_of(wanted, actuation, Err(None), &incident);
        let mut log = RestartJournal {
            writer: self.writer.clone(),
            store: self.store.clone(),
            incident,
            limit,
        };
        let (id, messages) = (awaited.vm.id, self.messages.clone());
        tokio::spawn(async move {
            let result = start(&scene, &mut log).await;
            let _ = messages.send(Message::Restarted(id, log.incident.attempts, result));
        });
        awaited.progress = Progress::Starting;
        self.awaited.push(awaited);
    }

    /// The owner of a VM whose QEMU is gone has been told to start it, or to replace it.
    pub(super) fn started(
        &mut self,
        id: VmId,
        attempts: Vec<Attempt>,
        result: Result<Restart, RestartError>,
    ) {
        let awaited = self.awaited.iter().position(|awaited| awaited.vm.id == id);
        let Some(awaited) = awaited.map(|index| self.awaited.swap_remove(index)) else {
            // Its QEMU ended by what should have reset it, or came back before this was heard of.
            return self.note_start(id, attempts, result);
        };
        let mut awaited = awaited;
        awaited.incident.attempts = attempts;
        match result {
            Ok(done) => {
                info!(vm = awaited.vm.name, "{}", done.action);
                note(&mut awaited.incident, &done);
                self.writer.write(&awaited.incident, done.kept.files, None);
                awaited.progress = Progress::Expected(self.now() + FOUND_WITHIN);
                self.awaited.push(awaited);
            }
            Err(error) => {
                let why = error_chain(&error);
                warn!(vm = awaited.vm.name, "start: {why}");
                awaited.incident.reason = format!("{}; {why}", awaited.incident.reason);
                let is_unit = matches!(awaited.vm.ownership.owner, Owner::SystemdUnit { .. });
                if is_unit && matches!(error, RestartError::Refused(_)) {
                    // systemd may be starting it by itself.
                    awaited.progress = Progress::Expected(self.now() + FOUND_WITHIN);
                    self.awaited.push(awaited);
                    return;
                }
                let outcome = match error {
                    RestartError::Refused(_) | RestartError::NotAsked(_) => Outcome::Refused,
                    RestartError::StillWriting
                    | RestartError::Unknown(_)
                    | RestartError::Lost { .. }
                    | RestartError::Step { .. }
                    | RestartError::Owner { .. }
                    | RestartError::NotRunning { .. } => Outcome::NotRecovered,
                };
                self.conclude(awaited, outcome);
            }
        }
    }

    /// The new QEMU was found before its owner's program had ended: the case has moved on to that one.
    fn note_start(
        &mut self,
        id: VmId,
        attempts: Vec<Attempt>,
        result: Result<Restart, RestartError>,
    ) {
        let is_of_it = |case: &Case| {
            let Incident { pid, start_ticks, .. } = case.incident;
            pid == id.pid && start_ticks == id.start_ticks
        };
        let case =
            self.vms.values_mut().find_map(|vm| vm.recovery.case.as_mut().filter(|c| is_of_it(c)));
        let Some(case) = case else { return };
        case.incident.attempts = attempts;
        match result {
            Ok(done) => {
                note(&mut case.incident, &done);
                self.writer.write(&case.incident, done.kept.files, None);
            }
            Err(error) => warn!(vm = case.incident.vm, "start: {}", error_chain(&error)),
        }
    }

    fn conclude(&mut self, awaited: Awaited, outcome: Outcome) {
        let Awaited { mut incident, .. } = awaited;
        incident.outcome = Some(outcome);
        self.writer.events.emit(EventKind::Closed(outcome), &incident);
        self.writer.write(&incident, Vec::new(), None);
    }

    /// A QEMU that takes another's place may be found before the end of that one was reported.
    pub(super) fn bury_predecessors(&mut self, vm: &Vm) {
        let key = vm.uuid.as_deref().unwrap_or(&vm.name);
        let is_gone = |id: VmId| discover::start_ticks(id.pid).ok() != Some(id.start_ticks);
        let same = self.vms.iter().filter(|(_, watched)| watched.key() == key).map(|(id, _)| *id);
        for id in same.filter(|id| is_gone(*id)).collect::<Vec<_>>() {
            self.gone(id);
        }
    }

    /// A QEMU that was found now, and that is the one which was awaited: as a guest that was restarted.
    pub(super) fn adopt(&mut self, vm: &Vm, terms: &Terms) -> Option<((State, String), Case)> {
        let key = vm.uuid.as_deref().unwrap_or(&vm.name);
        let is_it =
            |awaited: &Awaited| awaited.key() == key && awaited.vm.origin.uid == vm.origin.uid;
        let index = self.awaited.iter().position(is_it)?;
        let Awaited { incident, .. } = self.awaited.swap_remove(index);
        let now = self.now();
        let cause = Cause::parse(&incident.cause).unwrap_or(Cause::QemuExited);
        let told_at = incident.attempts.last().and_then(|last| last.reset_at);
        let since = incident.action_at.or(told_at).unwrap_or_else(SystemTime::now);
        let state = State::Recovering {
            cause,
            deadline: now + terms.policy.boot_grace,
            tally: Tally::default(),
            was_up: incident.was_up,
        };
        let reason = format!("started anew because it was {cause}; waiting for a sign of life");
        info!(vm = vm.name, pid = vm.id.pid, "{reason}");
        let stage = Stage::AwaitingLife { since };
        Some(((state, reason), Case::new(incident, stage, now)))
    }
}

fn note(incident: &mut Incident, done: &Restart) {
    incident.action = Some(done.action.clone());
    incident.action_at = Some(done.at);
    incident.name_evidence(&done.kept.files);
}
