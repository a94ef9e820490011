//! What a VM's owner has to do with it: by what it is restarted, and what is done once its QEMU is gone.
//!
//! A QEMU that ended without having been asked to is started again by its owner's means, where that is configured and
//! its budget allows it. Until the new one is found, the incident is kept among the [`Awaited`]; the new QEMU takes it
//! up, and is waited for like any guest that was reset.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tracing::{info, warn};

use super::{
    Message,
    engine::Engine,
    scribe::Log,
    vm::{Case, Stage, WatchedVm},
};
use crate::{
    config::{Actuator, Means},
    discover::{self, Owner, Vm, VmId},
    error_text::in_full,
    qmp::QmpEvent,
    recover::{
        Clearance, Ending, Restart, RestartError,
        actuator::{MonitorSays, Scene, Situation, chosen, restart_plan, start, start_plan},
        ending,
        evidence::Wanted,
    },
    report::{
        incident::{Attempt, Incident, Outcome},
        view::OwnerView,
    },
    verdict::{Cause, State, Tally, Terms},
};

/// After its owner's program ended well, the new QEMU has so long to be found: a sweep comes every 10 s.
const FOUND_WITHIN: Duration = Duration::from_secs(30);

/// What is remembered beyond a QEMU's end.
#[derive(Debug, Default)]
pub(super) struct Owners {
    /// The last `SHUTDOWN` event of each, unless it was reset since.
    last_words: HashMap<VmId, QmpEvent>,
    /// QEMUs whose events are heard late or never: while they are suspected, their run state is asked for.
    late: HashSet<VmId>,
    /// VMs whose QEMU is gone, and that are to come back.
    awaited: Vec<Awaited>,
}

/// A VM without a QEMU, of which one is expected.
#[derive(Debug)]
struct Awaited {
    vm: Arc<Vm>,
    terms: Terms,
    incident: Incident,
    progress: Progress,
}

/// How far its start has come. Moments are times since the host's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
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

impl Owners {
    /// Takes note of what may be a QEMU's last words.
    pub(super) fn hear(&mut self, id: VmId, event: &QmpEvent) {
        match event {
            QmpEvent::Shutdown { .. } => drop(self.last_words.insert(id, event.clone())),
            QmpEvent::Reset { .. } => drop(self.last_words.remove(&id)),
            _ => {}
        }
    }

    /// Notes that its events are heard late, or never.
    pub(super) fn hears_late_of(&mut self, id: VmId) {
        self.late.insert(id);
    }

    /// Whether its events are heard late, or never.
    pub(super) fn hears_late(&self, id: VmId) -> bool {
        self.late.contains(&id)
    }

    /// It is gone, and what was to be told of it was told.
    pub(super) fn forget(&mut self, id: VmId) {
        self.late.remove(&id);
        self.last_words.remove(&id);
    }
}

impl Engine {
    /// Who started it, for people.
    pub(super) fn owner_view(&self, vm: &Vm) -> OwnerView {
        let means = self.config.means_for(&vm.name);
        let by = chosen(&vm.ownership, &means);
        OwnerView {
            kind: vm.ownership.owner.kind().to_owned(),
            name: vm.ownership.owner.name(),
            certain: vm.ownership.is_certain,
            actuator: by.as_ref().ok().map(|actuator| actuator.as_str().to_owned()),
            refusal: by.err().map(|refusal| refusal.to_string()),
        }
    }

    /// What a restart of this VM may use, or why it can't be begun, and what its case waits for then.
    pub(super) fn scene(&self, id: VmId) -> Result<Scene, (String, Stage)> {
        let gone = || ("it is gone".to_owned(), Stage::Closed);
        let watched = self.vms.get(&id).ok_or_else(gone)?;
        let case = watched.case.as_ref().ok_or_else(gone)?;
        let means = self.config.means_for(&watched.vm.name);
        chosen(&watched.vm.ownership, &means).map_err(|why| (why.to_string(), Stage::Closed))?;
        let monitor = match self.monitor_of(id) {
            Ok(qmp) => Ok(qmp),
            Err(why) if watched.qmp.is_some() => return Err((why, Stage::WaitingForMonitor)),
            Err(_) => {
                let situation = Situation {
                    ownership: &watched.vm.ownership,
                    means: &means,
                    monitor: MonitorSays::IsNotThere,
                    reboot_action: watched.vm.reboot_action,
                    pid: id.pid,
                };
                let waits = |why: crate::recover::Refusal| (why.0, Stage::WaitingForMonitor);
                restart_plan(&situation).map_err(waits)?;
                Err(None)
            }
        };
        let wanted = self.wanted(watched, &case.incident);
        Ok(scene_of(wanted, means, monitor, &case.incident))
    }

