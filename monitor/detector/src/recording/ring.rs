//! Ring of one VM: its last segments in memory, bounded in time and in bytes.

use std::{collections::VecDeque, mem, sync::Arc, time::Duration};

use super::{
    FORMAT, Header, Malformed, limits,
    record::{Before, Record, put, take},
};
use crate::verdict::{Act, Input, Silence, State, Watch};

/// A segment is closed when it is as old as this, or earlier where less is to be kept.
const SEGMENT: Duration = Duration::from_secs(60);
/// Unless it has fewer bytes than this, as that of a VM that rests: a checkpoint takes as much as many of its records.
const SEGMENT_LEAST_BYTES: usize = 2 << 10;
/// And where it takes more than this part of all bytes.
const SEGMENTS_AT_LEAST: usize = 8;

/// How much a ring holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Time that is kept at least, where the bytes suffice.
    pub keep: Duration,
    /// The most bytes that it takes. Five minutes of an idle VM with one vCPU are 6.6 KiB, and those of one
    /// with 16 vCPUs 46 KiB; a second of suspicion, in which its witnesses speak, is up to 1 KiB.
    pub most_bytes: usize,
    /// How old a segment of few bytes may become: one that is to be written down is at most a minute old.
    pub longest_segment: Duration,
}

impl Limits {
    /// The usual bound in bytes.
    pub const MOST_BYTES: usize = 128 << 10;
}

/// A checkpoint and what came after it.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    /// Its begin, since the host's start.
    pub began: Duration,
    /// Number of records right before it that are lost.
    pub lost: u64,
    /// Number of its records.
    pub records: u64,
    /// The format of its bytes.
    format: u32,
    /// The checkpoint, then the records.
    bytes: Vec<u8>,
}

/// A decoded segment.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// The complete state at its beginning: the checkpoint.
    pub(crate) watch: Watch,
    /// Whether that is complete: format 1 had no [`Silence`], which is then told from the rest.
    pub(crate) is_whole: bool,
    /// The records after it.
    pub records: Vec<Record>,
}

impl Segment {
    fn begin(watch: &Watch, now: Duration, lost: u64) -> Result<Self, Malformed> {
        let mut bytes = Vec::new();
        put(&mut bytes, watch)?;
        put(&mut bytes, &watch.silence)?;
        Ok(Self { began: now, lost, records: 0, format: FORMAT, bytes })
    }

    /// Size of checkpoint and records in bytes.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// All of it as bytes.
    pub(super) fn to_bytes(&self, lost_besides: u64) -> Result<Vec<u8>, Malformed> {
        let mut out = Vec::with_capacity(self.bytes.len() + 32);
        put(&mut out, &(self.began, self.lost.saturating_add(lost_besides), self.records))?;
        out.extend_from_slice(&self.bytes);
        Ok(out)
    }

    /// From such bytes, of that format; what stands in them is looked at by [`Segment::decode`].
    pub(super) fn from_bytes(mut bytes: &[u8], format: u32) -> Result<Self, Malformed> {
        let (began, lost, records) = take(&mut bytes)?;
        limits::moment(began)?;
        Ok(Self { began, lost, records, format, bytes: bytes.to_vec() })
    }

    /// Decodes the segment.
    ///
    /// # Errors
    /// [`Malformed`] where the bytes are not what the format has.
    pub fn decode(&self) -> Result<Decoded, Malformed> {
        let mut bytes = &self.bytes[..];
        let mut watch: Watch = take(&mut bytes)?;
        let is_whole = self.format >= 2;
        watch.silence = match is_whole {
            true => take(&mut bytes)?,
            false => Silence::of_format_one(&watch.liveness, &watch.state),
        };
        limits::watch(&watch)?;
        let mut before = Before::new(self.began);
        let mut records = Vec::new();
        while !bytes.is_empty() {
            records.push(before.read(&mut bytes)?);
        }
        if records.len() as u64 != self.records {
            let (found, said) = (records.len(), self.records);
            return Err(Malformed::new(format!("{found} records, and not {said} as it says")));
        }
        Ok(Decoded { watch, is_whole, records })
    }
}

/// The last segments of a VM.
#[derive(Debug)]
pub struct Ring {
    limits: Limits,
    closed: VecDeque<Arc<Segment>>,
    open: Option<Segment>,
    before: Before,
    /// When the open one is closed, and when at the latest if it has few bytes.
    closes: Duration,
    closes_at_last: Duration,
    /// The first one is closed early by this, so that not all VMs' are at the same moment.
    early: Duration,
    /// Records that could not be kept since the last one that was.
    lost: u64,
    /// Bytes of the closed ones.
    bytes: usize,
}

