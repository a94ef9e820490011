//! Replay: judges a recording once more, by the same policy or by another, and compares that with what was decided live.
//!
//! Pure: the very same [`Watch::step`] is told the very same inputs. By the recorded policy every decision has
//! to come out as it was. By another it shows what would have been decided, with two bounds, which it names:
//! what happened to the guest happened (a restart is told to the replay, too), and witnesses were asked while
//! the live daemon suspected the guest. Before that, the replay has no answers; after it, when the guest was
//! convicted and left as it was, their last answers are taken to stand.

mod convictions;
mod outcome;

use std::{sync::Arc, time::Duration};

pub use outcome::{Decision, Line, Moment, Replay, Summary, rfc3339_millis};

use outcome::decision;

use super::{
    Decoded, Header, Segment, StateSummary,
    record::{Changed, Record},
};
use crate::{
    policy::Policy,
    verdict::{Act, Cause, DetectionPolicy, Input, Monitor, Questions, Testimony, Watch},
};
use flatline_samples::QmpEvent;

/// Lines that are kept at most; what comes then is only counted.
const MOST_LINES: usize = 100_000;
/// No round of questions ends sooner.
const LEAST_ROUND: Duration = Duration::from_millis(10);
/// From one record to the next, so many rounds are assumed at most.
const MOST_ASSUMED_ROUNDS: u32 = 1000;

/// Replays a recording, which it is handed segment by segment.
#[derive(Debug)]
pub struct Replayer {
    header: Header,
    detection: DetectionPolicy,
    exact: bool,
    /// The replay's state; `None` before the first segment.
    watch: Option<Watch>,
    live: StateSummary,
    /// When one side gave a conviction that the other has not given yet.
    pending_live: Option<Duration>,
    pending_replay: Option<Duration>,
    /// When a round of questions began live that has not ended.
    asked_live: Option<Duration>,
    /// The last answers about a suspect in this boot, and how long that round took.
    last_round: Option<(Arc<Testimony>, Duration)>,
    /// An answer that the replay is to be told, and when.
    assumed: Option<(Duration, Arc<Testimony>)>,
    replay: Replay,
}

impl Replayer {
    /// Begins a replay with a recording's header; `policy` stands in for the recorded one.
    pub fn new(header: Header, policy: Option<Policy>) -> Self {
        let exact = policy.is_none();
        // Samples were taken at the recorded interval, whatever another configuration says of it.
        let tick = header.detection.tick;
        let detection = policy
            .map_or_else(|| header.detection.clone(), |policy| DetectionPolicy { policy, tick });
        let replay = Replay {
            vm: header.vm.clone(),
            uuid: header.uuid.clone(),
            pid: header.pid,
            begins: None,
            ends: None,
            recorded_terms: exact,
            same: true,
            lines: Vec::new(),
            summary: Summary::default(),
        };
        let live = StateSummary { state: "starting", cause: None };
        Self {
            header,
            detection,
            exact,
            watch: None,
            live,
            pending_live: None,
            pending_replay: None,
            asked_live: None,
            last_round: None,
            assumed: None,
            replay,
        }
    }

    /// Judges what a segment holds.
    pub fn segment(&mut self, segment: &Segment, decoded: Decoded) {
        let Decoded { watch: mut checkpoint, is_whole, records } = decoded;
        let at = segment.began;
        match &mut self.watch {
            Some(_) if segment.lost > 0 => {
                self.settle("something is missing in the recording");
                self.replay.summary.gaps += 1;
                let lost = segment.lost;
                self.note(at, format!("{lost} records are missing before this: begins anew here"));
                self.begin(checkpoint);
            }
            None => {
                self.replay.begins = Some(Moment(self.header.wall_clock(at)));
                self.begin(checkpoint);
            }
            Some(watch) => {
                // What a person was told on top of the reason is no part of the decision.
                watch.reason.clone_from(&checkpoint.reason);
                if !is_whole {
                    checkpoint.silence = watch.silence;
                }
                if self.exact && *watch != checkpoint {
                    self.differs();
                    self.note(at, "the state itself differs from the recorded one".to_owned());
                    self.begin(checkpoint);
                }
            }
        }
        let mut last = at;
        for record in &records {
            self.record(record);
            last = record.at;
        }
        self.replay.ends = Some(Moment(self.header.wall_clock(last)));
    }

    /// Ends the replay with the recording.
    pub fn finish(mut self) -> Replay {
        self.settle("the recording ended");
        let summary = &self.replay.summary;
        self.replay.same = summary.differing == 0;
        self.replay
    }

    fn begin(&mut self, checkpoint: Watch) {
        self.live = StateSummary::of(&checkpoint);
        (self.asked_live, self.last_round, self.assumed) = (None, None, None);
        self.watch = Some(checkpoint);
    }

    fn record(&mut self, record: &Record) {
        self.assume_answers(record.at);
        self.listen(record);
        self.step(record.at, &record.input, &record.act, record.changed.as_ref());
    }

