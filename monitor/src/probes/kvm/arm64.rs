//! What an arm64 KVM sees a suspect do: a wait that ends a sleep is a sign of life. Pure.
//!
//! Measured on an emulated host with Linux 6.1 and 6.12, 64-bit Linux guests of the same (QEMU 7.2, GICv3), of each vCPU:
//!
//! | vCPU | waits (`kvm_wfx_arm64`) | sleeps that an interrupt ended | CPU time |
//! |---|---|---|---|
//! | idle | some a second | the same | none |
//! | busy | none | none | 100 % |
//! | panicked | none | none; 250 timer interrupts a second | 100 % |
//! | parked by the panic of another (`wfi` with all masked, its timer pending) | up to 30,000 a second | **none** | 100 % |
//! | `halt -f`, the CPU that ran it | none | none | 100 % |
//!
//! So an entry into guest code is no sign of life, nor is a wait that ends at once: the parked CPU's does, since what it masks
//! is pending. Interrupts that are taken aren't either: a panicked kernel takes its timer's. A sleep that one of our own looks
//! at the registers ended is left out where it is counted. No silence speaks against a guest: a busy one is as silent.
//! `query-stats` of QEMU 7.1 and newer has the same figures, of each vCPU: `wfi_exit_stat` are waits, `halt_wakeup` sleeps
//! that an interrupt ended.

use monitor_ebpf::KvmCounters;

use flatline_detector::verdict::Answer;

/// What the vCPUs did in so many seconds.
pub(super) fn judge(moved: &KvmCounters, seconds: f64) -> Answer {
    let KvmCounters { awoken, waits, .. } = *moved;
    if awoken > 0 {
        return Answer::Lives(format!("{awoken} interrupts ended a sleep in {seconds:.1} s"));
    }
    Answer::Nothing(format!("no interrupt ended a sleep in {seconds:.1} s ({waits} waits)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_that_an_interrupt_ended_is_life_and_nothing_else_is() {
        let still = KvmCounters::default();
        let judged = |moved: KvmCounters| judge(&moved, 8.0);
        let lives = "2 interrupts ended a sleep in 8.0 s".to_owned();
        let moved = KvmCounters { wakeups: 9, resumed: 9, awoken: 2, waits: 9, ..still };
        assert_eq!(judged(moved), Answer::Lives(lives));
        for moved in [
            still,
            // Parked.
            KvmCounters { wakeups: 240_000, resumed: 240_000, entries: 240_000, ..still },
            KvmCounters { waits: 240_000, ..still },
            // Panicked or busy.
            KvmCounters { entries: 2_000, mmio: 8, userspace_exits: 8, set_irqs: 1, ..still },
        ] {
            assert!(matches!(judged(moved), Answer::Nothing(_)), "{moved:?}");
        }
    }
}
