//! What one vCPU did over all looks of a round. Pure.

use std::time::Duration;

use flatline_qemu::qmp::{Lapic, Vectors};

use super::look::{VcpuRunState, VcpuSnapshot};

/// A spin of a few instructions stays within so many bytes; a decompressor or a memory test does not.
///
/// It also leaves every register as it is. A boot loader that polls for a key may be seen at the same
/// port instruction again and again, but counts time in between.
const ONE_SPOT_BYTES: u64 = 64;
/// A vCPU that ran for less between two looks may have had no chance to take what is pending: answering a look alone takes
/// it up to 1 ms, and several on a slow host.
const RAN_AT_LEAST_NS: u64 = 5_000_000;

/// Where a vCPU stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) index: u32,
    ip: u64,
    general_digest: u64,
}

impl Spot {
    fn of(look: &VcpuSnapshot) -> Self {
        let registers = &look.registers;
        let (index, ip) = (registers.index, registers.ip);
        Self { index, ip, general_digest: registers.general_digest }
    }

    /// Whether a spin of a few instructions may have been met at both.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.ip.abs_diff(other.ip) <= ONE_SPOT_BYTES && self.general_digest == other.general_digest
    }
}

/// What one vCPU did over all looks.
#[derive(Debug)]
pub(super) enum Course {
    /// It lives, and how.
    Healthy(String),
    /// In `hlt` with interrupts off all along.
    Stopped,
    /// Its local APIC let nothing through all along.
    Unreachable,
    /// It leaves an interrupt alone that it has let in itself.
    Deaf(String),
    /// It stands at one spot with interrupts off, and nothing says that it should have moved.
    Motionless(Spot, String),
    /// Anything else.
    Neither(&'static str),
}

/// What a vCPU did; `before` is a look at it before the others.
pub(super) fn course(before: Option<&VcpuSnapshot>, looks: &[&VcpuSnapshot]) -> Course {
    let standings: Vec<VcpuRunState> = looks.iter().map(|look| look.standing()).collect();
    if standings.contains(&VcpuRunState::Idle) {
        return Course::Healthy("waits with interrupts on".to_owned());
    }
    if standings.contains(&VcpuRunState::User) {
        return Course::Healthy("runs user code".to_owned());
    }
    let always = |wanted| standings.iter().all(|standing| *standing == wanted);
    if always(VcpuRunState::Unreachable) {
        return Course::Unreachable;
    }
    let is_quiet = |standing| matches!(standing, VcpuRunState::Stopped | VcpuRunState::Masked);
    // A kernel with interrupts on may take them and be dead all the same, of a soft lockup.
    if standings.iter().copied().all(is_quiet)
        && let Some(sign) = sign_of_life(before, looks)
    {
        return Course::Healthy(sign);
    }
    if always(VcpuRunState::Stopped) {
        return Course::Stopped;
    }
    if !always(VcpuRunState::Masked) {
        return Course::Neither("runs kernel code");
    }
    let spots: Vec<Spot> = looks.iter().map(|look| Spot::of(look)).collect();
    let Some(spot) = one_spot(&spots) else {
        return Course::Neither("runs with interrupts off, but moves on");
    };
    let at = format!("runs with interrupts off at {:#x}", spot.ip);
    match pending_all_along(looks) {
        None => Course::Motionless(spot, format!("{at}, with no interrupt pending all along")),
        Some(pending) if ran_all_along(looks) => {
            Course::Deaf(format!("{at}, and never takes {pending}"))
        }
        Some(pending) => Course::Motionless(
            spot,
            format!("{at} with {pending} pending, which it may have had no time to take"),
        ),
    }
}

/// The spot at which all of them are.
fn one_spot(spots: &[Spot]) -> Option<Spot> {
    let lowest = *spots.iter().min_by_key(|spot| spot.ip)?;
    spots.iter().all(|spot| lowest.is_same(spot)).then_some(*spots.first()?)
}

/// An interrupt that was pending in every look, in words.
fn pending_all_along(looks: &[&VcpuSnapshot]) -> Option<String> {
    let vectors =
        |look: &&VcpuSnapshot| look.lapic.as_ref().map(Lapic::pending).unwrap_or_default();
    let vector = looks.iter().map(vectors).reduce(Vectors::and)?.first();
    let lines = looks.iter().map(|look| look.pic_pending).reduce(|all, look| all & look)?;
    match vector {
        Some(vector) => Some(format!("interrupt {vector}")),
        None if lines != 0 => Some(format!("the old controller's line {}", lines.trailing_zeros())),
        None => None,
    }
}

fn ran_all_along(looks: &[&VcpuSnapshot]) -> bool {
    looks.windows(2).all(|pair| match (pair[0].ran_ns, pair[1].ran_ns) {
        (Some(then), Some(now)) => now.saturating_sub(then) >= RAN_AT_LEAST_NS,
        _ => false,
    })
}

/// What a vCPU, which always shows one spot with interrupts off or `hlt`, did between the looks all the same.
fn sign_of_life(before: Option<&VcpuSnapshot>, looks: &[&VcpuSnapshot]) -> Option<String> {
    let then = before.into_iter().chain(looks.iter().copied());
    let now = looks.iter().skip(usize::from(before.is_none()));
    then.zip(now).find_map(|(then, now)| sign_between(then, now))
}

fn sign_between(then: &VcpuSnapshot, now: &VcpuSnapshot) -> Option<String> {
    let elapsed = now.at.saturating_duration_since(then.at);
    let (then, now) = (then.lapic?, now.lapic?);
    // One that was disabled, or reset, forgets what it was asked for.
    if !(then.software_enabled && now.software_enabled) {
        return None;
    }
    let taken = then.requested.without(now.requested).first();
    if let Some(vector) = taken.or_else(|| timer_taken(then, now, elapsed)) {
        return Some(format!("takes interrupts ({vector})"));
    }
    // What only the vCPU itself writes. Under TCG the timers fire when QEMU's main loop runs, which is just before it
    // answers a look: a timer that the kernel of a guest hypervisor set was pending in half of all looks, and in twelve in
    // a row, but set to another count in each.
    let written = |lapic: Lapic| {
        (lapic.in_service, lapic.priority_class, lapic.timer_vector, lapic.timer_initial_count)
    };
    (written(then) != written(now)).then(|| "sets its local APIC".to_owned())
}

/// The vector of a periodic timer that ran out in between, and whose interrupt doesn't wait any more. One that never takes
/// it shows it from the first time on.
fn timer_taken(then: Lapic, now: Lapic, elapsed: Duration) -> Option<u8> {
    let timer = |lapic: &Lapic| Some((lapic.timer_period()?, lapic.timer_vector));
    let (period, vector) = timer(&then).filter(|then| timer(&now) == Some(*then))?;
    (elapsed >= period && !now.requested.contains(vector)).then_some(vector)
}
