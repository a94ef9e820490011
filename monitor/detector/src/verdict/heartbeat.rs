//! Heartbeats of a guest's agent, and what their loss means.
//!
//! A beat is a sign of life like any other. Where beats were heard in this boot and stay away for
//! [`lost_after`], the guest is asked at once, however much its kernel still sends: one that is silent altogether is
//! evaluated as any suspect, only sooner; one with a kernel that goes on is *userland-dead*, or *service-dead* where the
//! agent says itself that what it checks has failed. That is told, and acted upon only where
//! [`Policy::restart_without_heartbeat`] says so: it stands beside the state, so that a crash is found as ever.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Act, Cause, DetectionPolicy, ROUNDS_TO_CONVICT, State, Testimony, Tick, Watch,
    inhibit::host_fault,
    outcome::{convict, questions},
};
use crate::{
    activity::{Activity, HeartbeatActivity},
    policy::Policy,
};

/// How long a guest may take to go down in good order: as long as systemd gives a service to end, and half a minute.
pub(crate) const LEAVING_PATIENCE: Duration = Duration::from_secs(120);

/// What is known of a guest's agent in this boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatState {
    /// The boot's number, by the agent's account.
    pub(crate) boot: u64,
    /// From one beat to the next, by its own account.
    pub interval: Duration,
    /// What it checks; empty: nothing.
    pub check: String,
    /// The last beat, or since when the next one is waited for; `None`: there was none yet.
    pub beat: Option<Duration>,
    /// When it last said anything.
    pub(crate) heard: Duration,
    /// Since when the guest has been going down in good order.
    pub leaving: Option<Duration>,
    /// Its beats stay away.
    pub missed: Option<HeartbeatLoss>,
}

/// Beats that stay away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatLoss {
    /// Since when that is known.
    pub(crate) since: Duration,
    /// Rounds of questions since then in which nothing of the guest's user space answered.
    pub(crate) rounds: u32,
    /// Those of many VMs stayed away at the same moment.
    pub(crate) stormy: bool,
    /// What was told of it.
    pub(crate) told: Option<Cause>,
    /// What is known of it, in words.
    pub(crate) reason: String,
}

/// How long beats may stay away that come each `interval`: `heartbeat_lost_after` of the policy, or three intervals and 2 s.
pub fn lost_after(interval: Duration, policy: &Policy, tick: Duration) -> Duration {
    let interval = interval.max(tick);
    match policy.heartbeat_lost_after {
        None => interval.saturating_mul(3).saturating_add(Duration::from_secs(2)),
        // An agent that beats more rarely than that is not lost between two beats.
        Some(configured) => configured.max(interval.saturating_add(tick * 2)),
    }
}

impl HeartbeatState {
    pub(super) fn patience(&self, detection: &DetectionPolicy) -> Duration {
        lost_after(self.interval, &detection.policy, detection.tick)
    }

    /// Whether that is too long. Ticks are never on the dot: a hair's breadth too short is long enough.
    fn is_too_long(&self, silence: Duration, detection: &DetectionPolicy) -> bool {
        silence + detection.tick / 2 >= self.patience(detection)
    }

    /// For how long beats have stayed away, where that is too long.
    fn away(&self, detection: &DetectionPolicy, now: Duration) -> Option<Duration> {
        let away = now.saturating_sub(self.beat?);
        (self.leaving.is_none() && self.is_too_long(away, detection)).then_some(away)
    }
}

/// What an agent said, as a sign of life.
pub(super) fn sign(said: &HeartbeatActivity) -> String {
    match (said.leaving, said.failed) {
        (true, _) => "its agent says that it goes down".to_owned(),
        (false, true) => format!("its agent says that its check {} failed", said.check),
        (false, false) => "its agent's heart beats".to_owned(),
    }
}

/// Takes note of what the agent said during a tick.
pub(super) fn note(watch: &mut Watch, activity: &Activity, now: Duration) {
    let Ok(Some(said)) = &activity.heartbeat else { return };
    if watch.boot.heartbeat.as_ref().is_some_and(|heartbeat| heartbeat.boot != said.boot) {
        // Where QEMU doesn't tell of resets, nothing else does.
        watch.reboot(now, "its agent told of another boot");
    }
    let begin = || HeartbeatState { boot: said.boot, ..HeartbeatState::default() };
    let heartbeat = watch.boot.heartbeat.get_or_insert_with(begin);
    heartbeat.interval = said.interval;
    heartbeat.check.clone_from(&said.check);
    heartbeat.heard = now;
    heartbeat.leaving = said.leaving.then(|| heartbeat.leaving.unwrap_or(now));
    if said.beats > 0 {
        heartbeat.beat = Some(now);
    }
}

/// Its heart beat last at `beat`, which was noted later than that.
pub(super) fn beat_at(watch: &mut Watch, beat: Option<Duration>) {
    let began = watch.boot.began;
    if let (Some(heartbeat), Some(beat)) =
        (&mut watch.boot.heartbeat, beat.filter(|beat| *beat >= began))
    {
        heartbeat.beat = heartbeat.beat.map(|_| beat);
        heartbeat.heard = beat;
    }
}

/// That the guest goes down in good order, while it may take its time for that.
pub(super) fn leaving(watch: &mut Watch, now: Duration) -> Option<String> {
    let since = watch.boot.heartbeat.as_ref()?.leaving?;
    let seconds = now.saturating_sub(since).as_secs();
    if now.saturating_sub(since) < LEAVING_PATIENCE {
        return Some(format!("its agent said {seconds} s ago that it goes down in good order"));
    }
    // It was the agent alone that was told to end.
    watch.boot.heartbeat = None;
    None
}

