//! The registers and pending interrupts of all vCPUs: a witness that needs nothing inside the guest, and no
//! calibration. What follows is of x86; [`aarch64`] has Arm's.
//!
//! A healthy idle guest waits in `hlt` with interrupts on, and a busy one is mostly in user mode. Standing at one spot
//! with interrupts off is no death: MWAIT with interrupts as break events waits so, and firmware polls so; a guest
//! hypervisor shows its inner guest's registers, dead or not. What no living guest does is leave an interrupt alone
//! that it has itself let in. So a vCPU is dead to the world only if
//!
//! - it is in `hlt` with interrupts off, or
//! - its local APIC is disabled and passes nothing on, as Linux's panic leaves it, or
//! - it runs at one spot with interrupts off, and the same interrupt was pending in every look of the round, between
//!   all of which it ran.
//!
//! What stands at one spot with nothing pending is told as just that. What it did to its local APIC from one look to the
//! next acquits it: an interrupt that was pending and isn't any more was taken, and a timer that is set anew was set. docs/verdicts.md has the healthy states that look like dead ones.

mod course;
mod look;

use std::time::{Duration, Instant};

use tokio::time::sleep;

use self::{
    course::{Course, Spot, course},
    look::{VcpuRunState, VcpuSnapshot, look_once},
};
use super::{Note, ProbeContext, Witness, aarch64, of_suspects};
use crate::insight::{Readable, Unreadable};
use flatline_detector::verdict::Answer;
use flatline_qemu::qmp::QmpHandle;
pub(super) use look::unavailable;

/// The row in the table.
pub(super) const WITNESS: Witness = Witness {
    name: "registers",
    looks_for: "interrupts on, an interrupt that it takes, or user code",
    asked_in: of_suspects,
    only_excuses: false,
    ask: |context, note| Box::pin(ask(context, note)),
};

/// Time between two looks at the registers. Under TCG they are stale within a translation block, and a
/// spinning vCPU must be given the time to move on.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Looks in one round.
const LOOKS_PER_ROUND: usize = 3;
/// More looks where all of them show the same interrupt pending, with nothing else done to the local APIC in between. A
/// periodic interrupt that is pending just when QEMU looks was seen in half of the looks at a healthy guest.
const LOOKS_TO_BE_SURE: usize = 5;
/// Time between those.
const LOOK_AGAIN_EVERY: Duration = Duration::from_millis(80);
/// An older round is of an earlier suspicion.
const ROUNDS_APART: Duration = Duration::from_secs(10);

/// What one round leaves for the next.
struct Before {
    at: Instant,
    /// Where vCPUs stood that did not move.
    spots: Vec<Spot>,
    /// The last look.
    looks: Vec<VcpuSnapshot>,
}

async fn ask(context: &ProbeContext, note: &mut Note) -> Result<Answer, String> {
    if let Some(why) = context.insight.never() {
        return Ok(Answer::Opaque(why));
    }
    let qmp = context.qmp()?;
    let began = Instant::now();
    match context.insight.registers(qmp).await {
        Ok(Readable::X86) => {}
        Ok(Readable::Arm { may_nest }) => {
            return Ok(aarch64::ask(context, qmp, note, may_nest).await);
        }
        Err(Unreadable::Ever(why)) => return Ok(Answer::Opaque(why)),
        Err(Unreadable::Now(error)) => return Ok(unavailable(error)),
    }
    let of_this_suspicion = |before: &Before| {
        let age = began.saturating_duration_since(before.at);
        age <= ROUNDS_APART && age <= context.boot_age
    };
    let before = note.take::<Before>().filter(of_this_suspicion);
    let mut looks = match look(context, qmp).await {
        Ok(looks) => looks,
        Err(answer) => return Ok(answer),
    };
    let (answer, spots) = classify(&looks, before.as_ref());
    let last = looks.pop().unwrap_or_default();
    note.put(Before { at: Instant::now(), spots, looks: last });
    Ok(answer)
}

/// Looks at all vCPUs [`LOOKS_PER_ROUND`] times, and more often where a vCPU seems to leave an interrupt alone; less often where
/// no further look can change what they say.
async fn look(context: &ProbeContext, qmp: &QmpHandle) -> Result<Vec<Vec<VcpuSnapshot>>, Answer> {
    let mut looks = Vec::with_capacity(LOOKS_PER_ROUND + LOOKS_TO_BE_SURE);
    for n in 0..LOOKS_PER_ROUND {
        if n > 0 {
            sleep(LOOK_EVERY).await;
        }
        looks.push(look_once(context, qmp).await?);
        if is_settled(&looks) {
            return Ok(looks);
        }
    }
    if !courses(&looks, None).iter().any(|(_, course)| matches!(course, Course::Deaf(_))) {
        return Ok(looks);
    }
    for _ in 0..LOOKS_TO_BE_SURE {
        sleep(LOOK_AGAIN_EVERY).await;
        looks.push(look_once(context, qmp).await?);
    }
    Ok(looks)
}

