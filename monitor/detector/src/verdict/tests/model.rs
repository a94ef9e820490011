//! A reference model: the declared rules, evaluated over the raw history of what a VM showed, and held against
//! the state machine in random sequences of inputs.
//!
//! The model is far simpler than what it judges. It keeps no state but a list of facts, and answers two
//! questions: *may* a conviction be given now, and *must* one have been given by now?
//!
//! - A conviction that was not announced needs a whole window in which nothing spoke for the guest or against the
//!   figures, and as many answers in a row that speak against it as its kind needs; of a QEMU that hangs, a longer
//!   one in which its monitor did not answer.
//! - A guest that has been dead in all that can be seen for a window and [`PATIENCE`] has been convicted.

mod rules;

use std::time::Duration;

use super::rig::TICK;
use crate::verdict::{Answer, Input, Monitor, STALLED_AFTER, State, Testimony, Tick};
use flatline_samples::{ProcessState, QmpEvent, RunState};

/// Within this time after the window a crash is convicted, whatever went before; how long it takes to the
/// second has tests of its own.
const PATIENCE: Duration = Duration::from_secs(4);

/// What a tick or an answer said, as far as the rules speak of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fact {
    /// Something spoke for the guest, or nothing could be known, or a boot began.
    Clears,
    /// A silent tick.
    Silent(Level),
    /// An answer that does not acquit.
    Said(Said),
}

/// The level of the vCPUs in a silent tick, and what else it showed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Level {
    still: bool,
    zero: bool,
    pinned: bool,
    /// Nothing that a verdict needs is missing.
    judgeable: bool,
    /// How many are silent with it is not known yet.
    undecided: bool,
    /// QEMU's monitor does not answer.
    hanging: bool,
    /// And it may be judged for that.
    judgeable_if_hanging: bool,
    /// And nothing else is out of the ordinary.
    usual: bool,
    /// The last answer excused it: what is held is none of its grace.
    excused: bool,
}

/// What one round of answers said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Said {
    halted: bool,
    stuck: bool,
    last_words: bool,
    /// A witness that had answered before in this boot did not.
    silent: bool,
    /// No witness saw its vCPUs.
    unseen: bool,
    unresponsive: bool,
}

/// The history of one VM.
#[derive(Debug, Default)]
pub(super) struct Model {
    facts: Vec<(Duration, Fact)>,
    /// Witnesses that answered in this boot.
    answered: Vec<String>,
    /// When it announced a dump or was found writing one; `None` again after a reset.
    dump: Option<Duration>,
    /// When this boot began, or watching did, and how old it was then.
    boot: (Duration, Duration),
    /// Many fell silent with it, and it has shown no life since.
    storm: bool,
    /// The last answer was of a guest that no interrupt can reach, or it said its last words.
    shows_deafness: bool,
    /// No answer counts after the last tick.
    unjudged: bool,
    /// When the host last let it wait for a CPU.
    starved: Option<Duration>,
    /// The last answer excused it, or may have been of a paused guest; and it has shown no life since, nor begun a new boot.
    excused: bool,
    /// In the last tick QEMU didn't tell its run state, and it stood still.
    maybe_paused: bool,
    /// Its vCPUs stood still in the last tick, but for what our questions cost.
    still: bool,
    /// Something was held against it, and it has shown no life since, nor begun a new boot.
    pub(super) is_accused: bool,
}

impl Model {
    pub(super) fn new(now: Duration, age: Duration) -> Self {
        Self { facts: vec![(now, Fact::Clears)], boot: (now, age), ..Self::default() }
    }