    /// QEMU itself is gone: told apart from a stop that somebody wanted, and started again where that is configured.
    pub(super) fn qemu_ended(&mut self, watched: &mut WatchedVm, status: Option<i32>) {
        let last_words = self.owners.last_words.remove(&watched.vm.id);
        let why = ending(status, last_words.as_ref(), watched.watch.state.cause());
        let words = why.words();
        let open = watched.case.take().filter(|case| case.stage != Stage::Closed);
        let incident = match open {
            Some(case)
                if case.stage == Stage::Restarting && self.is_being_replaced(&watched.vm) =>
            {
                info!(vm = watched.vm.name, "its QEMU is being replaced: {words}");
                self.expect(watched, case.incident, Progress::Starting);
                return;
            }
            Some(Case { incident, stage: Stage::AwaitingLife { .. }, .. })
                if self.is_being_replaced(&watched.vm) =>
            {
                // A command may end before what it leads to.
                info!(vm = watched.vm.name, "its QEMU is being replaced: {words}");
                self.expect(watched, incident, Progress::Expected(self.now() + FOUND_WITHIN));
                return;
            }
            Some(Case { mut incident, stage, .. }) => {
                let was_told =
                    matches!(stage, Stage::AwaitingLife { .. }) || !incident.attempts.is_empty();
                incident.outcome =
                    Some(if was_told { Outcome::NotRecovered } else { Outcome::Refused });
                incident.reason = format!("{}; then QEMU ended: {words}", incident.reason);
                incident
            }
            None if why.is_crash() => {
                warn!(vm = watched.vm.name, "its QEMU ended without being asked to: {words}");
                let reason = format!("QEMU is gone: {words}");
                Incident {
                    outcome: Some(Outcome::Refused),
                    ..self.new_incident(watched, Cause::QemuExited, reason)
                }
            }
            None => {
                info!(vm = watched.vm.name, "QEMU has ended: {words}");
                return;
            }
        };
        self.start_again(watched, incident, &why);
    }

    /// Whether what is being done to it ends its QEMU on purpose.
    fn is_being_replaced(&self, vm: &Vm) -> bool {
        let means = self.config.means_for(&vm.name);
        match chosen(&vm.ownership, &means) {
            Ok(Actuator::Systemd | Actuator::Command) => true,
            Ok(Actuator::Qmp) => {
                // Without a monitor, a unit is restarted, and a command run.
                vm.qmp_sockets.is_empty()
                    && (!means.command.is_empty()
                        || matches!(vm.ownership.owner, Owner::SystemdUnit { .. }))
            }
            _ => false,
        }
    }

    /// Has a VM started again whose QEMU ended so, as far as that is configured and policy lets it.
    fn start_again(&mut self, watched: &mut WatchedVm, mut incident: Incident, why: &Ending) {
        let means = self.config.means_for(&watched.vm.name);
        let refusal = if why.is_crash() {
            start_plan(&watched.vm.ownership, &means).err().map(|refusal| refusal.to_string())
        } else {
            Some("one that may have been stopped on purpose is not started".to_owned())
        };
        if let Some(refusal) = refusal {
            incident.reason = format!("{}; {refusal}", incident.reason);
            let recording = watched.recorder.evidence(&mut incident);
            self.scribe.write(&incident, Vec::new(), recording);
            return;
        }
        incident.outcome = None;
        let recording = watched.recorder.evidence(&mut incident);
        self.scribe.write(&incident, Vec::new(), recording);
        self.expect(watched, incident, Progress::Pausing(self.now()));
        self.start_due();
    }

    fn expect(&mut self, watched: &WatchedVm, incident: Incident, progress: Progress) {
        let (vm, terms) = (watched.vm.clone(), watched.terms.clone());
        self.owners.awaited.push(Awaited { vm, terms, incident, progress });
    }

