//! Form of one record: an input of the verdict, its moment, and the decision.
//!
//! In bytes: the time since the record before, in ns (below zero where a tick that began earlier is judged after
//! something that came in between); a byte that says what follows; the input; the act,
//! unless it was *nothing*; the state and its reason, where they changed. Numbers are varints and values
//! are postcard's. Of a tick, only what differs from the tick before it is written, which for an idle VM is
//! its vCPUs' shares of the time. Those are written as the nanoseconds that they were computed from where that
//! gives the same number back to the last bit, and else in full: a replay has to be exact.

use std::{sync::Arc, time::Duration};

use serde::{Serialize, de::DeserializeOwned};

use super::{Malformed, limits};
use crate::{
    activity::{Activity, VcpuActivity},
    verdict::{Act, Cause, Input, State, Tick},
};

/// A state that changed, as far as it is written.
#[derive(Clone, Debug, PartialEq)]
pub struct Changed {
    /// The state's name: one of [`State::NAMES`].
    pub state: &'static str,
    /// What it was convicted of.
    pub(crate) cause: Option<Cause>,
    /// Why it is in that state.
    pub reason: String,
}

/// One record.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// When, since the host's start.
    pub at: Duration,
    /// The verdict's input.
    pub input: Input,
    /// What it then wanted to be done.
    pub act: Act,
    /// The VM's state then; `None`: it is as before.
    pub changed: Option<Changed>,
}

/// Bits of the byte that says what follows.
const TICK: u8 = 1;
const ACT: u8 = 1 << 1;
const CHANGED: u8 = 1 << 2;

/// Bits of the byte that says what of a tick is as it was in the one before, or else can be told.
const ELAPSED_IS_DELTA: u8 = 1;
const SAME_NETWORK: u8 = 1 << 1;
const SAME_STORAGE: u8 = 1 << 2;
const SAME_THREADS: u8 = 1 << 3;
const SAME_MONITOR: u8 = 1 << 4;
const SAME_PROCESS: u8 = 1 << 5;
const CALIBRATABLE: u8 = 1 << 6;
const UNDECIDED: u8 = 1 << 7;

/// A share that is written in full: nanoseconds are even numbers.
const SHARE_IN_FULL: u64 = 1;
/// The most nanoseconds that leave room for that bit.
const MOST_NANOS: u64 = u64::MAX >> 1;

/// The record before, against which the next one is written or read.
#[derive(Clone, Debug, Default)]
pub(super) struct Before {
    pub(super) at: Duration,
    tick: Option<Arc<Tick>>,
}

impl Before {
    pub(super) fn new(at: Duration) -> Self {
        Self { at, tick: None }
    }

    /// Appends a record to `out`.
    pub(super) fn write(
        &mut self,
        out: &mut Vec<u8>,
        at: Duration,
        input: &Input,
        act: &Act,
        changed: Option<(&State, &str)>,
    ) -> Result<(), Malformed> {
        let delta = nanos(at).saturating_sub(nanos(self.at));
        put(out, &delta)?;
        out.push(flags(&[
            (TICK, matches!(input, Input::Tick(_))),
            (ACT, *act != Act::Nothing),
            (CHANGED, changed.is_some()),
        ]));
        match input {
            Input::Tick(tick) => {
                write_tick(out, tick, self.tick.as_deref(), delta)?;
                self.tick = Some(tick.clone());
            }
            input => put(out, input)?,
        }
        if *act != Act::Nothing {
            put(out, act)?;
        }
        if let Some((state, reason)) = changed {
            let index = State::NAMES.iter().position(|name| *name == state.name());
            put(out, &(index.unwrap_or_default(), state.cause(), reason))?;
        }
        self.at = at;
        Ok(())
    }

