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
/// Bits D, A, I and F of `PSTATE` (Arm ARM, C5.2.2 DAIF).
const ALL_MASKED: u32 = 0xf << 6;
/// The mode bits of a CPSR, and user mode among them (Arm ARM, G1.9.1).
const MODE: u32 = 0x1f;
const MODE_USER: u32 = 0x10;
/// Where 32-bit Linux has its kernel at the lowest (`CONFIG_VMSPLIT_2G`).
const KERNEL_32: u64 = 0x8000_0000;

/// What an Arm vCPU runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArmLevel {
    /// User code: exception level 0.
    User,
    /// A kernel of 64 bits: exception level 1.
    Kernel,
    /// A hypervisor's or the firmware's level, or a kernel of 32 bits.
    Other,
}

/// The registers of an Arm vCPU that say what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArmRegisters {
    /// QEMU's number of the vCPU.
    pub index: u32,
    /// The program counter. Under TCG it may be as old as the running translation block.
    pub pc: u64,
    /// The stack pointer of that level; 0 of 32-bit code, where it isn't read.
    pub sp: u64,
    /// What it runs.
    pub level: ArmLevel,
    /// Whether interrupts are masked. So they are in Linux' idle loop while it waits in `wfi`, which ends all the
    /// same when one comes.
    pub irqs_masked: bool,
    /// Whether debug exceptions, system errors, interrupts and fast interrupts are masked, all of them: so a kernel parks
    /// a CPU for good. Never said of 32-bit code.
    pub all_masked: bool,
    /// Whether `pc` lies where operating systems have their kernels.
    pub in_upper_half: bool,
    /// A digest of the general registers and the stack pointer, which changes when one of them does. Comparable only
    /// within this process.
    pub general_digest: u64,
    /// The same of X19 to X28 alone, in which functions keep what outlives their calls: a loop that counts changes one, one
    /// that only polls does not.
    pub kept_digest: u64,
}

impl ArmRegisters {
    /// Whether it is powered off: it stands where a vCPU does that was never started.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.pc == 0 && self.irqs_masked && self.level != ArmLevel::User
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
    let mut read = General::default();
    for line in rest.lines() {
        if let Some(status) = hex(line, "PSTATE") {
            return read.bits_64(index, status, line);
        }
        if let Some(status) = hex(line, "PSR") {
            return read.bits_32(index, status);
        }
        line.split_ascii_whitespace().for_each(|word| read.take(word));
    }
    Err(RegistersError::Field { index, field: "PSTATE or PSR" })
}

/// What the lines before the status say.
#[derive(Default)]
struct General<'a> {
    pc: Option<&'a str>,
    sp: Option<&'a str>,
    all: DefaultHasher,
    kept: DefaultHasher,
}

impl<'a> General<'a> {
    fn take(&mut self, word: &'a str) {
        if let Some(pc) = word.strip_prefix("PC=").or_else(|| word.strip_prefix("R15=")) {
            self.pc = self.pc.or(Some(pc));
            return;
        }
        if let Some(sp) = word.strip_prefix("SP=") {
            self.sp = Some(sp);
        }
        if matches!(word.get(..3), Some("X19" | "X20" | "X21" | "X22" | "X23" | "X24" | "X25"))
            || matches!(word.get(..3), Some("X26" | "X27" | "X28"))
        {
            word.hash(&mut self.kept);
        }
        word.hash(&mut self.all);
    }

    fn pc(&self, index: u32) -> Result<u64, RegistersError> {
        address(self.pc).ok_or(RegistersError::Field { index, field: "PC" })
    }

    fn bits_64(&self, index: u32, status: u32, line: &str) -> Result<ArmRegisters, RegistersError> {
        let pc = self.pc(index)?;
        let sp = address(self.sp).ok_or(RegistersError::Field { index, field: "SP" })?;
        let level = line.split_ascii_whitespace().find_map(|word| word.strip_prefix("EL"));
        let level = match level {
            Some("0t") => ArmLevel::User,
            Some("1t" | "1h") => ArmLevel::Kernel,
            Some("2t" | "2h" | "3t" | "3h") => ArmLevel::Other,
            _ => return Err(RegistersError::Field { index, field: "EL" }),
        };
        let all_masked = status & ALL_MASKED == ALL_MASKED;
        Ok(ArmRegisters { sp, level, all_masked, ..self.common(index, pc, pc >= 1 << 63, status) })
    }

    fn bits_32(&self, index: u32, status: u32) -> Result<ArmRegisters, RegistersError> {
        let pc = self.pc(index)?;
        let level = if status & MODE == MODE_USER { ArmLevel::User } else { ArmLevel::Other };
        Ok(ArmRegisters { level, ..self.common(index, pc, pc >= KERNEL_32, status) })
    }

    fn common(&self, index: u32, pc: u64, in_upper_half: bool, status: u32) -> ArmRegisters {
        ArmRegisters {
            index,
            pc,
            sp: 0,
            level: ArmLevel::Other,
            irqs_masked: status & IRQ_MASKED != 0,
            all_masked: false,
            in_upper_half,
            general_digest: self.all.finish(),
            kept_digest: self.kept.finish(),
        }
    }
}

fn address(digits: Option<&str>) -> Option<u64> {
    u64::from_str_radix(digits?, 16).ok()
}

fn hex(line: &str, key: &str) -> Option<u32> {
    value(line, key).and_then(|digits| u32::from_str_radix(digits, 16).ok())
}

#[cfg(test)]
mod tests;
