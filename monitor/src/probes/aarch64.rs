//! What the registers of an Arm guest say: they tell other things than a PC's, and have their own judgement.
//!
//! An Arm vCPU has no flag for `wfi`, and waits in it with interrupts masked: so Linux idles. QEMU shows nothing of the
//! interrupt controller. What was seen of Linux 6.1 and 6.12, under TCG and KVM:
//!
//! | vCPU | PSTATE | registers | its thread |
//! |---|---|---|---|
//! | idle | EL1, I and F masked | at one spot; some change now and then | sleeps |
//! | busy | mostly EL0 | all change | runs |
//! | panicked | EL1, nothing masked | SP within 16 bytes, X20 to X24 count | runs |
//! | parked by that | EL1, all masked | none changes | runs under KVM, where its timer is pending; sleeps under TCG |
//! | `halt -f`, the CPU that ran it | EL1, I and F masked | none changes | runs |
//! | `nohlt`, idle | EL1, nothing masked | SP constant; X2, X6 and X14 change, X19 to X28 don't | runs |
//! | never started | all masked, PC 0 | zero | sleeps |
//!
//! User code in any look acquits: the kernel that returned to it lives. A guest is *stuck* if every vCPU but one that was
//! started is parked, each burning its CPU, and the last one loops at one depth of its stack or stands at one spot with
//! interrupts masked. Of a single vCPU, or beside ones that were powered off, that is a kernel which computes, too: there, KVM
//! must have seen it wait before in this boot, and must not have since for [`STILL_FOR`]. Whatever KVM sees of an interrupt
//! that ends a sleep speaks for the guest. The verdict further wants the vCPU pinned for the whole silence.
//!
//! A loop by itself says nothing, but it fits a kernel's last words. So does nothing that a guest shows which may run guests of
//! its own (QEMU's `virtualization=on`): its registers may be those of its own guest.

mod course;

use std::time::Duration;

use tokio::time::{Instant, sleep};

use self::course::{ArmSnapshot, Course, Place, course};
use super::{Note, ProbeContext, kvm, registers::unavailable};
use crate::sampler::thread_wanted_ns;
use flatline_detector::verdict::Answer;
use flatline_qemu::qmp::{ArmLevel, ArmRegisters, QmpHandle, parse_arm_registers};
use monitor_ebpf::KvmCounters;

/// Time between two looks: a guest that computes is in its kernel for moments only.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Looks in one round.
const LOOKS_PER_ROUND: usize = 3;
/// More looks where a vCPU seems to loop.
const LOOKS_TO_BE_SURE: usize = 3;
/// Time between those.
const LOOK_AGAIN_EVERY: Duration = Duration::from_millis(80);
/// An older round is of an earlier suspicion.
const ROUNDS_APART: Duration = Duration::from_secs(10);
/// A single vCPU that computes in its kernel for so long, at one depth of its stack in every look, and hasn't waited once, is
/// none that lives: `flat_for` by default.
const STILL_FOR: Duration = Duration::from_secs(10);

/// What is kept from one round to the next.
#[derive(Default)]
struct Seen {
    /// Where the only vCPU that isn't parked was in the last round, since when it is there, and when that round ended.
    place: Option<(Place, Instant, Instant)>,
    /// Where KVM's counters stood since when, and in which of the VM's times to be counted.
    counted: Option<(Instant, u64, KvmCounters)>,
    /// When KVM last saw a sleep of the guest's end by an interrupt.
    awoke_at: Option<Instant>,
}

/// What KVM saw of the guest's waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waits {
    /// It isn't counted.
    Unknown,
    /// An interrupt ended a sleep since the last round.
    Woke,
    /// None has for so long.
    Still {
        /// For how long.
        span: Duration,
        /// Whether one had earlier in this boot: whether that can be seen of it.
        woke_before: bool,
        /// Whether no vCPU as much as began to wait.
        none_began: bool,
    },
}

/// Looks at all vCPUs [`LOOKS_PER_ROUND`] times, and more often where one seems to loop; one that shows life is enough.
pub(super) async fn ask(
    context: &ProbeContext,
    qmp: &QmpHandle,
    note: &mut Note,
    may_nest: bool,
) -> Answer {
    let mut seen: Seen = note.take().unwrap_or_default();
    let began = Instant::now();
    let answer = match look(context, qmp).await {
        Ok(looks) => {
            let waits = seen.waits(context);
            let (answer, place) = classify(&looks, waits, seen.at_place_for(began), may_nest);
            seen.stays_at(place, began);
            answer
        }
        Err(answer) => answer,
    };
    note.put(seen);
    answer
}

