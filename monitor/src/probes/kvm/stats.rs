//! The same question where KVM's tracepoints can't be had: QEMU passes on what KVM itself counts of each vCPU (`query-stats`).
//!
//! Measured on QEMU 7.2 and Linux 6.18 (nested, under `kvm_pvm`), boot sectors on the first of two vCPUs, in 5 s; beside it
//! `info registers` was asked for 20 times, or not at all:
//!
//! | guest | `halt_exits` | `halt_wakeup` | `exits` | `signal_exits` |
//! |---|---|---|---|---|
//! | `sti; hlt`, alive | 91 | 91 | 98 | 1 |
//! | the same, looked at | 92 | 92 | 96 | 21 |
//! | `cli; hlt`, dead | 0 | 0 | 0 | 1 |
//! | the same, looked at | 0 | 0 | 0 | 21 |
//! | `cli; jmp`, dead | 0 | 0 | 2767 | 1 |
//! | the same, looked at | 0 | 0 | 4407 | 20 |
//! | `sti; jmp`, alive | 0 | 0 | 3003 | 1 |
//!
//! On x86 (`kvm_emulate_halt` and `svm_inject_irq` of Linux 6.12), life is a `hlt` that is executed, since the guest has gone on
//! behind the last one, and an interrupt that is injected, though that machine counts none. Nothing else is: each look of ours,
//! this one too, is an exit by a signal; the host's own interrupts are exits of whatever guest code runs; and a timer
//! goes on waking a vCPU that halted with interrupts off. Figures of other timers than the local APIC's are not told, so that
//! a guest that computes where the processor delivers interrupts past KVM shows nothing.
//!
//! On arm64 (`wfi_exit_stat` tells it) a parked CPU waits up to 30,000 times a second, so that only a sleep that an interrupt
//! ended is life; a busy guest is as silent as a dead one, and no silence counts.
//!
//! The figures come from [`VcpuStats`]; what they mean is judged here, and is pure.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{LONGEST_LOOK, LOOK_FOR, SHORTEST_SILENCE, longest_wait, named, waited};
use crate::{probes::ProbeContext, sampler::interrupts_are_hidden};
use flatline_detector::verdict::Answer;
use flatline_qemu::qmp::{QmpError, VcpuStats};

/// What is kept from one round to the next.
#[derive(Default)]
pub(super) struct StatsMemory {
    beginning: Option<Beginning>,
    /// When the guest was last seen to live.
    lived_at: Option<Instant>,
}

struct Beginning {
    at: Instant,
    figures: Vec<VcpuStats>,
    /// How long each of its vCPUs had waited for a CPU of the host; `None` where that can't be read.
    waited: Option<Vec<Duration>>,
}

/// Asks QEMU for KVM's figures; `why` the tracepoints can't be had is said where these can't be had either.
pub(super) async fn ask(
    context: &ProbeContext,
    memory: &mut StatsMemory,
    why: String,
) -> Result<Answer, String> {
    let goes_on = |beginning: &Beginning| {
        let age = beginning.at.elapsed();
        age < LONGEST_LOOK && age <= context.boot_age
    };
    let beginning = match memory.beginning.take().filter(goes_on) {
        Some(beginning) => beginning,
        None => {
            let figures = read(context, &why).await?;
            let beginning = Beginning { at: Instant::now(), figures, waited: waited(context) };
            sleep(LOOK_FOR).await;
            beginning
        }
    };
    let after = read(context, &why).await?;
    let lived_at = |at: Option<Instant>| at.is_some_and(|at| at.elapsed() <= context.boot_age);
    let answer = judge(&StatsLook {
        before: &beginning.figures,
        after: &after,
        elapsed: beginning.at.elapsed(),
        waited: longest_wait(beginning.waited.as_deref(), waited(context).as_deref()),
        lived: lived_at(memory.lived_at),
        interrupts_are_hidden: interrupts_are_hidden(),
    });
    if answer.acquits() {
        memory.lived_at = Some(Instant::now());
    }
    memory.beginning = Some(beginning);
    Ok(answer)
}

async fn read(context: &ProbeContext, why: &str) -> Result<Vec<VcpuStats>, String> {
    let figures = context.qmp()?.query_vcpu_stats().await.map_err(|error| match error {
        QmpError::Command { .. } => format!("{why}, and QEMU has no figures of KVM's"),
        error => error.to_string(),
    })?;
    if figures.is_empty() { Err(format!("{why}, and KVM has no figures")) } else { Ok(figures) }
}

