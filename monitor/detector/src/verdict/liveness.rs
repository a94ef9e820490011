//! Signs of life of one guest, and its vCPUs' level: since when it has been silent, and what its vCPUs did meanwhile.
//!
//! A silent guest's vCPUs stand still or are pinned: a panicked kernel spins, an idle one sleeps. So the vCPUs' level is kept
//! apart from the silence.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::activity::{Activity, VcpuActivity};
use flatline_samples::Reading;

/// vCPUs that together use less than this share of one CPU stand still.
///
/// Halted guests were measured at 0 to 0.35 ms/s, idle ones at 1.2 to 9. The cut lies above both on
/// purpose: it only admits the registers as evidence, which tell the two apart.
pub const STILL_BUSY_RATIO: f64 = 0.010;
/// A vCPU whose registers are asked for uses no more than this for the answers: each look wakes it, for 0.4 to 0.8 ms a
/// second, and ten times as much on a slow host. So what it uses up to here while it is asked is none of the guest's doing.
pub(super) const ASKED_BUSY_RATIO: f64 = 0.10;
/// vCPUs that together use less than this do nothing at all, where no registers can tell a halted guest
/// from an idle one: halted ones were measured at up to 0.35 ms/s, idle ones never below 1.2.
pub(super) const ZERO_BUSY_RATIO: f64 = 0.000_5;
/// vCPUs that wait for a host CPU for more than this share of the time don't stand still.
pub(super) const STILL_WAITING_RATIO: f64 = 0.5;
/// A vCPU that runs, or waits for a host CPU, for more than this share of the time is pinned. Panicked
/// guests were measured at 0.93 to 1.0, waiting included.
pub const PINNED_RATIO: f64 = 0.80;
/// A pinned vCPU that gets less than this share of what it asks for is starved by the host.
pub(crate) const STARVED_SHARE: f64 = 0.10;

/// What is left after a second of what a vCPU got and wanted: half of it all is of the last three.
const FADES_TO: f64 = 0.8;

/// What speaks for and against a guest's life in the current window. Moments are times since the host's start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Liveness {
    /// When the guest last showed a sign of life; at first, when watching began.
    pub last_life: Duration,
    /// Which sign that was.
    pub last_sign: String,
    /// When it was last seen or heard to live; `None`: not since watching began.
    pub heard: Option<Duration>,
    /// Since when all vCPUs together have stood still, if they do.
    pub still_since: Option<Duration>,
    /// Since when they have done nothing at all, if so.
    pub(crate) zero_since: Option<Duration>,
    /// Since when some vCPU has been pinned, if one is.
    pub pinned_since: Option<Duration>,
    /// CPU time that the pinned vCPU got of the host lately: seconds, of which older ones fade.
    pub(crate) got: f64,
    /// CPU time that it wanted: likewise.
    pub(crate) wanted: f64,
    /// CPU time that it got since it has been pinned, in seconds.
    pub(crate) ran: f64,
}

impl Liveness {
    /// A window that begins at `now`; `why` stands in for the last sign of life.
    pub(crate) fn begin(now: Duration, why: &str) -> Self {
        Self { last_life: now, last_sign: why.to_owned(), ..Self::default() }
    }

    /// Time since the last sign of life.
    pub(crate) fn silence(&self, now: Duration) -> Duration {
        now.saturating_sub(self.last_life)
    }

    /// Takes note of a sign of life.
    pub(crate) fn alive(&mut self, now: Duration, sign: String) {
        self.last_life = now;
        self.last_sign = sign;
        self.heard = Some(now);
    }

