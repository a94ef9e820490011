//! Respawns: VMs whose QEMU is gone, from there to the QEMU that takes its place.
//!
//! Until the new one is found, the incident is kept among the [`Respawn`]s; the new QEMU takes it up, and is waited for
//! like any guest that was reset.

use std::time::Duration;

use tracing::{info, warn};

use super::{
    Case, Clearance, Effect, EventKind, Restart, RestartError, Stage, Supervisor,
    case::{Progress, Respawn},
    evidence::Wanted,
    locked::LOOKED_AT_EVERY,
    places::Place,
    restart_context::context_of,
};
use crate::{
    identity::Key,
    storage::incident::{Attempt, Incident, Outcome},
    vm::{Context, Vms, WatchedVm},
};
use flatline_detector::verdict::{Cause, DetectionPolicy, State, Tally};
use flatline_qemu::{
    discover::{Owner, Vm, VmId},
    text::error_chain,
};

/// After its owner's program ended well, the new QEMU has so long to be found: a sweep comes every 10 s.
pub(super) const FOUND_WITHIN: Duration = Duration::from_secs(30);
/// Once its QEMU is gone, a VM's lock has so long to go: Proxmox VE's freeze of a guest's file systems waits ten minutes for it.
const UNLOCKED_WITHIN: Duration = Duration::from_secs(15 * 60);

impl Supervisor {
    /// Starts the VMs whose pause is over, and gives up those of which no QEMU was found.
    pub(crate) fn start_due(&mut self, vms: &Vms, context: &Context<'_>) {
        let now = context.now;
        for mut respawn in std::mem::take(&mut self.respawns) {
            match respawn.progress {
                Progress::Pausing(until) if until <= now => {
                    self.start_if_cleared(respawn, None, vms, context);
                }
                Progress::Expected(until) if until <= now => {
                    let incident = &mut respawn.incident;
                    incident.reason = format!("{}; no QEMU came back", incident.reason);
                    let was_told = !incident.attempts.is_empty();
                    let outcome = if was_told { Outcome::NotRecovered } else { Outcome::Refused };
                    self.conclude(respawn, outcome);
                }
                Progress::Pausing(_)
                | Progress::AwaitingPlace
                | Progress::Starting
                | Progress::Expected(_) => {
                    self.respawns.push(respawn);
                }
            }
        }
    }

    /// Starts a VM at its `place` among the host's restarts, or at the next one, as far as policy lets it.
    pub(super) fn start_if_cleared(
        &mut self,
        mut respawn: Respawn,
        place: Option<Place>,
        vms: &Vms,
        context: &Context<'_>,
    ) {
        if let Some(other) = vms.values().find(|other| stands_for(other, &respawn)) {
            let (reason, pid) = (&respawn.incident.reason, other.vm.id.pid);
            respawn.incident.reason =
                format!("{reason}; another QEMU of its name runs already: process {pid}");
            return self.conclude(respawn, Outcome::Refused);
        }
        let clearance = self.clearance_for(&respawn.key, &respawn.detection.policy, context);
        let (outcome, why) = match clearance {
            Clearance::Granted(limit) => {
                let room = self.room(context);
                let (vm, uid) = (respawn.vm.id, respawn.vm.origin.uid);
                match place.map_or_else(|| self.places.ask(vm, uid, room), Ok) {
                    Ok(place) => self.begin_start(respawn, limit, place, context),
                    Err(why) => {
                        info!(vm = respawn.vm.name, "waits for its turn to be started: {why}");
                        respawn.progress = Progress::AwaitingPlace;
                        self.respawns.push(respawn);
                    }
                }
                return;
            }
            Clearance::Wait(left, why) => {
                info!(vm = respawn.vm.name, "not started yet: {why}");
                respawn.progress = Progress::Pausing(context.now + left);
                self.respawns.push(respawn);
                return;
            }
            Clearance::ObserveOnly => {
                (Outcome::Observed, "only observing, nothing is started".to_owned())
            }
            Clearance::Held(why) => (Outcome::Observed, why),
            Clearance::LimitReached(why) => (Outcome::LimitReached, why),
        };
        respawn.incident.reason = format!("{}; {why}", respawn.incident.reason);
        self.conclude(respawn, outcome);
    }

    /// Gives the VMs that wait to be started the policies of another configuration.
    pub(crate) fn set_policies(&mut self, policy_of: impl Fn(&Vm) -> DetectionPolicy) {
        for respawn in &mut self.respawns {
            respawn.detection = policy_of(&respawn.vm);
        }
    }

    fn begin_start(
        &mut self,
        mut respawn: Respawn,
        limit: String,
        place: Place,
        context: &Context<'_>,
    ) {
        let actuation = context.config.actuation_for(&respawn.vm.name, respawn.vm.origin.uid);
        let incident = &respawn.incident;
        let wanted = Wanted::nothing(respawn.vm.clone(), incident.id.clone());
        let start = Box::new(context_of(wanted, actuation, Err(None), incident));
        let journal = self.journal(incident, limit, Some(place));
        self.effects.push(Effect::Start { vm: respawn.vm.id, context: start, journal });
        respawn.progress = Progress::Starting;
        self.respawns.push(respawn);
    }