    /// Takes a record off `bytes`.
    pub(super) fn read(&mut self, bytes: &mut &[u8]) -> Result<Record, Malformed> {
        let delta = take::<i64>(bytes)?;
        let at = u64::try_from(nanos(self.at).saturating_add(delta));
        let at = at.map_err(|_| Malformed::new("a time before the daemon's start"))?;
        let at = Duration::from_nanos(at);
        limits::moment(at)?;
        let kind = take::<u8>(bytes)?;
        if kind & !(TICK | ACT | CHANGED) != 0 {
            return Err(Malformed::new("a record of an unknown kind"));
        }
        let input = if kind & TICK == 0 {
            take(bytes)?
        } else {
            let tick = Arc::new(read_tick(bytes, self.tick.as_deref(), delta)?);
            self.tick = Some(tick.clone());
            Input::Tick(tick)
        };
        limits::input(&input)?;
        let act = if kind & ACT == 0 { Act::Nothing } else { take(bytes)? };
        let changed = if kind & CHANGED == 0 {
            None
        } else {
            let (index, cause, reason) = take::<(usize, Option<Cause>, String)>(bytes)?;
            let state =
                State::NAMES.get(index).ok_or_else(|| Malformed::new("an unknown state"))?;
            Some(Changed { state, cause, reason })
        };
        self.at = at;
        Ok(Record { at, input, act, changed })
    }
}

/// A byte of the bits that are set.
fn flags(bits: &[(u8, bool)]) -> u8 {
    bits.iter().fold(0, |flags, (bit, set)| if *set { flags | bit } else { flags })
}

fn write_tick(
    out: &mut Vec<u8>,
    tick: &Tick,
    before: Option<&Tick>,
    delta: i64,
) -> Result<(), Malformed> {
    let Tick { activity, monitor, calibratable, undecided } = tick;
    let Activity { elapsed, network, storage, vcpus, process, heartbeat } = activity;
    let was = |same: fn(&Tick, &Tick) -> bool| before.is_some_and(|before| same(before, tick));
    let flags = flags(&[
        (ELAPSED_IS_DELTA, nanos(*elapsed) == delta),
        (SAME_NETWORK, was(same_network)),
        (SAME_STORAGE, was(|a, b| a.activity.storage == b.activity.storage)),
        (SAME_THREADS, was(same_threads)),
        (SAME_MONITOR, was(|a, b| a.monitor == b.monitor)),
        (SAME_PROCESS, was(|a, b| a.activity.process == b.activity.process)),
        (CALIBRATABLE, *calibratable),
        (UNDECIDED, *undecided),
    ]);
    let differs = |bit: u8| flags & bit == 0;
    out.push(flags);
    if differs(ELAPSED_IS_DELTA) {
        put(out, elapsed)?;
    }
    if differs(SAME_NETWORK) {
        put(out, network)?;
        put(out, heartbeat)?;
    }
    if differs(SAME_STORAGE) {
        put(out, storage)?;
    }
    if differs(SAME_MONITOR) {
        put(out, monitor)?;
    }
    if differs(SAME_PROCESS) {
        put(out, process)?;
    }
    match vcpus {
        Ok(vcpus) => {
            if differs(SAME_THREADS) {
                put(out, &Ok::<usize, ()>(vcpus.len()))?;
            }
            for vcpu in vcpus {
                if differs(SAME_THREADS) {
                    put(out, &(vcpu.index, vcpu.tid))?;
                }
                write_share(out, vcpu.busy, *elapsed)?;
                write_share(out, vcpu.waiting, *elapsed)?;
            }
        }
        Err(missing) => put(out, &Err::<usize, _>(missing))?,
    }
    Ok(())
}