/// All that is known when the question is answered.
#[derive(Clone, Copy, Debug)]
struct StatsLook<'a> {
    before: &'a [VcpuStats],
    after: &'a [VcpuStats],
    /// Time between the two.
    elapsed: Duration,
    /// How long the vCPU that waited longest for a CPU of the host did so in between; `None` where that isn't known.
    waited: Option<Duration>,
    /// Whether the guest was seen to live by these figures in this boot.
    lived: bool,
    /// Whether the processor delivers interrupts past KVM.
    interrupts_are_hidden: bool,
}

/// Figures by which an x86 guest lives, in words.
const X86_LIFE: [(&str, &str); 2] =
    [("irq_injections", "interrupts taken"), ("halt_exits", "times halted anew")];
/// What a dead one may do as well, but not one that halted, or spins.
const X86_TOUCHES: [(&str, &str); 2] =
    [("io_exits", "port accesses"), ("mmio_exits", "accesses to devices' memory")];
/// An arm64 KVM has this figure, and no other one has.
const ARM64_WAITS: &str = "wfi_exit_stat";

fn judge(look: &StatsLook<'_>) -> Answer {
    let (before, after) = (look.before, look.after);
    let are_same = before.len() == after.len()
        && before.iter().zip(after).all(|(before, after)| before.is_of_same(after));
    if !are_same {
        return Answer::NotAsked("its vCPUs are others than before".to_owned());
    }
    let seconds = look.elapsed.as_secs_f64();
    if after.iter().any(|vcpu| vcpu.get(ARM64_WAITS).is_some()) {
        return match moved(look, "halt_wakeup") {
            Some(sleeps @ 1..) => {
                Answer::Lives(format!("{sleeps} interrupts ended a sleep in {seconds:.1} s"))
            }
            _ => Answer::Nothing(format!("no interrupt ended a sleep in {seconds:.1} s")),
        };
    }
    let [life, touches] = [X86_LIFE, X86_TOUCHES]
        .map(|figures| figures.map(|(name, what)| (moved(look, name), what)));
    let known = |figures: [(Option<u64>, &'static str); 2]| {
        named(&figures.map(|(moved, what)| (moved.unwrap_or(0), what)))
    };
    if let Some(signs) = known(life) {
        return Answer::Lives(format!("{signs} in {seconds:.1} s, by KVM's own figures"));
    }
    let nothing = format!("no interrupt taken in {seconds:.1} s, by KVM's own figures");
    if life.iter().all(|(moved, _)| moved.is_none()) {
        return Answer::NotAsked("KVM's figures have nothing that tells of life".to_owned());
    }
    let but = known(touches).or_else(|| {
        let is_lost = life.iter().chain(&touches).any(|(moved, _)| moved.is_none());
        why_silence_says_nothing(look, is_lost)
    });
    match but {
        Some(why) => Answer::Nothing(format!("{nothing}, but {why}")),
        None => Answer::Silent(nothing),
    }
}

/// What was counted in between of all vCPUs; `None` where it isn't told of each, or went backwards.
fn moved(look: &StatsLook<'_>, name: &str) -> Option<u64> {
    let of_vcpu =
        |(before, after): (&VcpuStats, &VcpuStats)| after.get(name)?.checked_sub(before.get(name)?);
    let all: Option<Vec<u64>> = look.before.iter().zip(look.after).map(of_vcpu).collect();
    Some(all?.into_iter().fold(0, u64::saturating_add))
}

fn why_silence_says_nothing(look: &StatsLook<'_>, is_lost: bool) -> Option<String> {
    let Some(waited) = look.waited else {
        return Some("how long the host let it wait can't be read".to_owned());
    };
    if look.elapsed.saturating_sub(waited) < SHORTEST_SILENCE {
        return Some(format!("only {} s and more say anything", SHORTEST_SILENCE.as_secs()));
    }
    if is_lost {
        return Some("some of them aren't told".to_owned());
    }
    if look.interrupts_are_hidden {
        return Some("the processor delivers interrupts past KVM".to_owned());
    }
    (!look.lived).then(|| "it was never seen to take one in this boot".to_owned())
}

#[cfg(test)]
mod tests;