    /// Starts those whose pause is over, and gives up those of whom no QEMU was found.
    pub(super) fn start_due(&mut self) {
        let now = self.now();
        for mut awaited in std::mem::take(&mut self.owners.awaited) {
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
                    self.owners.awaited.push(awaited);
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
                self.owners.awaited.push(awaited);
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
        let means = self.config.means_for(&awaited.vm.name);
        let incident = awaited.incident.clone();
        let wanted = Wanted::nothing(awaited.vm.clone(), incident.id.clone());
        let scene = scene_of(wanted, means, Err(None), &incident);
        let mut log =
            Log { scribe: self.scribe.clone(), store: self.store.clone(), incident, limit };
        let (id, messages) = (awaited.vm.id, self.messages.clone());
        tokio::spawn(async move {
            let result = start(&scene, &mut log).await;
            let _ = messages.send(Message::Restarted(id, log.incident.attempts, result));
        });
        awaited.progress = Progress::Starting;
        self.owners.awaited.push(awaited);
    }

    /// The owner of a VM whose QEMU is gone has been told to start it, or to replace it.
    pub(super) fn started(
        &mut self,
        id: VmId,
        attempts: Vec<Attempt>,
        result: Result<Restart, RestartError>,
    ) {
        let awaited = self.owners.awaited.iter().position(|awaited| awaited.vm.id == id);
        let Some(awaited) = awaited.map(|index| self.owners.awaited.swap_remove(index)) else {
            // Its QEMU ended by what should have reset it, or came back before this was heard of.
            return self.note_start(id, attempts, result);
        };
        let mut awaited = awaited;
        awaited.incident.attempts = attempts;
        match result {
            Ok(done) => {
                info!(vm = awaited.vm.name, "{}", done.action);
                note(&mut awaited.incident, &done);
                self.scribe.write(&awaited.incident, done.evidence, None);
                awaited.progress = Progress::Expected(self.now() + FOUND_WITHIN);
                self.owners.awaited.push(awaited);
            }
            Err(error) => {
                let why = in_full(&error);
                warn!(vm = awaited.vm.name, "start: {why}");
                awaited.incident.reason = format!("{}; {why}", awaited.incident.reason);
                let is_unit = matches!(awaited.vm.ownership.owner, Owner::SystemdUnit { .. });
                if is_unit && matches!(error, RestartError::Refused(_)) {
                    // systemd may be starting it by itself.
                    awaited.progress = Progress::Expected(self.now() + FOUND_WITHIN);
                    self.owners.awaited.push(awaited);
                    return;
                }
                let outcome = match error {
                    RestartError::Refused(_) | RestartError::NotAsked(_) => Outcome::Refused,
                    RestartError::StillWriting
                    | RestartError::Unknown(_)
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
        let case = self.vms.values_mut().find_map(|vm| vm.case.as_mut().filter(|c| is_of_it(c)));
        let Some(case) = case else { return };
        case.incident.attempts = attempts;
        match result {
            Ok(done) => {
                note(&mut case.incident, &done);
                self.scribe.write(&case.incident, done.evidence, None);
            }
            Err(error) => warn!(vm = case.incident.vm, "start: {}", in_full(&error)),
        }
    }

    fn conclude(&mut self, awaited: Awaited, outcome: Outcome) {
        let Awaited { vm, mut incident, .. } = awaited;
        warn!(vm = vm.name, "{}: {}", outcome.as_str(), incident.reason);
        incident.outcome = Some(outcome);
        self.scribe.write(&incident, Vec::new(), None);
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
        let is_it = |awaited: &Awaited| awaited.key() == key && awaited.vm.uid == vm.uid;
        let index = self.owners.awaited.iter().position(is_it)?;
        let Awaited { incident, .. } = self.owners.awaited.swap_remove(index);
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
        Some(((state, reason), Case { incident, stage, since: now }))
    }
}

fn note(incident: &mut Incident, done: &Restart) {
    incident.action = Some(done.action.clone());
    incident.action_at = Some(done.at);
    incident.name_evidence(&done.evidence);
}

fn scene_of(
    evidence: Wanted,
    means: Means,
    monitor: Result<crate::qmp::QmpHandle, Option<String>>,
    incident: &Incident,
) -> Scene {
    let Incident { id, cause, reason, .. } = incident;
    let (vm, incident) = (evidence.vm.clone(), (id.clone(), cause.clone(), reason.clone()));
    Scene { vm, means, monitor, incident, evidence }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_count_until_the_machine_is_reset() {
        let id = VmId { pid: 1, start_ticks: 2 };
        let said = QmpEvent::Shutdown { guest: true, reason: "guest-shutdown".to_owned() };
        let mut owners = Owners::default();
        owners.hear(id, &said);
        owners.hear(id, &QmpEvent::Stop);
        assert_eq!(owners.last_words.get(&id), Some(&said));
        owners.hear(id, &QmpEvent::Reset { guest: false });
        assert_eq!(owners.last_words.get(&id), None);
    }
}
