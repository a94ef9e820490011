//! Reads the text of `info registers -a` of an Arm QEMU. Pure.
//!
//! The format is that of `aarch64_cpu_dump_state` and `arm_cpu_dump_state` in QEMU's target/arm/cpu.c (5.0 to 10.1),
//! the same under TCG and KVM; a vCPU that executes 32-bit code is printed in the latter's, so that a 64-bit guest
//! shows both, by what its vCPUs do at the moment. A line with `PSTATE=` or `PSR=` ends the general registers; what
//! follows (vectors, floating point) is passed over.
//!
//! There is no flag for `wfi` in it, and nothing of the interrupt controller. Measured on QEMU 7.2: a vCPU that waits
//! in `wfi`, one that loops, and one that is powered off look alike but for where they stand; the last one stands
//! at 0 with nothing in its registers.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::{RegistersError, each_vcpu, value};

/// Interrupts are masked: bit I, in `PSTATE` (Arm ARM, C5.2.2 DAIF) and in the CPSR (G8.2.35) alike.
const IRQ_MASKED: u32 = 1 << 7;
/// The mode bits of a CPSR, and user mode among them (Arm ARM, G1.9.1).
const MODE: u32 = 0x1f;
const MODE_USER: u32 = 0x10;
/// Where 32-bit Linux has its kernel at the lowest (`CONFIG_VMSPLIT_2G`).
const KERNEL_32: u64 = 0x8000_0000;

/// The registers of an Arm vCPU that say what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArmRegisters {
    /// QEMU's number of the vCPU.
    pub index: u32,
    /// The program counter.
    pub pc: u64,
    /// Whether it runs user code: exception level 0.
    pub user: bool,
    /// Whether interrupts are masked. So they are in Linux' idle loop while it waits in `wfi`, which ends all the
    /// same when one comes.
    pub irqs_masked: bool,
    /// Whether `pc` lies where operating systems have their kernels.
    pub in_upper_half: bool,
    /// A digest of the general registers, which changes when one of them does. Comparable only within this process.
    pub general_digest: u64,
}

impl ArmRegisters {
    /// Whether it is powered off: it stands where a vCPU does that was never started.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.pc == 0 && self.irqs_masked && !self.user
    }
}

/// Reads `info registers -a` of an Arm guest, in the order in which QEMU prints the vCPUs.
///
/// # Errors
/// [`RegistersError`]; one unreadable vCPU makes the whole text unreadable.
pub fn parse_arm_registers(text: &str) -> Result<Vec<ArmRegisters>, RegistersError> {
    each_vcpu(text, parse_vcpu)
}

fn parse_vcpu(block: &str) -> Result<ArmRegisters, RegistersError> {
    let (number, rest) = block.split_once('\n').unwrap_or((block, ""));
    let index = number.trim().parse().map_err(|_| RegistersError::NoIndex)?;
    let mut general = DefaultHasher::new();
    let mut pc = None;
    for line in rest.lines() {
        if let Some(status) = hex(line, "PSTATE") {
            return vcpu(index, pc, status, Kind::Bits64(line), &general);
        }
        if let Some(status) = hex(line, "PSR") {
            return vcpu(index, pc, status, Kind::Bits32, &general);
        }
        pc = pc.or_else(|| value(line, "PC").or_else(|| value(line, "R15")));
        line.hash(&mut general);
    }
    Err(RegistersError::Field { index, field: "PSTATE or PSR" })
}

/// How the vCPU is printed.
enum Kind<'a> {
    /// With this line, which names the exception level.
    Bits64(&'a str),
    Bits32,
}

fn vcpu(
    index: u32,
    pc: Option<&str>,
    status: u32,
    kind: Kind<'_>,
    general: &DefaultHasher,
) -> Result<ArmRegisters, RegistersError> {
    let pc = pc
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .ok_or(RegistersError::Field { index, field: "PC" })?;
    let (user, in_upper_half) = match kind {
        Kind::Bits64(line) => {
            let level = line.split_ascii_whitespace().find_map(|word| word.strip_prefix("EL"));
            let user = match level {
                Some("0t") => true,
                Some("1t" | "1h" | "2t" | "2h" | "3t" | "3h") => false,
                _ => return Err(RegistersError::Field { index, field: "EL" }),
            };
            (user, pc >= 1 << 63)
        }
        Kind::Bits32 => (status & MODE == MODE_USER, pc >= KERNEL_32),
    };
    Ok(ArmRegisters {
        index,
        pc,
        user,
        irqs_masked: status & IRQ_MASKED != 0,
        in_upper_half,
        general_digest: general.finish(),
    })
}

fn hex(line: &str, key: &str) -> Option<u32> {
    value(line, key).and_then(|digits| u32::from_str_radix(digits, 16).ok())
}

#[cfg(test)]
mod tests;