fn read_tick(bytes: &mut &[u8], before: Option<&Tick>, delta: i64) -> Result<Tick, Malformed> {
    let flags = take::<u8>(bytes)?;
    let known = || before.ok_or_else(|| Malformed::new("a tick that refers to none before it"));
    let same = |bit: u8| flags & bit != 0;
    let elapsed = if same(ELAPSED_IS_DELTA) {
        Duration::from_nanos(delta.unsigned_abs())
    } else {
        take(bytes)?
    };
    let (network, heartbeat) = if same(SAME_NETWORK) {
        let Activity { network, heartbeat, .. } = &known()?.activity;
        (network.clone(), heartbeat.clone())
    } else {
        (take(bytes)?, take(bytes)?)
    };
    let storage = if same(SAME_STORAGE) { known()?.activity.storage.clone() } else { take(bytes)? };
    let monitor = if same(SAME_MONITOR) { known()?.monitor.clone() } else { take(bytes)? };
    let process = if same(SAME_PROCESS) { known()?.activity.process } else { take(bytes)? };
    let shares = |bytes: &mut &[u8], index, tid| {
        let (busy, waiting) = (read_share(bytes, elapsed)?, read_share(bytes, elapsed)?);
        Ok::<_, Malformed>(VcpuActivity { index, tid, busy, waiting })
    };
    let vcpus = if same(SAME_THREADS) {
        let threads = known()?.activity.vcpus.as_ref();
        let threads = threads.map_err(|_| Malformed::new("threads that were not there"))?;
        let row = threads.iter().map(|vcpu| shares(bytes, vcpu.index, vcpu.tid));
        Ok(row.collect::<Result<Vec<_>, _>>()?)
    } else {
        match take::<Result<usize, flatline_samples::Missing>>(bytes)? {
            Err(missing) => Err(missing),
            Ok(number) => {
                // Each takes four bytes at least; what is claimed beyond that isn't there.
                let mut row = Vec::with_capacity(number.min(bytes.len() / 4));
                for _ in 0..number {
                    let (index, tid) = take::<(u32, u32)>(bytes)?;
                    row.push(shares(bytes, index, tid)?);
                }
                Ok(row)
            }
        }
    };
    let activity = Activity { elapsed, network, storage, vcpus, process, heartbeat };
    Ok(Tick { activity, monitor, calibratable: same(CALIBRATABLE), undecided: same(UNDECIDED) })
}

/// Whether both tell of the same traffic, and of the same beats.
fn same_network(before: &Tick, now: &Tick) -> bool {
    let (before, now) = (&before.activity, &now.activity);
    before.network == now.network && before.heartbeat == now.heartbeat
}

/// Whether both tell of the same threads in the same order.
fn same_threads(before: &Tick, now: &Tick) -> bool {
    let (Ok(before), Ok(now)) = (&before.activity.vcpus, &now.activity.vcpus) else { return false };
    let threads = |vcpu: &VcpuActivity| (vcpu.index, vcpu.tid);
    before.iter().map(threads).eq(now.iter().map(threads))
}

fn write_share(out: &mut Vec<u8>, share: f64, elapsed: Duration) -> Result<(), Malformed> {
    let nanos = share * elapsed.as_secs_f64() * 1e9;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is tried below"
    )]
    let nanos = nanos.round() as u64;
    if nanos <= MOST_NANOS && share_of(nanos, elapsed).to_bits() == share.to_bits() {
        return put(out, &(nanos << 1));
    }
    put(out, &(SHARE_IN_FULL, share))
}

fn read_share(bytes: &mut &[u8], elapsed: Duration) -> Result<f64, Malformed> {
    match take::<u64>(bytes)? {
        SHARE_IN_FULL => take(bytes),
        nanos => Ok(share_of(nanos >> 1, elapsed)),
    }
}

/// A share as [`Activity::between`] computes it.
fn share_of(nanos: u64, elapsed: Duration) -> f64 {
    Duration::from_nanos(nanos).as_secs_f64() / elapsed.as_secs_f64().max(1e-9)
}

/// Nanoseconds: a hundred years of them fit.
fn nanos(span: Duration) -> i64 {
    i64::try_from(span.as_nanos()).unwrap_or(i64::MAX)
}

/// Appends a value.
pub(super) fn put(out: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) -> Result<(), Malformed> {
    let written = postcard::to_extend(value, std::mem::take(out));
    *out = written.map_err(|error| Malformed::new(format!("can't be written: {error}")))?;
    Ok(())
}

/// Takes a value off `bytes`.
pub(super) fn take<T: DeserializeOwned>(bytes: &mut &[u8]) -> Result<T, Malformed> {
    let (value, rest) = postcard::take_from_bytes(bytes)
        .map_err(|error| Malformed::new(format!("not what it should be: {error}")))?;
    *bytes = rest;
    Ok(value)
}
