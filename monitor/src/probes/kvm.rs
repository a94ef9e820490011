//! What KVM sees a suspect do: a vCPU that takes no interrupt is dead, however much time it burns.
//!
//! Signs of life are what only a guest does that takes interrupts: KVM injected one, the guest acknowledged
//! one, it set its timer again, or it went on behind a `hlt`. Nothing else acquits. Measured with QEMU 7.2
//! on Linux 6.18 (nested, under `kvm_pvm`), boot sectors on one vCPU, events a second, also with
//! `info registers -a` asked for every 250 ms beside it:
//!
//! | guest | wakeups | acknowledged | `info registers` adds |
//! |---|---|---|---|
//! | `sti; hlt`, alive | 18.2 | 18.2 | 4 wakeups |
//! | `sti; jmp`, alive | 0 | 18.2 | |
//! | `cli; hlt`, dead | 0 | 0 | 4 wakeups |
//! | `cli; jmp`, dead | 0 | 0 | |
//! | local APIC's timer running, then `cli; hlt`, dead | **100** | 0 | 4 wakeups |
//! | the same, then `cli; jmp`, dead | 0 | 0 | |
//!
//! So a wakeup is no sign of life: a signal to the vCPU's thread is one, and so is a timer whose interrupt is
//! never taken. One after which guest code ran is; whether it did, only `kvm_entry` tells, which never fires
//! on that machine (nor do `kvm_exit` and `kvm_inj_virq`). These guests acknowledge by a write to the old
//! interrupt controller's port; `kvm_eoi` fires as well, but with nothing in service, which counts for
//! nothing. Accesses to other ports acquit no guest: Linux blinks the keyboard's lights while it is panicked.
//!
//! Measured on a host with Linux 6.1 and `kvm_amd` (emulated, AVIC off), 64-bit Linux guests, of each vCPU a second:
//!
//! | guest | entries | interrupts taken = acknowledged | timers set | wakeups |
//! |---|---|---|---|---|
//! | idle | 6-33 | 2-10 | by exits 6e0 | 2-10 |
//! | busy | 677 | 240 | 240 | |
//! | panicked, the CPU that did | 145-256, by the host's interrupts | **0** | **0** | |
//! | panicked, the others | 0 | 0 | 0 | from our own looks |
//! | `halt -f` | **0** | 0 | 0 | 5, from our own looks |
//! | hard lock-up | 246, by the host's interrupts | 0 | 0 | |
//! | `idle=poll`, alive | | 203-249 | | |
//!
//! No vCPU that is halted and has nothing to take is entered (`vcpu_run` in arch/x86/kvm/x86.c of Linux 6.12).
//!
//! Most suspects are acquitted by their first round of questions, so KVM is asked from the second one on: until then nothing
//! is attached, and no VM on the host pays. A silence speaks against a guest only if that very guest was seen to take
//! interrupts in this boot: of others nothing is known, and one that sets timers may take them where none can see it.
//!
//! An arm64 KVM shows other things: see [`arm64`].
//!
//! What it can't tell: a VM lives as soon as one of its vCPUs does; a guest that crashed and takes interrupts
//! all the same (Linux with `nolapic`, or one that locked up with interrupts on) counts as alive.
//!
//! Where the processor delivers interrupts itself, less is seen: see [`hidden`].

mod arm64;
mod hidden;
mod stats;

use std::{fmt::Write as _, fs, sync::Arc, time::Duration};

use monitor_ebpf::{KVM_ROWS, KvmCounters};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{Note, ProbeContext, Witness, of_suspects};
use crate::{
    bpf::{KvmHooks, ONLY_ARM64, ONLY_X86},
    sampler::{KvmReader, interrupts_are_hidden},
};
use flatline_detector::verdict::Answer;
use flatline_qemu::discover::Accelerator;
use flatline_samples::Reading;

/// The row in the table.
pub(super) const WITNESS: Witness = Witness {
    name: "KVM",
    looks_for: "interrupts that the guest takes",
    asked_in: of_suspects,
    only_excuses: false,
    ask: |context, note| Box::pin(ask(context, note)),
};

/// Time in which a first look is taken.
const LOOK_FOR: Duration = Duration::from_millis(500);
/// An older beginning is of an earlier suspicion, and the VM was not counted in between.
const LONGEST_LOOK: Duration = Duration::from_secs(30);
/// Time for the tracepoints to be attached: some milliseconds, more where others' programs are attached before.
const ATTACHED_WITHIN: Duration = Duration::from_secs(3);

