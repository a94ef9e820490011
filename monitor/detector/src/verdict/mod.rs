//! Stage five: the verdict. Pure: no clock, no I/O; `now` comes in, and all that leaves is a state and a
//! decision with its reason. All that it is told is an [`Input`]: what a recording holds is exactly that.
//!
//! ```text
//!             first sign of life, or the grace is over
//!   Starting ────────────────────────────────────────▶ Alive ◀───────────────┐
//!      ▲                                               │  ▲                  │
//!      │ the guest resets itself,             flat_for │  │ any witness      │ sign of life
//!      │ or is reset from elsewhere                    ▼  │ acquits          │
//!      └────────── (any but Recovering)               Suspect                │
//!                                                      │  the evidence is    │
//!               the guest or KVM said so               ▼  complete           │
//!   (any but Failed) ──────────────────────────────▶ Crashed ────────────────┤
//!                                     restart begun ▼     ▲ convicted anew   │
//!                                                Recovering ─────────────────┤
//!               it resets itself again and again                             │
//!   (any) ───────────────────────────▶ Failed ◀── limit reached (Crashed)    │
//!                                        └───────────────────────────────────┘
//!
//!   Starting, Alive,  ──paused, migrating, host at fault,──▶ Held ───────── when that ends, as it was:
//!   Suspect             a storm, a witness' excuse                          Alive, Suspect or Starting
//!                     ──a figure that is needed is missing─▶ Unobservable ─ sign of life: Alive,
//!   Crashed           ──it writes its own dump─────────────▶ Held           none for flat_for: Suspect
//!   Crashed, Failed   ──it may be restarted now────────────▶ Suspect
//! ```
//!
//! - *Starting* ends with the first sign of life or with the boot grace, whichever comes first.
//! - *Alive* becomes *Suspect* after `flat_for` without a packet from the guest or a completed request.
//! - *Suspect* is asked, round after round; one answer acquits, and a conviction takes at least
//!   `ROUNDS_TO_CONVICT` rounds that agree with each other and with the vCPUs' level.
//! - *Crashed* is left through what recovery reports (a refusal for a reason outside of the guest, or a guest
//!   that is found writing its dump, makes it *Held*; a monitor that answers again, a suspect), or because the
//!   guest lives after all.
//! - *Recovering* waits for life until its deadline, and is then asked like a suspect: a guest that does
//!   nothing which can be seen may have come back all the same. Life in the firmware is none. One that is
//!   reset meanwhile has its boot grace, and is not asked before that is over.
//! - *Unobservable* lasts on when all figures are there again, until the guest is heard or has been silent for
//!   `flat_for`: a sensor that comes and goes must not make a dead guest look alive.
//! - *Held* and *Unobservable* never convict a guest, whatever else is seen. A guest that a witness excuses
//!   is asked on, until no witness does.
//! - The end of *Held* is no sign of life. A guest that was suspected or convicted before, or has been silent for `flat_for` though
//!   it could show life, is a *Suspect* then: time in which the host was at fault is silence, a pause is none ([`Silence`]).
//!   What speaks against it has to last for `flat_for` once more.
//! - An answer or an excuse that is heard while no verdict may be given is not lost: the window that follows begins after it.
//! - A guest that the host starves is asked, too, once it has been silent for `flat_for`. What it says or shows itself (last
//!   words, vCPUs that no interrupt can reach) makes a *Suspect* of it, which is tried on however it is starved; how late it
//!   answers does not. Last words end all that a kernel does by itself; one that is only unreachable may be about to
//!   reboot, and must have had the time for that.
//! - A storm holds no guest that is deaf by its registers, or said its last words: no host makes a healthy guest look so. What
//!   else speaks against it counts for nothing meanwhile.
//! - What a guest was convicted of while it was not to be touched stands: once it may be, it is a *Suspect*, and two rounds
//!   convict it, without a silence anew. The same goes for one that an earlier daemon found dead, after its window.
//! - A QEMU whose monitor does not answer makes its guest *Unobservable*, and may
//!   be convicted itself, of hanging: see `qemu_hang`.
//! - A guest whose agent no longer beats, or says that what it checks has failed, is asked though its kernel lives, and
//!   told of as a suspect while it stays where it is: see `heartbeat`.
//! - *Failed* after resets of the guest's own ends when it has lived for `LOOP_OVER_AFTER` without one.