    /// Takes an input down; `before` is the state in which it came in.
    pub(super) fn note(&mut self, input: &Input, before: &State, now: Duration) {
        let convicted = matches!(before, State::Crashed { .. });
        let fact = match input {
            // It is about a conviction; anywhere else it is out of date.
            Input::Restarted { .. } | Input::StillWriting | Input::SetAside(_) if !convicted => {
                return;
            }
            Input::Tick(tick) => self.of_tick(tick, before, now),
            Input::Lived { until, .. } => {
                (self.storm, self.is_accused, self.excused) = (false, false, false);
                (self.unjudged, self.still, self.maybe_paused) = (false, false, false);
                let held_up = now.saturating_sub(*until) > TICK * 4;
                return self.facts.push((if held_up { now } else { *until }, Fact::Clears));
            }
            Input::Testimony(said) => self.of_testimony(said, before),
            Input::Event { event: QmpEvent::Reset { .. }, .. } | Input::Restarted { .. } => {
                (self.answered, self.dump, self.boot) = (Vec::new(), None, (now, Duration::ZERO));
                (self.is_accused, self.excused) = (false, false);
                Fact::Clears
            }
            Input::Event { event: QmpEvent::GuestCrashloaded, .. } => {
                self.dump = Some(now);
                return;
            }
            Input::StillWriting => {
                self.dump = Some(now);
                Fact::Clears
            }
            Input::Storm(storm) => {
                self.storm = storm.is_some();
                return;
            }
            Input::SetAside(_) | Input::Unseen(_) => Fact::Clears,
            Input::Released
            | Input::MayBeTouched(_)
            | Input::Event { .. }
            | Input::RunState(_)
            | Input::LimitReached { .. }
            | Input::Reexamine
            | Input::Memory(_) => return,
        };
        self.facts.push((now, fact));
    }

    /// Takes down in which state it is after the input that was noted last.
    pub(super) fn stands(&mut self, after: &State) {
        self.is_accused |=
            matches!(after, State::Suspect { .. } | State::Crashed { .. } | State::Failed { .. });
    }

    fn of_tick(&mut self, tick: &Tick, before: &State, now: Duration) -> Fact {
        let Tick { activity, monitor, .. } = tick;
        let moved = activity
            .network
            .as_ref()
            .is_ok_and(|network| network.is_some_and(|network| network.guest_packets > 0))
            || activity.storage.as_ref().is_ok_and(|storage| storage.completed > 0);
        let unknown = activity.network.is_err() || activity.storage.is_err();
        let stalled = activity.storage.as_ref().is_ok_and(|storage| {
            storage.in_flight > 0 && storage.oldest.is_none_or(|oldest| oldest >= STALLED_AFTER)
        });
        let paused = matches!(
            monitor,
            Monitor::Answers(run_state) if *run_state != RunState::Running && !says_crash(run_state)
        ) || matches!(monitor, Monitor::NotStarted(_));
        let stopped = matches!(
            activity.process,
            ProcessState::Stopped | ProcessState::Frozen | ProcessState::Gone
        );
        let late = activity.elapsed > TICK * 4;
        let vcpus = activity.vcpus.clone().unwrap_or_default();
        if vcpus.iter().any(|vcpu| vcpu.waiting >= 0.5) {
            self.starved = Some(now);
        }
        let sum =
            |share: fn(&crate::activity::VcpuActivity) -> f64| vcpus.iter().map(share).sum::<f64>();
        let calm = !vcpus.is_empty() && sum(|vcpu| vcpu.waiting) < 0.5;
        // What it does to answer our own questions is none of its doing.
        let asked = match before {
            State::Suspect { .. } | State::Recovering { .. } => true,
            State::Held => (self.excused || self.storm) && !self.unjudged,
            _ => false,
        };
        let only_answers = vcpus.iter().all(|vcpu| vcpu.busy < 0.1 && vcpu.waiting < 0.5);
        let still = calm && sum(|vcpu| vcpu.busy) < 0.010
            || asked && self.still && activity.vcpus.is_ok() && only_answers;
        self.still = still;
        self.maybe_paused = still && matches!(monitor, Monitor::Unknown(_));
        self.unjudged = unknown || stalled || paused || stopped;
        if moved && !paused && !stopped {
            (self.storm, self.is_accused, self.excused) = (false, false, false);
        }
        let is_held = self.storm && !self.shows_deafness;
        if moved || unknown || stalled || paused || stopped || late || is_held {
            return Fact::Clears;
        }
        let judgeable = !vcpus.is_empty()
            && match monitor {
                Monitor::Answers(_) => true,
                // It may have been paused.
                Monitor::Unknown(_) => !still,
                Monitor::Unresponsive(_) | Monitor::NotStarted(_) => false,
            };
        let hanging = matches!(monitor, Monitor::Unresponsive(_));
        Fact::Silent(Level {
            still,
            hanging,
            judgeable_if_hanging: hanging && !vcpus.is_empty() && !tick.undecided,
            undecided: tick.undecided,
            zero: calm && sum(|vcpu| vcpu.busy) < 0.000_5,
            pinned: vcpus.iter().any(|vcpu| vcpu.busy + vcpu.waiting >= 0.8),
            judgeable,
            usual: judgeable
                && !(tick.undecided || self.storm)
                && *monitor == Monitor::Answers(RunState::Running)
                && activity.process == ProcessState::Running
                && activity.elapsed <= TICK + TICK / 20
                && vcpus.iter().all(|vcpu| vcpu.waiting < 0.1),
            excused: self.excused,
        })
    }