    /// Learns how long a round of questions took live, and what was answered last.
    fn listen(&mut self, record: &Record) {
        match &record.input {
            Input::Testimony(said) => {
                if let Some(asked) = self.asked_live.take() {
                    self.last_round = Some((said.clone(), record.at.saturating_sub(asked)));
                }
            }
            input if is_reset(input) => (self.last_round, self.asked_live) = (None, None),
            _ => {}
        }
        if wants_answers(&record.act) {
            self.asked_live.get_or_insert(record.at);
        }
    }

    /// Tells the replay the last answers again, where it has questions about a guest that was convicted live and is asked no
    /// more: they are taken to stand, and to take as long as they did.
    fn assume_answers(&mut self, until: Duration) {
        for _ in 0..MOST_ASSUMED_ROUNDS {
            let Some((due, said)) = self.assumed.take_if(|(due, _)| *due < until) else { return };
            self.replay.summary.assumed_rounds += 1;
            self.step(due, &Input::Testimony(said), &Act::Nothing, None);
        }
        self.assumed = None;
    }

    fn step(&mut self, at: Duration, input: &Input, live_act: &Act, changed: Option<&Changed>) {
        let Some(watch) = &mut self.watch else { return };
        self.replay.summary.inputs += 1;
        let before = StateSummary::of(watch);
        // A restart is the end of a conviction; where there is none, it is a reset from outside like any other.
        let stranger = matches!(input, Input::Restarted { .. }) && before.state != "crashed";
        let act = if stranger {
            let monitor = Monitor::Unknown("it is being restarted".to_owned());
            let event = QmpEvent::Reset { guest: false };
            watch.step(&Input::Event { monitor, event }, &self.detection, at)
        } else {
            watch.step(input, &self.detection, at)
        };
        let after = StateSummary::of(watch);
        let replay = decision(before, after, &act, &watch.reason);
        let live_before = self.live;
        if let Some(changed) = changed {
            self.live = StateSummary { state: changed.state, cause: changed.cause };
        }
        let live_reason = changed.map_or("", |changed| &changed.reason);
        let live = decision(live_before, self.live, live_act, live_reason);
        let what = |decision: &Option<Decision>| decision.as_ref().map(|it| it.what.clone());
        let same =
            what(&live) == what(&replay) && self.live == after && (!self.exact || act == *live_act);
        let mut note = stranger.then(|| {
            let state = before.state;
            format!("restarted live; by then, the replay had not convicted it: it was {state}")
        });
        if wants_answers(&act) && !wants_answers(live_act) && !self.exact {
            note = note.or(self.ask(at, before != after));
        }
        if live.is_some() || replay.is_some() || note.is_some() || !same && self.exact {
            if !same {
                self.differs();
            }
            self.replay.summary.decisions += u64::from(live.is_some() || replay.is_some());
            let at = self.header.wall_clock(at);
            self.line(Line { at, live, replay, same, note });
        }
        self.compare(at, convicts(live_act), convicts(&act));
        self.end_episodes(at, is_reset(input), after);
    }

    /// Notes that the replay has questions at a moment at which no witness was asked live; returns what has to be said of it.
    fn ask(&mut self, at: Duration, begins: bool) -> Option<String> {
        let convicted = matches!(self.live.state, "crashed" | "failed");
        match &self.last_round {
            Some((said, took)) if convicted => {
                // One round at a time.
                self.assumed.get_or_insert((at + (*took).max(LEAST_ROUND), said.clone()));
                begins.then(|| {
                    "its witnesses were no longer asked: their last answers are taken to stand"
                        .to_owned()
                })
            }
            _ => {
                self.replay.summary.unasked_rounds += 1;
                begins.then(|| {
                    "its witnesses were asked later than that: the replay has no answers before"
                        .to_owned()
                })
            }
        }
    }

    fn differs(&mut self) {
        self.replay.summary.differing += 1;
    }

    fn note(&mut self, at: Duration, note: String) {
        let at = self.header.wall_clock(at);
        self.line(Line { at, live: None, replay: None, same: true, note: Some(note) });
    }

    fn line(&mut self, line: Line) {
        if self.replay.lines.len() < MOST_LINES {
            self.replay.lines.push(line);
        } else {
            self.replay.summary.lines_left_out += 1;
        }
    }
}

/// Whether a suspect is to be asked, and not a guest that is well.
fn wants_answers(act: &Act) -> bool {
    matches!(act, Act::Ask(Questions::All | Questions::DuringBoot | Questions::Recovering))
}

/// Whether the guest begins another boot.
fn is_reset(input: &Input) -> bool {
    matches!(input, Input::Restarted { .. } | Input::Event { event: QmpEvent::Reset { .. }, .. })
}

fn convicts(act: &Act) -> Option<Cause> {
    match act {
        Act::Convict(cause) | Act::NotRecovered(cause) | Act::GiveUp(cause) => Some(*cause),
        Act::Nothing
        | Act::Ask(_)
        | Act::Recovered
        | Act::GuestReset(_)
        | Act::Report(_)
        | Act::BeatsAgain => None,
    }
}