    /// The owner of a VM whose QEMU is gone has been told to start it, or to replace it.
    pub(crate) fn started(
        &mut self,
        vms: &mut Vms,
        id: VmId,
        attempts: Vec<Attempt>,
        result: Result<Restart, RestartError>,
        context: &Context<'_>,
    ) {
        let respawn = self.respawns.iter().position(|respawn| respawn.vm.id == id);
        let Some(mut respawn) = respawn.map(|index| self.respawns.swap_remove(index)) else {
            // Its QEMU ended by what should have reset it, or came back before this was heard of.
            return self.note_start(vms, id, attempts, result);
        };
        respawn.incident.attempts = attempts;
        match result {
            Ok(done) => {
                info!(vm = respawn.vm.name, "{}", done.action);
                note(&mut respawn.incident, &done);
                self.writer.write(&respawn.incident, done.kept.files, None);
                respawn.progress = Progress::Expected(context.now + FOUND_WITHIN);
                self.respawns.push(respawn);
            }
            Err(RestartError::Locked(why)) if may_be_unlocked(&respawn.incident, context) => {
                info!(vm = respawn.vm.name, "not started yet: {why}");
                respawn.progress = Progress::Pausing(context.now + LOOKED_AT_EVERY);
                self.respawns.push(respawn);
            }
            Err(error) => {
                let why = error_chain(&error);
                warn!(vm = respawn.vm.name, "start: {why}");
                respawn.incident.reason = format!("{}; {why}", respawn.incident.reason);
                let starts_itself = matches!(
                    respawn.vm.ownership.owner,
                    Owner::SystemdUnit { .. } | Owner::Proxmox { .. }
                );
                if starts_itself && matches!(error, RestartError::Refused(_)) {
                    // systemd, or HA, may be starting it by itself.
                    respawn.progress = Progress::Expected(context.now + FOUND_WITHIN);
                    self.respawns.push(respawn);
                    return;
                }
                let outcome = match error {
                    RestartError::Refused(_)
                    | RestartError::Locked(_)
                    | RestartError::Unlocked
                    | RestartError::NotAsked(_) => Outcome::Refused,
                    RestartError::StillWriting
                    | RestartError::Overtaken { .. }
                    | RestartError::Unknown(_)
                    | RestartError::Lost { .. }
                    | RestartError::Step { .. }
                    | RestartError::Owner { .. }
                    | RestartError::NotRunning { .. } => Outcome::NotRecovered,
                };
                self.conclude(respawn, outcome);
            }
        }
    }

    /// The new QEMU was found before its owner's program had ended: the case has moved on to that one.
    fn note_start(
        &self,
        vms: &mut Vms,
        id: VmId,
        attempts: Vec<Attempt>,
        result: Result<Restart, RestartError>,
    ) {
        let is_of_it = |case: &Case| {
            let Incident { pid, start_ticks, .. } = case.incident;
            pid == id.pid && start_ticks == id.start_ticks
        };
        let case =
            vms.values_mut().find_map(|vm| vm.recovery.case.as_mut().filter(|c| is_of_it(c)));
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

    fn conclude(&mut self, respawn: Respawn, outcome: Outcome) {
        let Respawn { mut incident, .. } = respawn;
        incident.outcome = Some(outcome);
        self.writer.say(EventKind::Closed(outcome), &incident);
    }

    /// Takes up a QEMU that was found now, where it is an expected one: as a guest that was restarted.
    pub(super) fn adopt(
        &mut self,
        vm: &Vm,
        detection: &DetectionPolicy,
        context: &Context<'_>,
    ) -> Option<((State, String), Case)> {
        let found = Key::of(vm);
        let index = self.respawns.iter().position(|respawn| may_be(&found, respawn))?;
        let Respawn { incident, .. } = self.respawns.swap_remove(index);
        let now = context.now;
        let cause = Cause::parse(&incident.cause).unwrap_or(Cause::QemuExited);
        let told_at = incident.attempts.last().and_then(|last| last.reset_at);
        let since = incident.action_at.or(told_at).unwrap_or(context.wall);
        let state = State::Recovering {
            cause,
            deadline: now + detection.policy.boot_grace,
            tally: Tally::default(),
            was_up: incident.was_up,
        };
        let reason = format!("started anew because it was {cause}; waiting for a sign of life");
        info!(vm = vm.name, pid = vm.id.pid, "{reason}");
        let stage = Stage::AwaitingLife { since };
        Some(((state, reason), Case::new(incident, stage, now)))
    }
}

/// Whether the lock of a VM that is to be started is waited for: what worked on it ends soon once its QEMU is gone, and a lock
/// that stays is one that was left behind.
fn may_be_unlocked(incident: &Incident, context: &Context<'_>) -> bool {
    let waited = context.wall.duration_since(incident.detected_at);
    waited.is_ok_and(|waited| waited < UNLOCKED_WITHIN)
}

/// Whether a QEMU with the key `found` may be the one that is expected. One that root started may give its rights up later
/// (`-runas`); no other user can start one as root.
fn may_be(found: &Key, respawn: &Respawn) -> bool {
    found.claim == respawn.key.claim && (found.uid == respawn.key.uid || found.uid == Some(0))
}

/// Whether `other` is what is to be started: what claims to be it, and is of its user. An owner that certainly started it knows
/// by itself what it started; what another one did is not that.
fn stands_for(other: &WatchedVm, respawn: &Respawn) -> bool {
    let (theirs, its) = (&other.vm.ownership, &respawn.vm.ownership);
    may_be(&other.key, respawn) && (!its.is_certain || theirs.owner == its.owner)
}

fn note(incident: &mut Incident, done: &Restart) {
    incident.action = Some(done.action.clone());
    incident.action_at = Some(done.at);
    incident.name_evidence(&done.kept.files);
}