mod announcements;
mod boot;
mod evaluate;
mod heartbeat;
mod inhibit;
mod input;
mod liveness;
mod outcome;
mod qemu_hang;
mod rest;
mod silence;
mod starvation;
mod state;
mod step;
mod storm;
mod storm_time;
mod testimony;
#[cfg(test)]
mod tests;
mod window;

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

pub use boot::{Boot, Dump};
#[cfg(test)]
pub(crate) use heartbeat::LEAVING_PATIENCE;
pub use heartbeat::{HeartbeatLoss, HeartbeatState, lost_after};
pub use input::{DetectionPolicy, Input, Monitor, Tick};
pub use liveness::{Liveness, PINNED_RATIO, STILL_BUSY_RATIO};
pub use rest::{LONGEST_REST, Rest};
pub use silence::Silence;
pub use state::{Cause, State};
pub use storm::{StormAssessment, assess_storm, is_silent, storage_stalls};
pub use storm_time::{STORM_HOLDS_FOR, StormTime};
pub use testimony::{Answer, Questions, Statement, Tally, Testimony, WitnessName};

/// Rounds in a row that must show dead registers before a silent guest is convicted.
pub(crate) const ROUNDS_TO_CONVICT: u32 = 2;
/// Rounds in a row in which every witness that had answered before must be silent where nothing else speaks
/// against the guest: a host under load may delay an answer, and an interface may be taken down on purpose.
pub(crate) const SILENT_ROUNDS_TO_CONVICT: u32 = 3;
/// Rounds of questions are at least so far apart at first, ..
pub(crate) const HURRIED_ROUNDS_APART: Duration = Duration::from_millis(500);
/// .. for so long after the state was entered in which it is asked, or for so many rounds after a restart, ..
const HURRIED_FOR: Duration = Duration::from_secs(5);
const HURRIED_ROUNDS: u32 = 6;
/// .. and then so far: five minutes of a suspect's recording fit into its ring, and QEMU is asked 3 to 5 things a second.
pub const ROUNDS_APART: Duration = Duration::from_secs(3);
/// The least time that a restarted guest has to show life: a firmware's menu and a file system check
/// take longer than a short boot grace.
pub(crate) const LEAST_RECOVERY_PATIENCE: Duration = Duration::from_secs(60);
/// A guest that announced a crash dump of its own, or writes on after its panic, is left to it for this long.
pub(crate) const DUMP_PATIENCE: Duration = Duration::from_secs(600);
/// A guest that announced a crash dump boots another kernel first, which may take so long without a write.
pub(crate) const DUMP_BOOTS_WITHIN: Duration = Duration::from_secs(60);
/// Resets of the guest's own within this time are one: a single one gives up to four events.
pub(crate) const RESET_BURST: Duration = Duration::from_secs(2);
/// A guest that reset itself again and again has left that behind when it lived so long without a reset.
pub(crate) const LOOP_OVER_AFTER: Duration = Duration::from_secs(60);
/// A request that has been in flight for so long says that the store is stalled; a younger one, that it was made.
pub(crate) const STALLED_AFTER: Duration = Duration::from_secs(1);
/// A witness that isn't needed is asked this often, so that its silence later means something.
pub(crate) const CALIBRATE_EVERY: Duration = Duration::from_secs(300);

/// Everything that the verdict remembers of one VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Watch {
    /// The VM's state.
    pub state: State,
    /// Why it is in that state, for people.
    pub reason: String,
    /// When it entered that state.
    pub since: Duration,
    /// What speaks for and against its life in the current window.
    pub liveness: Liveness,
    /// The guest's present boot.
    pub boot: Boot,
    /// When the guest reset itself lately; a burst counts once, and never more than `Watch::RESETS` are kept.
    pub resets: Vec<Duration>,
    /// When it was last reset from outside, by flatline or another client of QEMU.
    pub(crate) reset_from_outside: Option<Duration>,
    /// Reason reported by a witness for withholding a verdict, while it applies.
    pub(crate) excuse: Option<String>,
    /// What was seen of the storm, in words, while many VMs of the host are silent together.
    pub storm: Option<String>,
    /// Since when QEMU's monitor has answered nothing, and nothing was seen of the guest, with its host not at fault.
    pub(crate) monitor_silent_since: Option<Duration>,
    /// When the last tick ended, and what it showed.
    pub(crate) last: Option<(Duration, Arc<Tick>)>,
    /// The guest's silence as it was observed. Recordings have it after all else, since format 2.
    #[serde(skip)]
    pub silence: Silence,
}