async fn look(context: &ProbeContext, qmp: &QmpHandle) -> Result<Vec<Vec<ArmSnapshot>>, Answer> {
    let mut looks = Vec::with_capacity(LOOKS_PER_ROUND + LOOKS_TO_BE_SURE);
    for n in 0..LOOKS_PER_ROUND + LOOKS_TO_BE_SURE {
        match n {
            0 => {}
            1..LOOKS_PER_ROUND => sleep(LOOK_EVERY).await,
            _ => sleep(LOOK_AGAIN_EVERY).await,
        }
        looks.push(look_once(context, qmp).await?);
        let loops = |course: &(u32, Course)| matches!(course.1, Course::Loops(_));
        let is_done = n + 1 >= LOOKS_PER_ROUND && !courses(&looks).iter().any(loops);
        if is_done || runs_user_code(&looks).is_some() {
            break;
        }
    }
    Ok(looks)
}

async fn look_once(context: &ProbeContext, qmp: &QmpHandle) -> Result<Vec<ArmSnapshot>, Answer> {
    let text = qmp.human("info registers -a").await.map_err(unavailable)?;
    let at = std::time::Instant::now();
    let vcpus = parse_arm_registers(&text).map_err(|error| Answer::NotAsked(error.to_string()))?;
    let wanted_ns = |index: u32| {
        // Where TCG has one thread for all vCPUs, it tells of none.
        let (_, tid) = context.vcpu_threads.iter().find(|(vcpu, _)| *vcpu == index)?;
        (context.vcpu_threads.len() == vcpus.len())
            .then(|| thread_wanted_ns(context.vm.id.pid, *tid))?
    };
    let snapshot = |registers: &ArmRegisters| {
        let wanted_ns = wanted_ns(registers.index);
        ArmSnapshot { at, registers: *registers, wanted_ns }
    };
    Ok(vcpus.iter().map(snapshot).collect())
}

/// The kernel masks no interrupt of the code that it returns to: where one is masked, it isn't its user code.
fn runs_user_code(looks: &[Vec<ArmSnapshot>]) -> Option<u32> {
    let is_user_code =
        |look: &&ArmSnapshot| look.registers.level == ArmLevel::User && !look.registers.irqs_masked;
    looks.iter().flatten().find(is_user_code).map(|look| look.registers.index)
}

/// What each vCPU did over all looks, with its number; none where the vCPUs changed.
fn courses(looks: &[Vec<ArmSnapshot>]) -> Vec<(u32, Course)> {
    let Some(first) = looks.first() else { return Vec::new() };
    let index = |look: &ArmSnapshot| look.registers.index;
    if !looks.iter().all(|look| look.iter().map(index).eq(first.iter().map(index))) {
        return Vec::new();
    }
    let of = |n: usize| looks.iter().filter_map(|look| look.get(n)).collect::<Vec<_>>();
    first.iter().enumerate().map(|(n, vcpu)| (index(vcpu), course(&of(n)))).collect()
}

impl Seen {
    /// Reads what KVM counts of the VM, if it does.
    fn waits(&mut self, context: &ProbeContext) -> Waits {
        let now = Instant::now();
        let Some((number, counters)) = kvm::waits(context) else {
            self.counted = None;
            return Waits::Unknown;
        };
        let goes_on = self.counted.take().filter(|(_, then, _)| *then == number);
        let Some((since, _, before)) = goes_on else {
            self.counted = Some((now, number, counters));
            return Waits::Unknown;
        };
        let Some(moved) = kvm::difference(&before, &counters) else { return Waits::Unknown };
        if moved.awoken > 0 {
            (self.counted, self.awoke_at) = (Some((now, number, counters)), Some(now));
            return Waits::Woke;
        }
        self.counted = Some((since, number, before));
        let woke_before = self.awoke_at.is_some_and(|at| now - at <= context.boot_age);
        Waits::Still { span: now - since, woke_before, none_began: moved.waits == 0 }
    }

    /// The place at which the last vCPU has been since when, unless that was of an earlier suspicion.
    fn at_place_for(&self, began: Instant) -> Option<(Place, Duration)> {
        let (place, since, last) = self.place?;
        (began - last <= ROUNDS_APART).then(|| (place, began - since))
    }

    fn stays_at(&mut self, place: Option<Place>, began: Instant) {
        let then = self.place.take().filter(|(then, _, last)| {
            began - *last <= ROUNDS_APART && place.is_some_and(|place| place.is_same(then))
        });
        let since = then.map_or(began, |(_, since, _)| since);
        self.place = place.map(|place| (place, since, Instant::now()));
    }
}

