//! Cases: from a conviction to what came of it.
//!
//! One crash is one incident, however often the guest has to be restarted for it (`restarts`). What is to be done is
//! written down before it is done (`incident_writer`), so that whoever comes after this daemon goes on where it was ended
//! (`resume`).

use std::time::SystemTime;

use tracing::info;

use super::engine::Engine;
use crate::{
    recovery::{Case, Circumstances, Clearance, EventKind, HOST_WINDOW, Stage, Tries, clearance},
    storage::incident::{Incident, Outcome},
    vm::WatchedVm,
};
use flatline_detector::{
    policy::Policy,
    verdict::{Cause, Input, State},
};
use flatline_qemu::discover::VmId;

impl Engine {
    /// A VM was convicted just now.
    pub(super) fn convicted(&mut self, id: VmId, cause: Cause) {
        let now = self.now();
        let Some(watched) = self.vms.get_mut(&id) else { return };
        let reason = watched.detector.watch.reason.clone();
        let silence = watched.detector.watch.quiet.since_life(now);
        let earlier = watched.recovery.case.take().filter(|case| case.stage.is_open());
        let is_news = earlier.is_none();
        // One that was not restarted, or showed no life since, crashed once and not twice.
        let (incident, tries) = match earlier {
            Some(Case { incident, tries, .. }) => {
                (Incident { reason, outcome: None, ..incident }, tries)
            }
            None => {
                let Some(watched) = self.vms.get(&id) else { return };
                let incident = self.new_incident(watched, cause, reason);
                let detect_seconds = Some(silence.as_secs_f64());
                (Incident { detect_seconds, ..incident }, Tries::default())
            }
        };
        if is_news {
            self.writer.events.emit(EventKind::Detected, &incident);
        }
        let Some(watched) = self.vms.get_mut(&id) else { return };
        let case = Case::new(incident, Stage::WaitingForMonitor, now);
        watched.recovery.case = Some(Case { tries, ..case });
        self.proceed(id, cause);
    }

    /// Restarts a convicted VM, as far as policy lets it.
    pub(super) fn proceed(&mut self, id: VmId, cause: Cause) {
        let now = self.now();
        let Some(watched) = self.vms.get(&id) else { return };
        let clearance = self.clearance(watched);
        let Some(watched) = self.vms.get_mut(&id) else { return };
        let Some(case) = &mut watched.recovery.case else { return };
        match clearance {
            Clearance::Granted(limit) => self.begin_restart(id, limit),
            Clearance::Wait(left, why) => {
                let begins = !matches!(case.stage, Stage::Pausing { .. });
                case.stage = Stage::Pausing { until: now + left };
                if begins {
                    let left = humantime::format_duration(std::time::Duration::from_secs(
                        left.as_secs().saturating_add(1),
                    ));
                    let incident = &case.incident.id;
                    info!(vm = watched.vm.name, incident, "restarted in {left} and not now: {why}");
                    watched.detector.watch.reason =
                        format!("{}; restarted in {left}: {why}", case.incident.reason);
                    self.writer.write(&case.incident, Vec::new(), None);
                }
            }
            Clearance::ObserveOnly => {
                self.close(id, Outcome::Observed, Some("only observing, nothing is touched"));
            }
            Clearance::Held(why) => self.leave_on_hold(id, &why),
            Clearance::LimitReached(why) => {
                watched.step(&Input::LimitReached { cause, reason: why.clone() }, now);
                self.close(id, Outcome::LimitReached, Some(&why));
            }
        }
    }

    pub(super) fn clearance_of(&self, id: VmId) -> Option<Clearance> {
        self.vms.get(&id).map(|watched| self.clearance(watched))
    }

    fn clearance(&self, watched: &WatchedVm) -> Clearance {
        self.clearance_for(watched.key(), &watched.detector.terms.policy)
    }