impl Ring {
    /// An empty ring. `spread` is any number that differs from VM to VM.
    pub fn new(limits: Limits, spread: u32) -> Self {
        let early = SEGMENT / 60 * (spread % 60);
        Self {
            limits,
            closed: VecDeque::new(),
            open: None,
            before: Before::default(),
            closes: Duration::ZERO,
            closes_at_last: Duration::ZERO,
            early,
            lost: 0,
            bytes: 0,
        }
    }

    /// Makes room for a record at `now`, before `watch` is told of it; returns a segment that was closed for
    /// that.
    pub fn prepare(&mut self, watch: &Watch, now: Duration) -> Option<Arc<Segment>> {
        let full = |open: &Segment| {
            let is_short = open.bytes.len() < SEGMENT_LEAST_BYTES;
            now >= (if is_short { self.closes_at_last } else { self.closes })
                || open.bytes.len() >= self.limits.most_bytes / SEGMENTS_AT_LEAST
        };
        let closed = if self.open.as_ref().is_some_and(full) { self.close() } else { None };
        if self.open.is_none() {
            self.open = Segment::begin(watch, now, mem::take(&mut self.lost)).ok();
            self.before = Before::new(now);
            let length = SEGMENT.min(self.limits.keep / 5).max(Duration::from_secs(5));
            self.closes = now + length.saturating_sub(mem::take(&mut self.early).min(length / 2));
            self.closes_at_last = self.closes.max(now + self.limits.longest_segment);
        }
        self.trim(now);
        closed
    }

    /// Takes a record in, after [`Ring::prepare`]; `changed` is the VM's state and its reason, where they changed.
    pub fn note(
        &mut self,
        now: Duration,
        input: &Input,
        act: &Act,
        changed: Option<(&State, &str)>,
    ) {
        let Some(open) = &mut self.open else {
            self.lost = self.lost.saturating_add(1);
            return;
        };
        let length = open.bytes.len();
        let written = self.before.write(&mut open.bytes, now, input, act, changed);
        if written.is_ok()
            && open.bytes.len() - length <= self.limits.most_bytes / SEGMENTS_AT_LEAST
        {
            open.records += 1;
            return;
        }
        // One that doesn't fit is left out, and what comes then begins with a checkpoint of its own.
        self.lost = self.lost.saturating_add(1);
        if written.is_ok() {
            open.bytes.truncate(length);
            (self.closes, self.closes_at_last) = (Duration::ZERO, Duration::ZERO);
        } else {
            self.lost = self.lost.saturating_add(open.records + open.lost);
            self.open = None;
        }
    }

    /// Closes the open segment and returns it, to be written down.
    pub fn close(&mut self) -> Option<Arc<Segment>> {
        let mut open = self.open.take()?;
        open.bytes.shrink_to_fit();
        let open = Arc::new(open);
        self.bytes += open.bytes.len();
        self.closed.push_back(open.clone());
        Some(open)
    }

    /// Drops what is too old or too much, the oldest first.
    fn trim(&mut self, now: Duration) {
        let open = self.open.as_ref().map_or(0, |open| open.bytes.len());
        // The open one may grow to this, and by one record more.
        let grows = 2 * (self.limits.most_bytes / SEGMENTS_AT_LEAST);
        let begins = self.open.as_ref().map_or(now, |open| open.began);
        while let Some(oldest) = self.closed.front() {
            let ends = self.closed.get(1).map_or(begins, |next| next.began);
            let too_old = now.saturating_sub(ends) >= self.limits.keep;
            if !too_old && self.bytes + open.max(grows) <= self.limits.most_bytes {
                break;
            }
            self.bytes -= oldest.bytes.len();
            self.closed.pop_front();
        }
    }

    /// The segments that are kept, the oldest first; the open one as it is now.
    pub fn segments(&self) -> Vec<Arc<Segment>> {
        self.closed.iter().cloned().chain(self.open.clone().map(Arc::new)).collect()
    }

    /// Begin of what is kept, since the host's start; `None` where nothing is.
    pub fn begins(&self) -> Option<Duration> {
        self.closed.front().map(|oldest| oldest.began).or(self.open.as_ref().map(|open| open.began))
    }
}

/// A recording as it is in memory: cheap to take, and to be put into a file elsewhere.
#[derive(Clone, Debug)]
pub struct Recording {
    /// The VM, and the policy by which it was judged.
    pub header: Arc<Header>,
    /// Its segments, the oldest first.
    pub segments: Vec<Arc<Segment>>,
}