/// The way to what KVM's tracepoints count of a VM.
pub(crate) struct KvmWay {
    /// Reads the counters; `None` where the map can't be read.
    pub(crate) reader: Option<Arc<KvmReader>>,
    /// What is attached, and for which VMs.
    pub(crate) hooks: watch::Receiver<KvmHooks>,
    /// Whether it is this VM's turn.
    pub(crate) turn: KvmTurn,
}

/// Whether it is a suspect's turn to be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KvmTurn {
    /// This is its first round of questions.
    NotYet,
    /// There are more suspects than rows to count them in.
    Waits,
    /// It is.
    Counted,
}

/// What is kept from one round to the next.
#[derive(Default)]
struct Seen {
    /// Where this suspicion's first look found the counters.
    beginning: Option<Beginning>,
    /// When the guest was last seen to take an interrupt, or to acknowledge one.
    took_at: Option<Instant>,
    /// When the guest was last seen to set its timer.
    set_timer_at: Option<Instant>,
    /// What QEMU was asked instead.
    stats: stats::StatsMemory,
}

struct Beginning {
    at: Instant,
    /// Which of the VM's times to be counted this is.
    number: u64,
    counters: KvmCounters,
    /// How long each of its vCPUs had waited for a CPU of the host; `None` where that can't be read.
    waited: Option<Vec<Duration>>,
}

async fn ask(context: &ProbeContext, note: &mut Note) -> Result<Answer, String> {
    let accelerator = &context.vm.accelerator;
    if *accelerator != Accelerator::Kvm {
        return Err(format!("it runs under {accelerator}"));
    }
    let mut seen: Seen = note.take().unwrap_or_default();
    let asked = match by_tracepoints(context, &mut seen).await {
        Ok(Answer::NotAsked(why)) | Err(why) if context.kvm.turn != KvmTurn::NotYet => {
            stats::ask(context, &mut seen.stats, why).await
        }
        asked => asked,
    };
    note.put(seen);
    asked
}

async fn by_tracepoints(context: &ProbeContext, seen: &mut Seen) -> Result<Answer, String> {
    let reader = context.kvm.reader.as_ref().ok_or("its counters can't be read")?;
    let (hooks, number) = attached(context).await?;
    let now = Instant::now();
    let goes_on =
        |beginning: &Beginning| beginning.number == number && now - beginning.at < LONGEST_LOOK;
    let read = || reader.of(context.vm.id);
    let beginning = match seen.beginning.take().filter(goes_on) {
        Some(beginning) => beginning,
        None => {
            let counters = read().map_err(|missing| missing.to_string())?;
            Beginning { at: now, number, counters, waited: waited(context) }
        }
    };
    sleep(LOOK_FOR).await;
    let after = read();
    if after.as_ref().is_ok_and(|after| takes_interrupts(&beginning.counters, after)) {
        seen.took_at = Some(Instant::now());
    }
    if after.as_ref().is_ok_and(|after| after.timers_set > beginning.counters.timers_set) {
        seen.set_timer_at = Some(Instant::now());
    }
    let in_this_boot = |at: Option<Instant>| at.is_some_and(|at| at.elapsed() <= context.boot_age);
    let answer = judge(&KvmLook {
        accelerator: &context.vm.accelerator,
        hooks: &hooks,
        before: &Ok(beginning.counters),
        after: &after,
        elapsed: beginning.at.elapsed(),
        waited: longest_wait(beginning.waited.as_deref(), waited(context).as_deref()),
        took_one: in_this_boot(seen.took_at),
        set_timer: in_this_boot(seen.set_timer_at),
        interrupts_are_hidden: interrupts_are_hidden(),
    });
    seen.beginning = Some(beginning);
    Ok(answer)
}

/// What is counted of the VM where this is an arm64 KVM, and in which of its times to be counted; `None` where it isn't.
pub(super) fn waits(context: &ProbeContext) -> Option<(u64, KvmCounters)> {
    let hooks = context.kvm.hooks.borrow().clone();
    let number = hooks.counted.get(&context.vm.id).copied().filter(|_| hooks.is_arm64())?;
    let reader = context.kvm.reader.as_ref()?;
    Some((number, reader.of(context.vm.id).ok()?))
}