/// What several looks say together, and where the only vCPU is that isn't parked. `before` is where it was, and for how long.
fn classify(
    looks: &[Vec<ArmSnapshot>],
    waits: Waits,
    before: Option<(Place, Duration)>,
    may_nest: bool,
) -> (Answer, Option<Place>) {
    if let Some(index) = runs_user_code(looks) {
        return (Answer::Lives(format!("vCPU {index} runs user code")), None);
    }
    let courses = courses(looks);
    if courses.is_empty() {
        return (Answer::Neither("the vCPUs could not be followed".to_owned()), None);
    }
    let (mut parked, mut burning, mut active) = (0_usize, 0_usize, Vec::new());
    for (index, course) in courses {
        match course {
            Course::Off => {}
            Course::Parked { runs } => {
                parked += 1;
                burning += usize::from(runs);
            }
            Course::Waits(_) | Course::Stands(_) | Course::Loops(_) | Course::Runs => {
                active.push((index, course));
            }
        }
    }
    let parked = Parked { count: parked, burn: parked > 0 && burning == parked };
    let place = match active[..] {
        [(_, Course::Stands(place) | Course::Loops(place))] => Some(place),
        _ => None,
    };
    let stayed = before.filter(|(then, _)| place.is_some_and(|place| place.is_same(then)));
    let still_for = stayed.map_or(Duration::ZERO, |(_, span)| span);
    let moved_on = before.is_some() && stayed.is_none();
    let answer = match &active[..] {
        _ if may_nest => {
            Answer::Neither("it may run guests of its own, whose registers these are".to_owned())
        }
        [(_, Course::Loops(place))] => parked.beside_a_loop(*place, waits, still_for),
        [(_, Course::Stands(place))] => parked.beside_one_that_stands(*place, waits, moved_on),
        [] => parked.alone(waits),
        [(index, course), ..] => Answer::Neither(in_words(*index, course)),
    };
    (answer, place)
}

fn in_words(index: u32, course: &Course) -> String {
    match course {
        Course::Waits(place) | Course::Stands(place) | Course::Loops(place) => {
            format!("vCPU {index} waits or loops in kernel mode at {:#x}", place.pc)
        }
        Course::Off | Course::Parked { .. } | Course::Runs => {
            format!("vCPU {index} runs kernel code")
        }
    }
}

/// The vCPUs that stand at one spot with all masked.
#[derive(Clone, Copy, Debug)]
struct Parked {
    count: usize,
    /// Each of them burns its CPU, which none does that was powered off or that only waits.
    burn: bool,
}

impl Parked {
    fn beside_a_loop(self, place: Place, waits: Waits, still_for: Duration) -> Answer {
        let Place { index, pc, .. } = place;
        let text = format!("vCPU {index} loops in kernel mode near {pc:#x}{}", self.in_words());
        let single = match waits {
            Waits::Unknown | Waits::Woke => false,
            Waits::Still { span, woke_before, none_began } => {
                // One that is parked waits all the time, or for its timer.
                woke_before && (none_began || self.count > 0) && span.min(still_for) >= STILL_FOR
            }
        };
        if waits != Waits::Woke && (self.burn || single) {
            return Answer::Stuck(text);
        }
        Answer::Loops(text)
    }

    fn beside_one_that_stands(self, place: Place, waits: Waits, moved_on: bool) -> Answer {
        let Place { index, pc, .. } = place;
        let text =
            format!("vCPU {index} runs with interrupts masked at {pc:#x}{}", self.in_words());
        match waits {
            _ if moved_on => {
                Answer::Neither(format!("vCPU {index} moved on since the round before"))
            }
            Waits::Woke => Answer::Neither(text),
            Waits::Unknown | Waits::Still { .. } if self.burn => Answer::Stuck(text),
            Waits::Unknown | Waits::Still { .. } => Answer::Motionless(text),
        }
    }

    fn alone(self, waits: Waits) -> Answer {
        match self.count {
            0 => Answer::Neither("no vCPU was started".to_owned()),
            // So dead ones stand, and so does a kernel whose debugger waits for a key.
            _ if self.burn && waits != Waits::Woke => {
                let text = "every vCPU is parked with all masked, and burns its CPU";
                Answer::Motionless(text.to_owned())
            }
            // As powered-off ones look.
            _ => Answer::Neither("every vCPU stands with all masked".to_owned()),
        }
    }

    fn in_words(self) -> String {
        match (self.count, self.burn) {
            (0, _) => String::new(),
            (count, true) => format!(", and {count} others burn their CPUs with all masked"),
            (count, false) => format!(", and {count} others stand with all masked"),
        }
    }
}

#[cfg(test)]
mod tests;