    /// The same of a VM whose restarts are counted under `key`.
    pub(super) fn clearance_for(&self, key: &str, policy: &Policy) -> Clearance {
        let now = SystemTime::now();
        let held = self.ledger.held(key, now);
        let since = now.checked_sub(HOST_WINDOW).unwrap_or(SystemTime::UNIX_EPOCH);
        clearance(&Circumstances {
            policy,
            held: held.as_deref(),
            restarts: &self.restarts_of(key, policy),
            on_host: &self.store.restarts_since(None, since),
            most_on_host: self.config.max_restarts_per_minute,
            now,
        })
    }

    /// The record of a crash that was found just now.
    pub(super) fn new_incident(
        &self,
        watched: &WatchedVm,
        cause: Cause,
        reason: String,
    ) -> Incident {
        let (detected_at, name) = (SystemTime::now(), &watched.vm.name);
        let id = self.store.new_id(detected_at, name);
        Incident {
            uuid: watched.vm.uuid.clone(),
            pid: watched.vm.id.pid,
            start_ticks: watched.vm.id.start_ticks,
            last_sign_of_life: Some(self.wall_clock(watched.detector.watch.quiet.life)),
            held_seconds: Some(watched.detector.watch.quiet.held.as_secs_f64()),
            ..Incident::new(id, name.clone(), cause.to_string(), reason, detected_at)
        }
    }

    /// The guest reset itself, which counts towards its limit like a restart, and outlives this daemon.
    pub(super) fn guest_reset(&mut self, id: VmId, times: usize) {
        let Some(watched) = self.vms.get(&id) else { return };
        info!(vm = watched.vm.name, times, "the guest reset itself");
        let now = SystemTime::now();
        self.ledger.note_reset(watched.key(), now);
        if let Some(page) = self.ledger.page(now) {
            self.writer.write_ledger(page, None);
        }
    }

    /// A guest that resets itself again and again is not helped by one more reset.
    pub(super) fn given_up(&mut self, id: VmId, cause: Cause) {
        self.close(id, Outcome::NotRecovered, None);
        let now = self.now();
        let Some(watched) = self.vms.get(&id) else { return };
        let mut incident = Incident {
            outcome: Some(Outcome::LimitReached),
            ..self.new_incident(watched, cause, watched.detector.watch.reason.clone())
        };
        let recording = watched.detector.recorder.evidence(&mut incident);
        self.writer.events.emit(EventKind::Closed(Outcome::LimitReached), &incident);
        self.writer.write(&incident, Vec::new(), recording);
        if let Some(watched) = self.vms.get_mut(&id) {
            watched.recovery.case = Some(Case::new(incident, Stage::Closed, now));
        }
    }

    /// Something is wrong inside of a guest that is left alone all the same.
    pub(super) fn told(&mut self, id: VmId, cause: Cause) {
        let Some(watched) = self.vms.get(&id) else { return };
        let reason = watched.detector.watch.reason.clone();
        let mut incident = Incident {
            outcome: Some(Outcome::Observed),
            ..self.new_incident(watched, cause, format!("{reason}; it is only told"))
        };
        let recording = watched.detector.recorder.evidence(&mut incident);
        self.writer.events.emit(EventKind::AgentLost, &incident);
        self.writer.write(&incident, Vec::new(), recording);
        if let Some(watched) = self.vms.get_mut(&id) {
            watched.recovery.reported = Some(incident);
        }
    }

    /// What was told of a guest is over.
    pub(super) fn beats_again(&mut self, id: VmId) {
        let Some(watched) = self.vms.get_mut(&id) else { return };
        let Some(mut incident) = watched.recovery.reported.take() else { return };
        let now = SystemTime::now();
        incident.recovered_at = Some(now);
        incident.recover_seconds =
            now.duration_since(incident.detected_at).ok().map(|took| took.as_secs_f64());
        incident.reason = format!("{}; its heart beats again", incident.reason);
        self.writer.events.emit(EventKind::AgentBack, &incident);
        self.writer.write(&incident, Vec::new(), None);
    }