/// Waits until the tracepoints count the VM. Returns them, and which of its times to be counted this is.
///
/// # Errors
/// Why they don't.
async fn attached(context: &ProbeContext) -> Result<(KvmHooks, u64), String> {
    match context.kvm.turn {
        KvmTurn::NotYet => return Err("it is asked from the second round on".to_owned()),
        KvmTurn::Waits => return Err(format!("no room: {KVM_ROWS} other suspects are looked at")),
        KvmTurn::Counted => {}
    }
    let number = |hooks: &KvmHooks| hooks.counted.get(&context.vm.id).copied();
    let mut hooks = context.kvm.hooks.clone();
    let counting = timeout(ATTACHED_WITHIN, hooks.wait_for(|hooks| number(hooks).is_some())).await;
    let hooks = counting.ok().and_then(Result::ok).map(|hooks| hooks.clone());
    let (hooks, number) = hooks
        .and_then(|hooks| number(&hooks).map(|number| (hooks, number)))
        .ok_or("KVM's tracepoints are being attached")?;
    match lacks_signs(&hooks) {
        Some(why) => Err(why.to_owned()),
        None => Ok((hooks, number)),
    }
}

/// How long each vCPU of the VM has waited for a CPU of the host so far.
fn waited(context: &ProbeContext) -> Option<Vec<Duration>> {
    let pid = context.vm.id.pid;
    let of_thread = |(_, tid): &(u32, u32)| {
        let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/schedstat")).ok()?;
        text.split_ascii_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
    };
    context.vcpu_threads.iter().map(of_thread).collect()
}

/// How long the vCPU waited in between that waited longest; `None` where that isn't known of each.
fn longest_wait(before: Option<&[Duration]>, after: Option<&[Duration]>) -> Option<Duration> {
    let (before, after) = (before?, after?);
    let waits = before.iter().zip(after).map(|(before, after)| after.saturating_sub(*before));
    if before.len() == after.len() { waits.max() } else { None }
}

/// Whether interrupts were taken or acknowledged in between.
fn takes_interrupts(before: &KvmCounters, after: &KvmCounters) -> bool {
    difference(before, after)
        .is_some_and(|moved| moved.injected + moved.apic_eois + moved.pic_eois > 0)
}

/// Less silence than this says nothing, less the time that the host let a vCPU wait. The longest that an idle Linux leaves a vCPU alone: its watchdog for
/// soft lockups wakes each one every 4 s (`watchdog_thresh * 2 / 5`, kernel/watchdog.c of Linux 6.12).
pub const SHORTEST_SILENCE: Duration = Duration::from_secs(5);

/// Tracepoints of an x86 KVM whose silence means something only together: each is the only one to show some guests' life.
const SIGNS: [&str; 6] =
    ["kvm_vcpu_wakeup", "kvm_entry", "kvm_inj_virq", "kvm_eoi", "kvm_pio", "kvm_msr"];

/// Why this host's KVM can't be asked for interrupts that guests take; `None` where it can, or where its tracepoints
/// were not attached yet.
pub(crate) fn lacks_signs(hooks: &KvmHooks) -> Option<&'static str> {
    let row = |sign: &str| hooks.health.iter().find(|row| row.hook == sign);
    let is_lost = |sign: &str| row(sign).is_some_and(|row| row.failure.is_some());
    // Where all are lost, it isn't for want of tracepoints.
    let others = hooks.health.iter().any(|row| row.failure.is_none());
    (others && ONLY_X86.into_iter().chain(ONLY_ARM64).all(is_lost))
        .then_some("this host's KVM has none of the tracepoints that tell of interrupts taken")
}

/// All that is known when the question is answered.
#[derive(Clone, Copy, Debug)]
pub struct KvmLook<'a> {
    /// What runs the guest.
    pub accelerator: &'a Accelerator,
    /// What is attached now. It must have been attached all the time since `before` was read.
    pub hooks: &'a KvmHooks,
    /// The VM's counters at the beginning.
    pub before: &'a Reading<KvmCounters>,
    /// The VM's counters now.
    pub after: &'a Reading<KvmCounters>,
    /// Time between the two.
    pub elapsed: Duration,
    /// How long the vCPU that waited longest for a CPU of the host did so in between; `None` where that isn't known. A guest that
    /// is not let run takes no interrupt.
    pub waited: Option<Duration>,
    /// Whether this guest was seen to take an interrupt in this boot, or to acknowledge one: whether that can be seen of it.
    pub took_one: bool,
    /// Whether this guest was seen to set its timer in this boot.
    pub set_timer: bool,
    /// Whether the processor delivers interrupts past KVM.
    pub interrupts_are_hidden: bool,
}