    /// Takes note of the vCPUs' level during the tick that ended at `now`, in which their registers were `asked` for or not.
    pub(crate) fn level(&mut self, activity: &Activity, asked: bool, now: Duration) {
        // What was heard during the tick ended what was before.
        let begin = now.saturating_sub(activity.elapsed).max(self.heard.unwrap_or_default());
        let kept = |since: Option<Duration>, holds: bool| holds.then(|| since.unwrap_or(begin));
        let still = below(&activity.vcpus, STILL_BUSY_RATIO)
            // It doesn't begin with that.
            || asked && self.still_since.is_some() && only_answers(&activity.vcpus);
        self.still_since = kept(self.still_since, still);
        self.zero_since = kept(self.zero_since, below(&activity.vcpus, ZERO_BUSY_RATIO));
        self.pinned_since = kept(self.pinned_since, pinned(&activity.vcpus).is_some());
        let seconds = activity.elapsed.as_secs_f64();
        let (busy, waiting) =
            pinned(&activity.vcpus).map_or((0.0, 0.0), |vcpu| (vcpu.busy, vcpu.waiting));
        // One bad second on a busy host is no starvation.
        let fade = |sum: f64, now: f64| sum * FADES_TO.powf(seconds) + now * seconds;
        self.got = fade(self.got, busy);
        self.wanted = fade(self.wanted, busy + waiting);
        self.ran = if self.pinned_since.is_some() { self.ran + busy * seconds } else { 0.0 };
    }

    /// The vCPUs' level was not looked at for `span`.
    pub(super) fn unseen(&mut self, span: Duration) {
        (self.still_since, self.zero_since, self.pinned_since) = (None, None, None);
        let fades_to = FADES_TO.powf(span.as_secs_f64());
        (self.got, self.wanted, self.ran) = (self.got * fades_to, self.wanted * fades_to, 0.0);
    }

    /// Whether the vCPUs have wanted to run lately, and the host hardly let them.
    pub(crate) fn is_starved(&self) -> bool {
        self.pinned_since.is_some() && self.got < STARVED_SHARE * self.wanted
    }

    /// Whether a vCPU has wanted to run for `span`, and the host gave it less than half of that: what it would have done
    /// by itself meanwhile, such as a reboot a few seconds after a panic, it had no time to do.
    pub(crate) fn wants_more_time(&self, span: Duration, now: Duration) -> bool {
        Self::held_for(self.pinned_since, span, now) && self.ran < span.as_secs_f64() / 2.0
    }

    /// How long the host let a vCPU run that wanted to, where that was less than half of the time: why a verdict may
    /// take longer.
    pub(crate) fn held_back(&self, now: Duration) -> Option<String> {
        let wanted = now.saturating_sub(self.pinned_since?).as_secs_f64();
        (self.ran < wanted / 2.0).then(|| {
            format!(
                "; the host let a vCPU run for {:.1} of the {wanted:.1} s that it wanted",
                self.ran
            )
        })
    }

    /// Whether the vCPUs stood still, or one was pinned, for at least `span` up to `now`.
    pub(crate) fn held_for(since: Option<Duration>, span: Duration, now: Duration) -> bool {
        since.is_some_and(|since| now.saturating_sub(since) >= span)
    }
}

fn below(vcpus: &Reading<Vec<VcpuActivity>>, ratio: f64) -> bool {
    vcpus.as_ref().is_ok_and(|vcpus| {
        let busy: f64 = vcpus.iter().map(|vcpu| vcpu.busy).sum();
        let waiting: f64 = vcpus.iter().map(|vcpu| vcpu.waiting).sum();
        // A thread that waits for a CPU all the time wants to run. A little waiting is the host's load:
        // under TCG, QEMU's own timer wakes a halted vCPU 30 times a second.
        !vcpus.is_empty() && busy < ratio && waiting < STILL_WAITING_RATIO
    })
}

/// Whether no vCPU did more than our own questions may make it do.
fn only_answers(vcpus: &Reading<Vec<VcpuActivity>>) -> bool {
    // Many that are woken at once wait for each other.
    let answers =
        |vcpu: &VcpuActivity| vcpu.busy < ASKED_BUSY_RATIO && vcpu.waiting < STILL_WAITING_RATIO;
    vcpus.as_ref().is_ok_and(|vcpus| vcpus.iter().all(answers))
}

/// The vCPU that wants to run most, where it wants to all the time.
fn pinned(vcpus: &Reading<Vec<VcpuActivity>>) -> Option<VcpuActivity> {
    vcpus
        .as_ref()
        .ok()?
        .iter()
        .copied()
        .max_by(|a, b| (a.busy + a.waiting).total_cmp(&(b.busy + b.waiting)))
        .filter(|vcpu| vcpu.busy + vcpu.waiting >= PINNED_RATIO)
}
