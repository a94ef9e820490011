//! Recorder of what a VM's verdict is told, which hands it out: to files, to incidents, to `show`.

use std::{sync::Arc, time::Duration};

use crate::{
    api::view::HistoryView,
    config,
    history::Recent,
    recorder::{archive::Archive, history},
    storage::incident::Incident,
};
use flatline_detector::{
    recording::{Header, Limits, Recording, Ring, Segment, StateSummary},
    verdict::{Act, DetectionPolicy, Input, Watch},
};

/// An incident's recording, among its evidence.
pub(crate) const RECORDING: &str = "recording.flr";

/// A VM is watched for so long at most before the first thing of it is recorded.
const FIRST_RECORD_WITHIN: Duration = Duration::from_secs(5);

/// Records one VM, or nothing where nothing is to be recorded.
#[derive(Debug)]
pub(crate) struct Recorder(Option<Tape>);

#[derive(Debug)]
struct Tape {
    /// The VM's user.
    uid: u32,
    header: Arc<Header>,
    ring: Ring,
    keep: Duration,
    /// What was recorded on other terms: only to be looked at.
    earlier: Vec<Arc<Segment>>,
    /// Where everything is written to, where it is.
    archive: Option<Archive>,
    /// Records since the last ones that there was room for on the way to the disk.
    unsent: u64,
}

impl Recorder {
    /// Records nothing.
    #[cfg(test)]
    pub(crate) fn off() -> Self {
        Self(None)
    }

    /// Begins with a VM of the user `uid`.
    pub(crate) fn start(
        config: config::Recorder,
        uid: u32,
        header: Header,
        archive: &Archive,
    ) -> Self {
        let config::Recorder { keep, disk, max_mib: _ } = config;
        // What is to be on disk is there within a minute; else, what few records there are of a VM that rests share one.
        let longest_segment = if disk { Duration::ZERO } else { keep };
        let limits = Limits { keep, most_bytes: Limits::MOST_BYTES, longest_segment };
        let tape = || Tape {
            uid,
            ring: Ring::new(limits, header.pid),
            header: Arc::new(header),
            keep,
            earlier: Vec::new(),
            archive: disk.then(|| archive.clone()),
            unsent: 0,
        };
        Self((disk || !keep.is_zero()).then(tape))
    }

    /// Has `watch` take an input in, and records both.
    pub(crate) fn take(
        &mut self,
        watch: &mut Watch,
        input: &Input,
        detection: &DetectionPolicy,
        now: Duration,
    ) -> Act {
        let Some(tape) = &mut self.0 else { return watch.step(input, detection, now) };
        if let Some(closed) = tape.ring.prepare(watch, now) {
            tape.send(&closed);
            tape.forget_earlier(now);
        }
        let before = StateSummary::of(watch);
        let act = watch.step(input, detection, now);
        let decided =
            before != StateSummary::of(watch) || !matches!(act, Act::Nothing | Act::Ask(_));
        let changed = decided.then_some((&watch.state, watch.reason.as_str()));
        tape.ring.note(now, input, &act, changed);
        act
    }

    /// What is kept of it, where anything is.
    pub(crate) fn recording(&self) -> Option<Recording> {
        let tape = self.0.as_ref()?;
        let segments = tape.ring.segments();
        (!segments.is_empty()).then(|| Recording { header: tape.header.clone(), segments })
    }

    /// The same for people to look at.
    pub(crate) fn history(&self, now: Duration, recent: Option<&Recent>) -> Option<HistoryView> {
        let tape = self.0.as_ref()?;
        let segments = [&tape.earlier[..], &tape.ring.segments()].concat();
        Some(history::history(&segments, now, tape.keep, recent))
    }

    /// The recording that belongs to `incident`, which notes it among its evidence; `None` where an earlier one
    /// tells more, since what led to the conviction is no longer kept.
    pub(crate) fn evidence(&self, incident: &mut Incident) -> Option<Recording> {
        let recording = self.recording()?;
        let has_one = incident.evidence.iter().any(|name| name == RECORDING);
        let begins = recording.segments.first().map(|segment| segment.began)?;
        let begins = recording.header.wall_clock(begins);
        let life = incident.last_sign_of_life;
        if has_one && life.is_none_or(|life| begins > life + FIRST_RECORD_WITHIN) {
            return None;
        }
        if !has_one {
            incident.evidence.push(RECORDING.to_owned());
        }
        Some(recording)
    }

    /// Goes on where `before` ends, which recorded the same VM on other terms.
    pub(crate) fn follows(&mut self, mut before: Self, now: Duration) {
        before.end();
        if let (Some(tape), Some(Tape { earlier, ring, .. })) = (&mut self.0, before.0) {
            tape.earlier = earlier;
            tape.earlier.extend(ring.segments());
            tape.forget_earlier(now);
        }
    }

    /// The VM is gone, or the daemon ends: nothing more comes.
    pub(crate) fn end(&mut self) {
        let Some(tape) = &mut self.0 else { return };
        if let Some(closed) = tape.ring.close() {
            tape.send(&closed);
        }
        if let Some(archive) = &tape.archive {
            archive.end(&tape.header);
        }
    }
}

impl Tape {
    /// Lets go of what is too old to be looked at: whatever ends where a segment begins that is.
    fn forget_earlier(&mut self, now: Duration) {
        let begins = now.saturating_sub(self.keep);
        let later = self.earlier.iter().skip(1).map(|segment| segment.began);
        let ends = later.chain(self.ring.begins());
        let old = ends.take_while(|end| *end <= begins).count();
        self.earlier.drain(..old.min(self.earlier.len()));
    }

    /// Has a segment written down, where everything is.
    fn send(&mut self, segment: &Arc<Segment>) {
        let Some(archive) = &self.archive else { return };
        self.unsent = if archive.append(self.uid, &self.header, segment, self.unsent) {
            0
        } else {
            self.unsent.saturating_add(segment.records).saturating_add(segment.lost)
        };
    }
}