/// The policy for a guest that has lost its beats: it is suspected as soon as that is known.
pub(super) fn sooner(
    watch: &Watch,
    detection: &DetectionPolicy,
    now: Duration,
) -> Option<DetectionPolicy> {
    let heartbeat = watch.boot.heartbeat.as_ref()?;
    let patience = heartbeat.patience(detection);
    let lost = patience < detection.policy.flat_for
        && heartbeat.away(detection, now).is_some()
        // From then on it is judged as if it had no agent.
        && heartbeat.missed.as_ref().is_none_or(|missed| missed.told.is_none());
    lost.then(|| {
        let policy = Policy { flat_for: patience, ..detection.policy.clone() };
        DetectionPolicy { policy, tick: detection.tick }
    })
}

/// Looks for lost beats, at the end of a tick in which nothing else was to be done. `stormy`: many VMs are silent
/// together.
pub(super) fn miss(
    watch: &mut Watch,
    tick: &Tick,
    stormy: bool,
    held_up: bool,
    detection: &DetectionPolicy,
    now: Duration,
) -> Act {
    if watch.boot.heartbeat.is_none() {
        return Act::Nothing;
    }
    let excused = held_up
        || tick.activity.heartbeat.is_err()
        || host_fault(watch, tick).is_some()
        || !matches!(watch.state, State::Starting | State::Alive | State::Suspect { .. });
    // What speaks against a silent guest is more than that.
    let is_suspect = matches!(watch.state, State::Suspect { .. });
    let asks = questions(watch, &detection.policy, now);
    let Some(heartbeat) = &mut watch.boot.heartbeat else { return Act::Nothing };
    if heartbeat.leaving.is_some() || heartbeat.beat.is_none() {
        return Act::Nothing;
    }
    let told = heartbeat.missed.as_ref().is_some_and(|missed| missed.told.is_some());
    if excused && !told {
        (heartbeat.beat, heartbeat.heard, heartbeat.missed) = (Some(now), now, None);
    }
    let Some(away) = heartbeat.away(detection, now) else {
        heartbeat.missed = None;
        return if told { Act::BeatsAgain } else { Act::Nothing };
    };
    if excused || is_suspect || told {
        return Act::Nothing;
    }
    let speaks = !heartbeat.is_too_long(now.saturating_sub(heartbeat.heard), detection);
    let begin = || HeartbeatLoss { since: now, ..HeartbeatLoss::default() };
    let missed = heartbeat.missed.get_or_insert_with(begin);
    let seconds = away.as_secs_f64();
    missed.reason = if speaks {
        format!("its check {} has failed for {seconds:.0} s, its agent says", heartbeat.check)
    } else {
        format!("its agent's last beat was heard {seconds:.0} s ago, and its kernel lives")
    };
    let cause = if speaks { Cause::ServiceDead } else { Cause::UserlandDead };
    let restarts = detection.policy.restart_without_heartbeat && !missed.stormy;
    // A service that is only restarted fails its check for a while, too.
    let lasted = away >= detection.policy.flat_for;
    let proved =
        if speaks { lasted || !restarts } else { lasted && missed.rounds >= ROUNDS_TO_CONVICT };
    if stormy || tick.undecided || !proved {
        return Act::Ask(asks);
    }
    let reason = missed.reason.clone();
    if restarts {
        return convict(watch, cause, reason, now);
    }
    missed.told = Some(cause);
    watch.reason = reason;
    Act::Report(cause)
}

/// Beats that stay away while many VMs are silent together are never a reason to restart their guest.
pub(super) fn storm_changed(watch: &mut Watch) {
    if let (Some(_), Some(HeartbeatState { missed: Some(missed), .. })) =
        (&watch.storm, &mut watch.boot.heartbeat)
    {
        missed.stormy = true;
    }
}

/// Counts a round in which a guest with lost beats was asked.
pub(super) fn asked(watch: &mut Watch, said: &Testimony) {
    let Some(HeartbeatState { missed: Some(missed), .. }) = &mut watch.boot.heartbeat else {
        return;
    };
    if missed.told.is_some() {
        return;
    }
    if said.user_space_lives() {
        // It is the agent alone that is gone; it is waited for no longer.
        watch.boot.heartbeat = None;
    } else {
        missed.rounds = missed.rounds.saturating_add(1);
    }
}

impl Watch {
    /// The state as it is shown: its name, a cause and a reason. Lost beats make a suspect of a guest that lives.
    pub fn shown_state(&self) -> (&'static str, Option<Cause>, &str) {
        match (&self.state, self.missed_beats()) {
            (State::Starting | State::Alive, Some(missed)) => {
                ("suspect", missed.told, &missed.reason)
            }
            (state, _) => (state.name(), state.cause(), &self.reason),
        }
    }

    /// The loss of the agent's beats, where they stay away.
    pub fn missed_beats(&self) -> Option<&HeartbeatLoss> {
        self.boot.heartbeat.as_ref()?.missed.as_ref()
    }

    /// Whether its agent said anything in the tick that ended at `now`.
    pub(super) fn agent_speaks(&self, now: Duration) -> bool {
        self.boot.heartbeat.as_ref().is_some_and(|heartbeat| heartbeat.heard == now)
    }

    /// Whether a beat came in the tick that ended at `now`.
    pub(super) fn beats(&self, now: Duration) -> bool {
        self.boot
            .heartbeat
            .as_ref()
            .is_some_and(|heartbeat| heartbeat.beat == Some(now) && self.agent_speaks(now))
    }
}
