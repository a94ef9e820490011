//! One look at all vCPUs: their registers, and for those that run kernel code what waits for them.

use std::time::Instant;

use super::super::ProbeContext;
use crate::sampler::thread_run_ns;
use flatline_detector::verdict::Answer;
use flatline_qemu::qmp::{
    Lapic, Pic, QmpError, QmpHandle, VcpuRegisters, has_no_lapic, parse_lapic, parse_pic,
    parse_registers,
};

/// Local APICs looked at, at most, each time: one that is sound settles the matter.
const MOST_LAPICS: usize = 8;

/// What one look shows of one vCPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct VcpuSnapshot {
    /// When QEMU had answered.
    pub(super) at: Instant,
    pub(super) registers: VcpuRegisters,
    /// Only asked of a vCPU that runs kernel code, or of one that is stopped where no other is seen to live.
    pub(super) lapic: Option<Lapic>,
    /// Lines of the legacy interrupt controller that want to interrupt this vCPU, and aren't masked.
    pub(super) pic_pending: u8,
    /// CPU time of its thread, in ns; `None`: unknown.
    pub(super) ran_ns: Option<u64>,
}

/// What one look at a vCPU says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VcpuRunState {
    /// In `hlt` with interrupts on: idle.
    Idle,
    /// Runs user code.
    User,
    /// In `hlt` with interrupts off: stopped for good, or never started.
    Stopped,
    /// Runs kernel code with a sound local APIC and interrupts on: may be healthy, may be not.
    Kernel,
    /// Runs kernel code with interrupts off.
    Masked,
    /// Runs kernel code, and its local APIC lets nothing through.
    Unreachable,
}

impl VcpuSnapshot {
    pub(super) fn standing(&self) -> VcpuRunState {
        let registers = &self.registers;
        let unreachable = |lapic: Lapic| !lapic.software_enabled && !lapic.lint0_accepts_external;
        match (registers.halted, registers.interrupts_enabled) {
            (true, true) => VcpuRunState::Idle,
            (true, false) => VcpuRunState::Stopped,
            // Under KVM, a vCPU that waits for its start-up IPI doesn't count as halted.
            (false, false) if registers.is_at_reset_vector() => VcpuRunState::Stopped,
            (false, _) if registers.cpl == 3 => VcpuRunState::User,
            (false, _) if self.lapic.is_some_and(unreachable) => VcpuRunState::Unreachable,
            (false, false) => VcpuRunState::Masked,
            (false, true) => VcpuRunState::Kernel,
        }
    }
}

/// Looks once.
pub(super) async fn look_once(
    context: &ProbeContext,
    qmp: &QmpHandle,
) -> Result<Vec<VcpuSnapshot>, Answer> {
    let text = qmp.human("info registers -a").await.map_err(unavailable)?;
    let at = Instant::now();
    let vcpus = parse_registers(&text).map_err(|error| Answer::NotAsked(error.to_string()))?;
    let mut looks: Vec<VcpuSnapshot> = vcpus
        .into_iter()
        .map(|registers| VcpuSnapshot { at, registers, lapic: None, pic_pending: 0, ran_ns: None })
        .collect();
    let some_lives =
        looks.iter().any(|look| matches!(look.standing(), VcpuRunState::Idle | VcpuRunState::User));
    // The inner guest of a healthy guest hypervisor may be stopped, too.
    let is_asked = |look: &&mut VcpuSnapshot| match look.standing() {
        VcpuRunState::Idle | VcpuRunState::User => false,
        VcpuRunState::Stopped => !some_lives && !look.registers.is_at_reset_vector(),
        VcpuRunState::Kernel | VcpuRunState::Masked | VcpuRunState::Unreachable => true,
    };
    let mut reached_by_pic = Vec::new();
    for look in looks.iter_mut().filter(is_asked).take(MOST_LAPICS) {
        let index = look.registers.index;
        let text = qmp.human(&format!("info lapic {index}")).await.map_err(unavailable)?;
        look.lapic = parse_lapic(&text).ok();
        let takes_external = look.lapic.map(|lapic| lapic.lint0_accepts_external);
        if look.registers.halted {
            continue;
        }
        if takes_external.unwrap_or_else(|| has_no_lapic(&text)) {
            reached_by_pic.push(look);
        } else if look.standing() == VcpuRunState::Masked {
            look.ran_ns = ran_ns(context, index);
        }
    }
    if !reached_by_pic.is_empty() {
        let text = qmp.human("info pic").await.map_err(unavailable)?;
        // What can't be read is no pending interrupt, which convicts no guest.
        let pending = parse_pic(&text).map_or(0, |Pic { pending }| pending);
        for look in reached_by_pic {
            look.pic_pending = pending;
            look.ran_ns = ran_ns(context, look.registers.index);
        }
    }
    Ok(looks)
}

fn ran_ns(context: &ProbeContext, index: u32) -> Option<u64> {
    let threads = &context.vcpu_threads;
    let own = threads.iter().find(|(vcpu, _)| *vcpu == index);
    // TCG may have one thread for all vCPUs.
    let (_, tid) = own.or_else(|| threads.first().filter(|_| threads.len() == 1))?;
    thread_run_ns(context.vm.id.pid, *tid)
}

/// What it means that QEMU did not answer.
pub(in super::super) fn unavailable(error: QmpError) -> Answer {
    match error {
        QmpError::Timeout { .. } => Answer::Unresponsive(error.to_string()),
        _ => Answer::NotAsked(error.to_string()),
    }
}