    fn of_testimony(&mut self, said: &Testimony, before: &State) -> Fact {
        let lives = |answer: &Answer| matches!(answer, Answer::Lives(_));
        // What firmware answers says nothing of its operating system.
        let firmware = matches!(before, State::Recovering { .. }) && said.not_up().is_some();
        for statement in said.statements.iter().filter(|said| lives(&said.answer) && !firmware) {
            self.answered.push(statement.witness.to_string());
        }
        // A guest that isn't suspected needs no excuse.
        let needs_excuse = matches!(before, State::Suspect { .. } | State::Held);
        if said.any(lives) && !self.unjudged {
            (self.storm, self.is_accused) = (false, false);
        }
        let is_excused = needs_excuse && said.excuse(false).is_some();
        self.excused = !said.any(lives) && (is_excused || needs_excuse && self.maybe_paused);
        if said.any(lives) || is_excused {
            return Fact::Clears;
        }
        let any = |wanted: fn(&Answer) -> bool| said.any(wanted);
        let halted = any(|answer| *answer == Answer::Halted);
        let stuck = any(|answer| matches!(answer, Answer::Stuck(_)));
        let last_words = any(|answer| matches!(answer, Answer::LastWords(_)));
        self.shows_deafness = halted || stuck || last_words || self.had_last_words();
        Fact::Said(Said {
            halted,
            stuck,
            last_words,
            silent: said.statements.iter().any(|said| {
                matches!(said.answer, Answer::Silent(_))
                    && self.answered.iter().any(|name| *name == said.witness)
            }),
            unseen: !any(|answer| {
                matches!(
                    answer,
                    Answer::Halted
                        | Answer::Stuck(_)
                        | Answer::Neither(_)
                        | Answer::Unresponsive(_)
                )
            }),
            unresponsive: any(|answer| matches!(answer, Answer::Unresponsive(_))),
        })
    }

    /// Facts after a moment, oldest first.
    fn since(&self, moment: Duration) -> impl Iterator<Item = Fact> {
        self.facts.iter().filter(move |(at, _)| *at > moment).map(|(_, fact)| *fact)
    }

    fn cleared_at(&self) -> Duration {
        let last = self.facts.iter().rfind(|(_, fact)| *fact == Fact::Clears);
        last.map_or(Duration::ZERO, |(at, _)| *at)
    }

    /// Answers since all was cleared, latest first. One may come in the very moment after.
    fn said(&self) -> impl Iterator<Item = (Duration, Said)> {
        let row = self.facts.iter().rev().take_while(|(_, fact)| *fact != Fact::Clears);
        row.filter_map(|(at, fact)| match fact {
            Fact::Said(said) => Some((*at, *said)),
            Fact::Clears | Fact::Silent(_) => None,
        })
    }

    /// The last so many answers, latest first, if there were so many since all was cleared.
    fn last_said(&self, count: usize) -> Option<Vec<Said>> {
        let said: Vec<_> = self.said().take(count).map(|(_, said)| said).collect();
        (said.len() == count).then_some(said)
    }

    /// Whether every tick of which a part lies within the last `span` was silent, and `so`.
    fn all_along(&self, span: Duration, now: Duration, so: fn(&Level) -> bool) -> bool {
        self.since(now.saturating_sub(span)).all(|fact| match fact {
            Fact::Silent(level) => so(&level),
            Fact::Said(_) => true,
            Fact::Clears => false,
        })
    }

    fn last_level(&self) -> Level {
        let level = |(_, fact): &(Duration, Fact)| match fact {
            Fact::Silent(level) => Some(*level),
            Fact::Clears | Fact::Said(_) => None,
        };
        self.facts.iter().rev().find_map(level).unwrap_or_default()
    }

    /// Since when every answer has said that a witness which had answered no longer does.
    fn silent_since(&self) -> Option<Duration> {
        self.said().take_while(|(_, said)| said.silent).last().map(|(at, _)| at)
    }
}

fn says_crash(run_state: &RunState) -> bool {
    matches!(run_state, RunState::GuestPanicked | RunState::InternalError | RunState::Watchdog)
}
