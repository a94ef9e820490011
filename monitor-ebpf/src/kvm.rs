//! Programs on KVM's tracepoints, which count what a suspect's vCPUs do: attached only while some suspect is asked for the
//! second time or more, so that the healthy pay nothing the rest of the time.
//!
//! All hook in as raw tracepoints (4.17; those of a module, 5.0): they attach as fast as BTF-typed ones, and
//! need no BTF, which a KVM that is a module has in a file of its own. Of their arguments, only numbers are
//! read. Each costs a look-up of the current process, and a suspect an addition; most fire in the vCPU's own thread,
//! so that the process tells which VM it belongs to. None counts what an interrupt does that hits a QEMU by chance.
//!
//! One object serves every architecture: each KVM has some of these tracepoints, and user space goes by those that could be
//! attached. Argument lists: include/trace/events/kvm.h, arch/x86/kvm/trace.h and arch/arm64/kvm/trace_arm.h of Linux 6.12;
//! arm64's are the same in 6.1.

use aya_ebpf::{
    helpers::{
        bpf_get_current_pid_tgid, bpf_probe_read_kernel, generated::bpf_get_smp_processor_id,
    },
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use monitor_ebpf::{KVM_SLEPT, KVM_WOKEN, KvmRow};

use crate::{maps::KVM, vms::add_atomically};

/// `KVM_PIO_OUT` (arch/x86/kvm/trace.h).
const OUT: u32 = 1;
/// Command ports of the two interrupt controllers of a PC.
const PIC_COMMAND: [u32; 2] = [0x20, 0xa0];
/// Of a command byte, the bits that tell an *end of interrupt* from the other commands (OCW2 of the 8259A).
const PIC_EOI_MASK: u8 = 0x38;
const PIC_EOI: u8 = 0x20;
/// `EINTR` as KVM reports that a signal brought the vCPU out: QEMU's doing, not the guest's.
const INTERRUPTED: i32 = -4;

/// Registers by which a guest sets a timer to fire: `MSR_IA32_TSC_DEADLINE`, the initial count of an x2APIC,
/// and the synthetic timers of Hyper-V, which Windows uses.
#[inline(always)]
fn is_timer(msr: u32) -> bool {
    matches!(msr, 0x6e0 | 0x838 | 0x4000_00b0..=0x4000_00b7)
}

/// The row of the current process, if it is a QEMU that is counted, and the id of its thread.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the lower half is the thread")]
fn current() -> Option<(&'static mut KvmRow, u32)> {
    let ids = bpf_get_current_pid_tgid();
    let row = KVM.get_ptr_mut((ids >> 32) as u32)?;
    // SAFETY: the map's memory stays for as long as the map. Other CPUs write the row at the same time: counters by atomic
    // additions alone, and of `woken` any value that is lost makes one sign of life fewer, and never one too many. A row
    // that was removed and given to another VM meanwhile may count one event of this one; user space judges by many.
    Some((unsafe { &mut *row }, ids as u32))
}

/// Which of a row's threads is this CPU's.
#[inline(always)]
fn lane() -> usize {
    // SAFETY: plain call.
    let cpu = unsafe { bpf_get_smp_processor_id() } as usize;
    cpu & (KVM_WOKEN - 1)
}

/// A vCPU came out of `hlt` or `wfi`: by an interrupt, but also by a signal, or by its timer with interrupts off.
///
/// Hook: `raw_tp/kvm_vcpu_wakeup` with `waited` as second argument, which is false where it didn't sleep, and `valid` as third,
/// which only s390 clears.
#[raw_tracepoint(tracepoint = "kvm_vcpu_wakeup")]
pub(crate) fn kvm_woken(ctx: RawTracePointContext) -> i32 {
    if let Some((row, thread)) = current()
        && ctx.arg::<u8>(2) != 0
    {
        add_atomically(&mut row.counters.wakeups, 1);
        let slept = if ctx.arg::<u8>(1) != 0 { KVM_SLEPT } else { 0 };
        row.woken[lane()] = thread | slept;
    }
    0
}

/// A vCPU runs guest code. The first time after it was woken, it left `hlt` behind: an x86 one that is halted for good is put
/// back to sleep without an entry, whatever woke it. An arm64 one goes on behind its `wfi`, whatever ended that.
///
/// Hook: `raw_tp/kvm_entry`.
#[raw_tracepoint(tracepoint = "kvm_entry")]
pub(crate) fn kvm_entered(_ctx: RawTracePointContext) -> i32 {
    if let Some((row, thread)) = current() {
        add_atomically(&mut row.counters.entries, 1);
        let woken = &mut row.woken[lane()];
        // On the same CPU within microseconds; a thread that moved in between is not counted.
        let slept = *woken & KVM_SLEPT != 0;
        if *woken & !KVM_SLEPT == thread {
            *woken = 0;
            add_atomically(&mut row.counters.resumed, 1);
            if slept {
                add_atomically(&mut row.counters.awoken, 1);
            }
        }
    }
    0
}

/// A vCPU takes an interrupt. Where the processor delivers them itself (APICv, AVIC), it rarely fires.
///
/// Hook: `raw_tp/kvm_inj_virq`.
#[raw_tracepoint(tracepoint = "kvm_inj_virq")]
pub(crate) fn kvm_injected(_ctx: RawTracePointContext) -> i32 {
    if let Some((row, _)) = current() {
        add_atomically(&mut row.counters.injected, 1);
    }
    0
}

/// The guest told its local APIC that it is done with an interrupt.
///
/// Hook: `raw_tp/kvm_eoi` with the vector as second argument, negative where none was in service.
#[raw_tracepoint(tracepoint = "kvm_eoi")]
pub(crate) fn kvm_eoi(ctx: RawTracePointContext) -> i32 {
    if ctx.arg::<i32>(1) >= 0
        && let Some((row, _)) = current()
    {
        add_atomically(&mut row.counters.apic_eois, 1);
    }
    0
}

/// The guest used a port. An *end of interrupt* for a PC's old interrupt controllers counts apart: a guest
/// that panicked may go on using others, as Linux does to blink the keyboard's lights.
///
/// Hook: `raw_tp/kvm_pio` with direction, port, size, count and data.
#[raw_tracepoint(tracepoint = "kvm_pio")]
pub(crate) fn kvm_port(ctx: RawTracePointContext) -> i32 {
    let Some((row, _)) = current() else { return 0 };
    add_atomically(&mut row.counters.pio, 1);
    if ctx.arg::<u32>(0) == OUT && PIC_COMMAND.contains(&ctx.arg(1)) {
        let data: *const u8 = ctx.arg(4);
        // SAFETY: the helper takes any address, and says so if it can't be read.
        let command = unsafe { bpf_probe_read_kernel(data) };
        if command.is_ok_and(|command| command & PIC_EOI_MASK == PIC_EOI) {
            add_atomically(&mut row.counters.pic_eois, 1);
        }
    }
    0
}

/// The guest used a device's memory.
///
/// Hook: `raw_tp/kvm_mmio`.
#[raw_tracepoint(tracepoint = "kvm_mmio")]
pub(crate) fn kvm_memory(_ctx: RawTracePointContext) -> i32 {
    if let Some((row, _)) = current() {
        add_atomically(&mut row.counters.mmio, 1);
    }
    0
}

/// The guest set a timer. Where the processor delivers interrupts itself, this is what shows of them.
///
/// Hook: `raw_tp/kvm_msr` with direction (1: write) and register as first arguments.
#[raw_tracepoint(tracepoint = "kvm_msr")]
pub(crate) fn kvm_register(ctx: RawTracePointContext) -> i32 {
    if ctx.arg::<u32>(0) == 1
        && is_timer(ctx.arg(1))
        && let Some((row, _)) = current()
    {
        add_atomically(&mut row.counters.timers_set, 1);
    }
    0
}

/// A vCPU of an arm64 guest begins to wait.
///
/// Hook: `raw_tp/kvm_wfx_arm64` with `is_wfe` as second argument: that waits for another CPU, and not for an interrupt.
#[raw_tracepoint(tracepoint = "kvm_wfx_arm64")]
pub(crate) fn kvm_waits(ctx: RawTracePointContext) -> i32 {
    if ctx.arg::<u8>(1) == 0
        && let Some((row, _)) = current()
    {
        add_atomically(&mut row.counters.waits, 1);
    }
    0
}

/// A vCPU went back to QEMU. Where QEMU called it, that is what ended its sleep, and none of the guest's doing.
///
/// Hook: `raw_tp/kvm_userspace_exit` with reason and error.
#[raw_tracepoint(tracepoint = "kvm_userspace_exit")]
pub(crate) fn kvm_left(ctx: RawTracePointContext) -> i32 {
    let Some((row, thread)) = current() else { return 0 };
    if ctx.arg::<i32>(1) != INTERRUPTED {
        add_atomically(&mut row.counters.userspace_exits, 1);
        return 0;
    }
    // It may have moved to another CPU since.
    for woken in &mut row.woken {
        if *woken & !KVM_SLEPT == thread {
            *woken = 0;
        }
    }
    0
}

/// QEMU raised or lowered the line of an interrupt, whether the guest takes it or not. What a thread of the
/// kernel raises for the VM (its timer chip, vhost) is not counted.
///
/// Hook: `raw_tp/kvm_set_irq`.
#[raw_tracepoint(tracepoint = "kvm_set_irq")]
pub(crate) fn kvm_line(_ctx: RawTracePointContext) -> i32 {
    if let Some((row, _)) = current() {
        add_atomically(&mut row.counters.set_irqs, 1);
    }
    0
}
