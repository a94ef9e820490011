//! Silence where the processor delivers interrupts past KVM. Pure.
//!
//! Where the processor delivers interrupts itself (APICv, AVIC), which was not measured, this is what the source of Linux 6.12
//! says: `kvm_inj_virq` never fires for the local APIC's, and `kvm_eoi` only for those of a line, by the exit that an EOI then
//! induces. `kvm_apicv_accept_irq` and `kvm_pi_irte_update` tell what is sent to a vCPU, a dead one as well, and the preemption
//! timer's exits that its time is up: no life. Left are a `hlt` that it goes on behind, and a TSC deadline that it sets, which
//! is an exit even so (`handle_fastpath_set_msr_irqoff`). So one that was seen to set its timer in this boot has to go on
//! doing so; of any other, as on a periodic timer, silence says nothing.

use std::time::Duration;

/// Less silence than this says nothing here, where the timer alone tells. Not measured: three times what it takes elsewhere, and
/// short enough for several rounds that agree within one look.
pub(super) const SHORTEST_SILENCE: Duration = Duration::from_secs(15);

/// Why a silence of so long says nothing of a guest, which was seen to set its timer in this boot or was not.
pub(super) fn why_silence_says_nothing(silence: Duration, set_timer: bool) -> Option<String> {
    let hidden = "the processor delivers interrupts past KVM";
    if !set_timer {
        return Some(format!("{hidden}, and it was never seen to set its timer in this boot"));
    }
    let is_short = silence < SHORTEST_SILENCE;
    is_short
        .then(|| format!("{hidden}: only {} s and more say anything", SHORTEST_SILENCE.as_secs()))
}