    /// When the VM was restarted, or its guest reset itself, as far as that counts towards its limit now.
    pub(super) fn restarts_in_window(&self, watched: &WatchedVm) -> Vec<SystemTime> {
        self.restarts_of(watched.key(), &watched.detector.terms.policy)
    }

    fn restarts_of(&self, key: &str, policy: &Policy) -> Vec<SystemTime> {
        let window = SystemTime::now().checked_sub(policy.window);
        let since = self.ledger.counts_from(key);
        let since = since.max(window.unwrap_or(SystemTime::UNIX_EPOCH));
        let mut times = self.store.restarts_since(Some(key), since);
        times.extend(self.ledger.resets_since(key, since));
        times.sort_unstable();
        times
    }

    /// A guest that was convicted lives after all, or came back by a restart that nobody saw the end of.
    pub(super) fn lives_after_all(&mut self, id: VmId) {
        let Some(watched) = self.vms.get_mut(&id) else { return };
        let Some(case) = &mut watched.recovery.case else { return };
        let waits = case.stage.is_open() && !matches!(case.stage, Stage::AwaitingLife { .. });
        let heard = watched.detector.watch.line.heard.is_some_and(|at| at > case.since);
        if !(waits && heard && watched.detector.watch.state == State::Alive) {
            return;
        }
        // A later crash is another one, for a later daemon as well.
        let lived_at = SystemTime::now();
        if let (Some(last), None) = (case.incident.attempts.last(), case.incident.outcome) {
            let at = last.reset_at.unwrap_or(last.begun_at);
            case.incident.action.get_or_insert_with(|| "system_reset".to_owned());
            case.incident.action_at = Some(at);
            case.incident.recovered_at = Some(lived_at);
            case.incident.recover_seconds =
                lived_at.duration_since(at).ok().map(|took| took.as_secs_f64());
            self.close(id, Outcome::Recovered, None);
        } else if case.incident.outcome.is_none() {
            self.writer.events.emit(EventKind::AliveAgain, &case.incident);
            case.incident.reason = format!("{}; it lives after all", case.incident.reason);
            case.incident.recovered_at = Some(lived_at);
            self.note_outcome(id, Outcome::Refused, None);
        } else {
            case.stage = Stage::Closed;
            case.incident.recovered_at = Some(lived_at);
            self.writer.write(&case.incident, Vec::new(), None);
        }
    }

    pub(super) fn refuse(&mut self, id: VmId, why: &str, stage: Stage) {
        self.close(id, Outcome::Refused, Some(why));
        if let Some(case) = self.vms.get_mut(&id).and_then(|watched| watched.recovery.case.as_mut())
        {
            case.stage = stage;
        }
    }

    /// Says and writes down the outcome, and why where that isn't plain.
    pub(super) fn close(&mut self, id: VmId, outcome: Outcome, why: Option<&str>) {
        let Some(watched) = self.vms.get_mut(&id) else { return };
        let Some(case) = &mut watched.recovery.case else { return };
        if case.stage == Stage::Closed {
            return;
        }
        self.note_outcome(id, outcome, why);
        if let Some(case) = self.vms.get(&id).and_then(|watched| watched.recovery.case.as_ref()) {
            self.writer.events.emit(EventKind::Closed(outcome), &case.incident);
        }
    }

    /// Writes down the outcome, and why where that isn't plain.
    fn note_outcome(&mut self, id: VmId, outcome: Outcome, why: Option<&str>) {
        let Some(watched) = self.vms.get_mut(&id) else { return };
        let Some(case) = &mut watched.recovery.case else { return };
        case.stage = Stage::Closed;
        case.incident.outcome = Some(outcome);
        if let Some(why) = why {
            case.incident.reason = format!("{}; {why}", case.grounds);
            // What the operator sees says both what it died of and why nothing was done.
            if matches!(watched.detector.watch.state, State::Crashed { .. }) {
                case.incident.reason.clone_into(&mut watched.detector.watch.reason);
            }
        }
        let recording = watched.detector.recorder.evidence(&mut case.incident);
        self.writer.write(&case.incident, Vec::new(), recording);
    }
}