impl Watch {
    /// Resets of a guest that are remembered: more than any policy counts.
    pub(crate) const RESETS: usize = 128;

    /// Begins to watch a VM whose QEMU has been running for `age`.
    pub fn begin(now: Duration, age: Duration, boot_grace: Duration) -> Self {
        let (state, reason) = if age < boot_grace {
            (State::Starting, "its QEMU started just now")
        } else {
            (State::Alive, "watched since just now; no sign of life was due yet")
        };
        Self {
            state,
            reason: reason.to_owned(),
            since: now,
            liveness: Liveness::begin(now, "none seen yet"),
            // A daemon that started after the guest knows no moment before its own start.
            boot: Boot::new(now.saturating_sub(age)),
            resets: Vec::new(),
            reset_from_outside: None,
            excuse: None,
            storm: None,
            monitor_silent_since: None,
            last: None,
            silence: Silence::begin(now),
        }
    }

    /// Takes a VM up in the state in which an earlier daemon left it.
    pub fn resume(now: Duration, age: Duration, state: State, reason: String) -> Self {
        let begun = Self::begin(now, age, Duration::ZERO);
        let silence = Silence { suspected: state.is_accused(), ..begun.silence };
        Self { state, reason, silence, ..begun }
    }

    /// Whether witnesses are asked about the guest, other than to calibrate them.
    pub fn is_being_asked(&self) -> bool {
        match self.state {
            State::Suspect { .. } | State::Recovering { .. } => true,
            State::Held => {
                let starved = self.silence.suspected && self.liveness.is_starved();
                let unjudged = |(_, tick): &(Duration, Arc<Tick>)| inhibit::is_unjudged(self, tick);
                (self.excuse.is_some() || self.storm.is_some() || starved)
                    && !self.last.as_ref().is_some_and(unjudged)
            }
            State::Starting | State::Alive => {
                self.missed_beats().is_some_and(|missed| missed.told.is_none())
            }
            State::Crashed { .. } | State::Failed { .. } | State::Unobservable => false,
        }
    }

    /// Whether it is a suspect of which no witness was asked yet: no verdict comes of the first round.
    pub fn is_to_be_asked_first(&self) -> bool {
        matches!(self.state, State::Suspect { tally } if tally.rounds == 0)
    }

    /// The shortest time from the begin of one round of questions to the next: witnesses that answer at once must not make
    /// a loop, and one that stays in doubt is not asked the same for ever. What is convicted at all mostly is in the first
    /// rounds.
    pub fn rounds_apart(&self, now: Duration) -> Duration {
        let is_new = if let State::Recovering { tally, .. } = &self.state {
            tally.rounds < HURRIED_ROUNDS
        } else {
            now.saturating_sub(self.since) < HURRIED_FOR
        };
        if is_new { HURRIED_ROUNDS_APART } else { ROUNDS_APART }
    }

    /// Takes one input in, at `now` since the host's start, and says what is to be done.
    pub fn step(&mut self, input: &Input, detection: &DetectionPolicy, now: Duration) -> Act {
        match input {
            Input::Tick(tick) => {
                let act = step::tick(self, tick, detection, now);
                self.last = Some((now, tick.clone()));
                act
            }
            Input::Testimony(said) => step::testimony(self, said, detection, now),
            Input::Event { monitor, event } => {
                announcements::event(self, monitor, event, detection, now)
            }
            Input::RunState(run_state) => {
                let monitor = Monitor::Answers(run_state.clone());
                announcements::announcement(self, &monitor, now).unwrap_or(Act::Nothing)
            }
            // What recovery reports is about a conviction; once that doesn't stand, it is out of date.
            Input::Restarted { .. }
            | Input::StillWriting
            | Input::SetAside(_)
            | Input::LimitReached { .. }
            | Input::Reexamine
                if !matches!(self.state, State::Crashed { .. }) =>
            {
                Act::Nothing
            }
            Input::Restarted { cause, was_up } => {
                self.restarted(*cause, *was_up, detection.policy.boot_grace, now);
                Act::Nothing
            }
            Input::StillWriting => {
                inhibit::still_writing(self, &detection.policy, now);
                Act::Nothing
            }
            Input::SetAside(reason) => {
                self.monitor_silent_since = None;
                self.liveness
                    .begin_anew(now, format!("none since its restart was refused: {reason}"));
                self.enter(State::Held, reason.clone(), now);
                Act::Nothing
            }
            Input::LimitReached { cause, reason } => {
                self.enter(State::Failed { cause: *cause }, reason.clone(), now);
                Act::Nothing
            }
            Input::Reexamine => {
                let reason = "QEMU's monitor answers now, so its witnesses are asked again";
                self.enter(State::Suspect { tally: Tally::default() }, reason.to_owned(), now);
                Act::Nothing
            }
            Input::Unseen(why) => {
                self.monitor_silent_since = None;
                outcome::unobservable(self, why.clone(), Duration::ZERO, now)
            }
            Input::Storm(storm) => {
                self.storm.clone_from(storm);
                heartbeat::storm_changed(self);
                Act::Nothing
            }
            Input::Released => {
                self.resets.clear();
                self.judge_anew("it was released", now);
                Act::Nothing
            }
            Input::MayBeTouched(why) => {
                self.judge_anew(why, now);
                Act::Nothing
            }
            Input::Memory(_) => Act::Nothing,
            Input::Lived { until, beat, tick } => {
                let act = rest::lived(self, *until, *beat, tick, detection, now);
                self.last = Some((now, tick.clone()));
                act
            }
        }
    }

