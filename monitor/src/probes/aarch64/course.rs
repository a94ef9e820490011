//! What one Arm vCPU did over all looks of a round. Pure.

use std::time::{Duration, Instant};

use flatline_qemu::qmp::{ArmLevel, ArmRegisters};

/// Linux parks a CPU in a loop of three instructions (`cpu_park_loop` in arch/arm64/include/asm/smp.h of Linux 6.12).
const ONE_SPOT_BYTES: u64 = 16;
/// Within so many bytes of the stack is the loop in which a panic ends: one call deep or none (measured on Linux 6.1 and 6.12).
const ONE_DEPTH_BYTES: u64 = 16;
/// So many looks of a round may have met an interrupt in between, of which a kernel that loops takes 250 a second.
const INTERRUPTED_LOOKS: usize = 1;
/// Fewer looks show no loop.
const LEAST_LOOKS: usize = 3;
/// A vCPU that ran, or wanted to, for less than this share of the time waits.
const WANTS_SHARE: f64 = 0.5;

/// What one look shows of one vCPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct ArmSnapshot {
    /// When QEMU had answered.
    pub(super) at: Instant,
    pub(super) registers: ArmRegisters,
    /// Time for which its thread has run, or wanted to, in ns; `None`: unknown.
    pub(super) wanted_ns: Option<u64>,
}

/// Where a vCPU stands or loops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) index: u32,
    /// The program counter of one look.
    pub(super) pc: u64,
    /// The lowest stack pointer there.
    sp: u64,
    /// The registers of one that stands still.
    digest: Option<u64>,
}

impl Place {
    /// Whether both may be of the same loop.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.index == other.index
            && self.digest == other.digest
            && self.sp.abs_diff(other.sp) <= ONE_DEPTH_BYTES
    }
}

/// What one vCPU did over all looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Course {
    /// It was never started, or is powered off.
    Off,
    /// It waits at one spot in its kernel with all masked, and may burn time there, as one does while its timer is pending: no
    /// kernel that lives does that.
    Parked {
        /// Whether its thread ran all along.
        runs: bool,
    },
    /// It runs at one spot in its kernel with interrupts masked: a wait would not take its thread's time. Below the kernel's
    /// half firmware does so that waits for a key.
    Stands(Place),
    /// It runs on in its kernel at one depth of its stack, with interrupts on.
    Loops(Place),
    /// It waits at one spot, as an idle one does.
    Waits(Place),
    /// Anything else.
    Runs,
}

/// What a vCPU did that ran no user code.
pub(super) fn course(looks: &[&ArmSnapshot]) -> Course {
    let all = |is: fn(&ArmRegisters) -> bool| looks.iter().all(|look| is(&look.registers));
    let Some(first) = looks.first() else { return Course::Runs };
    if all(ArmRegisters::is_off) {
        return Course::Off;
    }
    if !all(|look| look.level == ArmLevel::Kernel) {
        return Course::Runs;
    }
    let is_there = |look: &&ArmSnapshot| {
        look.registers.general_digest == first.registers.general_digest
            && look.registers.pc.abs_diff(first.registers.pc) <= ONE_SPOT_BYTES
    };
    if looks.iter().all(is_there) {
        let ArmRegisters { index, pc, sp, general_digest, .. } = first.registers;
        let place = Place { index, pc, sp, digest: Some(general_digest) };
        return match (all(|look| look.all_masked && look.in_upper_half), runs_all_along(looks)) {
            (true, runs) => Course::Parked { runs },
            (false, true) if all(|look| look.irqs_masked && look.in_upper_half) => {
                Course::Stands(place)
            }
            (false, _) => Course::Waits(place),
        };
    }
    if all(|look| look.in_upper_half) { looped(looks) } else { Course::Runs }
}

/// A loop that counts: what outlives its calls changes from look to look. One that only polls, as Linux' `nohlt` idles,
/// changes none of that.
fn looped(looks: &[&ArmSnapshot]) -> Course {
    let is_at = |base: u64, look: &ArmSnapshot| {
        let ArmRegisters { sp, irqs_masked, .. } = look.registers;
        !irqs_masked && (base..=base.saturating_add(ONE_DEPTH_BYTES)).contains(&sp)
    };
    let at = |base: u64| looks.iter().filter(move |look| is_at(base, look));
    let base = looks.iter().map(|look| look.registers.sp).max_by_key(|base| at(*base).count());
    let Some(base) = base else { return Course::Runs };
    let met: Vec<_> = at(base).collect();
    let counts =
        met.windows(2).all(|pair| pair[0].registers.kept_digest != pair[1].registers.kept_digest);
    if looks.len() < LEAST_LOOKS || met.len() + INTERRUPTED_LOOKS < looks.len() || !counts {
        return Course::Runs;
    }
    let ArmRegisters { index, pc, .. } = met[0].registers;
    Course::Loops(Place { index, pc, sp: base, digest: None })
}

fn runs_all_along(looks: &[&ArmSnapshot]) -> bool {
    let (Some(first), Some(last)) = (looks.first(), looks.last()) else { return false };
    let (Some(then), Some(now)) = (first.wanted_ns, last.wanted_ns) else { return false };
    let elapsed = last.at.saturating_duration_since(first.at);
    let wanted = Duration::from_nanos(now.saturating_sub(then));
    !elapsed.is_zero() && wanted.as_secs_f64() >= WANTS_SHARE * elapsed.as_secs_f64()
}