/// What KVM says of a suspect: that it took interrupts, that it did nothing which a living guest does (which counts against
/// it only if it did in this boot before), or nothing that means anything.
pub fn judge(look: &KvmLook<'_>) -> Answer {
    if *look.accelerator != Accelerator::Kvm {
        return Answer::NotAsked(format!("it runs under {}, not under KVM", look.accelerator));
    }
    if !look.hooks.sees_any() {
        return Answer::NotAsked("none of KVM's tracepoints is attached".to_owned());
    }
    if let Some(why) = lacks_signs(look.hooks) {
        return Answer::NotAsked(why.to_owned());
    }
    let (before, after) = match (look.before, look.after) {
        (Ok(before), Ok(after)) => (before, after),
        (Err(missing), _) | (_, Err(missing)) => return Answer::NotAsked(missing.to_string()),
    };
    let Some(moved) = difference(before, after) else {
        return Answer::NotAsked("its counters began anew".to_owned());
    };
    let seconds = look.elapsed.as_secs_f64();
    if look.hooks.is_arm64() {
        return arm64::judge(&moved, seconds);
    }
    let signs = named(&[
        (moved.injected, "interrupts taken"),
        (moved.apic_eois + moved.pic_eois, "interrupts acknowledged"),
        (moved.timers_set, "timers set"),
        (moved.resumed, "wakeups from hlt"),
    ]);
    if let Some(signs) = signs {
        return Answer::Lives(format!("{signs} in {seconds:.1} s"));
    }
    let nothing = format!("no interrupt taken in {seconds:.1} s");
    let touched = named(&[
        (moved.pio, "port accesses"),
        (moved.mmio, "accesses to devices' memory"),
        (moved.userspace_exits, "other exits to QEMU"),
    ]);
    if let Some(touched) = touched {
        return Answer::Nothing(format!("{nothing}, but {touched}"));
    }
    if let Some(why) = why_silence_says_nothing(look) {
        return Answer::Nothing(format!("{nothing}, but {why}"));
    }
    let in_vain = named(&[
        (moved.wakeups, "wakeups in vain"),
        (moved.set_irqs, "changes of interrupt lines"),
    ]);
    let in_vain = in_vain.map(|in_vain| format!(" ({in_vain})")).unwrap_or_default();
    Answer::Silent(format!("{nothing}{in_vain}"))
}

fn why_silence_says_nothing(look: &KvmLook<'_>) -> Option<String> {
    let Some(waited) = look.waited else {
        return Some("how long the host let it wait can't be read".to_owned());
    };
    if look.elapsed.saturating_sub(waited) < SHORTEST_SILENCE {
        return Some(format!("only {} s and more say anything", SHORTEST_SILENCE.as_secs()));
    }
    if let Some(missing) = SIGNS.into_iter().find(|tracepoint| !look.hooks.sees(tracepoint)) {
        return Some(format!("{missing} can't be seen"));
    }
    if look.interrupts_are_hidden {
        return hidden::why_silence_says_nothing(
            look.elapsed.saturating_sub(waited),
            look.set_timer,
        );
    }
    // Where a guest resumes without it being seen, an idle one shows only its acknowledgements.
    (!look.took_one).then(|| "it was never seen to take one in this boot".to_owned())
}

/// Those that aren't zero, in words; `None` if all are.
fn named(counts: &[(u64, &str)]) -> Option<String> {
    let mut text = String::new();
    for (count, what) in counts.iter().filter(|(count, _)| *count > 0) {
        let comma = if text.is_empty() { "" } else { ", " };
        // Writing to a string can't fail.
        let _ = write!(text, "{comma}{count} {what}");
    }
    (!text.is_empty()).then_some(text)
}

/// What was counted in between; `None` where a counter went backwards.
pub(super) fn difference(before: &KvmCounters, after: &KvmCounters) -> Option<KvmCounters> {
    let since = |counter: fn(&KvmCounters) -> u64| counter(after).checked_sub(counter(before));
    Some(KvmCounters {
        wakeups: since(|counters| counters.wakeups)?,
        resumed: since(|counters| counters.resumed)?,
        entries: since(|counters| counters.entries)?,
        injected: since(|counters| counters.injected)?,
        apic_eois: since(|counters| counters.apic_eois)?,
        pic_eois: since(|counters| counters.pic_eois)?,
        timers_set: since(|counters| counters.timers_set)?,
        pio: since(|counters| counters.pio)?,
        mmio: since(|counters| counters.mmio)?,
        userspace_exits: since(|counters| counters.userspace_exits)?,
        set_irqs: since(|counters| counters.set_irqs)?,
        waits: since(|counters| counters.waits)?,
        awoken: since(|counters| counters.awoken)?,
    })
}

#[cfg(test)]
mod tests;