    /// Enters a state, or stays in it with another reason.
    fn enter(&mut self, state: State, reason: String, now: Duration) {
        if std::mem::discriminant(&self.state) != std::mem::discriminant(&state) {
            self.since = now;
        }
        self.silence.suspected |= state.is_accused();
        self.state = state;
        self.reason = reason;
    }

    /// Makes a convicted guest a suspect: its conviction no longer stands for good, and nothing was seen to undo it.
    fn judge_anew(&mut self, why: &str, now: Duration) {
        self.monitor_silent_since = None;
        if self.state.is_convicted() {
            let reason = format!("{why}, and is judged anew");
            self.enter(State::Suspect { tally: Tally::default() }, reason, now);
        }
    }

    /// Takes note that the guest was seen or heard to live in this boot: nothing is left that speaks against it.
    fn acquitted(&mut self, now: Duration, sign: String) {
        self.boot.first_life.get_or_insert(now);
        self.lived(now, sign);
        (self.excuse, self.storm) = (None, None);
    }

    /// Takes note that the guest was seen or heard to live.
    fn lived(&mut self, now: Duration, sign: String) {
        self.liveness.alive(now, sign);
        self.silence = Silence::begin(now);
        // Its QEMU doesn't hang, either.
        self.monitor_silent_since = None;
    }

    /// Begins a new boot of the guest: what was learned of the last one says nothing about it.
    fn reboot(&mut self, now: Duration, why: &str) {
        self.boot = Boot::new(now);
        (self.excuse, self.monitor_silent_since) = (None, None);
        self.liveness = Liveness::begin(now, &format!("none since {why}"));
        self.silence = Silence::begin(now);
    }

    /// Whether it is time to ask while all is well, so that its silence later means something.
    pub fn wants_calibration(&self, now: Duration) -> bool {
        self.boot.calibrated.is_none_or(|last| now.saturating_sub(last) >= CALIBRATE_EVERY)
    }

    fn restarted(&mut self, cause: Cause, was_up: bool, boot_grace: Duration, now: Duration) {
        self.reboot(now, "it was restarted");
        self.reset_from_outside = Some(now);
        let deadline = now + boot_grace.max(LEAST_RECOVERY_PATIENCE);
        let reason = format!("restarted because it was {cause}; waiting for a sign of life");
        let tally = Tally::default();
        self.enter(State::Recovering { cause, deadline, tally, was_up }, reason, now);
    }
}

/// What is to be done after a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Act {
    /// Nothing.
    Nothing,
    /// Ask witnesses, and hand their testimony to a later step.
    Ask(Questions),
    /// The VM was convicted just now: record it, and restart it if policy allows.
    Convict(Cause),
    /// The guest came back after a restart.
    Recovered,
    /// The guest was restarted, and showed no life in time.
    NotRecovered(Cause),
    /// The guest reset itself: the number of resets within `boot_loop_window`, this one included.
    GuestReset(usize),
    /// No restart helps: record it, and call a person.
    GiveUp(Cause),
    /// Something is wrong with the guest that is only reported: its user space or its service.
    Report(Cause),
    /// What was reported is over: the agent's beats came back.
    BeatsAgain,
}