/// Whether the looks acquit, whatever further ones show: a vCPU waits with interrupts on or runs user code, and each was
/// seen otherwise than one that is dead or doesn't move, which is so in each look.
fn is_settled(looks: &[Vec<VcpuSnapshot>]) -> bool {
    let Some(first) = looks.first().filter(|first| has_same_vcpus(looks, first)) else {
        return false;
    };
    let lives =
        |look: &VcpuSnapshot| matches!(look.standing(), VcpuRunState::Idle | VcpuRunState::User);
    let may_be_dead = |look: &VcpuSnapshot| {
        matches!(look.standing(), VcpuRunState::Masked | VcpuRunState::Unreachable)
    };
    let is_cleared =
        |n: usize| looks.iter().filter_map(|look| look.get(n)).any(|look| !may_be_dead(look));
    looks.iter().flatten().any(lives) && (0..first.len()).all(is_cleared)
}

/// What each vCPU did over all looks, with its number; none where the vCPUs changed. `before` is the last look of the round
/// before.
fn courses(looks: &[Vec<VcpuSnapshot>], before: Option<&[VcpuSnapshot]>) -> Vec<(u32, Course)> {
    let Some(first) = looks.first().filter(|first| has_same_vcpus(looks, first)) else {
        return Vec::new();
    };
    let before = before.filter(|before| has_same_vcpus(looks, before));
    let of = |n: usize| looks.iter().filter_map(|look| look.get(n)).collect::<Vec<_>>();
    let course = |n: usize| course(before.and_then(|before| before.get(n)), &of(n));
    first.iter().enumerate().map(|(n, vcpu)| (vcpu.registers.index, course(n))).collect()
}

fn has_same_vcpus(looks: &[Vec<VcpuSnapshot>], first: &[VcpuSnapshot]) -> bool {
    let index = |look: &VcpuSnapshot| look.registers.index;
    looks.iter().all(|look| look.iter().map(index).eq(first.iter().map(index)))
}

/// What several looks say together, and where vCPUs stand that did not move.
fn classify(looks: &[Vec<VcpuSnapshot>], before: Option<&Before>) -> (Answer, Vec<Spot>) {
    let Some(first) = looks.first().filter(|first| !first.is_empty()) else {
        return (Answer::NotAsked("QEMU named no vCPU".to_owned()), Vec::new());
    };
    if !has_same_vcpus(looks, first) {
        return (Answer::Neither("the number of vCPUs changed".to_owned()), Vec::new());
    }
    let mut found = Found::default();
    let mut spots = Vec::new();
    for (index, course) in courses(looks, before.map(|before| before.looks.as_slice())) {
        let course = match course {
            Course::Motionless(spot, _) if moved_on(before, &spot) => {
                spots.push(spot);
                Course::Neither("moved on since the round before")
            }
            Course::Motionless(spot, what) => {
                spots.push(spot);
                Course::Motionless(spot, what)
            }
            other => other,
        };
        found.add(index, course);
    }
    (found.answer(), spots)
}

fn moved_on(before: Option<&Before>, spot: &Spot) -> bool {
    let then = before.and_then(|before| before.spots.iter().find(|then| then.index == spot.index));
    then.is_some_and(|then| !then.is_same(spot))
}

/// What was found of the vCPUs: the first of each kind, in words.
#[derive(Default)]
struct Found {
    healthy: Option<String>,
    dead: Option<String>,
    motionless: Option<String>,
    neither: Option<String>,
}

impl Found {
    fn add(&mut self, index: u32, course: Course) {
        let (kind, what) = match course {
            Course::Healthy(what) => (&mut self.healthy, what),
            Course::Unreachable => {
                (&mut self.dead, "runs in kernel mode with its local APIC disabled".to_owned())
            }
            Course::Deaf(what) => (&mut self.dead, what),
            Course::Motionless(_, what) => (&mut self.motionless, what),
            Course::Neither(what) => (&mut self.neither, what.to_owned()),
            Course::Stopped => return,
        };
        kind.get_or_insert_with(|| format!("vCPU {index} {what}"));
    }

    fn answer(self) -> Answer {
        match self {
            Self { healthy: None, dead: None, motionless: None, neither: None } => Answer::Halted,
            Self { healthy: Some(healthy), dead: None, motionless: None, .. } => {
                Answer::Lives(healthy)
            }
            // Half a guest may be dead.
            Self { healthy: Some(healthy), dead, motionless, .. } => {
                let other = dead.or(motionless).unwrap_or_default();
                Answer::Neither(format!("{other}, but {healthy}"))
            }
            Self { healthy: None, dead, motionless, neither: Some(neither) } => {
                let other = dead.or(motionless);
                let other = other.map(|other| format!("{other}, but ")).unwrap_or_default();
                Answer::Neither(format!("{other}{neither}"))
            }
            Self { healthy: None, dead, motionless: Some(motionless), neither: None } => {
                let dead = dead.map(|dead| format!("{dead}, and ")).unwrap_or_default();
                Answer::Motionless(format!("{dead}{motionless}"))
            }
            Self { healthy: None, dead: Some(dead), motionless: None, neither: None } => {
                Answer::Stuck(dead)
            }
        }
    }
}

#[cfg(test)]
mod tests;
