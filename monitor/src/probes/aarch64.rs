//! What the registers of an Arm guest say: that it lives, or nothing.
//!
//! An Arm vCPU has no flag for `wfi`, and waits in it with interrupts masked: Linux' idle loop stands at one spot at
//! EL1 with `PSTATE` ..0c5, and so does a CPU that `halt -f` has stopped. One that a panic parked loops in `wfi` with
//! all masked, and the one that panicked takes timer interrupts in its delay loop (measured on Linux 6.1 and 6.12
//! under KVM; QEMU shows nothing of the interrupt controller). So nothing here counts against a guest. User code does
//! for it: the kernel that returned to it lives.

use std::time::Duration;

use tokio::time::sleep;

use super::registers::unavailable;
use flatline_detector::verdict::Answer;
use flatline_qemu::qmp::{ArmRegisters, QmpHandle, parse_arm_registers};

/// Time between two looks: a guest that computes is in its kernel for moments only.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Looks in one round.
const LOOKS_PER_ROUND: usize = 3;

/// Looks at all vCPUs [`LOOKS_PER_ROUND`] times, [`LOOK_EVERY`] apart; one that shows life is enough.
pub(super) async fn look(qmp: &QmpHandle) -> Answer {
    let mut looks = Vec::with_capacity(LOOKS_PER_ROUND);
    for n in 0..LOOKS_PER_ROUND {
        if n > 0 {
            sleep(LOOK_EVERY).await;
        }
        let text = match qmp.human("info registers -a").await {
            Ok(text) => text,
            Err(error) => return unavailable(error),
        };
        match parse_arm_registers(&text) {
            Ok(look) => looks.push(look),
            Err(error) => return Answer::NotAsked(error.to_string()),
        }
        let answer = classify(&looks);
        if answer.acquits() {
            return answer;
        }
    }
    classify(&looks)
}

/// What several looks say together.
fn classify(looks: &[Vec<ArmRegisters>]) -> Answer {
    // The kernel masks no interrupt of the code that it returns to: such a one isn't its user code.
    let is_user_code = |vcpu: &&ArmRegisters| vcpu.user && !vcpu.irqs_masked;
    if let Some(vcpu) = looks.iter().flatten().find(is_user_code) {
        return Answer::Lives(format!("vCPU {} runs user code", vcpu.index));
    }
    let (Some(first), Some(last)) = (looks.first(), looks.last()) else {
        return Answer::NotAsked("QEMU was not asked".to_owned());
    };
    let moved = first.iter().zip(last).find(|(first, last)| first != last);
    let started = last.iter().find(|vcpu| !vcpu.is_off());
    Answer::Neither(match (moved, started) {
        (Some((vcpu, _)), _) => format!("vCPU {} runs kernel code", vcpu.index),
        (None, Some(vcpu)) => {
            format!("vCPU {} waits or loops in kernel mode at {:#x}", vcpu.index, vcpu.pc)
        }
        (None, None) => "no vCPU was started".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vcpu(index: u32, pc: u64, user: bool, irqs_masked: bool) -> ArmRegisters {
        ArmRegisters {
            index,
            pc,
            user,
            irqs_masked,
            in_upper_half: pc >> 63 != 0,
            general_digest: 7,
        }
    }

    const KERNEL: u64 = 0xffff_8000_0808_0000;

    #[test]
    fn user_code_in_any_look_of_any_vcpu_acquits() {
        let idle = [vcpu(0, KERNEL, false, true), vcpu(1, KERNEL, false, true)];
        let busy = [vcpu(0, KERNEL, false, true), vcpu(1, 0x40_1000, true, false)];
        let answer = classify(&[idle.to_vec(), busy.to_vec(), idle.to_vec()]);
        assert_eq!(answer, Answer::Lives("vCPU 1 runs user code".to_owned()));
    }

    #[test]
    fn user_code_that_no_interrupt_can_end_is_no_life() {
        let odd = vec![vcpu(0, 0x40_1000, true, true)];
        assert!(matches!(classify(&[odd.clone(), odd]), Answer::Neither(_)));
    }

    #[test]
    fn nothing_that_a_kernel_does_counts_for_it_or_against_it() {
        let off = vcpu(1, 0, false, true);
        let waits = vec![vcpu(0, KERNEL, false, true), off];
        let loops = vec![vcpu(0, KERNEL, false, false), off];
        let moved = vec![ArmRegisters { general_digest: 8, ..vcpu(0, KERNEL, false, true) }, off];
        for (looks, said) in [
            (
                [waits.clone(), waits.clone()],
                "vCPU 0 waits or loops in kernel mode at 0xffff800008080000",
            ),
            ([loops.clone(), loops], "vCPU 0 waits or loops in kernel mode at 0xffff800008080000"),
            ([waits, moved], "vCPU 0 runs kernel code"),
            ([vec![off], vec![off]], "no vCPU was started"),
        ] {
            assert_eq!(classify(&looks), Answer::Neither(said.to_owned()));
        }
        assert!(matches!(classify(&[]), Answer::NotAsked(_)));
    }
}
